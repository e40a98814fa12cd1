//! Pages of lists: `?limit=…&after=…`, and a `Link` to the next page (RFC 8288).

use axum::http::{HeaderName, HeaderValue, header::LINK};
use utoipa::IntoParams;

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

impl PageQuery {
    /// Parses a query string.
    ///
    /// # Errors
    /// A parameter is unknown, repeated or out of range: a client that misspells `after` must not read the first page
    /// for ever.
    pub fn from_query(query: Option<&str>) -> Result<Self, Error> {
        let (mut limit, mut after) = (None, None);
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let parameter = match name.as_ref() {
                "limit" => &mut limit,
                "after" => &mut after,
                other => {
                    return Err(invalid(format!(
                        "there is no query parameter {other:?}: known are limit and after"
                    )));
                }
            };
            if parameter.replace(value).is_some() {
                return Err(invalid(format!("{name} is given twice")));
            }
        }
        Ok(Self {
            limit: number("limit", limit.as_deref(), 100, 1, MOST)?,
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
    ) -> Result<Option<[(HeaderName, HeaderValue); 1]>, Error> {
        let limit = self.limit;
        if entries.len() <= limit as usize {
            return Ok(None);
        }
        entries.truncate(limit as usize);
        let after = entries.last().map_or(self.after, id);
        let link = format!("<{path}?limit={limit}&after={after}>; rel=\"next\"");
        let link = HeaderValue::try_from(link).map_err(|error| Error::Internal(error.into()))?;
        Ok(Some([(LINK, link)]))
    }
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
    fn a_page_links_to_the_next_one_if_there_is_one() {
        let page = PageQuery { limit: 2, after: 0 };
        let mut entries = vec![3, 5, 9];
        let link = page.cut(&mut entries, |id| *id, "/list").unwrap().unwrap();
        assert_eq!(entries, [3, 5]);
        assert_eq!(link[0].1, "</list?limit=2&after=5>; rel=\"next\"");
        assert!(page.cut(&mut entries, |id| *id, "/list").unwrap().is_none());
    }
}
