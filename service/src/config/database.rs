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
    /// at its head: 503. At most half of STATEMENT_TIMEOUT [default: 2s, or that half if it is less]
    #[arg(long, value_name = "TIME", value_parser = limit())]
    lock_timeout: Option<Duration>,
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
#[derive(Clone, Debug)]
pub struct Sessions {
    /// Which wait but a moment for a coupon that somebody holds.
    pub brisk: Target,
    /// Which wait for `lock_timeout`.
    pub patient: Target,
}

/// How long a claim may wait, unless that is said.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

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
        let longest_wait = self.statement_timeout / 2;
        let lock_timeout = self.lock_timeout.unwrap_or(LOCK_TIMEOUT.min(longest_wait));
        // A claim waits once in line and once at its head, and both are one statement.
        if lock_timeout > longest_wait {
            let why = format!(
                "is {}, but a claim waits that long twice, in line and at its head, and \
                 STATEMENT_TIMEOUT ends it after {}: at most half of that has any effect",
                humantime::format_duration(lock_timeout),
                humantime::format_duration(self.statement_timeout)
            );
            return Err(Wrong::setting("lock_timeout", why));
        }
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
                brisk: session(lock_timeout.min(MOMENT))?,
                patient: session(lock_timeout)?,
            },
            pool_size: self.database_pool_size,
            statement_timeout: self.statement_timeout,
        })
    }
}

impl Sessions {
    /// Uses the certificates and passwords of `new` for new connections.
    ///
    /// # Errors
    /// `new` leads to another database.
    pub fn adopt(&self, new: &Self) -> Result<(), &'static str> {
        self.brisk.adopt(&new.brisk)?;
        self.patient.adopt(&new.patient)
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
