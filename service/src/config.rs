//! What the service is told by its environment.

use std::{
    env::{self, VarError},
    fmt::Display,
    str::FromStr,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::lanes::Limits;

/// What `honcho_claim_batch` takes in one call.
const MAX_BATCH: usize = 10_000;

/// The configuration, complete and checked.
#[derive(Debug)]
pub struct Config {
    /// `HOST`: the address or name to listen on.
    pub host: String,
    /// `PORT`: the port to listen on; 0 takes any free one.
    pub port: u16,
    /// `DATABASE_URL`: where the database is, as a libpq URL or keyword string.
    pub database: tokio_postgres::Config,
    /// `WORKER_THREADS`: the threads that serve requests.
    pub workers: usize,
    /// `DATABASE_POOL_SIZE`: the most connections to the database.
    pub pool_size: usize,
    /// `BATCH_LIMIT`, `LANE_LIMIT`, `WAITING_LIMIT`: how many claims go into one batch, and how
    /// many may wait for one coupon and for all of them.
    pub lanes: Limits,
}

impl Config {
    /// Reads the environment. An error names the variable and what is wrong with it.
    pub fn from_env() -> Result<Self> {
        let pool_size = variable("DATABASE_POOL_SIZE")?.unwrap_or_else(default_pool_size);
        ensure!(pool_size > 0, "DATABASE_POOL_SIZE must be at least 1");
        let workers = variable("WORKER_THREADS")?.unwrap_or_else(default_workers);
        ensure!(workers > 0, "WORKER_THREADS must be at least 1");
        let Limits { batch, lane, total } = Limits::default();
        let lanes = Limits {
            batch: variable("BATCH_LIMIT")?.unwrap_or(batch),
            lane: variable("LANE_LIMIT")?.unwrap_or(lane),
            total: variable("WAITING_LIMIT")?.unwrap_or(total),
        };
        ensure!(
            (1..=MAX_BATCH).contains(&lanes.batch),
            "BATCH_LIMIT must be between 1 and {MAX_BATCH}"
        );
        ensure!(lanes.lane > 0, "LANE_LIMIT must be at least 1");
        ensure!(lanes.total > 0, "WAITING_LIMIT must be at least 1");
        Ok(Self {
            host: variable("HOST")?.unwrap_or_else(|| "127.0.0.1".to_owned()),
            port: variable("PORT")?.unwrap_or(8080),
            database: variable("DATABASE_URL")?
                .context("DATABASE_URL must say where the database is")?,
            workers,
            pool_size,
            lanes,
        })
    }
}

/// Half of the cores: a claim costs the database about as much as it costs us, and the two usually
/// share a machine. More threads would only hand requests to each other.
fn default_workers() -> usize {
    (cores() / 2).max(1)
}

fn cores() -> usize {
    thread::available_parallelism().map_or(2, usize::from)
}

/// Claims on one coupon queue up in the database whatever we do, so more connections than keep
/// its cores busy only make the queue longer.
fn default_pool_size() -> usize {
    (4 * cores()).clamp(8, 32)
}

/// The variable's value, or none where it is unset or empty.
fn variable<T>(name: &str) -> Result<Option<T>>
where
    T: FromStr<Err: Display>,
{
    match env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        // The value is not repeated: it may hold a password.
        Ok(value) => value
            .parse()
            .map(Some)
            .map_err(|error| anyhow!("{name}: {error}")),
        Err(VarError::NotPresent) => Ok(None),
        Err(error) => Err(anyhow!("{name}: {error}")),
    }
}
