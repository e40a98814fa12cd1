//! The layers around every route. `stack` lists them in their order.

pub(crate) mod admission;
pub(crate) mod client_address;
pub(crate) mod origins;
pub(crate) mod permits;
pub(crate) mod rate_limit;
pub(crate) mod request_log;
pub(crate) mod stack;
