//! The routes: one file per resource.

mod body;
pub(crate) mod claims;
pub(crate) mod coupons;
pub(crate) mod health;
