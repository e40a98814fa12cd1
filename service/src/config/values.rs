//! Types and parsers of settings' values.

use std::{fmt, ops::RangeInclusive, time::Duration};

/// A secret text, such as a password. It has no parser, so that no error repeats it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(_)")
    }
}

/// Makes a parser of whole numbers in this range.
pub(super) fn whole<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| match range.clone().into_inner() {
                (from, u64::MAX) => format!("must be a whole number from {from}"),
                (from, to) => format!("must be a whole number from {from} to {to}"),
            })
    }
}

/// Makes a parser of times with units in this range.
pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| {
        let time = humantime::parse_duration(text).ok();
        time.filter(|time| range.contains(time)).ok_or_else(|| {
            let (from, to) = range.clone().into_inner();
            let examples = if from <= Duration::from_millis(500) {
                "500ms, 5s or 1m"
            } else {
                "5s, 1m or 2h"
            };
            format!(
                "must be a time from {} to {}, such as {examples}",
                humantime::format_duration(from),
                humantime::format_duration(to)
            )
        })
    }
}
