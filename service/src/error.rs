//! Everything that a request can be answered but success, and what is known of it: whether something
//! was changed, whether to try again, what the log must say. What clients are told is in `problem`.

use std::{borrow::Cow, fmt::Write as _, io, time::Duration};

use anyhow::anyhow;
use deadpool_postgres::{HookError, PoolError};
use tokio_postgres::error::SqlState;
use tracing::field::display;

use crate::{
    access::Scope, boundary::Identity, crowd::Crowd, symptoms, telemetry::metrics::metrics,
};

/// Why a request was not answered with success. What came from the database is kept for the log
/// and never shown to a client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is not what the route takes; the text says why, naming the field.
    #[error("{0}")]
    Invalid(Cow<'static, str>),
    /// The database refused an argument that we let through.
    #[error("an argument was refused")]
    Argument(anyhow::Error),
    /// There is no such path.
    #[error("no such route")]
    RouteNotFound,
    /// The path does not take this method.
    #[error("no such method")]
    MethodNotAllowed,
    /// The request shows no token that is accepted; the text, if there is one, says what is wrong with
    /// the one that it shows.
    #[error("no accepted token")]
    Unauthorized(Option<&'static str>),
    /// The token lacks this scope.
    #[error("no scope {0}")]
    Forbidden(Scope),
    /// The token is about another user than the one it was to claim for.
    #[error("another user's token")]
    ForeignSubject,
    /// The page that sends the request is of an origin that may not change anything.
    #[error("a page of a foreign origin")]
    ForeignOrigin,
    /// The body did not come in time.
    #[error("the body is late")]
    BodyTimeout,
    /// The body is larger than [`BODY_LIMIT`](crate::BODY_LIMIT).
    #[error("the body is too large")]
    BodyTooLarge,
    /// There is no such coupon.
    #[error("no such coupon")]
    CouponNotFound,
    /// The user has no claim on this coupon.
    #[error("no such claim")]
    ClaimNotFound,
    /// The name of the new coupon is taken.
    #[error("the name is taken")]
    CouponExists,
    /// The user has this coupon already.
    #[error("already claimed")]
    AlreadyClaimed,
    /// No stock is left.
    #[error("sold out")]
    SoldOut,
    /// The coupon's time has not come.
    #[error("not started")]
    NotStarted,
    /// The coupon's time is over.
    #[error("ended")]
    Ended,
    /// The coupon is not being given out at present.
    #[error("paused")]
    Paused,
    /// The database was in another transaction's way and undid ours.
    #[error("conflict")]
    Conflict(anyhow::Error),
    /// The connection broke before anything was asked on it.
    #[error("disconnected")]
    Disconnected(anyhow::Error),
    /// Somebody held the coupon for too long; nothing was changed.
    #[error("locked")]
    Locked(anyhow::Error),
    /// The database is down or out of some resource; nothing was changed.
    #[error("unavailable")]
    Unavailable(anyhow::Error),
    /// The connection broke after a change was asked for and before the answer.
    #[error("outcome unknown")]
    OutcomeUnknown(anyhow::Error),
    /// The database took too long and gave up; nothing was changed.
    #[error("timeout")]
    Timeout(anyhow::Error),
    /// So many claims wait already that another is turned away.
    #[error("overloaded")]
    Overloaded,
    /// Requests would not be served at present; the text says why.
    #[error("not ready: {0}")]
    NotReady(Cow<'static, str>),
    /// So many requests are under way already that another is turned away.
    #[error("too many requests at once")]
    TooManyRequests,
    /// So many long lists are being read already that another is turned away.
    #[error("too many long lists at once")]
    TooManyLists,
    /// So many connections are open already that another is turned away.
    #[error("too many connections")]
    TooManyConnections,
    /// The caller asks too often; when another request will be let in.
    #[error("rate limited")]
    RateLimited(Duration),
    /// The database refused, for a reason that only its operator knows: a constraint, a trigger,
    /// a right; nothing was changed.
    #[error("refused")]
    Refused(anyhow::Error),
    /// A defect of ours.
    #[error("internal")]
    Internal(anyhow::Error),
}

impl Error {
    /// What a SQLSTATE means for the request.
    fn from_sqlstate(state: &SqlState, source: anyhow::Error) -> Self {
        match state.code() {
            // The last two: the session does not know the statement that was prepared on it, because
            // a pooler or `discard all` came between.
            "40001" | "40P01" | "26000" | "42P05" => Self::Conflict(source),
            // The last: a standby, which will be followed by a primary.
            "57P03" | "25006" => Self::Unavailable(source),
            "55P03" => Self::Locked(source),
            "57014" => Self::Timeout(source),
            "57P01" | "57P02" | "57P05" => Self::Disconnected(source),
            code => match &code[..2] {
                "08" => Self::Disconnected(source),
                "22" => Self::Argument(source),
                "53" => Self::Unavailable(source),
                _ => Self::Refused(source),
            },
        }
    }

    /// The same error where a change had been asked for before it came.
    pub(crate) fn after_sending(self) -> Self {
        match self {
            Self::Disconnected(source) => Self::OutcomeUnknown(source),
            other => other,
        }
    }

    /// Whether nothing was changed and a second attempt may fare better at once.
    pub(crate) fn may_be_repeated(&self) -> bool {
        matches!(self, Self::Conflict(_) | Self::Disconnected(_))
    }

    /// Whether nothing was changed and a single claim in a batch may be to blame.
    pub(crate) fn may_concern_one_claim(&self) -> bool {
        matches!(self, Self::Argument(_) | Self::Refused(_))
    }

    /// Logs what an operator must know of it. The words of the database are a field, which text lines quote:
    /// triggers write what users say.
    pub(crate) fn log(&self, identity: Identity<'_>) {
        let (crowd, source) = match self {
            Self::Internal(source) => (None, source),
            Self::Refused(source) => (Some(&REFUSED), source),
            Self::Argument(source) => (Some(&ARGUMENTS), source),
            Self::Conflict(source) => (Some(&CONFLICTS), source),
            Self::Disconnected(source) => (Some(&DISCONNECTED), source),
            Self::Locked(source) => (Some(&LOCKED), source),
            Self::Unavailable(source) => (Some(&UNAVAILABLE), source),
            Self::OutcomeUnknown(source) => (Some(&OUTCOME_UNKNOWN), source),
            Self::Timeout(source) => (Some(&TIMEOUTS), source),
            Self::Invalid(_)
            | Self::RouteNotFound
            | Self::MethodNotAllowed
            | Self::Unauthorized(_)
            | Self::Forbidden(_)
            | Self::ForeignSubject
            | Self::ForeignOrigin
            | Self::BodyTimeout
            | Self::BodyTooLarge
            | Self::CouponNotFound
            | Self::ClaimNotFound
            | Self::CouponExists
            | Self::AlreadyClaimed
            | Self::SoldOut
            | Self::NotStarted
            | Self::Ended
            | Self::Paused
            | Self::Overloaded
            | Self::NotReady(_)
            | Self::TooManyRequests
            | Self::TooManyLists
            | Self::TooManyConnections
            | Self::RateLimited(_) => return,
        };
        let left_out = match crowd.map(Crowd::admits) {
            Some(None) => return,
            Some(Some(left_out)) => (left_out > 0).then_some(left_out),
            None => None,
        };
        let Identity {
            request_id,
            trace_id,
        } = identity;
        let trace_id = trace_id.map(display);
        let error = format!("{source:#}");
        macro_rules! log_at {
            ($level:ident) => {
                tracing::$level!(error, request_id, trace_id, left_out, "{self}")
            };
        }
        if matches!(self, Self::Refused(_) | Self::Internal(_)) {
            log_at!(error);
        } else {
            log_at!(warn);
        }
    }
}

/// An error of the database in one line: what the server said and its SQLSTATE, or what stands in its place.
pub(crate) fn described(error: tokio_postgres::Error) -> anyhow::Error {
    let Some(told) = error.as_db_error() else {
        return error.into();
    };
    let mut text = format!(
        "{}: {} (SQLSTATE {})",
        told.severity(),
        told.message(),
        told.code().code()
    );
    for (name, more) in [("detail", told.detail()), ("context", told.where_())] {
        if let Some(more) = more {
            // Writing to a string cannot fail.
            let _ = write!(text, "; {name}: {more}");
        }
    }
    anyhow!(text)
}

/// What every request may have to say at once.
static REFUSED: Crowd = Crowd::of(5);
static ARGUMENTS: Crowd = Crowd::of(5);
static CONFLICTS: Crowd = Crowd::new();
static DISCONNECTED: Crowd = Crowd::new();
static LOCKED: Crowd = Crowd::new();
static UNAVAILABLE: Crowd = Crowd::new();
static OUTCOME_UNKNOWN: Crowd = Crowd::new();
static TIMEOUTS: Crowd = Crowd::new();

impl From<tokio_postgres::Error> for Error {
    /// Every fault that the database tells passes here once, and is counted.
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(state) = error.code().cloned() {
            metrics().database_error(state.code());
            symptoms::note(state.code());
            return Self::from_sqlstate(&state, described(error));
        }
        let broken = error.is_closed()
            || std::error::Error::source(&error).is_some_and(|source| source.is::<io::Error>());
        if broken {
            metrics().connection_lost();
            Self::Disconnected(error.into())
        } else {
            Self::Internal(error.into())
        }
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => error.into(),
            PoolError::Timeout(_) | PoolError::Closed => Self::Unavailable(error.into()),
            PoolError::PostCreateHook(HookError::Backend(error)) => error.into(),
            PoolError::PostCreateHook(HookError::Message(why)) => Self::Unavailable(anyhow!(why)),
            PoolError::NoRuntimeSpecified => Self::Internal(error.into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::problem;

    #[test]
    fn every_sqlstate_has_its_answer() {
        // SQLSTATE; answer to a read or before anything was sent; answer after sending; repeated
        let rows = [
            ("22001", "400 invalid_request", "400 invalid_request", false),
            ("22003", "400 invalid_request", "400 invalid_request", false),
            ("22004", "400 invalid_request", "400 invalid_request", false),
            ("22021", "400 invalid_request", "400 invalid_request", false),
            ("22023", "400 invalid_request", "400 invalid_request", false),
            ("40001", "503 unavailable", "503 unavailable", true),
            ("40P01", "503 unavailable", "503 unavailable", true),
            ("26000", "503 unavailable", "503 unavailable", true),
            ("42P05", "503 unavailable", "503 unavailable", true),
            ("55P03", "503 unavailable", "503 unavailable", false),
            ("53000", "503 unavailable", "503 unavailable", false),
            ("53100", "503 unavailable", "503 unavailable", false),
            ("53200", "503 unavailable", "503 unavailable", false),
            ("53300", "503 unavailable", "503 unavailable", false),
            ("57P03", "503 unavailable", "503 unavailable", false),
            ("25006", "503 unavailable", "503 unavailable", false),
            ("08000", "503 unavailable", "503 outcome_unknown", true),
            ("08006", "503 unavailable", "503 outcome_unknown", true),
            ("57P01", "503 unavailable", "503 outcome_unknown", true),
            ("57P02", "503 unavailable", "503 outcome_unknown", true),
            ("57P05", "503 unavailable", "503 outcome_unknown", true),
            ("57014", "504 timeout", "504 timeout", false),
            ("42501", "500 internal", "500 internal", false),
            ("42883", "500 internal", "500 internal", false),
            ("42P01", "500 internal", "500 internal", false),
            ("23505", "500 internal", "500 internal", false),
            ("23514", "500 internal", "500 internal", false),
            ("28P01", "500 internal", "500 internal", false),
            ("3D000", "500 internal", "500 internal", false),
            ("XX000", "500 internal", "500 internal", false),
            ("XX001", "500 internal", "500 internal", false),
        ];
        for (code, before, after, repeated) in rows {
            let error = || Error::from_sqlstate(&SqlState::from_code(code), anyhow!("said"));
            assert_eq!(shown(&error()), before, "{code}");
            assert_eq!(
                shown(&error().after_sending()),
                after,
                "{code} after sending"
            );
            assert_eq!(error().may_be_repeated(), repeated, "{code} repeated");
        }
    }

    fn shown(error: &Error) -> String {
        let told = problem::told(error);
        format!("{} {}", told.status.as_u16(), told.code)
    }
}
