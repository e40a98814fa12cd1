//! Errors that come in crowds: when the database goes away, every request has the same to say.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long after one line the next of its kind is due.
const PAUSE: Duration = Duration::from_secs(10);

/// How many lines were left out since it was last asked.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Lets the first of a crowd speak, and then one every [`PAUSE`] for the others.
#[derive(Debug)]
pub(crate) struct Crowd(Mutex<Option<Spoken>>);

#[derive(Debug)]
struct Spoken {
    when: Instant,
    left_out: u64,
}

impl Crowd {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether this one may speak, and how many of its kind could not since the last one did.
    pub(crate) fn admits(&self) -> Option<u64> {
        let mut spoken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *spoken {
            Some(spoken) if spoken.when.elapsed() < PAUSE => {
                spoken.left_out += 1;
                LEFT_OUT.fetch_add(1, Ordering::Relaxed);
                None
            }
            spoken => {
                let left_out = spoken.as_ref().map_or(0, |spoken| spoken.left_out);
                *spoken = Some(Spoken {
                    when: Instant::now(),
                    left_out: 0,
                });
                Some(left_out)
            }
        }
    }
}

/// How many lines were left out, of all kinds, since this was last asked.
pub(crate) fn take_left_out() -> u64 {
    LEFT_OUT.swap(0, Ordering::Relaxed)
}
