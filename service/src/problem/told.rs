//! What clients are told of each error: the one mapping.

use std::borrow::Cow;

use axum::http::StatusCode;

use crate::error::Error;

/// What is told of an error.
#[derive(Debug)]
pub(crate) struct Told {
    /// The answer's status.
    pub status: StatusCode,
    /// A URN that ends with the code.
    pub kind: &'static str,
    /// What kind of problem it is, for programs: these do not change.
    pub code: &'static str,
    /// What kind of problem it is, for people.
    pub title: &'static str,
    /// What is wrong with this request, for people.
    pub detail: Cow<'static, str>,
}

/// Every code that there is, for the description.
pub(crate) const CODES: [&str; 23] = [
    "already_claimed",
    "claim_not_found",
    "coupon_exists",
    "coupon_not_found",
    "ended",
    "forbidden",
    "foreign_origin",
    "internal",
    "invalid_request",
    "method_not_allowed",
    "not_ready",
    "not_started",
    "outcome_unknown",
    "overloaded",
    "paused",
    "payload_too_large",
    "rate_limited",
    "request_timeout",
    "route_not_found",
    "sold_out",
    "timeout",
    "unauthorized",
    "unavailable",
];

macro_rules! told {
    ($status:ident, $code:literal, $title:literal, $detail:expr) => {
        Told {
            status: StatusCode::$status,
            kind: concat!("urn:problem-type:honcho:", $code),
            code: $code,
            title: $title,
            detail: Cow::from($detail),
        }
    };
}

/// What is told of this error.
pub(crate) fn told(error: &Error) -> Told {
    match error {
        Error::Invalid(reason) => told!(
            BAD_REQUEST,
            "invalid_request",
            "Invalid request",
            reason.clone()
        ),
        Error::Argument(_) => told!(
            BAD_REQUEST,
            "invalid_request",
            "Invalid request",
            "the database refused one of the values"
        ),
        Error::RouteNotFound => told!(
            NOT_FOUND,
            "route_not_found",
            "No such route",
            "there is nothing at this path"
        ),
        Error::MethodNotAllowed => told!(
            METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "Method not allowed",
            "the Allow header lists the methods of this path"
        ),
        Error::Unauthorized(None) => told!(
            UNAUTHORIZED,
            "unauthorized",
            "Unauthorized",
            "the Authorization header must hold a bearer token"
        ),
        Error::Unauthorized(Some(reason)) => {
            told!(UNAUTHORIZED, "unauthorized", "Unauthorized", *reason)
        }
        Error::Forbidden(_) => told!(
            FORBIDDEN,
            "forbidden",
            "Forbidden",
            "the token's scopes do not allow this: WWW-Authenticate names the one that does"
        ),
        Error::ForeignSubject => told!(
            FORBIDDEN,
            "forbidden",
            "Forbidden",
            "the token allows claims for its own subject only"
        ),
        Error::ForeignOrigin => told!(
            FORBIDDEN,
            "foreign_origin",
            "Foreign origin",
            "web pages of this origin may not do this: CORS_ORIGINS lists those that may"
        ),
        Error::BodyTimeout => told!(
            REQUEST_TIMEOUT,
            "request_timeout",
            "Request timed out",
            "the body did not arrive in time"
        ),
        Error::BodyTooLarge => told!(
            PAYLOAD_TOO_LARGE,
            "payload_too_large",
            "Body too large",
            "the body is larger than 64 KiB"
        ),
        Error::CouponNotFound => told!(
            NOT_FOUND,
            "coupon_not_found",
            "No such coupon",
            "there is no coupon of this name"
        ),
        Error::ClaimNotFound => told!(
            NOT_FOUND,
            "claim_not_found",
            "No such claim",
            "this user has no claim on this coupon"
        ),
        Error::CouponExists => told!(
            CONFLICT,
            "coupon_exists",
            "Coupon exists",
            "there is a coupon of this name already"
        ),
        Error::AlreadyClaimed => told!(
            CONFLICT,
            "already_claimed",
            "Already claimed",
            "this user has claimed this coupon before"
        ),
        Error::SoldOut => told!(
            CONFLICT,
            "sold_out",
            "Sold out",
            "no stock of this coupon is left"
        ),
        Error::NotStarted => told!(
            CONFLICT,
            "not_started",
            "Not started",
            "this coupon cannot be claimed yet"
        ),
        Error::Ended => told!(
            CONFLICT,
            "ended",
            "Ended",
            "this coupon can no longer be claimed"
        ),
        Error::Paused => told!(
            CONFLICT,
            "paused",
            "Paused",
            "this coupon cannot be claimed at present"
        ),
        Error::Conflict(_) | Error::Disconnected(_) | Error::Locked(_) | Error::Unavailable(_) => {
            told!(
                SERVICE_UNAVAILABLE,
                "unavailable",
                "Unavailable",
                "the service cannot do this at present; nothing was changed"
            )
        }
        Error::OutcomeUnknown(_) => told!(
            SERVICE_UNAVAILABLE,
            "outcome_unknown",
            "Outcome unknown",
            "no answer came from the database: the change may have been made or not; the same \
                 request again tells"
        ),
        Error::Timeout(_) => told!(
            GATEWAY_TIMEOUT,
            "timeout",
            "Timed out",
            "the database took too long; nothing was changed"
        ),
        Error::Overloaded => told!(
            SERVICE_UNAVAILABLE,
            "overloaded",
            "Overloaded",
            "too many claims are waiting; nothing was changed"
        ),
        Error::NotReady(reason) => told!(
            SERVICE_UNAVAILABLE,
            "not_ready",
            "Not ready",
            reason.clone()
        ),
        Error::TooManyRequests => told!(
            SERVICE_UNAVAILABLE,
            "overloaded",
            "Overloaded",
            "too many requests are under way; nothing was changed"
        ),
        Error::TooManyLists => told!(
            SERVICE_UNAVAILABLE,
            "overloaded",
            "Overloaded",
            "too many long lists are being read: list the coupon's claims page by page"
        ),
        Error::TooManyConnections => told!(
            SERVICE_UNAVAILABLE,
            "overloaded",
            "Overloaded",
            "too many connections are open; nothing was changed"
        ),
        Error::RateLimited(_) => told!(
            TOO_MANY_REQUESTS,
            "rate_limited",
            "Too many requests",
            "this caller asks too often; Retry-After says when to ask again"
        ),
        Error::Refused(_) | Error::Internal(_) => told!(
            INTERNAL_SERVER_ERROR,
            "internal",
            "Internal error",
            "something is wrong on our side; the log has the request id"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use anyhow::anyhow;

    use super::*;
    use crate::access::Scope;

    #[test]
    fn every_error_has_its_answer() {
        let said = || anyhow!("said by the database");
        let rows = [
            (
                Error::Invalid("amount must be a number".into()),
                "400 invalid_request",
            ),
            (Error::Argument(said()), "400 invalid_request"),
            (Error::RouteNotFound, "404 route_not_found"),
            (Error::MethodNotAllowed, "405 method_not_allowed"),
            (Error::Unauthorized(None), "401 unauthorized"),
            (
                Error::Unauthorized(Some("the token has expired")),
                "401 unauthorized",
            ),
            (Error::Forbidden(Scope::Read), "403 forbidden"),
            (Error::ForeignSubject, "403 forbidden"),
            (Error::ForeignOrigin, "403 foreign_origin"),
            (Error::BodyTimeout, "408 request_timeout"),
            (Error::BodyTooLarge, "413 payload_too_large"),
            (Error::CouponNotFound, "404 coupon_not_found"),
            (Error::ClaimNotFound, "404 claim_not_found"),
            (Error::CouponExists, "409 coupon_exists"),
            (Error::AlreadyClaimed, "409 already_claimed"),
            (Error::SoldOut, "409 sold_out"),
            (Error::NotStarted, "409 not_started"),
            (Error::Ended, "409 ended"),
            (Error::Paused, "409 paused"),
            (Error::Conflict(said()), "503 unavailable"),
            (Error::Disconnected(said()), "503 unavailable"),
            (Error::Locked(said()), "503 unavailable"),
            (Error::Unavailable(said()), "503 unavailable"),
            (Error::OutcomeUnknown(said()), "503 outcome_unknown"),
            (Error::Timeout(said()), "504 timeout"),
            (Error::Overloaded, "503 overloaded"),
            (
                Error::NotReady("the service is stopping".into()),
                "503 not_ready",
            ),
            (Error::TooManyRequests, "503 overloaded"),
            (Error::TooManyLists, "503 overloaded"),
            (Error::TooManyConnections, "503 overloaded"),
            (
                Error::RateLimited(Duration::from_secs(1)),
                "429 rate_limited",
            ),
            (Error::Refused(said()), "500 internal"),
            (Error::Internal(said()), "500 internal"),
        ];
        let mut codes = BTreeSet::new();
        for (error, answer) in rows {
            let told = told(&error);
            codes.insert(told.code);
            let shown = format!("{} {}", told.status.as_u16(), told.code);
            assert_eq!(shown, answer, "{error:?}");
            assert!(told.kind.ends_with(told.code), "{told:?}");
            let detail = told.detail;
            assert!(
                !detail.is_empty() && !detail.contains("said"),
                "{error:?}: {detail}"
            );
        }
        assert_eq!(codes, BTreeSet::from(CODES));
    }
}
