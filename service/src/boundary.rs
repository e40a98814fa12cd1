//! The boundary: what every request passes on its way in and out. It gives it an id and a trace,
//! writes out its error, and counts and logs it.

use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    body::HttpBody,
    extract::{ConnectInfo, MatchedPath, Request},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use opentelemetry::trace::{FutureExt, TraceId};

use crate::{
    problem::{self, Failure},
    telemetry::{metrics::metrics, traces::Trace},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The route of requests for which there is none.
const UNMATCHED: &str = "unmatched";

/// What machines ask every few seconds, whose lines would only hide the others.
const QUIET: [&str; 3] = ["/health/live", "/health/ready", "/metrics"];

/// By what a request is found again in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity<'a> {
    pub request_id: &'a str,
    pub trace_id: Option<TraceId>,
}

/// Takes a request in, and out again.
pub(crate) async fn cross(request: Request, next: Next) -> Response {
    let underway = metrics().begin();
    let id = match request.headers().get(REQUEST_ID) {
        Some(id) if is_sane(id) => id.clone(),
        _ => new_request_id(),
    };
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let client = client.map(|ConnectInfo(address)| address.ip());
    let trace = Trace::begin(&method, route, request.headers());

    let mut response = match trace.context() {
        None => next.run(request).await,
        Some(context) => next.run(request).with_context(context.clone()).await,
    };

    let request_id = id.to_str().unwrap_or_default();
    let trace_id = trace.id();
    if let Some(failure) = response.extensions_mut().remove::<Failure>() {
        let identity = Identity {
            request_id,
            trace_id,
        };
        problem::write_problem(&failure, identity, &mut response);
    }
    let status = response.status();
    let took = underway.finish(route, &method, status);
    macro_rules! log_at {
        ($level:ident) => {
            tracing::$level!(
                target: "http",
                message = "request",
                method = method.as_str(),
                route,
                status = status.as_u16(),
                duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                bytes = response.body().size_hint().exact(),
                request_id,
                trace_id = trace_id.map(display),
                client = client.map(display),
            )
        };
    }
    if QUIET.contains(&route) {
        log_at!(debug);
    } else {
        log_at!(info);
    }
    trace.finish(status, request_id);
    response.headers_mut().insert(REQUEST_ID, id);
    response
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
