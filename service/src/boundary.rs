//! The boundary: what every request passes on its way in and out. It gives it an id and a trace,
//! writes out its error, and counts and logs it.

mod streamed;

use std::{
    error::Error,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue, Method, StatusCode},
    response::Response,
};
use opentelemetry::trace::{FutureExt, TraceId};

use self::streamed::Streamed;
use crate::{
    admission::PROBES,
    problem::{self, Failure},
    telemetry::{
        metrics::{Underway, metrics},
        traces::Trace,
    },
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The route of requests for which there is none.
const UNMATCHED: &str = "unmatched";

/// By what a request is found again in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity<'a> {
    pub request_id: &'a str,
    pub trace_id: Option<TraceId>,
}

/// A request on its way in and out.
#[derive(Debug)]
pub(crate) struct Crossing {
    underway: Underway<'static>,
    id: HeaderValue,
    method: Method,
    path: Option<MatchedPath>,
    client: Option<IpAddr>,
    trace: Trace,
}

impl Crossing {
    /// Takes a request in.
    ///
    /// # Arguments
    /// `client`: the address that it comes from.
    pub fn begin(request: &Request, client: Option<IpAddr>) -> Self {
        let underway = metrics().begin();
        let id = match request.headers().get(REQUEST_ID) {
            Some(id) if is_sane(id) => id.clone(),
            _ => new_request_id(),
        };
        let method = request.method().clone();
        let path = request.extensions().get::<MatchedPath>().cloned();
        let trace = Trace::begin(&method, route(path.as_ref()), request.headers());
        Self {
            underway,
            id,
            method,
            path,
            client,
            trace,
        }
    }

    /// Takes its answer out.
    pub async fn conclude(self, answer: impl Future<Output = Response>) -> Response {
        let mut response = match self.trace.context() {
            None => answer.await,
            Some(context) => answer.with_context(context.clone()).await,
        };
        let request_id = self.id.to_str().unwrap_or_default();
        let trace_id = self.trace.id();
        if let Some(failure) = response.extensions_mut().remove::<Failure>() {
            let identity = Identity {
                request_id,
                trace_id,
            };
            problem::write_problem(&failure, identity, &mut response);
        }
        let status = response.status();
        let route = route(self.path.as_ref());
        let took = self.underway.finish(route, &self.method, status);
        let bytes = response.body().size_hint().exact();
        macro_rules! log_at {
            ($level:ident) => {
                tracing::$level!(
                    target: "http",
                    message = "request",
                    method = self.method.as_str(),
                    route,
                    status = status.as_u16(),
                    duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                    bytes,
                    request_id,
                    trace_id = trace_id.map(display),
                    client = self.client.map(display),
                )
            };
        }
        // Their lines would only hide the others.
        if PROBES.contains(&route) {
            log_at!(debug);
        } else {
            log_at!(info);
        }
        self.trace.finish(status, request_id);
        if bytes.is_none() && self.method != Method::HEAD {
            response = response.map(|body| {
                Body::new(Streamed {
                    body,
                    request_id: self.id.clone(),
                    trace_id,
                    client: self.client,
                    bytes: 0,
                    has_ended: false,
                })
            });
        }
        response.headers_mut().insert(REQUEST_ID, self.id);
        response
    }
}

/// Counts and logs what was no request and was answered `status` all the same, with no more to tell of it than
/// why.
pub(crate) fn no_request(client: IpAddr, status: StatusCode, reason: &dyn Error) {
    let method = Method::from_bytes(b"OTHER").unwrap_or_default();
    metrics().begin().finish(UNMATCHED, &method, status);
    tracing::info!(
        target: "http",
        message = "no request",
        route = UNMATCHED,
        status = status.as_u16(),
        reason = reason.to_string(),
        client = display(client),
    );
}

/// The template of the request's path.
fn route(path: Option<&MatchedPath>) -> &str {
    path.map_or(UNMATCHED, MatchedPath::as_str)
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
    static PREFIX: LazyLock<String> =
        LazyLock::new(|| format!("{:016x}-", RandomState::new().hash_one(())));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let prefix = PREFIX.as_bytes();
    let length = prefix.len() + (count.max(1).ilog2() / 4 + 1) as usize;
    let mut id = [0; 17 + 16];
    id[..prefix.len()].copy_from_slice(prefix);
    for (place, digit) in id[prefix.len()..length].iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(count >> (4 * place) & 0xf) as usize];
    }
    HeaderValue::from_bytes(&id[..length]).unwrap_or_else(|_| HeaderValue::from_static("-"))
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
