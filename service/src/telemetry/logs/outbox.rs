//! Queue of log lines that wait to be written.

use std::{
    io::Write,
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Capacity in bytes: a tenth of a second at 80,000 requests a second.
const CAPACITY: usize = 2 * 1024 * 1024;

/// Pause between two writes. Waking the writer for every line would cost more than the line.
const GATHERING: Duration = Duration::from_millis(10);

/// Queue of lines with many producers and one writer.
#[derive(Debug)]
pub(super) struct Outbox {
    contents: Mutex<Contents>,
    /// Notified when the queue is no longer empty, when no more lines come, and when the last is written.
    changed: Condvar,
}

#[derive(Debug)]
struct Contents {
    lines: Vec<u8>,
    /// Number of lines that did not fit or could not be written.
    dropped: u64,
    /// True while the writer waits for a line.
    is_idle: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// No more lines come.
    Closing,
    /// All lines are written.
    Closed,
}

impl Outbox {
    pub const fn new() -> Self {
        Self {
            contents: Mutex::new(Contents {
                lines: Vec::new(),
                dropped: 0,
                is_idle: false,
                stage: Stage::Open,
            }),
            changed: Condvar::new(),
        }
    }

    /// Adds a line, or drops it if it does not fit.
    pub fn put(&self, line: &[u8]) {
        let mut contents = self.contents();
        if contents.lines.len() + line.len() > CAPACITY {
            contents.dropped += 1;
            return;
        }
        contents.lines.extend_from_slice(line);
        if mem::take(&mut contents.is_idle) {
            drop(contents);
            self.changed.notify_all();
        }
    }

    /// Number of lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.contents().dropped
    }

    /// Writes lines, many at a time, until no more come.
    pub fn empty_into(&self, mut writer: impl Write) {
        let mut lines = Vec::new();
        let mut contents = self.contents();
        loop {
            while contents.lines.is_empty() && contents.stage == Stage::Open {
                contents.is_idle = true;
                contents = self
                    .changed
                    .wait(contents)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let is_last = contents.stage != Stage::Open;
            mem::swap(&mut lines, &mut contents.lines);
            drop(contents);
            let written = writer.write_all(&lines);
            contents = self.contents();
            if written.is_err() {
                // The service goes on without a log.
                contents.dropped += lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            }
            lines.clear();
            if is_last {
                break;
            }
            let gathered = self
                .changed
                .wait_timeout_while(contents, GATHERING, |contents| {
                    contents.stage == Stage::Open
                });
            (contents, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        }
        contents.stage = Stage::Closed;
        drop(contents);
        self.changed.notify_all();
    }

    /// Waits until the last lines are written, for `limit` at most.
    pub fn finish(&self, limit: Duration) {
        let mut contents = self.contents();
        if contents.stage == Stage::Open {
            contents.stage = Stage::Closing;
            self.changed.notify_all();
        }
        let finished = self
            .changed
            .wait_timeout_while(contents, limit, |contents| contents.stage != Stage::Closed);
        // Lines that are not written by now are lost.
        drop(finished);
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        // Every line is complete at any point that could panic.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
