//! Options of the connections to the database.

use std::time::Duration;

use super::server::Servers;

/// Options of the connections to the database.
#[derive(Debug)]
pub struct DatabaseOptions {
    /// Servers and session settings.
    pub sessions: Sessions,
    /// The most connections for requests.
    pub pool_size: usize,
    /// The longest statement.
    pub statement_timeout: Duration,
}

/// The two kinds of sessions.
#[derive(Clone, Debug)]
pub struct Sessions {
    /// Sessions that wait only a moment for a coupon that another session holds.
    pub fast: Servers,
    /// Sessions that wait for the whole `lock_timeout`.
    pub waiting: Servers,
}

impl Sessions {
    /// Uses the certificates and passwords of `new` for new connections.
    ///
    /// # Errors
    /// `new` names other servers.
    pub fn adopt(&self, new: &Self) -> Result<(), &'static str> {
        self.fast.adopt(&new.fast)?;
        self.waiting.adopt(&new.waiting)
    }
}
