//! Requests by route, method and status.
//!
//! Every request is counted here, so handles are found in tables that are read without a lock.

use std::{
    iter::repeat_with,
    sync::OnceLock,
    time::{Duration, Instant},
};

use axum::http::{Method, StatusCode};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{SECONDS, counter, gauge};

/// Label of requests that match no route.
pub(crate) const UNMATCHED: &str = "unmatched";

/// Metrics of all requests.
#[derive(Debug)]
pub(super) struct Requests {
    answered: Family<AnswerLabels, Counter>,
    durations: Family<EndpointLabels, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    abandoned: Counter,
    routes: Slots<RouteMetrics>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct AnswerLabels {
    route: String,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct EndpointLabels {
    route: String,
    method: &'static str,
}

impl Requests {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let answered = Family::default();
        registry.register(
            "http_requests",
            "Requests answered, by route, method and status",
            answered.clone(),
        );
        let durations: Family<_, _, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(SECONDS));
        registry.register_with_unit(
            "http_request_duration",
            "Time from the head of a request to the head of its answer",
            Unit::Seconds,
            durations.clone(),
        );
        Self {
            answered,
            durations,
            in_flight: gauge(registry, "http_requests_in_flight", "Requests in progress"),
            abandoned: counter(
                registry,
                "http_requests_abandoned",
                "Requests whose client disconnected before the answer",
            ),
            routes: Slots::new(ROUTES),
        }
    }

    pub(super) fn begin(&self, received: Instant) -> RequestTimer<'_> {
        self.in_flight.inc();
        RequestTimer {
            requests: self,
            received,
            finished: false,
        }
    }

    fn answered(&self, template: &str, method: &Method, status: StatusCode, took: Duration) {
        self.with_handles(template, method, status, |duration, answered| {
            duration.observe(took.as_secs_f64());
            answered.inc();
        });
    }

    pub(super) fn preset(&self, template: &str, method: &Method, status: StatusCode) {
        self.with_handles(template, method, status, |_, _| {});
    }

    fn with_handles(
        &self,
        template: &str,
        method: &Method,
        status: StatusCode,
        use_them: impl FnOnce(&Histogram, &Counter),
    ) {
        let route = self.routes.find_or_add(
            |route| *route.template == *template,
            || RouteMetrics::new(template),
        );
        // There are enough slots: routes and statuses are the service's own.
        let Some(route) = route else { return };
        let (index, method) = known(method);
        let endpoint = route.endpoints[index].get_or_init(|| EndpointMetrics {
            duration: self.durations.get_or_create_owned(&EndpointLabels {
                route: template.to_owned(),
                method,
            }),
            statuses: Slots::new(STATUSES),
        });
        let answered = endpoint.statuses.find_or_add(
            |(known, _)| *known == status,
            || {
                let labels = AnswerLabels {
                    route: template.to_owned(),
                    method,
                    status: status.as_u16(),
                };
                (status, self.answered.get_or_create_owned(&labels))
            },
        );
        if let Some((_, answered)) = answered {
            use_them(&endpoint.duration, answered);
        }
    }
}

/// An upper bound of the number of routes.
const ROUTES: usize = 64;

/// An upper bound of the number of statuses of a route.
const STATUSES: usize = 32;

const METHODS: [&str; 10] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "OTHER",
];

/// Index and name of a method in [`METHODS`]; clients may send others.
fn known(method: &Method) -> (usize, &'static str) {
    let other = METHODS.len() - 1;
    let index = METHODS
        .iter()
        .position(|known| method == *known)
        .unwrap_or(other);
    (index, METHODS[index])
}

/// Handles of one route.
#[derive(Debug)]
struct RouteMetrics {
    template: Box<str>,
    endpoints: [OnceLock<EndpointMetrics>; METHODS.len()],
}

impl RouteMetrics {
    fn new(template: &str) -> Self {
        Self {
            template: template.into(),
            endpoints: Default::default(),
        }
    }
}

/// Handles of one route and method.
#[derive(Debug)]
struct EndpointMetrics {
    duration: Histogram,
    statuses: Slots<(StatusCode, Counter)>,
}

/// A short table that only grows, read without a lock.
#[derive(Debug)]
struct Slots<T>(Box<[OnceLock<T>]>);

impl<T> Slots<T> {
    fn new(length: usize) -> Self {
        Self(repeat_with(OnceLock::new).take(length).collect())
    }

    /// Returns the first entry that `is` accepts, or adds `new()`; none if the table is full.
    fn find_or_add(&self, is: impl Fn(&T) -> bool, new: impl Fn() -> T) -> Option<&T> {
        self.0
            .iter()
            .map(|slot| slot.get_or_init(&new))
            .find(|entry| is(entry))
    }
}

/// A request in progress.
#[derive(Debug)]
pub(crate) struct RequestTimer<'a> {
    requests: &'a Requests,
    received: Instant,
    finished: bool,
}

impl RequestTimer<'_> {
    /// Counts the request by its answer. Returns the time that it took.
    pub(crate) fn finish(
        mut self,
        template: &str,
        method: &Method,
        status: StatusCode,
    ) -> Duration {
        let took = self.received.elapsed();
        self.requests.answered(template, method, status, took);
        self.finished = true;
        took
    }
}

impl Drop for RequestTimer<'_> {
    fn drop(&mut self) {
        self.requests.in_flight.dec();
        if !self.finished {
            self.requests.abandoned.inc();
        }
    }
}
