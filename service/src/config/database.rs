//! Settings of the database and of its sessions.

use std::{ffi::OsString, time::Duration};

use clap::Args;

use super::{
    Secret, cores,
    layers::InvalidSetting,
    values::{duration, whole},
};
use crate::database::{
    DatabaseOptions, Sessions,
    server::{ConninfoError, Parameters, Servers},
};

/// Settings of the database and of its sessions.
#[derive(Debug, Args)]
#[command(next_help_heading = "Database")]
pub(super) struct DatabaseSettings {
    /// Connection string of the database, a libpq URL or keywords; libpq's variables (PGHOST,
    /// PGPASSWORD, …) add what it leaves out
    #[arg(long, value_name = "URL")]
    database_url: Option<Secret>,
    /// Most connections for requests; half as many more wait for coupons that other sessions hold, and one
    /// checks the database's health [default: 4 per core, 8 to 32]
    #[arg(long, value_name = "NUMBER", default_value_t = default_pool_size(),
          hide_default_value = true, value_parser = whole::<usize>(1..=10_000))]
    database_pool_size: usize,
    /// Longest time for a statement; then the database cancels it and the answer is 504
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = limit())]
    statement_timeout: Duration,
    /// Longest wait of a claim for a coupon that another session holds, once in line and once at its
    /// head; then the answer is 503. At most half of STATEMENT_TIMEOUT [default: 2s, or that half if it
    /// is less]
    #[arg(long, value_name = "TIME", value_parser = limit())]
    lock_timeout: Option<Duration>,
}

/// Longest wait of a claim, unless it is set.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait of a fast session for a coupon, before the call continues on a waiting session: longer than claims
/// take that queue for it, shorter than other users of the connection would notice.
const FAST_LOCK_TIMEOUT: Duration = Duration::from_millis(250);

impl DatabaseSettings {
    /// Checks the settings, and reads certificates and passwords.
    pub(super) fn check(
        self,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<DatabaseOptions, InvalidSetting> {
        let url = self.database_url.as_ref().map_or("", Secret::reveal);
        let invalid = |error: ConninfoError| match error.variable {
            Some(name) => InvalidSetting::variable(name, error.why),
            None => InvalidSetting::setting("database_url", error.why),
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
            return Err(InvalidSetting::setting("lock_timeout", why));
        }
        let parameters = Parameters::new(url, variable).map_err(invalid)?;
        let session = |lock_timeout: Duration| {
            // The options of the connection string come after these, so they take precedence. Without jit=off,
            // the planner's estimates for set-returning functions would have every page compiled, which costs
            // 20 times as much as the page.
            let limits = format!(
                "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout=30s \
                 -c jit=off",
                self.statement_timeout.as_millis(),
                lock_timeout.as_millis()
            );
            Servers::new(&parameters, &limits).map_err(invalid)
        };
        Ok(DatabaseOptions {
            sessions: Sessions {
                fast: session(lock_timeout.min(FAST_LOCK_TIMEOUT))?,
                waiting: session(lock_timeout)?,
            },
            pool_size: self.database_pool_size,
            statement_timeout: self.statement_timeout,
        })
    }
}

fn limit() -> impl Fn(&str) -> Result<Duration, String> + Clone {
    duration(Duration::from_millis(10)..=Duration::from_secs(300))
}

/// Claims on one coupon queue in the database in any case, so more connections than keep its cores busy only make
/// the queue longer.
fn default_pool_size() -> usize {
    (4 * cores()).clamp(8, 32)
}
