//! The place from which a client resumes a stream: `Last-Event-ID`, or `?after=…` on its first connection.

use axum::http::{HeaderMap, HeaderName};

use super::page::parameters;
use crate::error::Error;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Parses the id of the last event that a client has received; none if it begins a stream. Browsers repeat the query
/// when they connect again, so the header counts.
///
/// # Errors
/// The header or a parameter is malformed, unknown or given twice.
pub(crate) fn last_event_id(
    headers: &HeaderMap,
    query: Option<&str>,
) -> Result<Option<i64>, Error> {
    let ids = last_event_ids(headers, query, 1)?;
    Ok(ids.and_then(|ids| ids.first().copied()))
}

/// The same for a stream of all coupons, whose ids are those of `count` shards, joined by hyphens.
pub(crate) fn last_event_ids(
    headers: &HeaderMap,
    query: Option<&str>,
    count: usize,
) -> Result<Option<Vec<i64>>, Error> {
    let [after] = parameters(query, ["after"])?;
    let after = after
        .map(|after| ids("after", after.as_bytes(), count))
        .transpose()?;
    let mut values = headers.get_all(LAST_EVENT_ID).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(after),
        (Some(value), None) => ids("Last-Event-ID", value.as_bytes(), count).map(Some),
        (Some(_), Some(_)) => Err(invalid("Last-Event-ID is given twice".to_owned())),
    }
}

/// Parses `count` ids, which have only decimal digits.
fn ids(name: &str, value: &[u8], count: usize) -> Result<Vec<i64>, Error> {
    let is_id = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let ids: Option<Vec<i64>> = str::from_utf8(value).ok().and_then(|text| {
        text.split('-')
            .map(|id| Some(id).filter(is_id)?.parse().ok())
            .collect()
    });
    ids.filter(|ids| ids.len() == count).ok_or_else(|| {
        invalid(match count {
            1 => format!(
                "{name} must be the id of an event: a whole number from 0 to {}",
                i64::MAX
            ),
            _ => format!(
                "{name} must be an id of this stream: {count} whole numbers, joined by hyphens"
            ),
        })
    })
}

fn invalid(reason: String) -> Error {
    Error::Invalid(reason.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(headers: &[&str], query: &str) -> Result<Option<i64>, String> {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(LAST_EVENT_ID, value.parse().unwrap());
        }
        last_event_id(&map, Some(query)).map_err(|error| error.to_string())
    }

    #[test]
    fn ids_are_read_or_refused_by_name() {
        for (headers, query, expected) in [
            (&[][..], "", None),
            (&["0"], "", Some(0)),
            (&[], "after=17", Some(17)),
            (&["18"], "after=17", Some(18)),
            (&["9223372036854775807"], "", Some(i64::MAX)),
        ] {
            assert_eq!(read(headers, query), Ok(expected), "{headers:?} {query}");
        }
        for (headers, query, named) in [
            (&[""][..], "", "Last-Event-ID "),
            (&["-1"], "", "Last-Event-ID "),
            (&["+1"], "", "Last-Event-ID "),
            (&["1.5"], "", "Last-Event-ID "),
            (&["9223372036854775808"], "", "Last-Event-ID "),
            (&["1, 2"], "", "Last-Event-ID "),
            (&["1", "1"], "", "Last-Event-ID is given twice"),
            (&["1"], "after=x", "after "),
            (&[], "after=", "after "),
            (&[], "after=%FF", "after must be valid UTF-8"),
            (&[], "after=1&after=1", "after is given twice"),
            (&[], "limit=1", "\"limit\""),
        ] {
            let reason = read(headers, query).unwrap_err();
            assert!(reason.contains(named), "{headers:?} {query}: {reason}");
        }
    }

    #[test]
    fn streams_of_all_shards_resume_from_an_id_of_each() {
        let read = |text: &str| {
            let query = format!("after={text}");
            last_event_ids(&HeaderMap::new(), Some(&query), 2).map_err(|error| error.to_string())
        };
        assert_eq!(read("17-0"), Ok(Some(vec![17, 0])));
        for text in ["", "17", "17-", "-17", "1-2-3", "1--2", "1-x", "1,2"] {
            let reason = read(text).unwrap_err();
            assert!(reason.contains("2 whole numbers"), "{text}: {reason}");
        }
    }
}
