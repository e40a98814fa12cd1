//! Faults of calls that say something of the database as a whole: the health watcher asks for them, so that
//! readiness does not say yes while calls fail.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A kind of fault, and when a call last had it.
#[derive(Debug)]
pub(crate) struct Symptom {
    /// In milliseconds since the process looked at its clock first; 0 for never.
    last: AtomicU64,
}

/// A write failed, for the disk is full.
pub(crate) static DISK_FULL: Symptom = Symptom::never();

/// A session did not know a statement that had been prepared on it.
pub(crate) static STATEMENT_LOST: Symptom = Symptom::never();

/// Takes note of an error of a call.
///
/// # Arguments
/// `sqlstate`: its SQLSTATE.
pub(crate) fn note(sqlstate: &str) {
    match sqlstate {
        "53100" => DISK_FULL.set(now()),
        "26000" | "42P05" => STATEMENT_LOST.set(now()),
        _ => {}
    }
}

impl Symptom {
    const fn never() -> Self {
        Self {
            last: AtomicU64::new(0),
        }
    }

    fn set(&self, now: u64) {
        self.last.store(now, Ordering::Relaxed);
    }

    /// Whether a call had it within this time.
    pub(crate) fn is_recent(&self, within: Duration) -> bool {
        match self.last.load(Ordering::Relaxed) {
            0 => false,
            last => u128::from(now() - last.min(now())) <= within.as_millis(),
        }
    }
}

fn now() -> u64 {
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(BEGUN.elapsed().as_millis()).unwrap_or(u64::MAX) + 1
}
