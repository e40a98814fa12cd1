//! The routes: one file per resource.

pub(crate) mod claims;
pub(crate) mod coupons;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod metrics;

use axum::http::{HeaderName, HeaderValue, header::CACHE_CONTROL};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::Error;

/// Header of answers about stock and claims: they are of one moment, and no cache may store them.
const NO_STORE: [(HeaderName, HeaderValue); 1] =
    [(CACHE_CONTROL, HeaderValue::from_static("no-store"))];

/// All but the unreserved characters of RFC 3986.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Path of the coupon of this name.
fn coupon_path(name: &str) -> String {
    format!("/api/coupons/{}", utf8_percent_encode(name, PATH_SEGMENT))
}

/// An invalid request, for the description.
fn invalid() -> Error {
    Error::Invalid("amount must be a whole number from 1 to 2147483647".into())
}
