//! Settings of the databases and of their sessions.

use std::{ffi::OsString, time::Duration};

use clap::Args;

use super::{
    Secret, cores,
    layers::InvalidSetting,
    values::{duration, whole},
};
use crate::{
    database::{
        DatabaseOptions, Sessions,
        server::{ConninfoError, Parameters, Servers},
    },
    shards::{ShardNumber, Shards},
};

/// Settings of the databases and of their sessions.
#[derive(Debug, Args)]
#[command(next_help_heading = "Database")]
pub(super) struct DatabaseSettings {
    /// Connection string of the database, a libpq URL or keywords; libpq's variables (PGHOST,
    /// PGPASSWORD, …) add what it leaves out
    #[arg(long, value_name = "URL")]
    database_url: Option<Secret>,
    /// URLs of several databases that share the coupons, separated by blanks, instead of DATABASE_URL: 2, 4,
    /// 8, … or 256. Neither their number nor their order can change once there are coupons
    #[arg(long, value_name = "URLS")]
    database_shards: Vec<Secret>,
    /// Most connections for requests to each database; half as many more wait for coupons that other
    /// sessions hold, and one checks the database's health [default: 4 per core, 8 to 32]
    #[arg(long, value_name = "NUMBER", default_value_t = default_pool_size(),
          hide_default_value = true, value_parser = whole::<usize>(1..=10_000))]
    database_pool_size: usize,
    /// Longest time for a statement; then the database cancels it and the answer is 504
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = limit())]
    statement_timeout: Duration,
    /// Longest wait of a claim for a coupon that another session holds, once in line and once at its
    /// head; then the answer is 503. At most half of STATEMENT_TIMEOUT [default: 2s, or half of
    /// STATEMENT_TIMEOUT if that is less]
    #[arg(long, value_name = "TIME", value_parser = limit())]
    lock_timeout: Option<Duration>,
}

/// Longest wait of a claim, unless it is set.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait of a fast session for a coupon, before the call continues on a waiting session: longer than claims
/// take that queue for it, shorter than other users of the connection would notice.
const FAST_LOCK_TIMEOUT: Duration = Duration::from_millis(50);

/// The longest `lock_timeout` that fast sessions have as well: behind a pooler that cannot set it for each session, both
/// kinds need the same.
const SAME_LOCK_TIMEOUT: Duration = Duration::from_millis(250);

impl DatabaseSettings {
    /// Checks the settings, and reads certificates and passwords.
    pub(super) fn check(
        self,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Shards<DatabaseOptions>, InvalidSetting> {
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
        let options = |shard, string: &str| self.options(shard, string, lock_timeout, variable);
        let url = self.database_url.as_ref();
        if self.database_shards.is_empty() {
            let only = options(None, url.map_or("", Secret::reveal));
            let only = only.map_err(|error| invalid(error, |why| ("database_url", why)))?;
            return Ok(Shards::only(only));
        }
        if url.is_some() {
            let why = "is set, but DATABASE_URL is, too: set the first for several databases, the second for one";
            return Err(InvalidSetting::setting("database_shards", why));
        }
        let lists = self.database_shards.iter().map(Secret::reveal);
        let urls: Vec<&str> = lists.flat_map(str::split_whitespace).collect();
        let count = urls.len();
        let Some(urls) = Shards::new(urls).ok().filter(|urls| urls.count() > 1) else {
            let why = format!(
                "lists {count} databases: there must be 2, 4, 8, or another power of two up to 256"
            );
            return Err(InvalidSetting::setting("database_shards", why));
        };
        let mut known: Vec<Sessions> = Vec::new();
        urls.try_map(|number, url| {
            let wrong = |error| {
                let shard = number.unwrap_or_default();
                invalid(error, |why| {
                    ("database_shards", format!("shard {shard} {why}"))
                })
            };
            if !Parameters::is_url(url) {
                let error = ConninfoError::in_string("must begin with postgresql://");
                return Err(wrong(error));
            }
            // Otherwise the second one, with its password, would be taken for a part of the first, and be logged.
            if url.matches("://").count() > 1 {
                let error = ConninfoError::in_string(
                    "holds a second URL: separate URLs by blanks, not by commas",
                );
                return Err(wrong(error));
            }
            let options = options(number, url).map_err(wrong)?;
            if let Some(same) = known.iter().position(|other| *other == options.sessions) {
                let error =
                    ConninfoError::in_string(format!("is the same database as shard {same}"));
                return Err(wrong(error));
            }
            known.push(options.sessions.clone());
            Ok(options)
        })
    }

    /// Options of the database that a connection string names.
    fn options(
        &self,
        shard: ShardNumber,
        string: &str,
        lock_timeout: Duration,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<DatabaseOptions, ConninfoError> {
        let parameters = Parameters::new(string, variable)?;
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
            Servers::new(&parameters, &limits, shard)
        };
        let fast = if lock_timeout <= SAME_LOCK_TIMEOUT {
            lock_timeout
        } else {
            FAST_LOCK_TIMEOUT
        };
        Ok(DatabaseOptions {
            shard,
            sessions: Sessions {
                fast: session(fast)?,
                waiting: session(lock_timeout)?,
            },
            pool_size: self.database_pool_size,
            statement_timeout: self.statement_timeout,
        })
    }
}

/// Names the setting or variable in which an error is.
///
/// # Arguments
/// `in_string`: names the setting that has the connection string, and explains the error there.
fn invalid(
    error: ConninfoError,
    in_string: impl FnOnce(String) -> (&'static str, String),
) -> InvalidSetting {
    match error.variable {
        Some(name) => InvalidSetting::variable(name, error.why),
        None => {
            let (name, why) = in_string(error.why);
            InvalidSetting::setting(name, why)
        }
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
