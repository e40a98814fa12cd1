//! Values as columns hold them.

use pgrx::IntoDatum;
use pgrx::pg_sys::Datum;

/// A text as the tables store it: a varlena in the memory context current when it was made.
#[derive(Clone, Copy)]
pub struct Text(Datum);

impl Text {
    /// Copies `value` into the current memory context.
    pub fn new(value: &str) -> Text {
        Text(value.into_datum().unwrap_or(Datum::null()))
    }

    /// The value as a column takes it.
    pub fn datum(self) -> Datum {
        self.0
    }
}
