//! Fixtures that several subjects share.

pub mod api;
pub mod event_stream;
pub mod held_coupon;
pub mod lives;
pub mod long_list;
pub mod machine;
pub mod moves;
pub mod pooler;
pub mod preloaded;
pub mod program;
pub mod raw_client;
pub mod readiness;
pub mod recovery;
pub mod scrape;
pub mod shards;
pub mod signer;
pub mod sql;
pub mod wal_flush;

/// One mebibyte, in bytes.
pub const MIB: u64 = 1024 * 1024;
