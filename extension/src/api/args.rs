//! Argument checks: a bad argument is an error that names it.

use pgrx::datum::Interval;
use pgrx::prelude::*;

/// The length of the longest user id or coupon name, in characters.
pub const MAX_CHARS: usize = 255;

/// The largest number of elements of an array.
pub const MAX_BATCH: usize = 10_000;

/// Microseconds.
const SECOND: i64 = 1_000_000;
const DAY: i64 = 24 * 60 * 60 * SECOND;

/// The largest number of rows on a page of a list.
pub const MAX_PAGE: i32 = 10_000;

/// The text of argument `name`: not null, not empty, at most [`MAX_CHARS`] characters.
///
/// # Errors
/// `22004` when it is null, `22023` when it is empty or too long.
pub fn text<'a>(name: &str, value: Option<&'a str>) -> &'a str {
    let value = not_null(name, value);
    if value.is_empty() {
        invalid(format!("{name} must not be empty"));
    }
    if !is_plain(value) {
        let chars = value.chars().count();
        if chars > MAX_CHARS {
            invalid(format!(
                "{name} must be at most {MAX_CHARS} characters long, not {chars}"
            ));
        }
    }
    value
}

/// Returns true if `value` is certainly a good text: it is not empty, and not longer in bytes than it may
/// be in characters. So most texts need no counting.
pub fn is_plain(value: &str) -> bool {
    (1..=MAX_CHARS).contains(&value.len())
}

/// The elements of the array `name`: at most [`MAX_BATCH`] texts, each as [`text`] wants it.
///
/// # Errors
/// `22004` when it or an element is null, `22023` when it has too many elements, or an element is empty or
/// too long.
pub fn texts<'a>(name: &str, values: Option<&'a Array<'_, &str>>) -> Vec<&'a str> {
    let values = not_null(name, values);
    if values.len() > MAX_BATCH {
        invalid(format!(
            "{name} must have at most {MAX_BATCH} elements, not {}",
            values.len()
        ));
    }
    values
        .iter()
        .enumerate()
        .map(|(i, value)| match value {
            Some(value) if is_plain(value) => value,
            other => text(&format!("{name}[{}]", i + 1), other),
        })
        .collect()
}

/// The elements of the array `name`: `count` of them, each null or a text; or nulls if there is no array.
///
/// # Errors
/// `22023` when it has another number of elements, or an element is empty or too long.
pub fn optional_texts<'a>(
    name: &str,
    values: Option<&'a Array<'_, &str>>,
    count: usize,
) -> Vec<Option<&'a str>> {
    let Some(values) = values else {
        return vec![None; count];
    };
    length(name, values.len(), count);
    values
        .iter()
        .enumerate()
        .map(|(i, value)| match value {
            Some(value) if !is_plain(value) => {
                Some(text(&format!("{name}[{}]", i + 1), Some(value)))
            }
            other => other,
        })
        .collect()
}

/// Checks that the array `name` has `count` elements.
///
/// # Errors
/// `22023`.
pub fn length(name: &str, length: usize, count: usize) {
    if length != count {
        invalid(format!(
            "{name} must have as many elements as the other arrays, {count}, not {length}"
        ));
    }
}

/// The duration of argument `name` in microseconds: 1 second to 24 hours.
///
/// # Errors
/// `22004` when it is null, `22023` when it is out of range or has months, whose length varies.
pub fn ttl(name: &str, value: Option<Interval>) -> i64 {
    let value = not_null(name, value);
    let micros = i64::from(value.days())
        .checked_mul(DAY)
        .and_then(|days| days.checked_add(value.micros()))
        .filter(|micros| value.months() == 0 && (SECOND..=DAY).contains(micros));
    micros.unwrap_or_else(|| invalid(format!("{name} must be between 1 second and 24 hours")))
}

/// The value of argument `name`, which must lie within `range`.
///
/// # Errors
/// `22004` when it is null, `22023` when it is out of range.
pub fn int(name: &str, value: Option<i32>, range: std::ops::RangeInclusive<i32>) -> i32 {
    let value = not_null(name, value);
    if !range.contains(&value) {
        let (low, high) = (range.start(), range.end());
        if *high == i32::MAX {
            invalid(format!("{name} must be at least {low}, not {value}"));
        }
        invalid(format!(
            "{name} must be between {low} and {high}, not {value}"
        ));
    }
    value
}

/// The value of argument `name`.
///
/// # Errors
/// `22004` when it is null.
pub fn not_null<T>(name: &str, value: Option<T>) -> T {
    value.unwrap_or_else(|| {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("{name} must not be null")
        );
    })
}

/// Raises `22023` with `message`.
pub fn invalid(message: String) -> ! {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        message
    );
}
