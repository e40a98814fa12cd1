//! Limits of a session: requested in the startup packet, and read back.
//!
//! A pooler between the service and PostgreSQL may drop them, and then nothing bounds a statement or a wait for a
//! lock.

use std::time::Duration;

use tokio_postgres::Client;

/// Settings that bound a session.
const LIMITS: [&str; 3] = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
];

/// SQL that reads [`LIMITS`], in their order.
const READ_BACK: &str = "
    select pg_catalog.current_setting('statement_timeout'),
           pg_catalog.current_setting('lock_timeout'),
           pg_catalog.current_setting('idle_in_transaction_session_timeout')";

/// The requested limits in milliseconds, in the order of [`LIMITS`]; none for a limit that is not requested, or
/// in a form that only PostgreSQL can read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestedLimits([Option<u64>; LIMITS.len()]);

/// Reason why a session cannot be used.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// It lacks the requested limits; the text names them.
    Unlimited(String),
    /// It leads to another shard; the text says why.
    OtherShard(String),
    /// It does not answer.
    Broken(tokio_postgres::Error),
}

impl RequestedLimits {
    /// Reads the limits from the startup packet's `options`. The last value of a setting counts.
    pub(crate) fn in_options(options: &str) -> Self {
        let mut requested = Self::default();
        let words = words(options);
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let setting = match word.strip_prefix("-c") {
                Some("") => words.next(),
                Some(setting) => Some(setting),
                None => word.strip_prefix("--"),
            };
            let Some((name, value)) = setting.and_then(|setting| setting.split_once('=')) else {
                continue;
            };
            let name = name.replace('-', "_").to_lowercase();
            if let Some(index) = LIMITS.iter().position(|limit| *limit == name) {
                requested.0[index] = milliseconds(value);
            }
        }
        requested
    }

    /// Compares the session's limits with the requested ones.
    ///
    /// # Errors
    /// The session cannot be used.
    pub(crate) async fn check(self, client: &Client) -> Result<(), Unfit> {
        let rows = client
            .query_typed(READ_BACK, &[])
            .await
            .map_err(Unfit::Broken)?;
        let mut dropped = Vec::new();
        for row in &rows {
            for (index, name) in LIMITS.iter().enumerate() {
                let actual: &str = row.try_get(index).map_err(Unfit::Broken)?;
                if let Some(requested) = self.0[index]
                    && milliseconds(actual) != Some(requested)
                {
                    let requested = humantime::format_duration(Duration::from_millis(requested));
                    dropped.push(format!("{name} is {actual}, asked for {requested}"));
                }
            }
        }
        if dropped.is_empty() {
            Ok(())
        } else {
            Err(Unfit::Unlimited(dropped.join("; ")))
        }
    }
}

/// Message about sessions that lack these limits.
pub(crate) fn dropped_settings(limits: &str) -> String {
    format!(
        "a pooler between the service and PostgreSQL drops the session's settings ({limits}): \
         connect directly, or set them on the role"
    )
}

/// Splits `options` into words: blanks separate them, a backslash takes the next character literally.
fn words(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => word.extend(characters.next()),
            character if character.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            character => word.push(character),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Reads a time in the form of PostgreSQL's settings: a whole number of milliseconds, or of the unit after it.
fn milliseconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_value_of_a_limit_counts() {
        for (options, requested) in [
            ("", [None, None, None]),
            (
                "-c statement_timeout=5000 -c lock_timeout=250 -c idle_in_transaction_session_timeout=30s",
                [Some(5_000), Some(250), Some(30_000)],
            ),
            (
                "-c lock_timeout=250 -clock_timeout=2s --Statement-Timeout=1min",
                [Some(60_000), Some(2_000), None],
            ),
            (
                r"-c lock_timeout=1\ s -c search_path=a\ b",
                [None, Some(1_000), None],
            ),
            (
                "-c lock_timeout=250 -c lock_timeout=1.5s",
                [None, None, None],
            ),
            ("-c jit=off -c", [None, None, None]),
        ] {
            assert_eq!(
                RequestedLimits::in_options(options),
                RequestedLimits(requested),
                "{options}"
            );
        }
    }

    #[test]
    fn times_are_read_in_postgresql_form() {
        for (text, read) in [
            ("0", Some(0)),
            ("250ms", Some(250)),
            ("2s", Some(2_000)),
            ("30 s", Some(30_000)),
            ("5min", Some(300_000)),
            ("1d", Some(86_400_000)),
            ("", None),
            ("-1", None),
            ("500us", None),
        ] {
            assert_eq!(milliseconds(text), read, "{text:?}");
        }
    }
}
