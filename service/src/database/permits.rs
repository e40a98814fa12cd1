//! Permits for connections: each kind of call has a fixed number, which bounds the connections that it takes
//! from other kinds.

use std::sync::Arc;

use anyhow::anyhow;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    error::Error,
    shards::ShardNumber,
    telemetry::metrics::{PermitMetrics, metrics},
};

/// The permits of one kind of call.
#[derive(Debug)]
pub(super) struct CallPermits {
    kind: &'static str,
    free: Arc<Semaphore>,
    metrics: PermitMetrics,
}

/// A permit, returned when dropped.
#[derive(Debug)]
pub(super) struct CallPermit {
    _held: OwnedSemaphorePermit,
}

impl CallPermits {
    /// Makes `count` permits. `kind` names their calls in metrics and errors.
    pub fn new(shard: ShardNumber, kind: &'static str, count: usize) -> Self {
        Self {
            kind,
            free: Arc::new(Semaphore::new(count)),
            metrics: metrics().permits(shard, kind),
        }
    }

    /// Waits for a permit, first come, first served.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if none is free by then.
    pub async fn acquire(&self, by: Instant) -> Result<CallPermit, Error> {
        let begun = Instant::now();
        let acquired = timeout_at(by, Arc::clone(&self.free).acquire_owned()).await;
        self.metrics.waited(begun.elapsed(), acquired.is_err());
        match acquired {
            Ok(Ok(held)) => Ok(CallPermit { _held: held }),
            Ok(Err(closed)) => Err(Error::Internal(closed.into())),
            Err(_) => Err(Error::Unavailable(anyhow!(
                "no permit for another {}",
                self.kind
            ))),
        }
    }
}

/// Carries out a call to its end even if the caller is dropped: until the answer is in, the connection is busy, so neither
/// it nor the permit that the call holds may go to other calls.
///
/// # Errors
/// Those of the call; [`Error::Internal`] if it panics.
pub(super) async fn to_its_end<T: Send + 'static>(
    call: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(call)
        .await
        .unwrap_or_else(|panic| Err(Error::Internal(panic.into())))
}
