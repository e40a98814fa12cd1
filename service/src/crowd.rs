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

/// Lets the first of a crowd speak, and then as many every [`PAUSE`] for the others.
#[derive(Debug)]
pub(crate) struct Crowd {
    /// How many may speak within one pause.
    speakers: u64,
    spoken: Mutex<Option<Spoken>>,
}

#[derive(Debug)]
struct Spoken {
    /// When the first of the speakers did.
    since: Instant,
    speakers: u64,
    left_out: u64,
}

impl Crowd {
    /// A crowd whose members all have the same to say.
    pub(crate) const fn new() -> Self {
        Self::of(1)
    }

    /// A crowd whose members may have different things to say.
    pub(crate) const fn of(speakers: u64) -> Self {
        Self {
            speakers,
            spoken: Mutex::new(None),
        }
    }

    /// Whether this one may speak, and how many of its kind could not since the last one did.
    pub(crate) fn admits(&self) -> Option<u64> {
        let mut spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *spoken {
            Some(spoken) if spoken.since.elapsed() < PAUSE => {
                if spoken.speakers < self.speakers {
                    spoken.speakers += 1;
                    return Some(0);
                }
                spoken.left_out += 1;
                LEFT_OUT.fetch_add(1, Ordering::Relaxed);
                None
            }
            spoken => {
                let left_out = spoken.as_ref().map_or(0, |spoken| spoken.left_out);
                *spoken = Some(Spoken {
                    since: Instant::now(),
                    speakers: 1,
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
