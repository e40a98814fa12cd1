//! Permits of requests: they bound the number of requests in progress.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::error::Error;

/// The permits of requests in progress: the number of those that are left. Clones share them.
///
/// A semaphore would do the same with a lock and a count of its clones for each request, which all threads share.
#[derive(Clone, Debug)]
pub(crate) struct RequestPermits(Arc<AtomicUsize>);

/// A permit of a request in progress, returned when dropped.
#[derive(Debug)]
pub(crate) struct RequestPermit(RequestPermits);

impl RequestPermits {
    /// Makes `count` permits.
    pub fn new(count: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(count)))
    }

    /// Takes a permit.
    ///
    /// # Errors
    /// [`Error::TooManyRequests`] if none is left.
    pub fn take(self) -> Result<RequestPermit, Error> {
        let taken = self
            .0
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        match taken {
            Ok(_) => Ok(RequestPermit(self)),
            Err(_) => Err(Error::TooManyRequests),
        }
    }

    /// Returns true if no permit is left.
    pub fn are_exhausted(&self) -> bool {
        self.0.load(Relaxed) == 0
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        let Self(RequestPermits(left)) = self;
        left.fetch_add(1, Relaxed);
    }
}
