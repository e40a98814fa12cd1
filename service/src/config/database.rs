//! Where the database is and how its sessions are bounded.

use std::{ffi::OsString, time::Duration};

use clap::Args;

use super::{
    Secret, cores,
    layers::Wrong,
    values::{duration, whole},
};
use crate::{
    libpq::{Fault, Parameters},
    target::Target,
};

/// The database and its sessions.
#[derive(Debug, Args)]
#[command(next_help_heading = "Database")]
pub(super) struct DatabaseSettings {
    /// The database, as a libpq URL or keyword string; libpq's variables (PGHOST, PGPASSWORD, …) say
    /// what it leaves out
    #[arg(long, value_name = "URL")]
    database_url: Option<Secret>,
    /// The most connections that requests use; one more sees to /health/ready [default: 4 per core,
    /// 8 to 32]
    #[arg(long, value_name = "NUMBER", default_value_t = default_pool_size(),
          hide_default_value = true, value_parser = whole::<usize>(1..=10_000))]
    database_pool_size: usize,
    /// How long a statement may take before the database breaks it off: 504
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = limit())]
    statement_timeout: Duration,
    /// How long a claim may wait for a coupon that somebody else has locked: 503
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = limit())]
    lock_timeout: Duration,
}

/// The database and its sessions, checked.
#[derive(Debug)]
pub struct Database {
    /// How to reach it.
    pub target: Target,
    /// The most connections that requests use.
    pub pool_size: usize,
    /// The longest statement.
    pub statement_timeout: Duration,
}

impl DatabaseSettings {
    pub(super) fn check(
        self,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Database, Wrong> {
        let url = self.database_url.as_ref().map_or("", Secret::reveal);
        let wrong = |fault: Fault| match fault.variable {
            Some(name) => Wrong::variable(name, fault.why),
            None => Wrong::setting("database_url", fault.why),
        };
        let parameters = Parameters::new(url, variable).map_err(wrong)?;
        // The options of the connection string come after these, so an operator has the last word.
        let limits = format!(
            "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout=30s",
            self.statement_timeout.as_millis(),
            self.lock_timeout.as_millis()
        );
        Ok(Database {
            target: Target::new(parameters, &limits).map_err(wrong)?,
            pool_size: self.database_pool_size,
            statement_timeout: self.statement_timeout,
        })
    }
}

fn limit() -> impl Fn(&str) -> Result<Duration, String> + Clone {
    duration(Duration::from_millis(10)..=Duration::from_secs(300))
}

/// Claims on one coupon queue up in the database whatever we do, so more connections than keep
/// its cores busy only make the queue longer.
fn default_pool_size() -> usize {
    (4 * cores()).clamp(8, 32)
}
