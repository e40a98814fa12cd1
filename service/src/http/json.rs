//! Writes the small JSON objects of answers. Nearly all of their texts need no escapes and are copied as they are, which
//! serde_json does not know: it looks at one byte after the other.

use std::io::Write;

use serde::Serialize;

/// A JSON object, as far as it is written.
#[derive(Debug)]
pub(crate) struct Object(Vec<u8>);

impl Object {
    /// Begins an object.
    ///
    /// # Arguments
    /// `size`: its expected length, in bytes.
    pub fn begin(size: usize) -> Self {
        Self(Vec::with_capacity(size))
    }

    /// Adds a member.
    ///
    /// # Arguments
    /// `name`: needs no escapes.
    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.put_name(name);
        // All bytes, without an end at the first that needs an escape: so several are looked at together.
        let needs_escape = value.bytes().fold(false, |needs, byte| {
            needs | (byte < b' ') | (byte == b'"') | (byte == b'\\')
        });
        if needs_escape {
            self.put(value);
        } else {
            self.0.push(b'"');
            self.0.extend_from_slice(value.as_bytes());
            self.0.push(b'"');
        }
        self
    }

    /// Adds a member, as [`Self::text`] does.
    pub fn number(mut self, name: &str, value: u16) -> Self {
        self.put_name(name);
        self.put(value);
        self
    }

    /// Ends the object.
    pub fn end(mut self) -> Vec<u8> {
        self.0.push(b'}');
        self.0
    }

    fn put_name(&mut self, name: &str) {
        let before = if self.0.is_empty() { b'{' } else { b',' };
        self.0.extend_from_slice(&[before, b'"']);
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn put(&mut self, value: impl Serialize) {
        // Writing text and numbers to memory cannot fail.
        let _ = serde_json::to_writer(self.0.by_ref(), &value);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_written_as_serde_json_writes_them() {
        let others = ["", "user_1", "a longer text with a \" in it", "\u{2028}é😀"];
        let texts = ('\0'..='\u{17f}').map(String::from);
        for text in texts.chain(others.map(String::from)) {
            let written = Object::begin(0).text("text", &text).end();
            assert_eq!(
                written,
                serde_json::to_vec(&json!({ "text": text })).unwrap()
            );
        }
    }
}
