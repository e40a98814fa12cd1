//! The request log: gives every request an id and a trace, writes the body of its error, and counts and logs it.

mod streamed;

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue, Method},
    response::Response,
};
use opentelemetry::ContextGuard;

use self::streamed::LoggedBody;
use super::admission::PROBES;
use crate::{
    error::SharedError,
    http::{
        problem::{RequestIds, write_problem},
        server::{Endless, Peer},
    },
    telemetry::{
        logs::AddressText,
        metrics::{RequestTimer, UNMATCHED, metrics},
        traces::Trace,
    },
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Route of a request.
#[derive(Debug)]
enum Route {
    /// The route of this path, which no router has matched.
    Path(&'static str),
    Matched(MatchedPath),
    Unmatched,
}

impl Route {
    fn of(request: &Request) -> Self {
        let matched = request.extensions().get::<MatchedPath>();
        matched.map_or(Self::Unmatched, |path| Self::Matched(path.clone()))
    }

    /// Template of the request's path.
    fn as_str(&self) -> &str {
        match self {
            Self::Path(path) => path,
            Self::Matched(path) => path.as_str(),
            Self::Unmatched => UNMATCHED,
        }
    }
}

/// A request in progress.
#[derive(Debug)]
pub(crate) struct LoggedRequest {
    timer: RequestTimer<'static>,
    id: HeaderValue,
    method: Method,
    route: Route,
    client: Option<IpAddr>,
    trace: Trace,
}

impl LoggedRequest {
    /// Starts counting and tracing a request.
    ///
    /// # Arguments
    /// `path`: path of its route, unless a router has matched it. `client`: address of its client.
    pub fn begin(request: &Request, path: Option<&'static str>, client: Option<IpAddr>) -> Self {
        let peer = request.extensions().get::<Peer>();
        let timer = metrics().begin(peer.map_or_else(Instant::now, |peer| peer.received));
        let id = match request.headers().get(REQUEST_ID) {
            Some(id) if is_harmless(id) => id.clone(),
            _ => new_request_id(),
        };
        let method = request.method().clone();
        let route = path.map_or_else(|| Route::of(request), Route::Path);
        let trace = Trace::start(&method, route.as_str(), request.headers());
        Self {
            timer,
            id,
            method,
            route,
            client,
            trace,
        }
    }

    /// Makes what runs until the guard is dropped a part of the request's trace, if spans are exported.
    pub fn enter(&self) -> Option<ContextGuard> {
        let context = self.trace.context()?;
        Some(context.clone().attach())
    }

    /// Counts and logs the answer.
    pub fn finish(self, mut response: Response) -> Response {
        let request_id = self.id.to_str().unwrap_or_default();
        let trace_id = self.trace.id();
        let client = self.client.map(AddressText::from);
        if let Some(error) = response.extensions_mut().remove::<SharedError>() {
            let ids = RequestIds {
                request_id,
                trace_id,
            };
            write_problem(&error, ids, &mut response);
        }
        let status = response.status();
        let route = self.route.as_str();
        let took = self.timer.finish(route, &self.method, status);
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
                    client = client.as_ref().map(AddressText::as_str),
                )
            };
        }
        // Lines of probes would hide the others.
        if PROBES.contains(&route) {
            log_at!(debug);
        } else {
            log_at!(info);
        }
        self.trace.finish(status, request_id);
        let is_endless = response.extensions().get::<Endless>().is_some();
        if bytes.is_none() && !is_endless && self.method != Method::HEAD {
            response = response.map(|body| {
                Body::new(LoggedBody {
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

/// Returns true if a client's request id can go to logs and back to the client without escaping.
fn is_harmless(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len())
        && id
            .as_bytes()
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
}

/// Makes a request id, unique across processes by a random prefix, within one by a count.
fn new_request_id() -> HeaderValue {
    /// Size of the block of numbers that a thread takes from the shared count.
    const TAKEN: u64 = 256;
    static PREFIX: LazyLock<String> =
        LazyLock::new(|| format!("{:016x}-", RandomState::new().hash_one(())));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    thread_local!(static NEXT: Cell<u64> = const { Cell::new(0) });
    let mut count = NEXT.get();
    if count.is_multiple_of(TAKEN) {
        count = COUNT.fetch_add(TAKEN, Ordering::Relaxed);
    }
    NEXT.set(count + 1);
    let prefix = PREFIX.as_bytes();
    let length = prefix.len() + (count.max(1).ilog2() / 4 + 1) as usize;
    let mut id = [0; 17 + 16];
    id[..prefix.len()].copy_from_slice(prefix);
    for (index, digit) in id[prefix.len()..length].iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(count >> (4 * index) & 0xf) as usize];
    }
    HeaderValue::from_bytes(&id[..length]).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_request_ids_are_used() {
        let long = "a".repeat(128);
        for harmless in ["a", "0af7651916cd43dd8448eb211c80319c", "a-b_c.d:e", &long] {
            assert!(
                is_harmless(&HeaderValue::from_str(harmless).unwrap()),
                "{harmless}"
            );
        }
        let longer = "a".repeat(129);
        for other in ["", "a b", "a\"b", "a\tb", "<a>", "a=b", &longer] {
            assert!(
                !is_harmless(&HeaderValue::from_str(other).unwrap()),
                "{other}"
            );
        }
        assert!(!is_harmless(&HeaderValue::from_bytes(b"\xff").unwrap()));
        assert!(is_harmless(&new_request_id()));
        assert_ne!(new_request_id(), new_request_id());
    }
}
