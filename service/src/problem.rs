//! What an error looks like to the client: `application/problem+json` as in RFC 9457, with the
//! request's id.

mod told;

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{
        HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;

pub(crate) use self::told::{CODES, Told, told};
use crate::{access::Scope, boundary::Identity, error::Error};

/// An error on its way to the layer that writes it out, which knows the request's id. A batch that
/// failed shares one among its requests.
#[derive(Clone, Debug)]
pub struct Failure(Arc<Error>);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(Arc::new(error))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = told(&self.0).status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Failure::from(self).into_response()
    }
}

/// A problem's body, as RFC 9457 has it.
#[derive(Serialize, ToSchema)]
pub(crate) struct Problem<'a> {
    /// A URN that ends with the code.
    #[serde(rename = "type")]
    #[schema(value_type = String, format = "uri", example = "urn:problem-type:honcho:sold_out")]
    kind: &'a str,
    /// What kind of problem it is, for people.
    #[schema(example = "Sold out")]
    title: &'a str,
    /// The answer's status.
    #[schema(minimum = 400, maximum = 599, example = 409)]
    status: u16,
    /// What is wrong with this request, for people.
    #[schema(example = "no stock of this coupon is left")]
    detail: &'a str,
    /// What kind of problem it is, for programs: these do not change.
    #[schema(example = "sold_out")]
    code: &'a str,
    /// The request's id, which the log has as well.
    #[schema(example = "b2f6c0a1d3e4f586-1a")]
    request_id: &'a str,
    /// The code again, under the name that older clients look for.
    #[schema(example = "sold_out")]
    error: &'a str,
}

/// The body of this error's problem.
pub(crate) fn body(error: &Error, request_id: &str) -> Vec<u8> {
    let Told {
        status,
        kind,
        code,
        title,
        detail,
    } = told(error);
    let problem = Problem {
        kind,
        title,
        status: status.as_u16(),
        detail: &detail,
        code,
        request_id,
        error: code,
    };
    // Most problems fit, and a sale is mostly refusals.
    let mut body = Vec::with_capacity(384);
    if let Err(error) = serde_json::to_writer(&mut body, &problem) {
        error!(request_id, "a problem could not be written: {error}");
    }
    body
}

/// Gives an answer the body and the headers of its error, and logs what an operator must know.
pub(crate) fn write_problem(
    Failure(error): &Failure,
    identity: Identity<'_>,
    response: &mut Response,
) {
    error.log(identity);
    *response.body_mut() = Body::from(body(error, identity.request_id));
    let status = response.status();
    let headers = response.headers_mut();
    // The router may have set the length of the empty body.
    headers.remove(CONTENT_LENGTH);
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    // Caches may keep some errors unless they are told.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match &**error {
        Error::RateLimited(wait) => {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(*wait)));
        }
        Error::Unauthorized(reason) => {
            headers.insert(WWW_AUTHENTICATE, challenge(*reason));
        }
        Error::Forbidden(scope) => {
            headers.insert(WWW_AUTHENTICATE, missing_scope(*scope));
        }
        _ if status == StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
}

/// As RFC 6750 has it: whoever showed no token is not told of an error.
fn challenge(reason: Option<&str>) -> HeaderValue {
    match reason {
        None => HeaderValue::from_static(r#"Bearer realm="honcho""#),
        Some(reason) => HeaderValue::try_from(format!(
            r#"Bearer realm="honcho", error="invalid_token", error_description="{reason}""#
        ))
        .unwrap_or_else(|_| HeaderValue::from_static("Bearer")),
    }
}

fn missing_scope(scope: Scope) -> HeaderValue {
    HeaderValue::try_from(format!(
        r#"Bearer realm="honcho", error="insufficient_scope", scope="{scope}""#
    ))
    .unwrap_or_else(|_| HeaderValue::from_static("Bearer"))
}

/// Rounded up, so that who waits so long has waited long enough.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
