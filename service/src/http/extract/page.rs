//! Pages of lists: `?limit=…&after=…`, and a `Link` to the next page (RFC 8288).

use std::borrow::Cow;

use axum::http::{HeaderName, HeaderValue, header::LINK};
use percent_encoding::percent_decode_str;
use utoipa::IntoParams;

use super::fields::fault;
use crate::error::Error;

/// Most entries on a page.
const MOST: i32 = 1000;

/// Requested part of a list.
#[derive(Clone, Copy, Debug, IntoParams, PartialEq, Eq)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// Most entries to return.
    #[param(required = false, minimum = 1, maximum = 1000, default = 100)]
    pub limit: i32,
    /// `id` of the last entry of the page before; 0 for the first page.
    #[param(
        required = false,
        minimum = 0,
        maximum = 9223372036854775807_i64,
        default = 0
    )]
    pub after: i64,
}

/// Requested part of a list that is in the order of users' ids.
#[derive(Clone, Debug, IntoParams, PartialEq, Eq)]
#[into_params(parameter_in = Query)]
pub(crate) struct UserPageQuery {
    /// Most entries to return.
    #[param(required = false, minimum = 1, maximum = 1000, default = 100)]
    pub limit: i32,
    /// `user_id` of the last entry of the page before; absent for the first page.
    #[param(required = false, max_length = 255, pattern = "^[^\\u0000]*$")]
    pub after: String,
}

impl PageQuery {
    /// Parses a query string.
    ///
    /// # Errors
    /// A parameter is unknown, repeated or out of range: a client that misspells `after` must not read the first page
    /// for ever.
    pub fn from_query(query: Option<&str>) -> Result<Self, Error> {
        let [limit, after] = parameters(query, ["limit", "after"])?;
        Ok(Self {
            limit: limit_of(limit)?,
            after: number("after", after.as_deref(), 0, 0, i64::MAX)?,
        })
    }

    /// Number of rows to read: one more than the page has, to find out if there are more.
    pub fn rows(self) -> i32 {
        self.limit + 1
    }

    /// Cuts `entries` to the page, and returns the link to the next page at `path`, if there is one.
    pub fn cut<T>(
        self,
        entries: &mut Vec<T>,
        id: impl Fn(&T) -> i64,
        path: &str,
    ) -> Result<Option<Link>, Error> {
        cut(self.limit, entries, path, |entry| id(entry).to_string())
    }
}

impl UserPageQuery {
    /// Parses a query string.
    ///
    /// # Errors
    /// A parameter is unknown, repeated or out of range.
    pub fn from_query(query: Option<&str>) -> Result<Self, Error> {
        let [limit, after] = parameters(query, ["limit", "after"])?;
        let after = after.unwrap_or_default();
        // An empty text is the beginning.
        if let Some(fault) = fault(&after).filter(|_| !after.is_empty()) {
            return Err(invalid(format!("after {fault}")));
        }
        Ok(Self {
            limit: limit_of(limit)?,
            after: after.into_owned(),
        })
    }

    /// Number of rows to read: one more than the page has, to find out if there are more.
    pub fn rows(&self) -> i32 {
        self.limit + 1
    }

    /// Cuts `entries` to the page, and returns the link to the next page at `path`, if there is one.
    pub fn cut<T>(
        &self,
        entries: &mut Vec<T>,
        user_id: impl Fn(&T) -> &str,
        path: &str,
    ) -> Result<Option<Link>, Error> {
        cut(self.limit, entries, path, |entry| {
            form_urlencoded::byte_serialize(user_id(entry).as_bytes()).collect()
        })
    }
}

/// The `Link` header of a page.
pub(crate) type Link = [(HeaderName, HeaderValue); 1];

/// Cuts `entries` to `limit`, and links to the page after the last of them, if there are more.
fn cut<T>(
    limit: i32,
    entries: &mut Vec<T>,
    path: &str,
    after: impl Fn(&T) -> String,
) -> Result<Option<Link>, Error> {
    if entries.len() <= limit as usize {
        return Ok(None);
    }
    entries.truncate(limit as usize);
    let after = entries.last().map(after).unwrap_or_default();
    let link = format!("<{path}?limit={limit}&after={after}>; rel=\"next\"");
    let link = HeaderValue::try_from(link).map_err(|error| Error::Internal(error.into()))?;
    Ok(Some([(LINK, link)]))
}

/// Parses a query string that has no other parameters than `names`, each at most once.
///
/// # Errors
/// A parameter is unknown, repeated or no UTF-8.
pub(crate) fn parameters<'a, const COUNT: usize>(
    query: Option<&'a str>,
    names: [&str; COUNT],
) -> Result<[Option<Cow<'a, str>>; COUNT], Error> {
    let mut values = [const { None }; COUNT];
    for pair in query.unwrap_or_default().split('&') {
        let Some((name, value)) = form_urlencoded::parse(pair.as_bytes()).next() else {
            continue;
        };
        let Some(place) = names.iter().position(|known| *known == name) else {
            let known = names.join(" and ");
            let verb = if COUNT == 1 { "is" } else { "are" };
            return Err(invalid(format!(
                "there is no query parameter {name:?}: known {verb} {known}"
            )));
        };
        // The parser has replaced what is no UTF-8, which would be another value.
        if percent_decode_str(pair).decode_utf8().is_err() {
            return Err(invalid(format!("{name} must be valid UTF-8")));
        }
        if values[place].replace(value).is_some() {
            return Err(invalid(format!("{name} is given twice")));
        }
    }
    Ok(values)
}

fn limit_of(value: Option<Cow<'_, str>>) -> Result<i32, Error> {
    number("limit", value.as_deref(), 100, 1, MOST)
}

/// Parses the value of the parameter `name`, which has only decimal digits.
fn number<N>(name: &str, value: Option<&str>, default: N, low: N, high: N) -> Result<N, Error>
where
    N: std::str::FromStr + std::fmt::Display + PartialOrd,
{
    let Some(value) = value else {
        return Ok(default);
    };
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse() {
        Ok(number) if digits && low <= number && number <= high => Ok(number),
        _ => Err(invalid(format!(
            "{name} must be a whole number from {low} to {high}"
        ))),
    }
}

fn invalid(reason: String) -> Error {
    Error::Invalid(reason.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_or_refused_by_name() {
        let page = |limit, after| PageQuery { limit, after };
        for (query, expected) in [
            (None, page(100, 0)),
            (Some(""), page(100, 0)),
            (Some("limit=1"), page(1, 0)),
            (Some("after=7&limit=1000"), page(1000, 7)),
            (Some("after=9223372036854775807"), page(100, i64::MAX)),
            (Some("%6Cimit=%35"), page(5, 0)),
            (Some("&&limit=5&"), page(5, 0)),
        ] {
            assert_eq!(PageQuery::from_query(query).unwrap(), expected, "{query:?}");
        }
        for (query, named) in [
            ("limit=0", "limit "),
            ("limit=1001", "limit "),
            ("limit=-1", "limit "),
            ("limit=+1", "limit "),
            ("limit=", "limit "),
            ("limit", "limit "),
            ("limit=ten", "limit "),
            ("limit=99999999999999999999", "limit "),
            ("after=-1", "after "),
            ("after=1.5", "after "),
            ("after=9223372036854775808", "after "),
            ("after=%00", "after "),
            ("after=%FF", "after must be valid UTF-8"),
            ("%FF=1", "no query parameter"),
            ("limit=1&limit=1", "limit is given twice"),
            ("offset=1", "\"offset\""),
            ("Limit=1", "\"Limit\""),
            ("=", "\"\""),
        ] {
            let Err(Error::Invalid(reason)) = PageQuery::from_query(Some(query)) else {
                panic!("{query} was accepted");
            };
            assert!(reason.contains(named), "{query}: {reason}");
        }
    }

    #[test]
    fn pages_of_users_begin_after_any_user() {
        let page = |after: &str| UserPageQuery {
            limit: 100,
            after: after.to_owned(),
        };
        for (query, expected) in [
            (None, page("")),
            (Some("after="), page("")),
            (Some("after=a%2Fb+%C3%A9%26c"), page("a/b é&c")),
            (Some("after=%EF%BF%BD"), page("\u{fffd}")),
        ] {
            let read = UserPageQuery::from_query(query).unwrap();
            assert_eq!(read, expected, "{query:?}");
            let mut users = vec![expected.after.clone(), "other".to_owned()];
            let one = UserPageQuery { limit: 1, ..read };
            let link = one.cut(&mut users, |user| user, "/list").unwrap().unwrap();
            let link = link[0].1.to_str().unwrap();
            let (_, query) = link.split_once('?').unwrap();
            let next = query.strip_suffix(">; rel=\"next\"").unwrap();
            assert_eq!(UserPageQuery::from_query(Some(next)).unwrap(), one);
        }
        let long = format!("after={}", "a".repeat(256));
        for (query, named) in [
            ("after=%00", "after must not contain NUL"),
            ("after=%FC", "after must be valid UTF-8"),
            ("after=m%C3", "after must be valid UTF-8"),
            ("limit=1&after=%ED%A0%80", "after must be valid UTF-8"),
            (&*long, "after must have at most 255"),
            ("after=a&after=b", "after is given twice"),
            ("limit=0", "limit "),
            ("user=a", "\"user\""),
        ] {
            let Err(Error::Invalid(reason)) = UserPageQuery::from_query(Some(query)) else {
                panic!("{query} was accepted");
            };
            assert!(reason.contains(named), "{query}: {reason}");
        }
    }

    #[test]
    fn a_page_links_to_the_next_one_if_there_is_one() {
        let page = PageQuery { limit: 2, after: 0 };
        let mut entries = vec![3, 5, 9];
        let link = page.cut(&mut entries, |id| *id, "/list").unwrap().unwrap();
        assert_eq!(entries, [3, 5]);
        assert_eq!(link[0].1, "</list?limit=2&after=5>; rel=\"next\"");
        assert!(page.cut(&mut entries, |id| *id, "/list").unwrap().is_none());
    }
}
