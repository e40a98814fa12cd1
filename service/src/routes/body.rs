//! JSON bodies, taken apart field by field so that a wrong one is named to the client. An unknown field is
//! refused: a client that misspells `ends_at` must not get a sale without an end. The content type is not
//! looked at. What the values mean is for the database to judge.

use std::{borrow::Cow, error::Error as _, time::Duration};

use axum::{
    body::{Bytes, HttpBody, to_bytes},
    extract::{FromRef, FromRequest, Request},
};
use http_body_util::LengthLimitError;
use serde::Deserialize;
use serde_json::{error::Category, value::RawValue};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::{
    BODY_LIMIT,
    admission::{Place, Room},
    error::Error,
    serve::Peer,
};

/// The longest name and user id, in characters: PostgreSQL's `varchar(255)`.
const TEXT_LIMIT: usize = 255;

/// A field as it stands in the body; none where it is missing or null.
pub(super) type Field<'a> = Option<&'a RawValue>;

/// How long a body may take to arrive.
#[derive(Clone, Copy, Debug)]
pub struct BodyTimeout(pub Duration);

/// The whole body, and the place that its request has from then on.
pub(crate) struct Received(pub Bytes, pub Place);

impl<S: Send + Sync> FromRequest<S> for Received
where
    BodyTimeout: FromRef<S>,
    Room: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        // Before a client that waits for `100 Continue` is told to send it.
        if request.body().size_hint().lower() > BODY_LIMIT as u64 {
            return Err(Error::BodyTooLarge);
        }
        let BodyTimeout(limit) = BodyTimeout::from_ref(state);
        // From the head to the last byte: a limit between bytes would let a body drip for ever.
        let peer = request.extensions().get::<Peer>().cloned();
        let body = to_bytes(request.into_body(), BODY_LIMIT);
        match Peer::within(peer.as_ref(), limit, body).await {
            Some(Ok(body)) => {
                if let Some(peer) = &peer {
                    peer.has_sent_all();
                }
                Ok(Self(body, Room::from_ref(state).take()?))
            }
            Some(Err(error))
                if error
                    .source()
                    .is_some_and(|cause| cause.is::<LengthLimitError>()) =>
            {
                Err(Error::BodyTooLarge)
            }
            Some(Err(_)) => Err(Error::Invalid("the body could not be received".into())),
            None => Err(Error::BodyTimeout),
        }
    }
}

/// The fields of a JSON object.
pub(super) fn fields<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    // Serde would take an array for a struct's fields in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::Invalid("the body must be a JSON object".into()));
    }
    serde_json::from_slice(body).map_err(|error| {
        let fault = match error.classify() {
            // Values are taken as they stand, so all that can be wrong is a field's name.
            Category::Data => "the body does not fit",
            _ => "the body is not valid JSON",
        };
        Error::Invalid(format!("{fault}: {error}").into())
    })
}

/// A text that PostgreSQL can hold in a `varchar(255)`, and not empty; the body's own where nothing in
/// it is escaped.
pub(super) fn text<'a>(name: &str, field: Field<'a>) -> Result<Cow<'a, str>, Error> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    let Text(text) = serde_json::from_str(present(name, field)?.get())
        .map_err(|_| Error::Invalid(format!("{name} must be a string of valid Unicode").into()))?;
    match fault(&text) {
        None => Ok(text),
        Some(fault) => Err(Error::Invalid(format!("{name} {fault}").into())),
    }
}

/// A whole number from 1 that PostgreSQL can hold in an `integer`.
pub(super) fn count(name: &str, field: Field<'_>) -> Result<i32, Error> {
    match serde_json::from_str(present(name, field)?.get()) {
        Ok(count @ 1..) => Ok(count),
        _ => Err(Error::Invalid(
            format!("{name} must be a whole number from 1 to {}", i32::MAX).into(),
        )),
    }
}

/// A moment of RFC 3339, with its offset, in whole microseconds as PostgreSQL keeps it; none if the field is
/// missing or null.
pub(super) fn moment(name: &str, field: Field<'_>) -> Result<Option<OffsetDateTime>, Error> {
    let Some(field) = field else { return Ok(None) };
    let text: Option<Cow<'_, str>> = serde_json::from_str(field.get()).ok();
    match text.as_deref().and_then(parse_moment) {
        Some(moment) => Ok(Some(moment)),
        None => Err(Error::Invalid(
            format!(
                "{name} must be a moment with its offset (RFC 3339), such as 2026-11-27T12:00:00+01:00"
            )
            .into(),
        )),
    }
}

fn parse_moment(text: &str) -> Option<OffsetDateTime> {
    // The crate takes any separator, and a leap second for the second before.
    let is_strict = matches!(text.as_bytes().get(10), Some(b'T' | b't'))
        && text.get(17..19).is_some_and(|second| second < "60");
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .filter(|_| is_strict)?;
    // The years that RFC 3339 can write hold in UTC too, for that is how the moment is shown.
    let moment = moment.checked_to_offset(UtcOffset::UTC)?;
    let whole = moment.microsecond() * 1000;
    (moment.year() >= 1)
        .then(|| moment.replace_nanosecond(whole).ok())
        .flatten()
}

/// Why this text cannot be a name or a user id, if it cannot.
pub(super) fn fault(text: &str) -> Option<&'static str> {
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
    fn moments_have_a_date_a_time_and_an_offset() {
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
            let moment = parse_moment(text).unwrap();
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
            assert_eq!(parse_moment(wrong), None, "{wrong}");
        }
    }
}
