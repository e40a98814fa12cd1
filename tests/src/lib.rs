//! Fixtures for tests and benchmarks: throw-away PostgreSQL clusters, databases with the
//! extension in them, and running services.
#![forbid(unsafe_code)]

mod cluster;
mod concurrent;
mod database;
mod directory;
mod patroni;
mod pooler;
mod proxy;
mod service;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use cluster::{Cluster, ClusterOptions, Frozen, Stop};
pub use concurrent::{concurrently, counts};
pub use database::{Database, books, connect};
pub use patroni::{Patroni, Replication};
pub use pooler::Pooler;
pub use proxy::Proxy;
pub use service::Service;

/// Time after which a fixture gives up waiting. It is generous, because only a fault exceeds it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls `condition` until it yields a value, or fails after [`PATIENCE`] naming `what`.
pub async fn eventually<T, F>(what: &str, mut condition: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!(
                "timed out after {} s waiting for {what}",
                PATIENCE.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
