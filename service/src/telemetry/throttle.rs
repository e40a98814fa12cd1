//! Throttles repeated log lines: in an outage every request has the same error.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Length of a period.
const PERIOD: Duration = Duration::from_secs(10);

/// Lines that all throttles have left out since [`take_left_out`] was last called.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Admits some lines of one kind in each period and counts the others.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// Lines admitted in a period.
    lines: u64,
    period: Mutex<Option<Period>>,
}

/// A line that is admitted.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// Number of lines left out since the last one; none if it is 0.
    pub left_out: Option<u64>,
}

#[derive(Debug)]
struct Period {
    begun: Instant,
    admitted: u64,
    left_out: u64,
}

impl Throttle {
    /// Admits one line in a period: for lines that say the same.
    pub(crate) const fn new() -> Self {
        Self::of(1)
    }

    /// Admits so many lines in a period: for lines that may differ.
    pub(crate) const fn of(lines: u64) -> Self {
        Self {
            lines,
            period: Mutex::new(None),
        }
    }

    /// Admits a line; none if it is to be left out.
    pub(crate) fn admit(&self) -> Option<Admitted> {
        let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *period {
            Some(period) if period.begun.elapsed() < PERIOD => {
                if period.admitted < self.lines {
                    period.admitted += 1;
                    return Some(Admitted { left_out: None });
                }
                period.left_out += 1;
                LEFT_OUT.fetch_add(1, Ordering::Relaxed);
                None
            }
            period => {
                let left_out = period.as_ref().map(|period| period.left_out);
                *period = Some(Period {
                    begun: Instant::now(),
                    admitted: 1,
                    left_out: 0,
                });
                let left_out = left_out.filter(|&lines| lines > 0);
                Some(Admitted { left_out })
            }
        }
    }
}

/// Lines of all kinds left out since the last call.
pub(crate) fn take_left_out() -> u64 {
    LEFT_OUT.swap(0, Ordering::Relaxed)
}
