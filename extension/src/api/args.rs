//! Argument checks: a bad argument is an error that names it.

use pgrx::prelude::*;

/// The length of the longest user id or coupon name, in characters.
pub const MAX_CHARS: usize = 255;

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
