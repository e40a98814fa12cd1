//! Logs: one line for each event on standard error, as text or as JSON.
//!
//! Every request has a line, so lines must be cheap. Each is formatted in a buffer of its thread and queued for a
//! thread that only writes. No request waits for that thread: a line that does not fit into the queue, because
//! standard error is blocked or slow, is dropped and counted.

mod address;
mod line;
mod outbox;

use std::{cell::Cell, io, str::FromStr, thread, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    Layer, filter::Targets, layer::Context, layer::SubscriberExt, registry, util::SubscriberInitExt,
};

pub(crate) use self::address::AddressText;
use self::outbox::Outbox;

/// Longest time for writing the last lines.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

static OUTBOX: Outbox = Outbox::new();

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `2026-11-22T12:00:00.000000Z  INFO message key=value …`
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Events that are logged: those of a level, or of a level for each target.
#[derive(Clone, Debug)]
pub struct LogFilter(Targets);

impl FromStr for LogFilter {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "must be off, error, warn, info, debug or trace, \
                             or such levels by target, as in info,http=warn";
        let is_level = |directive: &str| {
            // A lone word that is no level would be a target, and turn all others off.
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

/// Starts logging to standard error.
///
/// # Errors
/// The process logs already, or cannot start a thread.
pub fn start(format: LogFormat, LogFilter(targets): LogFilter) -> Result<()> {
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

/// Writes the queued lines, for a second at most, and ends the log.
pub fn finish() {
    OUTBOX.finish(SHUTDOWN_TIMEOUT);
}

/// Number of lines dropped so far.
pub(crate) fn dropped_lines() -> u64 {
    OUTBOX.dropped()
}

/// Formats events as lines.
struct Lines(LogFormat);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        thread_local!(static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) });
        // Taken, not borrowed: a value may log while it is formatted.
        let mut line = BUFFER.try_with(Cell::take).unwrap_or_default();
        line.clear();
        match self.0 {
            LogFormat::Text => line::text(&mut line, event),
            LogFormat::Json => line::json(&mut line, event),
        }
        OUTBOX.put(&line);
        let _ = BUFFER.try_with(|buffer| buffer.set(line));
    }
}
