//! Places among the connections: each kind of call has so many, which bounds the connections that it
//! takes from the others.

use std::sync::Arc;

use anyhow::anyhow;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    error::Error,
    telemetry::metrics::{PlaceMetrics, metrics},
};

/// The places of one kind of call.
#[derive(Debug)]
pub(super) struct Places {
    kind: &'static str,
    free: Arc<Semaphore>,
    metrics: PlaceMetrics,
}

/// A place, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _held: OwnedSemaphorePermit,
}

impl Places {
    /// Makes `count` places. `kind` names their calls in metrics and errors.
    pub fn new(kind: &'static str, count: usize) -> Self {
        Self {
            kind,
            free: Arc::new(Semaphore::new(count)),
            metrics: metrics().places(kind),
        }
    }

    /// Takes a place, in the order of asking.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if none is free by then.
    pub async fn take(&self, by: Instant) -> Result<Place, Error> {
        let asked = Instant::now();
        let taken = timeout_at(by, Arc::clone(&self.free).acquire_owned()).await;
        self.metrics.waited(asked.elapsed(), taken.is_err());
        match taken {
            Ok(Ok(held)) => Ok(Place { _held: held }),
            Ok(Err(closed)) => Err(Error::Internal(closed.into())),
            Err(_) => Err(Error::Unavailable(anyhow!(
                "no place for another {}",
                self.kind
            ))),
        }
    }
}

impl Place {
    /// Carries out a call in this place, to its end: a caller that is dropped does not take it along.
    /// Until the answer is in, the connection cannot answer anything else, so neither it nor the place
    /// may go to others.
    ///
    /// # Errors
    /// Those of the call; [`Error::Internal`] if it panics.
    pub async fn keep_for<T: Send + 'static>(
        self,
        call: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let call = tokio::spawn(async move {
            let outcome = call.await;
            drop(self);
            outcome
        });
        call.await
            .unwrap_or_else(|broken| Err(Error::Internal(broken.into())))
    }
}
