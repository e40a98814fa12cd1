//! Answers to errors: `application/problem+json` (RFC 9457) with the request's id.

mod catalog;
mod log;

use std::time::Duration;

use axum::{
    body::Body,
    http::{
        HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use opentelemetry::trace::TraceId;
use serde::Serialize;
use utoipa::ToSchema;

pub(crate) use self::catalog::{Entry, codes, entry};
use crate::{
    auth::{Denied, Scope},
    error::{Error, SharedError},
    http::json::Object,
};

/// The ids by which a request is found in logs and traces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestIds<'a> {
    pub request_id: &'a str,
    pub trace_id: Option<TraceId>,
}

impl IntoResponse for SharedError {
    /// An answer without a body: the request log, which knows the request's id, writes it with
    /// `write_problem`.
    fn into_response(self) -> Response {
        let mut response = entry(self.get()).status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        SharedError::from(self).into_response()
    }
}

/// Body of an error (RFC 9457).
#[derive(Serialize, ToSchema)]
pub(crate) struct Problem<'a> {
    /// Problem type: a URN that ends with the code.
    #[serde(rename = "type")]
    #[schema(value_type = String, format = "uri", example = "urn:problem-type:honcho:sold_out")]
    kind: &'a str,
    /// Short description of the problem type, for people.
    #[schema(example = "Sold out")]
    title: &'a str,
    /// Status of the answer.
    #[schema(minimum = 400, maximum = 599, example = 409)]
    status: u16,
    /// Explanation of this occurrence, for people.
    #[schema(example = "no stock of this coupon is left")]
    detail: &'a str,
    /// Stable name of the problem type, for programs.
    #[schema(example = "sold_out")]
    code: &'a str,
    /// Id of the request, also in the log.
    #[schema(example = "b2f6c0a1d3e4f586-1a")]
    request_id: &'a str,
    /// The code again, under the name that older clients look for.
    #[schema(example = "sold_out")]
    error: &'a str,
}

/// Serializes the problem of this error.
pub(crate) fn body(error: &Error, request_id: &str) -> Vec<u8> {
    let Entry {
        status,
        kind,
        code,
        title,
        detail,
    } = entry(error);
    let problem = Problem {
        kind,
        title,
        status: status.as_u16(),
        detail: &detail,
        code,
        request_id,
        error: code,
    };
    problem.json()
}

impl Problem<'_> {
    fn json(&self) -> Vec<u8> {
        // Most problems fit, and a sale is mostly refusals.
        Object::begin(384)
            .text("type", self.kind)
            .text("title", self.title)
            .number("status", self.status)
            .text("detail", self.detail)
            .text("code", self.code)
            .text("request_id", self.request_id)
            .text("error", self.error)
            .end()
    }
}

/// Gives an answer the body and the headers of its error, and logs the error if an operator needs it.
pub(crate) fn write_problem(error: &SharedError, ids: RequestIds<'_>, response: &mut Response) {
    let error = error.get();
    log::log(error, ids);
    *response.body_mut() = Body::from(body(error, ids.request_id));
    let status = response.status();
    let headers = response.headers_mut();
    // The router may have set the length of the empty body.
    headers.remove(CONTENT_LENGTH);
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    // Caches may keep some errors otherwise.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match error {
        Error::RateLimited(wait) | Error::AllHeld(wait) => {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(*wait)));
        }
        Error::Denied(denied) => {
            if let Some(challenge) = challenge(*denied) {
                headers.insert(WWW_AUTHENTICATE, challenge);
            }
        }
        _ if status == StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
}

/// Value of `WWW-Authenticate` (RFC 6750): a request without a token gets no error in it.
fn challenge(denied: Denied) -> Option<HeaderValue> {
    let value = match denied {
        Denied::NoToken => return Some(HeaderValue::from_static(r#"Bearer realm="honcho""#)),
        Denied::InvalidToken(reason) => {
            format!(r#"Bearer realm="honcho", error="invalid_token", error_description="{reason}""#)
        }
        Denied::NoScope(scope) => missing_scope(scope),
        Denied::ForeignSubject => return None,
    };
    Some(HeaderValue::try_from(value).unwrap_or_else(|_| HeaderValue::from_static("Bearer")))
}

fn missing_scope(scope: Scope) -> String {
    format!(r#"Bearer realm="honcho", error="insufficient_scope", scope="{scope}""#)
}

/// Rounds up to whole seconds, so that a client that waits that long has waited long enough.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn problem_is_the_json_that_is_described() {
        let problem = Problem {
            kind: "urn:problem-type:honcho:invalid",
            title: "Invalid",
            status: 400,
            detail: "a \"detail\"",
            code: "invalid",
            request_id: "1",
            error: "invalid",
        };
        assert_eq!(problem.json(), serde_json::to_vec(&problem).unwrap());
    }
}
