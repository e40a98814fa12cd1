//! JSON bodies, taken apart field by field so that a wrong one is named to the client. The
//! content type is not looked at, and unknown fields are left alone. What the values mean is for
//! the database to judge.

use axum::{
    body::Bytes, extract::rejection::BytesRejection, http::StatusCode, response::IntoResponse,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::Error;

/// The longest name and user id, in characters: PostgreSQL's `varchar(255)`.
const TEXT_LIMIT: usize = 255;

/// A field as it stands in the body; none where it is missing or null.
pub(super) type Field<'a> = Option<&'a RawValue>;

/// The whole body, as far as it could be received.
pub(super) fn received(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Error> {
    body.map_err(|rejection| match rejection.into_response().status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::BodyTooLarge,
        _ => Error::Invalid("the body could not be received".into()),
    })
}

/// The fields of a JSON object.
pub(super) fn fields<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    // Serde would take an array for a struct's fields in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::Invalid("the body must be a JSON object".into()));
    }
    serde_json::from_slice(body)
        .map_err(|error| Error::Invalid(format!("the body is not valid JSON: {error}").into()))
}

/// A text that PostgreSQL can hold in a `varchar(255)`, and not empty.
pub(super) fn text(name: &str, field: Field<'_>) -> Result<String, Error> {
    let text: String = serde_json::from_str(present(name, field)?.get())
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
