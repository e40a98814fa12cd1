//! The kinds of values that settings have, and what a wrong one is told.

use std::{fmt, ops::RangeInclusive, time::Duration};

/// A text that must not be shown, for it is a password or contains one. Taken as it is, so that no
/// parser repeats it in an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
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

/// Takes whole numbers of this range.
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

/// Takes times of this range, with their units.
pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| {
        let time = humantime::parse_duration(text).ok();
        time.filter(|time| range.contains(time)).ok_or_else(|| {
            let (from, to) = range.clone().into_inner();
            format!(
                "must be a time from {} to {}, such as 500ms, 5s or 1m",
                humantime::format_duration(from),
                humantime::format_duration(to)
            )
        })
    }
}
