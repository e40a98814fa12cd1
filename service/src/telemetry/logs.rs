//! The log: one line an event on standard error, as text or as JSON.
//!
//! Every request has a line, so a line is made here, in a buffer that its thread keeps, and a thread
//! of its own writes many at once. Nobody waits for that thread: a line that finds no room, because
//! standard error is blocked or slow, is dropped and counted.

use std::{
    cell::Cell,
    fmt::{Debug, Write as _},
    io::{self, Write},
    str::FromStr,
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer, filter::Targets, layer::Context, layer::SubscriberExt, registry, util::SubscriberInitExt,
};

/// Lines that may wait to be written: a tenth of a second of 80,000 requests a second.
const ROOM: usize = 8 * 1024;

/// How long the writing thread lets lines gather after each write. Waking it for every line would
/// cost more than the line.
const GATHERING: Duration = Duration::from_millis(10);

/// What goes out in one write at most, give or take a line.
const CHUNK: usize = 64 * 1024;

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

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// Begins to log to standard error.
///
/// # Errors
/// When the process logs already.
pub fn begin(format: Format, Filter(targets): Filter) -> Result<()> {
    let (sink, writer) = NonBlockingBuilder::default()
        .buffered_lines_limit(ROOM)
        .lossy(true)
        .thread_name("log")
        .finish(Gathered::new(io::stderr()));
    let dropped = sink.error_counter();
    registry()
        .with(targets)
        .with(Lines { format, sink })
        .try_init()
        .context("the log cannot be set up")?;
    // Only one call gets here.
    let _ = DROPPED.set(dropped);
    *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
    Ok(())
}

/// Writes out what waits, for about a second at most, and ends the log.
pub fn finish() {
    drop(WRITER.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// How many lines were dropped so far.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED
        .get()
        .map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Writes what came in one piece when told to flush, and then takes its time.
struct Gathered<W> {
    writer: W,
    chunk: Vec<u8>,
}

impl<W: Write> Gathered<W> {
    fn new(writer: W) -> Self {
        Self {
            writer,
            chunk: Vec::new(),
        }
    }

    fn write_out(&mut self) -> io::Result<()> {
        let written = self.writer.write_all(&self.chunk);
        self.chunk.clear();
        written
    }
}

impl<W: Write> Write for Gathered<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(line);
        if self.chunk.len() >= CHUNK {
            self.write_out()?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.write_out();
        thread::sleep(GATHERING);
        written
    }
}

/// Makes lines of events.
struct Lines {
    format: Format,
    sink: NonBlocking,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        thread_local!(static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) });
        // Taken, not borrowed: what is logged may log while it is written.
        let mut line = BUFFER.try_with(Cell::take).unwrap_or_default();
        line.clear();
        match self.format {
            Format::Text => text(&mut line, event),
            Format::Json => json(&mut line, event),
        }
        // What cannot be written is counted there.
        let _ = self.sink.clone().write_all(&line);
        let _ = BUFFER.try_with(|buffer| buffer.set(line));
    }
}

fn text(line: &mut Vec<u8>, event: &Event<'_>) {
    put_time(line);
    line.extend_from_slice(match *event.metadata().level() {
        Level::ERROR => b" ERROR",
        Level::WARN => b"  WARN",
        Level::INFO => b"  INFO",
        Level::DEBUG => b" DEBUG",
        Level::TRACE => b" TRACE",
    });
    event.record(&mut Text(line));
    line.push(b'\n');
}

fn json(line: &mut Vec<u8>, event: &Event<'_>) {
    line.extend_from_slice(b"{\"timestamp\":\"");
    put_time(line);
    line.extend_from_slice(b"\",\"level\":\"");
    line.extend_from_slice(event.metadata().level().as_str().as_bytes());
    line.extend_from_slice(b"\",\"target\":\"");
    line.extend_from_slice(event.metadata().target().as_bytes());
    line.push(b'"');
    event.record(&mut Json(line));
    line.extend_from_slice(b"}\n");
}

/// The time in UTC to the microsecond. All but the fraction is kept for the rest of the second.
fn put_time(line: &mut Vec<u8>) {
    const UP_TO_SECONDS: usize = "2026-11-22T12:00:00".len();
    thread_local!(static SECOND: Cell<(u64, [u8; UP_TO_SECONDS])> = const {
        Cell::new((u64::MAX, [b' '; UP_TO_SECONDS]))
    });
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (second, mut shown) = SECOND.get();
    if second != now.as_secs() {
        let whole = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(text, "{}", humantime::format_rfc3339_seconds(whole));
        if let Some(text) = text.as_bytes().first_chunk() {
            shown = *text;
            SECOND.set((now.as_secs(), shown));
        }
    }
    line.extend_from_slice(&shown);
    let mut fraction = *b".000000Z";
    let mut micros = now.subsec_micros();
    for digit in fraction[1..7].iter_mut().rev() {
        *digit += (micros % 10) as u8;
        micros /= 10;
    }
    line.extend_from_slice(&fraction);
}

/// Writes an event's fields as `key=value`, and the message as it is.
struct Text<'a>(&'a mut Vec<u8>);

impl Text<'_> {
    /// Gives whether the field is the message.
    fn put_key(&mut self, field: &Field) -> bool {
        self.0.push(b' ');
        let is_message = field.name() == "message";
        if !is_message {
            self.0.extend_from_slice(field.name().as_bytes());
            self.0.push(b'=');
        }
        is_message
    }

    /// Makes sure that what stands from `start` on is one value of one line.
    fn tidy(&mut self, start: usize, is_message: bool) {
        let value = &self.0[start..];
        let is_plain = |byte: &u8| byte.is_ascii_graphic() && !b"\"'=\\".contains(byte);
        if value.iter().all(is_plain) && !value.is_empty() {
            return;
        }
        if is_message && !value.iter().any(u8::is_ascii_control) {
            return;
        }
        let value = self.0.split_off(start);
        let value = String::from_utf8_lossy(&value);
        // Writing to memory cannot fail.
        let _ = if is_message {
            value.chars().try_for_each(|character| {
                if character.is_control() {
                    write!(self.0, "{}", character.escape_default())
                } else {
                    write!(self.0, "{character}")
                }
            })
        } else {
            write!(self.0, "{value:?}")
        };
    }
}

impl Visit for Text<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let is_message = self.put_key(field);
        let start = self.0.len();
        self.0.extend_from_slice(value.as_bytes());
        self.tidy(start, is_message);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let is_message = self.put_key(field);
        let start = self.0.len();
        let _ = write!(self.0, "{value:?}");
        self.tidy(start, is_message);
    }
}

/// Writes an event's fields as members of an object.
struct Json<'a>(&'a mut Vec<u8>);

impl Json<'_> {
    fn put_key(&mut self, field: &Field) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(field.name().as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn put(&mut self, field: &Field, value: impl serde::Serialize) {
        self.put_key(field);
        // Writing text and numbers to memory cannot fail.
        let _ = serde_json::to_writer(&mut *self.0, &value);
    }
}

impl Visit for Json<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put_key(field);
        let start = self.0.len();
        let _ = write!(self.0, "{value:?}");
        let value = self.0.split_off(start);
        let _ = serde_json::to_writer(&mut *self.0, &String::from_utf8_lossy(&value));
    }
}
