//! JSON bodies, taken apart field by field so that a wrong one is named to the client. The
//! content type is not looked at, and unknown fields are left alone. What the values mean is for
//! the database to judge.

use std::{borrow::Cow, error::Error as _, time::Duration};

use axum::{
    body::{Bytes, to_bytes},
    extract::{FromRef, FromRequest, Request},
};
use http_body_util::LengthLimitError;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{BODY_LIMIT, error::Error, serve::Peer};

/// The longest name and user id, in characters: PostgreSQL's `varchar(255)`.
const TEXT_LIMIT: usize = 255;

/// A field as it stands in the body; none where it is missing or null.
pub(super) type Field<'a> = Option<&'a RawValue>;

/// How long a body may take to arrive.
#[derive(Clone, Copy, Debug)]
pub struct BodyTimeout(pub Duration);

/// The whole body.
pub(crate) struct Received(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Received
where
    BodyTimeout: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let BodyTimeout(limit) = BodyTimeout::from_ref(state);
        // From the head to the last byte: a limit between bytes would let a body drip for ever.
        let peer = request.extensions().get::<Peer>().cloned();
        let body = to_bytes(request.into_body(), BODY_LIMIT);
        match Peer::within(peer.as_ref(), limit, body).await {
            Some(Ok(body)) => Ok(Self(body)),
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
    serde_json::from_slice(body)
        .map_err(|error| Error::Invalid(format!("the body is not valid JSON: {error}").into()))
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
