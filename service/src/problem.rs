//! What an error looks like to the client: `application/problem+json` as in RFC 9457, with the
//! request's id.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tracing::error;

use crate::error::Error;

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
        let mut response = self.0.problem().0.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Failure::from(self).into_response()
    }
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives every request an id, its own if it brought a sane one, and every error its body.
pub(crate) async fn answer(request: Request, next: Next) -> Response {
    let id = match request.headers().get(REQUEST_ID) {
        Some(id) if is_sane(id) => id.clone(),
        _ => new_request_id(),
    };
    let mut response = next.run(request).await;
    if let Some(Failure(error)) = response.extensions_mut().remove() {
        write_problem(&error, &id, &mut response);
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn write_problem(error: &Error, id: &HeaderValue, response: &mut Response) {
    #[derive(Serialize)]
    struct Problem<'a> {
        #[serde(rename = "type")]
        kind: std::fmt::Arguments<'a>,
        title: &'a str,
        status: u16,
        detail: &'a str,
        code: &'a str,
        request_id: &'a str,
        error: &'a str,
    }
    let request_id = id.to_str().unwrap_or_default();
    error.log(request_id);
    let (status, code, title, detail) = error.problem();
    let problem = Problem {
        kind: format_args!("urn:problem-type:honcho:{code}"),
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
    *response.body_mut() = Body::from(body);
    let headers = response.headers_mut();
    // The router may have set the length of the empty body.
    headers.remove(CONTENT_LENGTH);
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
}

/// Ids go to logs and back to clients, so what could disturb either is not taken over.
fn is_sane(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len())
        && id
            .as_bytes()
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
}

/// Unique across processes by a random prefix, within one by a count.
fn new_request_id() -> HeaderValue {
    static PREFIX: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(()));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    HeaderValue::try_from(format!("{:016x}-{count:x}", *PREFIX))
        .unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_request_ids_are_taken_over() {
        let long = "a".repeat(128);
        for sane in ["a", "0af7651916cd43dd8448eb211c80319c", "a-b_c.d:e", &long] {
            assert!(is_sane(&HeaderValue::from_str(sane).unwrap()), "{sane}");
        }
        let longer = "a".repeat(129);
        for other in ["", "a b", "a\"b", "a\tb", "<a>", "a=b", &longer] {
            assert!(!is_sane(&HeaderValue::from_str(other).unwrap()), "{other}");
        }
        assert!(!is_sane(&HeaderValue::from_bytes(b"\xff").unwrap()));
        assert!(is_sane(&new_request_id()));
        assert_ne!(new_request_id(), new_request_id());
    }
}
