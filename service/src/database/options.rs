//! Options of the connections to a database.

use std::time::Duration;

use super::server::Servers;
use crate::shards::{ShardNumber, Shards};

/// Options of the connections to one database.
#[derive(Debug)]
pub struct DatabaseOptions {
    /// Number of the shard.
    pub shard: ShardNumber,
    /// Servers and session settings.
    pub sessions: Sessions,
    /// The most connections for requests.
    pub pool_size: usize,
    /// The longest statement.
    pub statement_timeout: Duration,
}

/// The two kinds of sessions.
#[derive(Clone, Debug, PartialEq)]
pub struct Sessions {
    /// Sessions that wait only a moment for a coupon that another session holds.
    pub fast: Servers,
    /// Sessions that wait for the whole `lock_timeout`.
    pub waiting: Servers,
}

impl Shards<DatabaseOptions> {
    /// Uses the certificates and passwords of `new` for new connections.
    ///
    /// # Errors
    /// `new` has other servers: then nothing changes.
    pub fn adopt(&self, new: &Self) -> Result<(), &'static str> {
        fn sessions(all: &Shards<DatabaseOptions>) -> impl Iterator<Item = &Servers> {
            all.iter()
                .flat_map(|options| [&options.sessions.fast, &options.sessions.waiting])
        }
        if !sessions(self).eq(sessions(new)) {
            return Err("only a restart changes where the database is");
        }
        for (old, new) in sessions(self).zip(sessions(new)) {
            old.adopt(new);
        }
        Ok(())
    }
}
