//! Formats log lines as text or JSON.

use std::{
    cell::Cell,
    fmt::{Debug, Write as _},
    io::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tracing::{
    Event, Level,
    field::{Field, Visit},
};

/// Formats an event as `2026-11-22T12:00:00.000000Z  INFO message key=value …`.
pub(super) fn text(line: &mut Vec<u8>, event: &Event<'_>) {
    put_time(line);
    line.extend_from_slice(match *event.metadata().level() {
        Level::ERROR => b" ERROR",
        Level::WARN => b"  WARN",
        Level::INFO => b"  INFO",
        Level::DEBUG => b" DEBUG",
        Level::TRACE => b" TRACE",
    });
    event.record(&mut TextVisitor(line));
    line.push(b'\n');
}

/// Formats an event as one JSON object.
pub(super) fn json(line: &mut Vec<u8>, event: &Event<'_>) {
    line.extend_from_slice(b"{\"timestamp\":\"");
    put_time(line);
    line.extend_from_slice(b"\",\"level\":\"");
    line.extend_from_slice(event.metadata().level().as_str().as_bytes());
    line.extend_from_slice(b"\",\"target\":\"");
    line.extend_from_slice(event.metadata().target().as_bytes());
    line.push(b'"');
    event.record(&mut JsonVisitor(line));
    line.extend_from_slice(b"}\n");
}

/// Writes the time in UTC with microseconds. All but the fraction is cached for the rest of the second.
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

/// Bytes that need no quotes: visible ASCII without quotes, `=` and the backslash.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        plain[byte as usize] = !matches!(byte, b'"' | b'\'' | b'=' | b'\\');
        byte += 1;
    }
    plain
};

/// Writes an event's fields as `key=value`, and the message as it is.
struct TextVisitor<'a>(&'a mut Vec<u8>);

impl TextVisitor<'_> {
    /// Writes the field's name, unless the field is the message. Returns true if it is.
    fn put_key(&mut self, field: &Field) -> bool {
        self.0.push(b' ');
        let is_message = field.name() == "message";
        if !is_message {
            self.0.extend_from_slice(field.name().as_bytes());
            self.0.push(b'=');
        }
        is_message
    }

    /// Quotes and escapes the value that begins at `start`, if it needs that to stay one value in one line.
    fn tidy(&mut self, start: usize, is_message: bool) {
        let value = &self.0[start..];
        if value.iter().all(|&byte| PLAIN[usize::from(byte)]) && !value.is_empty() {
            return;
        }
        if is_message && value.iter().all(|byte| matches!(byte, b' '..=b'~')) {
            return;
        }
        let value = self.0.split_off(start);
        let value = String::from_utf8_lossy(&value);
        // Writing to memory cannot fail.
        let _ = if is_message {
            value.chars().try_for_each(|character| {
                // Invisible characters, such as those that change the direction of writing, are escaped. Of the
                // visible ones only quotation marks and the backslash have an escape, and they stay.
                let mut escaped = character.escape_debug();
                if escaped.len() == 1 || matches!(character, '"' | '\'' | '\\') {
                    write!(self.0, "{character}")
                } else {
                    escaped.try_for_each(|part| write!(self.0, "{part}"))
                }
            })
        } else {
            write!(self.0, "{value:?}")
        };
    }
}

impl Visit for TextVisitor<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put_key(field);
        self.0
            .extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

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
struct JsonVisitor<'a>(&'a mut Vec<u8>);

impl JsonVisitor<'_> {
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

impl Visit for JsonVisitor<'_> {
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
