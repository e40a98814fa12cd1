//! Requests by route, method and status.
//!
//! Every request passes here, so its handles are found in tables that are read without a lock.

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

/// What is known of all requests.
#[derive(Debug)]
pub(super) struct Requests {
    answered: Family<AnswerLabels, Counter>,
    durations: Family<EndpointLabels, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    abandoned: Counter,
    routes: Slots<Route>,
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
            "Time from a request's head until its answer's head",
            Unit::Seconds,
            durations.clone(),
        );
        Self {
            answered,
            durations,
            in_flight: gauge(
                registry,
                "http_requests_in_flight",
                "Requests that are under way",
            ),
            abandoned: counter(
                registry,
                "http_requests_abandoned",
                "Requests whose client went away before the answer",
            ),
            routes: Slots::new(ROUTES),
        }
    }

    pub(super) fn begin(&self) -> Underway<'_> {
        self.in_flight.inc();
        Underway {
            requests: self,
            begun: Instant::now(),
            finished: false,
        }
    }

    fn answered(&self, template: &str, method: &Method, status: StatusCode, took: Duration) {
        self.with_handles(template, method, status, |duration, answered| {
            duration.observe(took.as_secs_f64());
            answered.inc();
        });
    }

    pub(super) fn foresee(&self, template: &str, method: &Method, status: StatusCode) {
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
            || Route::new(template),
        );
        // There are as many slots as can be needed: routes and statuses are ours.
        let Some(route) = route else { return };
        let (index, method) = known(method);
        let endpoint = route.endpoints[index].get_or_init(|| Endpoint {
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

/// More routes than there are.
const ROUTES: usize = 64;

/// More statuses than one route has.
const STATUSES: usize = 32;

const METHODS: [&str; 10] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "OTHER",
];

/// A method's place among [`METHODS`]; clients may make up others.
fn known(method: &Method) -> (usize, &'static str) {
    let other = METHODS.len() - 1;
    let index = METHODS
        .iter()
        .position(|known| method == *known)
        .unwrap_or(other);
    (index, METHODS[index])
}

/// The handles of one route.
#[derive(Debug)]
struct Route {
    template: Box<str>,
    endpoints: [OnceLock<Endpoint>; METHODS.len()],
}

impl Route {
    fn new(template: &str) -> Self {
        Self {
            template: template.into(),
            endpoints: Default::default(),
        }
    }
}

/// The handles of one route and method.
#[derive(Debug)]
struct Endpoint {
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

    /// The first entry that `is` accepts, which is `new()` where there was none; none when the
    /// table is full.
    fn find_or_add(&self, is: impl Fn(&T) -> bool, new: impl Fn() -> T) -> Option<&T> {
        self.0
            .iter()
            .map(|slot| slot.get_or_init(&new))
            .find(|entry| is(entry))
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct Underway<'a> {
    requests: &'a Requests,
    begun: Instant,
    finished: bool,
}

impl Underway<'_> {
    /// Counts the request by its answer. Gives the time that it took.
    pub(crate) fn finish(
        mut self,
        template: &str,
        method: &Method,
        status: StatusCode,
    ) -> Duration {
        let took = self.begun.elapsed();
        self.requests.answered(template, method, status, took);
        self.finished = true;
        took
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.requests.in_flight.dec();
        if !self.finished {
            self.requests.abandoned.inc();
        }
    }
}
