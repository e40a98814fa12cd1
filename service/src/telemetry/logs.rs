//! The log: one line an event on standard error, as text or as JSON.
//!
//! Every request has a line, so a line is made here, in a buffer that its thread keeps, and put to
//! those that wait for a thread which does nothing but write. Nobody waits for that thread: a line
//! that finds no room, because standard error is blocked or slow, is dropped and counted.

mod line;
mod outbox;

use std::{cell::Cell, io, str::FromStr, thread, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    Layer, filter::Targets, layer::Context, layer::SubscriberExt, registry, util::SubscriberInitExt,
};

use self::outbox::Outbox;

/// How long the last lines may take to be written.
const FAREWELL: Duration = Duration::from_secs(1);

static OUTBOX: Outbox = Outbox::new();

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// `2026-11-22T12:00:00.000000Z  INFO message key=value …`
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Which events are logged: a level, or a level for each target.
#[derive(Clone, Debug)]
pub struct Filter(Targets);

impl FromStr for Filter {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "must be off, error, warn, info, debug or trace, \
                             or such levels by target, as in info,http=warn";
        let is_level = |directive: &str| {
            // A lone word that is no level would be a target, with everything of all others off.
            let level = directive.rsplit('=').next().unwrap_or_default().trim();
            ["off", "error", "warn", "info", "debug", "trace"]
                .iter()
                .any(|known| level.eq_ignore_ascii_case(known))
        };
        if !text.split(',').all(is_level) {
            return Err(WRONG);
        }
        text.parse().map(Self).map_err(|_| WRONG)
    }
}

/// Begins to log to standard error.
///
/// # Errors
/// When the process logs already, or can start no thread.
pub fn begin(format: Format, Filter(targets): Filter) -> Result<()> {
    registry()
        .with(targets)
        .with(Lines(format))
        .try_init()
        .context("the log cannot be set up")?;
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(|| OUTBOX.empty_into(io::stderr()))
        .context("the log has no thread")?;
    Ok(())
}

/// Writes out what waits, for a second at most, and ends the log.
pub fn finish() {
    OUTBOX.finish(FAREWELL);
}

/// How many lines were dropped so far.
pub(crate) fn dropped_lines() -> u64 {
    OUTBOX.dropped()
}

/// Makes lines of events.
struct Lines(Format);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        thread_local!(static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) });
        // Taken, not borrowed: what is logged may log while it is written.
        let mut line = BUFFER.try_with(Cell::take).unwrap_or_default();
        line.clear();
        match self.0 {
            Format::Text => line::text(&mut line, event),
            Format::Json => line::json(&mut line, event),
        }
        OUTBOX.put(&line);
        let _ = BUFFER.try_with(|buffer| buffer.set(line));
    }
}
