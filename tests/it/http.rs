//! The HTTP interface: routes, authorization, limits, the protocol on the wire.

mod auth;
mod bad_input;
mod contract;
mod deadlines;
mod events;
mod flash_sale;
mod jwt;
mod lanes;
mod limits;
mod long_lists;
mod origin;
mod permits;
mod protocol;
mod rate_limit;
mod reading;
mod slow_readers;
