//! Log lines of errors. An outage gives every request the same error, so each kind is throttled.

use tracing::field::display;

use super::RequestIds;
use crate::{
    error::Error,
    telemetry::throttle::{Admitted, Throttle},
};

static REJECTED: Throttle = Throttle::of(5);
static ARGUMENTS: Throttle = Throttle::of(5);
static CONFLICTS: Throttle = Throttle::new();
static DISCONNECTED: Throttle = Throttle::new();
static LOCKED: Throttle = Throttle::new();
static UNAVAILABLE: Throttle = Throttle::new();
static OUTCOME_UNKNOWN: Throttle = Throttle::new();
static TIMEOUTS: Throttle = Throttle::new();

/// Logs an error that an operator needs to know. The database's message is a field, which text lines quote:
/// it may contain what users wrote.
pub(super) fn log(error: &Error, ids: RequestIds<'_>) {
    let Some(cause) = error.cause() else { return };
    let left_out = match throttle(error).map(Throttle::admit) {
        Some(None) => return,
        Some(Some(Admitted { left_out })) => left_out,
        None => None,
    };
    let RequestIds {
        request_id,
        trace_id,
    } = ids;
    let trace_id = trace_id.map(display);
    let message = error;
    let error = format!("{cause:#}");
    macro_rules! log_at {
        ($level:ident) => {
            tracing::$level!(error, request_id, trace_id, left_out, "{message}")
        };
    }
    if matches!(
        message,
        Error::Rejected(_) | Error::FunctionNotFound(_) | Error::Internal(_)
    ) {
        log_at!(error);
    } else {
        log_at!(warn);
    }
}

/// The throttle of this kind of error; none for a defect, of which every occurrence is logged.
fn throttle(error: &Error) -> Option<&'static Throttle> {
    Some(match error {
        Error::Rejected(_) | Error::FunctionNotFound(_) => &REJECTED,
        Error::Argument(_) => &ARGUMENTS,
        Error::Conflict(_) => &CONFLICTS,
        Error::Disconnected(_) => &DISCONNECTED,
        Error::Locked(_) => &LOCKED,
        Error::Unavailable(_) => &UNAVAILABLE,
        Error::OutcomeUnknown(_) => &OUTCOME_UNKNOWN,
        Error::Timeout(_) => &TIMEOUTS,
        _ => return None,
    })
}
