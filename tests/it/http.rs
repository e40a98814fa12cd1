//! The HTTP interface: routes, authorization, limits, the protocol on the wire.

mod auth;
mod bad_input;
mod bounds;
mod contract;
mod flash_sale;
pub mod jwt;
mod lanes;
mod long_lists;
mod protocol;
mod rate_limit;
mod reading;
mod slow_readers;
