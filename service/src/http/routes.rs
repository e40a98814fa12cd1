//! The routes: one file per resource.

pub(crate) mod claims;
pub(crate) mod coupons;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod holds;
pub(crate) mod metrics;
pub(crate) mod stock;
pub(crate) mod users;

use std::time::Duration;

use axum::{
    body::Body,
    extract::{Path, rejection::PathRejection},
    http::{
        HeaderName, HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    database::Applied,
    error::Error,
    http::{
        extract::{caller::Claimer, fields},
        json::Object,
    },
    outcome::{Operation, Outcome},
    telemetry::metrics::metrics,
};

/// Header of answers about stock and claims: they are of one moment, and no cache may store them.
const NO_STORE: [(HeaderName, HeaderValue); 1] =
    [(CACHE_CONTROL, HeaderValue::from_static("no-store"))];

/// All but the unreserved characters of RFC 3986.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The shortest wait before a claim is worth another attempt.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// Answer to an operation of a user on a coupon.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Done<'a> {
    #[schema(example = "coupon claimed")]
    message: &'a str,
    #[schema(example = "user_12345")]
    user_id: &'a str,
    #[schema(example = "PROMO_SUPER")]
    coupon_name: &'a str,
}

impl Done<'_> {
    fn json(&self) -> Vec<u8> {
        let Self {
            message,
            user_id,
            coupon_name,
        } = self;
        Object::begin(message.len() + user_id.len() + coupon_name.len() + 64)
            .text("message", message)
            .text("user_id", user_id)
            .text("coupon_name", coupon_name)
            .end()
    }
}

impl IntoResponse for &Done<'_> {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json()));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }
}

/// Path of the coupon of this name.
fn coupon_path(name: &str) -> String {
    format!("/api/coupons/{}", segment(name))
}

/// A text as a segment of a path.
fn segment(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, PATH_SEGMENT)
}

/// Takes the name of a coupon from the path.
///
/// # Errors
/// No coupon can have this name. A segment that is not UTF-8 names nothing.
fn coupon_name(name: Result<Path<String>, PathRejection>) -> Result<String, Error> {
    match name {
        Ok(Path(name)) if fields::fault(&name).is_none() => Ok(name),
        _ => Err(Error::COUPON_NOT_FOUND),
    }
}

/// Takes the names of a coupon and a user from the path, for an operation of this user.
///
/// # Arguments
/// `absent`: the outcome of the operation if there can be no such user.
///
/// # Errors
/// The caller may not act for this user, or nothing can have these names.
fn operands(
    claimer: &Claimer,
    names: Result<Path<(String, String)>, PathRejection>,
    absent: Outcome,
) -> Result<(String, String), Error> {
    // A segment that is not UTF-8 names nothing.
    let (name, user_id) = names.map_or_else(|_| Default::default(), |Path(names)| names);
    claimer.claims_for(&user_id)?;
    if fields::fault(&name).is_some() {
        return Err(Error::COUPON_NOT_FOUND);
    }
    if fields::fault(&user_id).is_some() {
        return Err(Error::Refused(absent));
    }
    Ok((name, user_id))
}

/// The error of an operation that was refused.
fn refused(applied: &Applied) -> Error {
    match applied.outcome {
        Outcome::AllHeld => {
            let first_expiry = applied.first_expiry.unwrap_or_default();
            Error::AllHeld(first_expiry.max(SHORTEST_WAIT))
        }
        refusal => Error::Refused(refusal),
    }
}

/// Answers an operation of a user: with `done` if it had the outcome `success`, else with its refusal.
fn answer(applied: &Applied, success: Outcome, done: &Done<'_>) -> Result<Response, Error> {
    if applied.outcome == success {
        Ok(done.into_response())
    } else {
        Err(refused(applied))
    }
}

/// Counts an operation that takes no lane.
fn count<T>(
    operation: Operation,
    answer: Result<T, Error>,
    outcome: impl Fn(&T) -> Outcome,
) -> Result<T, Error> {
    match &answer {
        Ok(answer) => metrics().carried_out(operation, outcome(answer)),
        Err(_) => metrics().failed(operation),
    }
    answer
}

/// An invalid request, for the description.
fn invalid() -> Error {
    Error::Invalid("amount must be a whole number from 1 to 2147483647".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_the_json_that_is_described() {
        let done = Done {
            message: "coupon claimed",
            user_id: "a \"user\"",
            coupon_name: "PROMO",
        };
        assert_eq!(done.json(), serde_json::to_vec(&done).unwrap());
    }
}
