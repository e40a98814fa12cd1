//! Fields of JSON bodies, parsed one by one so that the error names the wrong one. An unknown field is an error: a
//! client that misspells `ends_at` must not get a sale without an end. The database judges the values.

use std::{borrow::Cow, ops::RangeInclusive, time::Duration};

use serde::{Deserialize, Deserializer};
use serde_json::{error::Category, value::RawValue};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::{database::Bound, error::Error};

/// The longest name and user id, in characters: PostgreSQL's `varchar(255)`.
const TEXT_LIMIT: usize = 255;

/// The longest time for which a piece is held, in seconds.
const SECONDS_OF_DAY: i32 = 24 * 60 * 60;

/// The unparsed value of a field; none if it is missing or null.
pub(crate) type Field<'a> = Option<&'a RawValue>;

/// Deserializes a field of a JSON merge patch, where null is a value: it removes something.
pub(crate) fn with_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Field<'de>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Parses a JSON object as a struct of fields.
///
/// # Errors
/// The body is no JSON object, or has an unknown field.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    // Serde would take an array for a struct's fields in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::Invalid("the body must be a JSON object".into()));
    }
    // Checked as a whole: given bytes, serde_json checks each text by itself.
    let body = str::from_utf8(body)
        .map_err(|error| Error::Invalid(format!("the body is not valid JSON: {error}").into()))?;
    serde_json::from_str(body).map_err(|error| {
        let fault = match error.classify() {
            // Values are not parsed yet, so only a field's name can be wrong.
            Category::Data => "the body does not fit",
            _ => "the body is not valid JSON",
        };
        Error::Invalid(format!("{fault}: {error}").into())
    })
}

/// Parses a text of 1 to 255 characters. It is borrowed from the body if nothing in it is escaped.
///
/// # Errors
/// The field is missing or no such text.
pub(crate) fn text<'a>(name: &str, field: Field<'a>) -> Result<Cow<'a, str>, Error> {
    parse_text(present(name, field)?)
        .map_err(|fault| Error::Invalid(format!("{name} {fault}").into()))
}

/// Parses a list of 1 to `most` texts, each as [`text`] does.
///
/// # Errors
/// The field is missing or no such list; the text names the first wrong element by its place, from 0 on.
pub(crate) fn texts<'a>(
    name: &str,
    field: Field<'a>,
    most: usize,
) -> Result<Vec<Cow<'a, str>>, Error> {
    let list: Option<Vec<&RawValue>> = serde_json::from_str(present(name, field)?.get()).ok();
    let list = list.filter(|list| (1..=most).contains(&list.len()));
    let list = list.ok_or_else(|| {
        Error::Invalid(format!("{name} must be a list of 1 to {most} strings").into())
    })?;
    let texts = list.into_iter().enumerate().map(|(place, raw)| {
        parse_text(raw).map_err(|fault| Error::Invalid(format!("{name}[{place}] {fault}").into()))
    });
    texts.collect()
}

fn parse_text(raw: &RawValue) -> Result<Cow<'_, str>, &'static str> {
    #[derive(Deserialize)]
    struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);

    // The value is known to be JSON, so without a backslash, all between quotation marks is the text.
    let quoted = raw.get().strip_prefix('"');
    let text = match quoted.and_then(|text| text.strip_suffix('"')) {
        Some(text) if !text.contains('\\') => Cow::Borrowed(text),
        _ => {
            let parsed = serde_json::from_str(raw.get());
            let Borrowed(text) = parsed.map_err(|_| "must be a string of valid Unicode")?;
            text
        }
    };
    match fault(&text) {
        None => Ok(text),
        Some(fault) => Err(fault),
    }
}

/// Parses a whole number from 1 to the largest `integer` of PostgreSQL.
///
/// # Errors
/// The field is missing or no such number.
pub(crate) fn count(name: &str, field: Field<'_>) -> Result<i32, Error> {
    number(name, field, 1..=i32::MAX)
}

/// Parses a whole number in this range.
///
/// # Errors
/// The field is missing or no such number.
pub(crate) fn number(
    name: &str,
    field: Field<'_>,
    range: RangeInclusive<i32>,
) -> Result<i32, Error> {
    match serde_json::from_str(present(name, field)?.get()) {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => {
            let (low, high) = range.into_inner();
            Err(Error::Invalid(
                format!("{name} must be a whole number from {low} to {high}").into(),
            ))
        }
    }
}

/// Parses true or false.
///
/// # Errors
/// The field is missing or neither.
pub(crate) fn flag(name: &str, field: Field<'_>) -> Result<bool, Error> {
    serde_json::from_str(present(name, field)?.get())
        .map_err(|_| Error::Invalid(format!("{name} must be true or false").into()))
}

/// Parses a time in whole seconds, up to a day; none if the field is missing or null.
///
/// # Errors
/// The field is no such time.
pub(crate) fn seconds(name: &str, field: Field<'_>) -> Result<Option<Duration>, Error> {
    if field.is_none() {
        return Ok(None);
    }
    let seconds = number(name, field, 1..=SECONDS_OF_DAY)?;
    Ok(Some(Duration::from_secs(seconds.unsigned_abs().into())))
}

/// Parses the bound of a window in a JSON merge patch: a timestamp, or null to remove it; none if the field is missing.
///
/// # Errors
/// The field is neither.
pub(crate) fn bound(name: &str, field: Field<'_>) -> Result<Option<Bound>, Error> {
    match field {
        Some(raw) if raw.get() == "null" => Ok(Some(Bound::Removed)),
        field => Ok(timestamp(name, field)?.map(Bound::At)),
    }
}

/// Parses a timestamp of RFC 3339 with an offset, cut to microseconds as PostgreSQL stores it; none if the field is
/// missing or null.
///
/// # Errors
/// The field is no such timestamp.
pub(crate) fn timestamp(name: &str, field: Field<'_>) -> Result<Option<OffsetDateTime>, Error> {
    let Some(field) = field else { return Ok(None) };
    let text: Option<Cow<'_, str>> = serde_json::from_str(field.get()).ok();
    match text.as_deref().and_then(parse_timestamp) {
        Some(moment) => Ok(Some(moment)),
        None => Err(Error::Invalid(
            format!(
                "{name} must be a moment with its offset (RFC 3339), such as 2026-11-27T12:00:00+01:00"
            )
            .into(),
        )),
    }
}

fn parse_timestamp(text: &str) -> Option<OffsetDateTime> {
    // The crate accepts any separator, and reads a leap second as the second before.
    let is_strict = matches!(text.as_bytes().get(10), Some(b'T' | b't'))
        && text.get(17..19).is_some_and(|second| second < "60");
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .filter(|_| is_strict)?;
    // In UTC, too, the year must be one of RFC 3339: that is how the timestamp is shown.
    let moment = moment.checked_to_offset(UtcOffset::UTC)?;
    let whole = moment.microsecond() * 1000;
    (moment.year() >= 1)
        .then(|| moment.replace_nanosecond(whole).ok())
        .flatten()
}

/// Returns the reason why this text cannot be a name or a user id, if there is one.
pub(crate) fn fault(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        Some("must not be empty")
    } else if text.contains('\0') {
        Some("must not contain NUL characters")
    } else if text.len() > TEXT_LIMIT && text.chars().count() > TEXT_LIMIT {
        Some("must have at most 255 characters")
    } else {
        None
    }
}

fn present<'a>(name: &str, field: Field<'a>) -> Result<&'a RawValue, Error> {
    field.ok_or_else(|| Error::Invalid(format!("{name} is required").into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_a_date_a_time_and_an_offset() {
        for (text, seconds, micros) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("1970-01-01t00:00:00z", 0, 0),
            ("2026-11-27T12:00:00Z", 1_795_780_800, 0),
            ("2026-11-27T13:00:00+01:00", 1_795_780_800, 0),
            ("2026-11-27T06:30:00-05:30", 1_795_780_800, 0),
            ("2026-11-27T12:00:00-00:00", 1_795_780_800, 0),
            ("2026-11-27T12:00:00.5Z", 1_795_780_800, 500_000),
            ("2026-11-27T12:00:00.1234569Z", 1_795_780_800, 123_456),
            ("9999-12-31T23:59:59.999999Z", 253_402_300_799, 999_999),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
        ] {
            let moment = parse_timestamp(text).unwrap();
            assert_eq!(moment.unix_timestamp(), seconds, "{text}");
            assert_eq!(moment.nanosecond(), micros * 1000, "{text}");
        }
        for wrong in [
            "",
            "now",
            "infinity",
            "-infinity",
            "tomorrow",
            "1795780800",
            "2026-11-27",
            "2026-11-27T12:00:00",
            "2026-11-27T12:00Z",
            "2026-11-27T12Z",
            "2026-11-27 12:00:00Z",
            "2026-11-27T12:00:00 Z",
            "2026-11-27T12:00:00Z ",
            " 2026-11-27T12:00:00Z",
            "2026-11-27T12:00:00+01",
            "2026-11-27T12:00:00+0100",
            "2026-11-27T12:00:00+24:00",
            "2026-11-27T12:00:00+01:60",
            "2026-11-27T12:00:00 Europe/Berlin",
            "2026-11-27T12:00:00.Z",
            "2026-11-27T12:00:00,5Z",
            "2026-11-27T12:00:60Z",
            "2016-12-31T23:59:60Z",
            "2026-11-27T12:60:00Z",
            "2026-11-27T24:00:00Z",
            "2026-02-29T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-00-01T12:00:00Z",
            "20261127T120000Z",
            "2026-W48-5T12:00:00Z",
            "26-11-27T12:00:00Z",
            "+2026-11-27T12:00:00Z",
            "10000-01-01T00:00:00Z",
            "0000-12-31T23:59:59Z",
            // Beyond what can be shown, in UTC.
            "9999-12-31T23:59:59-00:01",
            "0001-01-01T00:00:00+00:01",
            "2026\u{2010}11-27T12:00:00Z",
        ] {
            assert_eq!(parse_timestamp(wrong), None, "{wrong}");
        }
    }
}
