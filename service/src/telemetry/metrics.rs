//! Metrics for Prometheus.
//!
//! One registry for the process. Handles of metrics on the path of requests are made at the start, or found in a
//! table that is read without a lock. Figures that exist anyway (pools, lanes, the process) are read at each
//! scrape. No label contains a text from a client.

mod operations;
mod process;
mod requests;
mod streams;

use std::{
    fmt,
    sync::LazyLock,
    time::{Duration, Instant},
};

use axum::http::{Method, StatusCode};
use deadpool_postgres::Status as PoolStatus;
use prometheus_client::{
    encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use self::{
    operations::OperationCounters, process::ProcessCollector, requests::Requests,
    streams::StreamMetrics,
};
use crate::{
    outcome::{Operation, Outcome},
    shards::ShardNumber,
};

pub(crate) use requests::{RequestTimer, UNMATCHED};
pub(crate) use streams::Delivery;

/// Media type of `Metrics::scrape`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Buckets of durations in seconds: from a claim on a quiet coupon to the longest request.
const SECONDS: [f64; 15] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
];

/// Buckets of batches, in claims and other operations.
const CLAIMS: [f64; 12] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0,
];

/// Number of waiting operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneDepths {
    /// Open lanes.
    pub lanes: usize,
    /// Operations waiting in them.
    pub waiting: usize,
    /// Operations waiting in the fullest lane.
    pub deepest: usize,
}

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
    /// One for each operation, by its number.
    operations: [OperationCounters; Operation::ALL.len()],
    batch_size: Histogram,
    batch_duration: Histogram,
    lane_wait: Histogram,
    pool_wait: Histogram,
    pool_timeouts: Counter,
    permit_waits: Family<PermitLabels, Histogram, fn() -> Histogram>,
    permit_timeouts: Family<PermitLabels, Counter>,
    streams: StreamMetrics,
    retries: Counter,
    database_errors: Family<ErrorLabels, Counter>,
    readiness: Family<ReasonLabels, Gauge>,
    gauges: Gauges,
}

/// The label `shard`, which a shard has that is not the only one.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct ShardLabel(ShardNumber);

impl EncodeLabelSet for ShardLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Some(number) = self.0 else {
            return Ok(());
        };
        ("shard", u32::from(number)).encode(encoder.encode_label())
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: &'static str,
    #[prometheus(flatten)]
    shard: ShardLabel,
}

/// Figures that are read at each scrape.
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
    #[prometheus(flatten)]
    shard: ShardLabel,
}

/// Status of a shard's pools, with their names.
pub(crate) type ShardPools = (ShardNumber, [(&'static str, PoolStatus); 2]);

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PermitLabels {
    kind: &'static str,
    #[prometheus(flatten)]
    shard: ShardLabel,
}

/// Metrics of the permits of one kind of call.
#[derive(Debug)]
pub(crate) struct PermitMetrics {
    wait: Histogram,
    timeouts: Counter,
}

impl PermitMetrics {
    /// Records a wait for a permit.
    pub(crate) fn waited(&self, waited: Duration, timed_out: bool) {
        self.wait.observe(waited.as_secs_f64());
        if timed_out {
            self.timeouts.inc();
        }
    }
}

impl Metrics {
    /// Registers every metric. It is one list, and long for that reason only.
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
                "Answers that broke off after their status was sent",
            ),
            cut_off: counter(
                honcho,
                "connections_cut_off",
                "Connections closed because the client did not read its answer",
            ),
            operations: operations::counters(honcho),
            batch_size: histogram(
                honcho,
                "lane_batch_claims",
                "Claims and other operations in a batch",
                None,
                &CLAIMS,
            ),
            batch_duration: histogram(
                honcho,
                "lane_batch_duration",
                "Time from the departure of a batch to its answer",
                Some(Unit::Seconds),
                &SECONDS,
            ),
            lane_wait: histogram(
                honcho,
                "lane_wait",
                "Time that operations wait in their lane for the departure of their batch",
                Some(Unit::Seconds),
                &SECONDS,
            ),
            pool_wait: histogram(
                honcho,
                "pool_wait",
                "Time spent waiting for a database connection",
                Some(Unit::Seconds),
                &SECONDS,
            ),
            pool_timeouts: counter(
                honcho,
                "pool_timeouts",
                "Waits for a database connection that timed out",
            ),
            permit_waits: permit_waits(honcho),
            permit_timeouts: permit_timeouts(honcho),
            streams: StreamMetrics::new(honcho),
            retries: counter(
                honcho,
                "database_retries",
                "Database calls repeated after an attempt that changed nothing",
            ),
            database_errors: errors(honcho),
            readiness: {
                let readiness = Family::<ReasonLabels, Gauge>::default();
                honcho.register(
                    "ready",
                    "1 if requests are served, otherwise 0 with the reason",
                    readiness.clone(),
                );
                readiness
            },
            gauges: Gauges::new(honcho),
            registry,
        }
    }

    /// Shows if requests to a shard are served, and the reason if they are not.
    ///
    /// # Arguments
    /// `before`, `reason`: names of the last reason and of this one.
    pub(crate) fn ready(
        &self,
        shard: ShardNumber,
        before: &'static str,
        reason: &'static str,
        is_ready: bool,
    ) {
        let labels = |reason| ReasonLabels {
            reason,
            shard: ShardLabel(shard),
        };
        // In this order, so that every scrape finds at least one.
        self.readiness
            .get_or_create(&labels(reason))
            .set(i64::from(is_ready));
        if before != reason {
            self.readiness.remove(&labels(before));
        }
    }

    /// Starts the count of a route's answers of this status at 0: a rate does not see a series that starts at 1.
    pub(crate) fn preset(&self, route: &str, method: &Method, status: StatusCode) {
        self.requests.preset(route, method, status);
    }

    /// Counts a request as in progress until the result is finished or dropped.
    pub(crate) fn begin(&self, received: Instant) -> RequestTimer<'_> {
        self.requests.begin(received)
    }

    /// Counts an answer that broke off after its status was sent.
    pub(crate) fn answer_broken_off(&self) {
        self.broken_off.inc();
    }

    /// Counts a connection that was closed because its client did not read its answer.
    pub(crate) fn connection_cut_off(&self) {
        self.cut_off.inc();
    }

    /// Counts an operation by its outcome.
    pub(crate) fn carried_out(&self, operation: Operation, outcome: Outcome) {
        self.operations[operation as usize].outcomes[outcome as usize].inc();
    }

    /// Counts an operation whose claim was made by an earlier request with the same key.
    pub(crate) fn replayed(&self, operation: Operation) {
        self.operations[operation as usize].replayed.inc();
    }

    /// Counts an operation that ended with an error.
    pub(crate) fn failed(&self, operation: Operation) {
        self.operations[operation as usize].error.inc();
    }

    /// Counts an operation that was refused because too many were waiting.
    pub(crate) fn overloaded(&self, operation: Operation) {
        self.operations[operation as usize].overloaded.inc();
    }

    /// Records the departure of a batch, with the time that each of its operations has waited.
    pub(crate) fn batch(&self, waited: impl ExactSizeIterator<Item = Duration>) {
        self.batch_size.observe(waited.len() as f64);
        for waited in waited {
            self.lane_wait.observe(waited.as_secs_f64());
        }
    }

    /// Records the time from the departure of a batch to its answer.
    pub(crate) fn batch_done(&self, took: Duration) {
        self.batch_duration.observe(took.as_secs_f64());
    }

    /// Records a wait for a connection.
    pub(crate) fn pool_wait(&self, waited: Duration, timed_out: bool) {
        self.pool_wait.observe(waited.as_secs_f64());
        if timed_out {
            self.pool_timeouts.inc();
        }
    }

    /// Metrics of a shard's permits of one kind of call.
    pub(crate) fn permits(&self, shard: ShardNumber, kind: &'static str) -> PermitMetrics {
        let shard = ShardLabel(shard);
        let labels = PermitLabels { kind, shard };
        PermitMetrics {
            wait: self.permit_waits.get_or_create_owned(&labels),
            timeouts: self.permit_timeouts.get_or_create_owned(&labels),
        }
    }

    /// Counts an event stream that begins.
    pub(crate) fn stream_begun(&self) {
        self.streams.open.inc();
    }

    /// Counts the end of an event stream.
    pub(crate) fn stream_ended(&self) {
        self.streams.open.dec();
    }

    /// Counts an event that is sent on one stream.
    pub(crate) fn delivered(&self, delivery: Delivery) {
        self.streams.deliveries[delivery as usize].inc();
    }

    /// Counts a poll for new events.
    pub(crate) fn polled(&self) {
        self.streams.polls.inc();
    }

    /// Counts a call that is repeated.
    pub(crate) fn retried(&self) {
        self.retries.inc();
    }

    /// Counts an error with this SQLSTATE.
    pub(crate) fn database_error(&self, sqlstate: &str) {
        self.count_error(sqlstate.get(..2).unwrap_or(UNKNOWN));
    }

    /// Counts a connection that broke or could not be made, without a SQLSTATE.
    pub(crate) fn connection_lost(&self) {
        self.count_error(CONNECTION);
    }

    /// Counts an answer that came too late.
    pub(crate) fn answer_lost(&self) {
        self.count_error(TIMEOUT);
    }

    fn count_error(&self, class: &str) {
        let class = class.to_owned();
        self.database_errors
            .get_or_create(&ErrorLabels { class })
            .inc();
    }

    /// Writes all metrics in the OpenMetrics text format, with the current figures of pools and lanes.
    pub(crate) fn scrape(
        &self,
        shards: impl Iterator<Item = ShardPools>,
        lanes: &LaneDepths,
    ) -> Result<String, fmt::Error> {
        self.gauges.set(shards, lanes);
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

/// Classes of errors that an outage causes. They start at 0: a rate does not see a series that starts at 1.
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
        "Database errors by class: the first two characters of the SQLSTATE, or connection, timeout or unknown",
        errors.clone(),
    );
    for class in CLASSES {
        let class = class.to_owned();
        drop(errors.get_or_create(&ErrorLabels { class }));
    }
    errors
}

fn permit_waits(registry: &mut Registry) -> Family<PermitLabels, Histogram, fn() -> Histogram> {
    let waits: Family<_, _, fn() -> Histogram> =
        Family::new_with_constructor(|| Histogram::new(SECONDS));
    registry.register_with_unit(
        "permit_wait",
        "Time spent waiting for a permit to use a database connection",
        Unit::Seconds,
        waits.clone(),
    );
    waits
}

fn permit_timeouts(registry: &mut Registry) -> Family<PermitLabels, Counter> {
    let timeouts = Family::default();
    registry.register(
        "permit_timeouts",
        "Waits for a permit that timed out",
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
            lanes: gauge(
                registry,
                "lanes",
                "Open lanes: coupons with operations waiting or in progress",
            ),
            waiting: gauge(
                registry,
                "lane_waiting_claims",
                "Claims and other operations waiting in lanes",
            ),
            deepest: gauge(
                registry,
                "lane_deepest_claims",
                "Claims and other operations waiting in the fullest lane",
            ),
            connections: pool_gauge(registry, "pool_connections", "Database connections"),
            idle: pool_gauge(
                registry,
                "pool_idle_connections",
                "Idle database connections",
            ),
            most: pool_gauge(
                registry,
                "pool_max_connections",
                "Limit of database connections",
            ),
            queue: pool_gauge(
                registry,
                "pool_waiting",
                "Calls waiting for a database connection",
            ),
        }
    }

    fn set(&self, shards: impl Iterator<Item = ShardPools>, lanes: &LaneDepths) {
        let set = |gauge: &Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.lanes, lanes.lanes);
        set(&self.waiting, lanes.waiting);
        set(&self.deepest, lanes.deepest);
        for (shard, pools) in shards {
            for (pool, status) in pools {
                let shard = ShardLabel(shard);
                let labels = PoolLabels { pool, shard };
                set(&self.connections.get_or_create(&labels), status.size);
                set(&self.idle.get_or_create(&labels), status.available);
                set(&self.most.get_or_create(&labels), status.max_size);
                set(&self.queue.get_or_create(&labels), status.waiting);
            }
        }
    }
}
