//! Errors: every reason why a request is not answered with success, and if it is safe to repeat it.
//!
//! `database::sqlstate` makes them from the database's errors, `http::problem` turns them into answers and log
//! lines.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use crate::{auth::Denied, outcome::Outcome};

/// Reason why a request is not answered with success. Errors of the database are kept for the log and never
/// shown to a client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is malformed; the text names the field.
    #[error("{0}")]
    Invalid(Cow<'static, str>),
    /// The database refused an argument that passed our checks.
    #[error("an argument was refused")]
    Argument(anyhow::Error),
    /// No route has this path.
    #[error("no such route")]
    RouteNotFound,
    /// The route does not take this method.
    #[error("no such method")]
    MethodNotAllowed,
    /// The caller is not authenticated, or lacks a permission.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The web page that sends the request is of an origin that may not change anything.
    #[error("a page of a foreign origin")]
    ForeignOrigin,
    /// The body did not arrive in time.
    #[error("the body is late")]
    BodyTimeout,
    /// The body is too large.
    #[error("the body is too large")]
    BodyTooLarge,
    /// The operation has this outcome, or would have it: nothing was changed.
    #[error("{}", .0.label())]
    Refused(Outcome),
    /// All that is left of the coupon is held, until this time has passed at least.
    #[error("{}", Outcome::AllHeld.label())]
    AllHeld(Duration),
    /// The user has no live hold on this coupon.
    #[error("no such hold")]
    HoldNotFound,
    /// The name of the new coupon is taken.
    #[error("the name is taken")]
    CouponExists,
    /// The database undid the transaction because of a concurrent one.
    #[error("conflict")]
    Conflict(anyhow::Error),
    /// The connection broke before the call was sent.
    #[error("disconnected")]
    Disconnected(anyhow::Error),
    /// Another session held the coupon for too long; nothing was changed.
    #[error("locked")]
    Locked(anyhow::Error),
    /// The database is down or out of some resource; nothing was changed.
    #[error("unavailable")]
    Unavailable(anyhow::Error),
    /// The connection broke between a change and its answer.
    #[error("outcome unknown")]
    OutcomeUnknown(anyhow::Error),
    /// The database took too long and gave up; nothing was changed.
    #[error("timeout")]
    Timeout(anyhow::Error),
    /// Too many claims and other operations are waiting.
    #[error("overloaded")]
    Overloaded,
    /// The service is not ready, for this reason.
    #[error("not ready: {0}")]
    NotReady(Cow<'static, str>),
    /// Too many requests are in progress.
    #[error("too many requests at once")]
    TooManyRequests,
    /// Too many long lists are being read.
    #[error("too many long lists at once")]
    TooManyLists,
    /// Too many event streams are open.
    #[error("too many event streams at once")]
    TooManyStreams,
    /// Too many connections are open.
    #[error("too many connections")]
    TooManyConnections,
    /// The caller exceeds its rate limit until this time has passed.
    #[error("rate limited")]
    RateLimited(Duration),
    /// The database rejected the call for a reason that only its operator knows: a constraint, a trigger, a
    /// permission; nothing was changed.
    #[error("refused")]
    Rejected(anyhow::Error),
    /// The function is not found: the extension is missing, not in the search path, or older than the function;
    /// nothing was changed.
    #[error("no such function")]
    FunctionNotFound(anyhow::Error),
    /// The database still has an older version of the extension, without this; nothing was changed.
    #[error("the extension is outdated")]
    ExtensionOutdated,
    /// A defect of the service.
    #[error("internal")]
    Internal(anyhow::Error),
}

impl Error {
    /// No coupon has this name.
    pub const COUPON_NOT_FOUND: Self = Self::Refused(Outcome::NotFound);

    /// The user has no claim on this coupon.
    pub const CLAIM_NOT_FOUND: Self = Self::Refused(Outcome::NotClaimed);

    /// Returns true if nothing was changed and a second attempt may succeed at once.
    pub(crate) fn may_be_repeated(&self) -> bool {
        matches!(self, Self::Conflict(_) | Self::Disconnected(_))
    }

    /// Returns true if nothing was changed and one operation of a batch may be the cause.
    pub(crate) fn may_concern_one_operation(&self) -> bool {
        matches!(
            self,
            Self::Argument(_) | Self::Rejected(_) | Self::ExtensionOutdated
        )
    }

    /// The underlying error, which only the log may show.
    pub(crate) fn cause(&self) -> Option<&anyhow::Error> {
        match self {
            Self::Argument(cause)
            | Self::Conflict(cause)
            | Self::Disconnected(cause)
            | Self::Locked(cause)
            | Self::Unavailable(cause)
            | Self::OutcomeUnknown(cause)
            | Self::Timeout(cause)
            | Self::Rejected(cause)
            | Self::FunctionNotFound(cause)
            | Self::Internal(cause) => Some(cause),
            Self::Invalid(_)
            | Self::RouteNotFound
            | Self::MethodNotAllowed
            | Self::Denied(_)
            | Self::ForeignOrigin
            | Self::BodyTimeout
            | Self::BodyTooLarge
            | Self::Refused(_)
            | Self::AllHeld(_)
            | Self::HoldNotFound
            | Self::CouponExists
            | Self::ExtensionOutdated
            | Self::Overloaded
            | Self::NotReady(_)
            | Self::TooManyRequests
            | Self::TooManyLists
            | Self::TooManyStreams
            | Self::TooManyConnections
            | Self::RateLimited(_) => None,
        }
    }
}

/// An error that the requests of a failed batch share.
#[derive(Clone, Debug)]
pub struct SharedError(Arc<Error>);

impl SharedError {
    /// The error itself.
    pub(crate) fn get(&self) -> &Error {
        &self.0
    }
}

impl From<Error> for SharedError {
    fn from(error: Error) -> Self {
        Self(Arc::new(error))
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
