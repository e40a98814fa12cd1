//! Permits of requests: they bound the number of requests in progress.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// The permits of requests in progress. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct RequestPermits(Arc<Semaphore>);

/// A permit of a request in progress, returned when dropped.
#[derive(Debug)]
pub(crate) struct RequestPermit {
    _held: OwnedSemaphorePermit,
}

impl RequestPermits {
    /// Makes `count` permits.
    pub fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))))
    }

    /// Takes a permit.
    ///
    /// # Errors
    /// [`Error::TooManyRequests`] if none is left.
    pub fn take(&self) -> Result<RequestPermit, Error> {
        match Arc::clone(&self.0).try_acquire_owned() {
            Ok(held) => Ok(RequestPermit { _held: held }),
            Err(_) => Err(Error::TooManyRequests),
        }
    }

    /// Returns true if no permit is left.
    pub fn are_exhausted(&self) -> bool {
        self.0.available_permits() == 0
    }
}
