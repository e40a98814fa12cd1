//! The routes: one file per resource.

pub(crate) mod body;
pub(crate) mod claims;
pub(crate) mod coupons;
pub(crate) mod health;
pub(crate) mod metrics;
mod page;

use axum::http::{HeaderName, HeaderValue, header::CACHE_CONTROL};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::Error;

/// Every answer about stock and claims is of the moment, and nobody else's to keep.
const NO_STORE: [(HeaderName, HeaderValue); 1] =
    [(CACHE_CONTROL, HeaderValue::from_static("no-store"))];

/// All but the unreserved characters of RFC 3986.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Where the coupon of this name is.
fn coupon_path(name: &str) -> String {
    format!("/api/coupons/{}", utf8_percent_encode(name, PATH_SEGMENT))
}

/// A request that is not what its route takes, for the documentation.
fn invalid() -> Error {
    Error::Invalid("amount must be a whole number from 1 to 2147483647".into())
}
