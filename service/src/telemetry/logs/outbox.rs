//! Lines that wait to be written, all in one piece.

use std::{
    io::Write,
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What may wait, in bytes: a tenth of a second of 80,000 requests a second.
const ROOM: usize = 2 * 1024 * 1024;

/// How long lines gather between two writes. Waking the writer for every line would cost more than
/// the line.
const GATHERING: Duration = Duration::from_millis(10);

/// Where many threads put lines and one takes them out.
#[derive(Debug)]
pub(super) struct Outbox {
    contents: Mutex<Contents>,
    /// Rings when there is a line again, when there will be no more, and when the last is written.
    changed: Condvar,
}

#[derive(Debug)]
struct Contents {
    lines: Vec<u8>,
    /// How many lines found no room or could not be written.
    dropped: u64,
    /// Whether the writer waits for a line.
    is_idle: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// What waits is the last.
    Closing,
    /// All of it is written.
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

    /// Puts in a line, or drops it where there is no room.
    pub fn put(&self, line: &[u8]) {
        let mut contents = self.contents();
        if contents.lines.len() + line.len() > ROOM {
            contents.dropped += 1;
            return;
        }
        contents.lines.extend_from_slice(line);
        if mem::take(&mut contents.is_idle) {
            drop(contents);
            self.changed.notify_all();
        }
    }

    /// How many lines were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.contents().dropped
    }

    /// Writes lines, many at once, until there will be no more.
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
                // Where nobody reads the log any more, the service goes on without.
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

    /// Has the last lines written, and waits for that for so long at most.
    pub fn finish(&self, patience: Duration) {
        let mut contents = self.contents();
        if contents.stage == Stage::Open {
            contents.stage = Stage::Closing;
            self.changed.notify_all();
        }
        let finished = self
            .changed
            .wait_timeout_while(contents, patience, |contents| {
                contents.stage != Stage::Closed
            });
        // Written or not, this is all that can be done for them.
        drop(finished);
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        // No line is half there at any point that could panic.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
