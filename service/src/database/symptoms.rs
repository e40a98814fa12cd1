//! Symptoms: errors of calls that concern the database as a whole. The health watcher reads them, so that the
//! service is not ready while calls fail.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_postgres::error::SqlState;

/// A kind of error, and the time of its last occurrence.
#[derive(Debug, Default)]
pub(crate) struct Symptom {
    /// In milliseconds since the first look at the clock; 0 for never.
    last: AtomicU64,
}

/// The symptoms of one database.
#[derive(Debug, Default)]
pub(crate) struct Symptoms {
    /// A write failed because the disk is full.
    pub disk_full: Symptom,
    /// A session did not know its own prepared statement.
    pub statement_lost: Symptom,
}

impl Symptoms {
    /// Records an error of a call.
    pub(super) fn note(&self, error: &tokio_postgres::Error) {
        match error.code().map(SqlState::code) {
            Some("53100") => self.disk_full.set(now()),
            Some("26000" | "42P05") => self.statement_lost.set(now()),
            _ => {}
        }
    }
}

impl Symptom {
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
