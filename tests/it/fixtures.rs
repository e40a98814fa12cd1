//! Fixtures that several subjects share.

pub mod api;
pub mod connection;
pub mod held;
pub mod preloaded;
