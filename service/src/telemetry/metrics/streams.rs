//! Event streams: open ones, what is sent on them, and polls of the database for them.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{counter, gauge};

/// Kind of an event on a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Delivery {
    /// An event in the life of a coupon.
    Event,
    /// Its stock.
    Stock,
    /// The client may have missed events.
    Reset,
}

impl Delivery {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Event, "event"),
        (Self::Stock, "stock"),
        (Self::Reset, "reset"),
    ];
}

/// Metrics of event streams.
#[derive(Debug)]
pub(super) struct StreamMetrics {
    pub open: Gauge,
    /// One for each kind, by its number.
    pub deliveries: [Counter; Delivery::ALL.len()],
    pub polls: Counter,
}

impl StreamMetrics {
    pub fn new(registry: &mut Registry) -> Self {
        #[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
        struct DeliveryLabels {
            kind: &'static str,
        }
        let family = Family::<DeliveryLabels, Counter>::default();
        registry.register(
            "stream_events",
            "Events sent on event streams, by kind",
            family.clone(),
        );
        Self {
            open: gauge(registry, "streams", "Open event streams"),
            deliveries: Delivery::ALL
                .map(|(_, kind)| family.get_or_create_owned(&DeliveryLabels { kind })),
            polls: counter(
                registry,
                "event_polls",
                "Polls of the database for new events and stock",
            ),
        }
    }
}
