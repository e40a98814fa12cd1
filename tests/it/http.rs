//! The HTTP interface: routes, authorization, limits, the protocol on the wire.

mod auth;
mod bad_input;
mod batches;
mod contract;
mod deadlines;
mod events;
mod flash_sale;
mod holds;
mod jwt;
mod lanes;
mod life_cycle;
mod limits;
mod long_lists;
mod many_coupons;
mod origin;
mod outdated;
mod permits;
mod protocol;
mod rate_limit;
mod reading;
mod replay;
mod slow_readers;
