//! `Idempotency-Key`: the key by which a repeated request is recognized.

use axum::{
    extract::FromRequestParts,
    http::{HeaderName, HeaderValue, request::Parts},
};

use crate::error::Error;

/// Request header with the key.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Header of an answer to a repeated request: the claim was made by an earlier one.
pub(crate) const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// [`IDEMPOTENCY_REPLAYED`] with its value.
pub(crate) const REPLAYED: [(HeaderName, HeaderValue); 1] =
    [(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"))];

/// The longest key, in characters: PostgreSQL's `varchar(255)`.
const KEY_LIMIT: usize = 255;

/// The key of a request; none if it has no such header.
pub(crate) struct RequestKey(pub Option<String>);

impl<S: Sync> FromRequestParts<S> for RequestKey {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let mut values = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(Self(None)),
            (Some(value), None) => Ok(Self(Some(key(value)?))),
            (Some(_), Some(_)) => Err(Error::Invalid(
                "Idempotency-Key must be there once at most".into(),
            )),
        }
    }
}

fn key(value: &HeaderValue) -> Result<String, Error> {
    match value.to_str() {
        Ok(key)
            if (1..=KEY_LIMIT).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Ok(key.to_owned())
        }
        _ => Err(Error::Invalid(
            format!("Idempotency-Key must have 1 to {KEY_LIMIT} visible ASCII characters").into(),
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_visible_characters() {
        let long = "k".repeat(255);
        for accepted in [
            "a",
            "8e03978e-40d5-43dd-bc93-6894a57f9324",
            "\"k\"",
            "~!",
            &long,
        ] {
            assert_eq!(
                key(&HeaderValue::from_str(accepted).unwrap()).unwrap(),
                accepted
            );
        }
        let longer = "k".repeat(256);
        for refused in ["", "a b", "a\tb", &longer] {
            assert!(
                key(&HeaderValue::from_str(refused).unwrap()).is_err(),
                "{refused}"
            );
        }
        assert!(key(&HeaderValue::from_bytes("schlüssel".as_bytes()).unwrap()).is_err());
    }
}
