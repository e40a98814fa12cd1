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
    /// The most connections that requests use; half as many more wait for coupons that somebody holds,
    /// and one sees to /health/ready [default: 4 per core, 8 to 32]
    #[arg(long, value_name = "NUMBER", default_value_t = default_pool_size(),
          hide_default_value = true, value_parser = whole::<usize>(1..=10_000))]
    database_pool_size: usize,
    /// How long a statement may take before the database breaks it off: 504
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = limit())]
    statement_timeout: Duration,
    /// How long a claim may wait for a coupon that somebody else has locked, in line and as long again
    /// at its head: 503
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = limit())]
    lock_timeout: Duration,
}

/// The database and its sessions, checked.
#[derive(Debug)]
pub struct Database {
    /// How to reach it.
    pub sessions: Sessions,
    /// The most connections that requests use.
    pub pool_size: usize,
    /// The longest statement.
    pub statement_timeout: Duration,
}

/// The two kinds of sessions that there are.
#[derive(Debug)]
pub struct Sessions {
    /// Which wait but a moment for a coupon that somebody holds.
    pub brisk: Target,
    /// Which wait for `lock_timeout`.
    pub patient: Target,
}

/// How long a session waits for a coupon before it leaves the wait to one of the patient ones: longer
/// than claims take that queue for it, shorter than those who need the connection would notice.
const MOMENT: Duration = Duration::from_millis(250);

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
        let session = |lock_timeout: Duration| {
            // The options of the connection string come after these, so an operator has the last word.
            // What the planner thinks of a set-returning function would have every page compiled, which
            // costs 20 times what the page does.
            let limits = format!(
                "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout=30s \
                 -c jit=off",
                self.statement_timeout.as_millis(),
                lock_timeout.as_millis()
            );
            Target::new(&parameters, &limits).map_err(wrong)
        };
        Ok(Database {
            sessions: Sessions {
                brisk: session(self.lock_timeout.min(MOMENT))?,
                patient: session(self.lock_timeout)?,
            },
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
