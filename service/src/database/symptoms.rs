//! Symptoms: errors of calls that concern the database as a whole. The health watcher reads them, so that the
//! service is not ready while calls fail.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A kind of error, and the time of its last occurrence.
#[derive(Debug)]
pub(crate) struct Symptom {
    /// In milliseconds since the first look at the clock; 0 for never.
    last: AtomicU64,
}

/// A write failed because the disk is full.
pub(crate) static DISK_FULL: Symptom = Symptom::never();

/// A session did not know its own prepared statement.
pub(crate) static STATEMENT_LOST: Symptom = Symptom::never();

/// Records an error of a call.
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

    /// Returns true if a call had this error within this time.
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
