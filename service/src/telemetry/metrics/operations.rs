//! Operations by outcome.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::outcome::{Operation, Outcome};

/// Counters of one operation. The handles are made at the start.
#[derive(Debug)]
pub(super) struct OperationCounters {
    /// One for each outcome, by its number. Outcomes that the operation does not have count as errors.
    pub outcomes: [Counter; Outcome::ALL.len()],
    pub replayed: Counter,
    pub overloaded: Counter,
    pub error: Counter,
}

impl OperationCounters {
    /// Makes the counters of an operation.
    ///
    /// # Arguments
    /// `counter`: makes the counter with this label.
    fn new(operation: Operation, counter: impl Fn(&'static str) -> Counter) -> Self {
        let error = counter("error");
        let is_in_lane = !matches!(
            operation,
            Operation::Update | Operation::Restock | Operation::Delete
        );
        let counter_if = |is_possible: bool, label| {
            if is_possible {
                counter(label)
            } else {
                error.clone()
            }
        };
        Self {
            outcomes: Outcome::ALL.map(|outcome| {
                counter_if(operation.outcomes().contains(&outcome), outcome.label())
            }),
            replayed: counter_if(operation == Operation::Claim, "replayed"),
            overloaded: counter_if(is_in_lane, "overloaded"),
            error,
        }
    }
}

/// Makes the counters of all operations. Claims have a family of their own.
pub(super) fn counters(registry: &mut Registry) -> [OperationCounters; Operation::ALL.len()] {
    #[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
    struct ClaimLabels {
        outcome: &'static str,
    }
    #[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
    struct OperationLabels {
        operation: &'static str,
        outcome: &'static str,
    }
    let claims = Family::<ClaimLabels, Counter>::default();
    registry.register("claims", "Claims by outcome", claims.clone());
    let others = Family::<OperationLabels, Counter>::default();
    registry.register(
        "operations",
        "Operations other than claims, by outcome",
        others.clone(),
    );
    Operation::ALL.map(|operation| {
        OperationCounters::new(operation, |outcome| {
            if operation == Operation::Claim {
                claims.get_or_create_owned(&ClaimLabels { outcome })
            } else {
                let operation = operation.name();
                others.get_or_create_owned(&OperationLabels { operation, outcome })
            }
        })
    })
}
