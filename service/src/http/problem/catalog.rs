//! The catalog of problems: how clients see each error.

use std::borrow::Cow;

use axum::http::StatusCode;

use crate::{
    auth::Denied,
    error::Error,
    outcome::{Outcome, Presentation, presentation},
};

/// Presentation of an error to clients.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Status of the answer.
    pub status: StatusCode,
    /// Problem type: a URN that ends with the code.
    pub kind: &'static str,
    /// Stable name for programs.
    pub code: &'static str,
    /// Short description for people.
    pub title: &'static str,
    /// Explanation of this occurrence for people.
    pub detail: Cow<'static, str>,
}

impl From<Presentation> for Entry {
    fn from(presentation: Presentation) -> Self {
        Self {
            status: presentation.status,
            kind: presentation.kind,
            code: presentation.code,
            title: presentation.title,
            detail: Cow::Borrowed(presentation.detail),
        }
    }
}

impl Entry {
    /// Replaces the explanation by that of one occurrence.
    fn explained(self, detail: Cow<'static, str>) -> Self {
        Self { detail, ..self }
    }
}

/// Codes of errors that are no outcomes.
const OTHER_CODES: [&str; 18] = [
    "coupon_exists",
    "extension_outdated",
    "forbidden",
    "foreign_origin",
    "hold_not_found",
    "internal",
    "invalid_request",
    "method_not_allowed",
    "not_ready",
    "outcome_unknown",
    "overloaded",
    "payload_too_large",
    "rate_limited",
    "request_timeout",
    "route_not_found",
    "timeout",
    "unauthorized",
    "unavailable",
];

/// All codes, in alphabetical order.
pub(crate) fn codes() -> Vec<&'static str> {
    let refusals = Outcome::refusals().map(|outcome| outcome.presentation().code);
    let mut codes: Vec<_> = OTHER_CODES.into_iter().chain(refusals).collect();
    codes.sort_unstable();
    codes
}

/// Looks up the entry of an error.
#[allow(clippy::too_many_lines, reason = "it is a table")]
pub(crate) fn entry(error: &Error) -> Entry {
    Entry::from(match error {
        Error::Refused(outcome) => outcome.presentation(),
        Error::AllHeld(_) => Outcome::AllHeld.presentation(),
        Error::Invalid(reason) => return Entry::from(INVALID_REQUEST).explained(reason.clone()),
        Error::Argument(_) => INVALID_REQUEST,
        Error::RouteNotFound => presentation!(
            NOT_FOUND,
            "route_not_found",
            "No such route",
            "no route has this path"
        ),
        Error::MethodNotAllowed => presentation!(
            METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "Method not allowed",
            "the Allow header lists the methods of this path"
        ),
        Error::Denied(Denied::NoToken) => UNAUTHORIZED,
        Error::Denied(Denied::InvalidToken(reason)) => Presentation {
            detail: reason,
            ..UNAUTHORIZED
        },
        Error::Denied(Denied::NoScope(_)) => FORBIDDEN,
        Error::Denied(Denied::ForeignSubject) => Presentation {
            detail: "the token allows this for its own subject only",
            ..FORBIDDEN
        },
        Error::ForeignOrigin => presentation!(
            FORBIDDEN,
            "foreign_origin",
            "Foreign origin",
            "web pages of this origin may not do this: CORS_ORIGINS lists those that may"
        ),
        Error::BodyTimeout => presentation!(
            REQUEST_TIMEOUT,
            "request_timeout",
            "Request timed out",
            "the body did not arrive in time"
        ),
        Error::BodyTooLarge => presentation!(
            PAYLOAD_TOO_LARGE,
            "payload_too_large",
            "Body too large",
            "the body is larger than 64 KiB, or than 1 MiB for a batch of claims"
        ),
        Error::HoldNotFound => presentation!(
            NOT_FOUND,
            "hold_not_found",
            "No such hold",
            "this user does not hold this coupon"
        ),
        Error::CouponExists => presentation!(
            CONFLICT,
            "coupon_exists",
            "Coupon exists",
            "a coupon of this name exists already"
        ),
        Error::Conflict(_) | Error::Disconnected(_) | Error::Unavailable(_) => UNAVAILABLE,
        Error::Locked(_) => Presentation {
            detail: "another session of the database holds this coupon for too long; nothing was changed",
            ..UNAVAILABLE
        },
        Error::OutcomeUnknown(_) => presentation!(
            SERVICE_UNAVAILABLE,
            "outcome_unknown",
            "Outcome unknown",
            "the database gave no answer: the change may have been made or not; repeat the request to find out, \
             but look at the stock before you repeat a restock"
        ),
        Error::Timeout(_) => presentation!(
            GATEWAY_TIMEOUT,
            "timeout",
            "Timed out",
            "the database took too long; nothing was changed"
        ),
        Error::Overloaded => OVERLOADED,
        Error::TooManyRequests => Presentation {
            detail: "too many requests are in progress; nothing was changed",
            ..OVERLOADED
        },
        Error::TooManyLists => Presentation {
            detail: "too many long lists are being read: list the coupon's claims page by page",
            ..OVERLOADED
        },
        Error::TooManyStreams => Presentation {
            detail: "too many event streams are open: read the coupon's stock instead",
            ..OVERLOADED
        },
        Error::TooManyConnections => Presentation {
            detail: "too many connections are open; nothing was changed",
            ..OVERLOADED
        },
        Error::NotReady(reason) => return Entry::from(NOT_READY).explained(reason.clone()),
        Error::RateLimited(_) => presentation!(
            TOO_MANY_REQUESTS,
            "rate_limited",
            "Too many requests",
            "the rate limit is exceeded; Retry-After says when to try again"
        ),
        Error::ExtensionOutdated => presentation!(
            NOT_IMPLEMENTED,
            "extension_outdated",
            "Extension outdated",
            "the database's extension does not have this yet: alter extension honcho update adds it"
        ),
        Error::Rejected(_) | Error::FunctionNotFound(_) | Error::Internal(_) => presentation!(
            INTERNAL_SERVER_ERROR,
            "internal",
            "Internal error",
            "the service failed; its log has the request id"
        ),
    })
}

const INVALID_REQUEST: Presentation = presentation!(
    BAD_REQUEST,
    "invalid_request",
    "Invalid request",
    "the database refused one of the values"
);

const UNAUTHORIZED: Presentation = presentation!(
    UNAUTHORIZED,
    "unauthorized",
    "Unauthorized",
    "the Authorization header must hold a bearer token"
);

const FORBIDDEN: Presentation = presentation!(
    FORBIDDEN,
    "forbidden",
    "Forbidden",
    "the token's scopes do not allow this: WWW-Authenticate names the one that does"
);

const UNAVAILABLE: Presentation = presentation!(
    SERVICE_UNAVAILABLE,
    "unavailable",
    "Unavailable",
    "the service cannot do this at present; nothing was changed"
);

const OVERLOADED: Presentation = presentation!(
    SERVICE_UNAVAILABLE,
    "overloaded",
    "Overloaded",
    "too many claims and other operations are waiting; nothing was changed"
);

const NOT_READY: Presentation = presentation!(
    SERVICE_UNAVAILABLE,
    "not_ready",
    "Not ready",
    "requests are not served at present"
);

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use anyhow::anyhow;

    use super::*;
    use crate::auth::Scope;

    #[test]
    fn every_error_has_its_answer() {
        let cause = || anyhow!("said by the database");
        let mut rows = vec![
            (
                Error::Invalid("amount must be a number".into()),
                "400 invalid_request",
            ),
            (Error::Argument(cause()), "400 invalid_request"),
            (Error::RouteNotFound, "404 route_not_found"),
            (Error::MethodNotAllowed, "405 method_not_allowed"),
            (Denied::NoToken.into(), "401 unauthorized"),
            (
                Denied::InvalidToken("the token has expired").into(),
                "401 unauthorized",
            ),
            (Denied::NoScope(Scope::Read).into(), "403 forbidden"),
            (Denied::ForeignSubject.into(), "403 forbidden"),
            (Error::ForeignOrigin, "403 foreign_origin"),
            (Error::BodyTimeout, "408 request_timeout"),
            (Error::BodyTooLarge, "413 payload_too_large"),
            (Error::AllHeld(Duration::from_secs(1)), "409 all_held"),
            (Error::HoldNotFound, "404 hold_not_found"),
            (Error::CouponExists, "409 coupon_exists"),
            (Error::Conflict(cause()), "503 unavailable"),
            (Error::Disconnected(cause()), "503 unavailable"),
            (Error::Locked(cause()), "503 unavailable"),
            (Error::Unavailable(cause()), "503 unavailable"),
            (Error::OutcomeUnknown(cause()), "503 outcome_unknown"),
            (Error::Timeout(cause()), "504 timeout"),
            (Error::Overloaded, "503 overloaded"),
            (
                Error::NotReady("the service is stopping".into()),
                "503 not_ready",
            ),
            (Error::TooManyRequests, "503 overloaded"),
            (Error::TooManyLists, "503 overloaded"),
            (Error::TooManyStreams, "503 overloaded"),
            (Error::TooManyConnections, "503 overloaded"),
            (
                Error::RateLimited(Duration::from_secs(1)),
                "429 rate_limited",
            ),
            (Error::Rejected(cause()), "500 internal"),
            (Error::FunctionNotFound(cause()), "500 internal"),
            (Error::ExtensionOutdated, "501 extension_outdated"),
            (Error::Internal(cause()), "500 internal"),
        ];
        let outcomes = [
            (Outcome::AlreadyClaimed, "409 already_claimed"),
            (Outcome::SoldOut, "409 sold_out"),
            (Outcome::NotFound, "404 coupon_not_found"),
            (Outcome::NotStarted, "409 not_started"),
            (Outcome::Ended, "409 ended"),
            (Outcome::Paused, "409 paused"),
            (Outcome::AllHeld, "409 all_held"),
            (Outcome::NotHeld, "409 not_held"),
            (Outcome::NotClaimed, "404 claim_not_found"),
            (Outcome::BelowGiven, "409 below_given"),
            (Outcome::InUse, "409 in_use"),
        ];
        assert_eq!(outcomes.len(), Outcome::refusals().count());
        rows.extend(outcomes.map(|(outcome, answer)| (Error::Refused(outcome), answer)));
        let mut found = BTreeSet::new();
        for (error, answer) in rows {
            let entry = entry(&error);
            found.insert(entry.code);
            let shown = format!("{} {}", entry.status.as_u16(), entry.code);
            assert_eq!(shown, answer, "{error:?}");
            assert!(entry.kind.ends_with(entry.code), "{entry:?}");
            let detail = entry.detail;
            assert!(
                !detail.is_empty() && !detail.contains("said"),
                "{error:?}: {detail}"
            );
        }
        assert_eq!(found.into_iter().collect::<Vec<_>>(), codes());
    }
}
