//! What is counted and timed, for Prometheus.
//!
//! One registry for the process. Whoever counts has its handle from the start, or finds it in a
//! table that is read without a lock; what others keep anyway (the pool, the lanes, the process) is
//! read when somebody scrapes. No label ever holds what a client sent.

mod process;
mod requests;

use std::{fmt, sync::LazyLock, time::Duration};

use axum::http::{Method, StatusCode};
use deadpool_postgres::Status as PoolStatus;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use self::{process::ProcessCollector, requests::Requests};
use crate::{db::Outcome, lanes::Depths};

pub(crate) use requests::Underway;

/// The media type of `Metrics::scrape`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds, from a claim on a quiet coupon to the longest that any request takes.
const SECONDS: [f64; 15] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
];

/// Claims in a batch.
const CLAIMS: [f64; 12] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0,
];

/// The metrics of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

/// Every metric of the service.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Requests,
    broken_off: Counter,
    cut_off: Counter,
    claims: Claims,
    batch_size: Histogram,
    batch_duration: Histogram,
    lane_wait: Histogram,
    pool_wait: Histogram,
    pool_timeouts: Counter,
    place_waits: Family<PlaceLabels, Histogram, fn() -> Histogram>,
    place_timeouts: Family<PlaceLabels, Counter>,
    retries: Counter,
    database_errors: Family<ErrorLabels, Counter>,
    readiness: Family<ReasonLabels, Gauge>,
    gauges: Gauges,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: &'static str,
}

/// What is read from elsewhere at each scrape.
#[derive(Clone, Debug, Default)]
struct Gauges {
    lanes: Gauge,
    waiting: Gauge,
    deepest: Gauge,
    connections: Family<PoolLabels, Gauge>,
    idle: Family<PoolLabels, Gauge>,
    most: Family<PoolLabels, Gauge>,
    queue: Family<PoolLabels, Gauge>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PoolLabels {
    pool: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PlaceLabels {
    kind: &'static str,
}

/// The metrics of the places of one kind of call.
#[derive(Debug)]
pub(crate) struct PlaceMetrics {
    wait: Histogram,
    timeouts: Counter,
}

impl PlaceMetrics {
    /// Records a wait for a place, and whether it was in vain.
    pub(crate) fn waited(&self, waited: Duration, timed_out: bool) {
        self.wait.observe(waited.as_secs_f64());
        if timed_out {
            self.timeouts.inc();
        }
    }
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector));
        let honcho = registry.sub_registry_with_prefix("honcho");
        honcho.register(
            "build",
            "The build that runs",
            Info::new([
                ("version", env!("CARGO_PKG_VERSION")),
                ("commit", option_env!("HONCHO_COMMIT").unwrap_or("unknown")),
            ]),
        );
        honcho.register_collector(Box::new(process::LogCollector));
        Self {
            requests: Requests::new(honcho),
            broken_off: counter(
                honcho,
                "http_answers_broken_off",
                "Long lists that broke off, after their status had gone out",
            ),
            cut_off: counter(
                honcho,
                "connections_cut_off",
                "Connections closed because the client took in nothing of an answer for too long",
            ),
            claims: Claims::new(honcho),
            batch_size: histogram(
                honcho,
                "lane_batch_claims",
                "Claims in a batch",
                None,
                &CLAIMS,
            ),
            batch_duration: histogram(
                honcho,
                "lane_batch_duration",
                "Time from a batch's leaving its lane until its answer",
                Some(Unit::Seconds),
                &SECONDS,
            ),
            lane_wait: histogram(
                honcho,
                "lane_wait",
                "Time from a claim's entering its lane until its batch leaves",
                Some(Unit::Seconds),
                &SECONDS,
            ),
            pool_wait: histogram(
                honcho,
                "pool_wait",
                "Time until a connection to the database was to be had",
                Some(Unit::Seconds),
                &SECONDS,
            ),
            pool_timeouts: counter(
                honcho,
                "pool_timeouts",
                "Times that no connection was to be had in time",
            ),
            place_waits: place_waits(honcho),
            place_timeouts: place_timeouts(honcho),
            retries: counter(
                honcho,
                "database_retries",
                "Calls that were repeated, because the first surely changed nothing",
            ),
            database_errors: errors(honcho),
            readiness: {
                let readiness = Family::<ReasonLabels, Gauge>::default();
                honcho.register(
                    "ready",
                    "1 while requests are served, else 0 and the reason",
                    readiness.clone(),
                );
                readiness
            },
            gauges: Gauges::new(honcho),
            registry,
        }
    }

    /// Shows whether requests are served, and else why not.
    ///
    /// # Arguments
    /// `before`, `reason`: the names of the last reason and of this one.
    pub(crate) fn ready(&self, before: &'static str, reason: &'static str, is_ready: bool) {
        let labels = |reason| ReasonLabels { reason };
        // In this order: a scrape between the two must not find neither.
        self.readiness
            .get_or_create(&labels(reason))
            .set(i64::from(is_ready));
        if before != reason {
            self.readiness.remove(&labels(before));
        }
    }

    /// Shows a route's answers of this status from nought, before there is one: a rate does not see a series
    /// begin at one.
    pub(crate) fn foresee(&self, route: &str, method: &Method, status: StatusCode) {
        self.requests.foresee(route, method, status);
    }

    /// Counts a request as under way until what this returns is finished or dropped.
    pub(crate) fn begin(&self) -> Underway<'_> {
        self.requests.begin()
    }

    /// Counts an answer that ended before its end, after its status had gone out.
    pub(crate) fn answer_broken_off(&self) {
        self.broken_off.inc();
    }

    /// Counts a connection that was closed because its client took in nothing of an answer.
    pub(crate) fn connection_cut_off(&self) {
        self.cut_off.inc();
    }

    /// Counts a claim by what became of it.
    pub(crate) fn claimed(&self, outcome: Outcome) {
        let claims = &self.claims;
        match outcome {
            Outcome::Claimed => &claims.claimed,
            Outcome::AlreadyClaimed => &claims.already_claimed,
            Outcome::SoldOut => &claims.sold_out,
            Outcome::NotFound => &claims.not_found,
            Outcome::NotStarted => &claims.not_started,
            Outcome::Ended => &claims.ended,
            Outcome::Paused => &claims.paused,
        }
        .inc();
    }

    /// Counts a claim that had no outcome.
    pub(crate) fn claim_failed(&self) {
        self.claims.error.inc();
    }

    /// Counts a claim that was turned away because too many waited.
    pub(crate) fn claim_turned_away(&self) {
        self.claims.overloaded.inc();
    }

    /// Records a batch that leaves its lane, by the time that each of its claims has waited.
    pub(crate) fn batch(&self, waited: impl ExactSizeIterator<Item = Duration>) {
        self.batch_size.observe(waited.len() as f64);
        for waited in waited {
            self.lane_wait.observe(waited.as_secs_f64());
        }
    }

    /// Records how long a batch was under way.
    pub(crate) fn batch_done(&self, took: Duration) {
        self.batch_duration.observe(took.as_secs_f64());
    }

    /// Records a wait for a connection, and whether it was in vain.
    pub(crate) fn pool_wait(&self, waited: Duration, timed_out: bool) {
        self.pool_wait.observe(waited.as_secs_f64());
        if timed_out {
            self.pool_timeouts.inc();
        }
    }

    /// The metrics of the places of one kind of call.
    pub(crate) fn places(&self, kind: &'static str) -> PlaceMetrics {
        let labels = PlaceLabels { kind };
        PlaceMetrics {
            wait: self.place_waits.get_or_create_owned(&labels),
            timeouts: self.place_timeouts.get_or_create_owned(&labels),
        }
    }

    /// Counts a call that is made a second time.
    pub(crate) fn retried(&self) {
        self.retries.inc();
    }

    /// Counts an error with this SQLSTATE.
    pub(crate) fn database_error(&self, sqlstate: &str) {
        self.count_error(sqlstate.get(..2).unwrap_or(UNKNOWN));
    }

    /// Counts a connection that broke or could not be made, which no SQLSTATE told.
    pub(crate) fn connection_lost(&self) {
        self.count_error(CONNECTION);
    }

    /// Counts an answer that did not come in time.
    pub(crate) fn answer_lost(&self) {
        self.count_error(TIMEOUT);
    }

    fn count_error(&self, class: &str) {
        let class = class.to_owned();
        self.database_errors
            .get_or_create(&ErrorLabels { class })
            .inc();
    }

    /// All metrics in the OpenMetrics text format, with the pools and the lanes as they stand.
    pub(crate) fn scrape(
        &self,
        pools: &[(&'static str, PoolStatus)],
        lanes: &Depths,
    ) -> Result<String, fmt::Error> {
        self.gauges.set(pools, lanes);
        let mut text = String::with_capacity(32 * 1024);
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn histogram(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    buckets: &'static [f64],
) -> Histogram {
    let histogram = Histogram::new(buckets.iter().copied());
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, histogram.clone()),
        None => registry.register(name, help, histogram.clone()),
    }
    histogram
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

/// What goes wrong in an outage, counted from nought: a rate does not see a series begin at one.
const CLASSES: [&str; 17] = [
    "08", "22", "23", "25", "26", "28", "3D", "40", "42", "53", "55", "57", "58", "XX", CONNECTION,
    TIMEOUT, UNKNOWN,
];
const CONNECTION: &str = "connection";
const TIMEOUT: &str = "timeout";
const UNKNOWN: &str = "unknown";

fn errors(registry: &mut Registry) -> Family<ErrorLabels, Counter> {
    let errors = Family::default();
    registry.register(
        "database_errors",
        "Errors from the database by the class of their SQLSTATE, or what stood for one",
        errors.clone(),
    );
    for class in CLASSES {
        let class = class.to_owned();
        drop(errors.get_or_create(&ErrorLabels { class }));
    }
    errors
}

fn place_waits(registry: &mut Registry) -> Family<PlaceLabels, Histogram, fn() -> Histogram> {
    let waits: Family<_, _, fn() -> Histogram> =
        Family::new_with_constructor(|| Histogram::new(SECONDS));
    registry.register_with_unit(
        "place_wait",
        "Time until a call had its place among the connections to the database",
        Unit::Seconds,
        waits.clone(),
    );
    waits
}

fn place_timeouts(registry: &mut Registry) -> Family<PlaceLabels, Counter> {
    let timeouts = Family::default();
    registry.register(
        "place_timeouts",
        "Times that a call had no place in time",
        timeouts.clone(),
    );
    timeouts
}

fn pool_gauge(registry: &mut Registry, name: &str, help: &str) -> Family<PoolLabels, Gauge> {
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ErrorLabels {
    class: String,
}

impl Gauges {
    fn new(registry: &mut Registry) -> Self {
        Self {
            lanes: gauge(registry, "lanes", "Lanes: coupons that are being claimed"),
            waiting: gauge(registry, "lane_waiting_claims", "Claims that wait in lanes"),
            deepest: gauge(
                registry,
                "lane_deepest_claims",
                "Claims that wait in the lane in which most do",
            ),
            connections: pool_gauge(registry, "pool_connections", "Connections to the database"),
            idle: pool_gauge(
                registry,
                "pool_idle_connections",
                "Connections to the database that nobody uses",
            ),
            most: pool_gauge(
                registry,
                "pool_max_connections",
                "The most connections to the database",
            ),
            queue: pool_gauge(
                registry,
                "pool_waiting",
                "Calls that wait for a connection to the database",
            ),
        }
    }

    fn set(&self, pools: &[(&'static str, PoolStatus)], lanes: &Depths) {
        let set = |gauge: &Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.lanes, lanes.lanes);
        set(&self.waiting, lanes.waiting);
        set(&self.deepest, lanes.deepest);
        for (pool, status) in pools {
            let labels = PoolLabels { pool };
            set(&self.connections.get_or_create(&labels), status.size);
            set(&self.idle.get_or_create(&labels), status.available);
            set(&self.most.get_or_create(&labels), status.max_size);
            set(&self.queue.get_or_create(&labels), status.waiting);
        }
    }
}

/// Claims by outcome.
#[derive(Debug)]
struct Claims {
    claimed: Counter,
    already_claimed: Counter,
    sold_out: Counter,
    not_found: Counter,
    not_started: Counter,
    ended: Counter,
    paused: Counter,
    overloaded: Counter,
    error: Counter,
}

impl Claims {
    fn new(registry: &mut Registry) -> Self {
        #[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
        struct Labels {
            outcome: &'static str,
        }
        let family = Family::<Labels, Counter>::default();
        registry.register("claims", "Claims by what became of them", family.clone());
        let counter = |outcome| family.get_or_create_owned(&Labels { outcome });
        Self {
            claimed: counter("claimed"),
            already_claimed: counter("already_claimed"),
            sold_out: counter("sold_out"),
            not_found: counter("not_found"),
            not_started: counter("not_started"),
            ended: counter("ended"),
            paused: counter("paused"),
            overloaded: counter("overloaded"),
            error: counter("error"),
        }
    }
}
