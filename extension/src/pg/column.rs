//! Columns by attribute number, with the types of their values.

use std::marker::PhantomData;

use pgrx::datum::FromDatum;
use pgrx::pg_sys::{self, Datum};
use pgrx::{IntoDatum, direct_function_call};

/// A value of a column.
pub trait Value: Copy {
    /// Reads a value that is not null.
    ///
    /// # Safety
    /// `datum` is a value of a column of this type.
    unsafe fn from_datum(datum: Datum) -> Self;

    /// The value as a row holds it.
    fn datum(self) -> Datum;
}

/// A value that an index can be searched for.
pub trait Key: Value {
    /// PostgreSQL's function that compares a column with such a value.
    const EQUAL: u32;

    /// Returns true if both values are the same.
    fn is_equal(self, other: Self) -> bool;
}

/// A text as the tables store it, with collation "C": a varlena in the memory context that was current
/// when it was made.
#[derive(Clone, Copy)]
pub struct Text(Datum);

impl Text {
    /// Copies `value` into the current memory context.
    pub fn new(value: &str) -> Text {
        Text(value.into_datum().unwrap_or(Datum::null()))
    }

    /// A copy as a string.
    pub fn string(self) -> String {
        // SAFETY: a varlena of a database whose encoding is UTF8.
        unsafe { String::from_datum(self.0, false) }.unwrap_or_default()
    }
}

impl Value for Text {
    unsafe fn from_datum(datum: Datum) -> Text {
        Text(datum)
    }

    fn datum(self) -> Datum {
        self.0
    }
}

impl Key for Text {
    const EQUAL: u32 = pg_sys::F_TEXTEQ;

    fn is_equal(self, other: Text) -> bool {
        let arguments = [Some(self.0), Some(other.0)];
        // SAFETY: both are varlenas, and texts of equal bytes are equal.
        unsafe { direct_function_call::<bool>(pg_sys::byteaeq, &arguments) }.unwrap_or(false)
    }
}

/// A `bigint`, or a `timestamptz` in PostgreSQL's microseconds.
impl Value for i64 {
    unsafe fn from_datum(datum: Datum) -> i64 {
        datum.value() as i64
    }

    fn datum(self) -> Datum {
        Datum::from(self)
    }
}

impl Key for i64 {
    const EQUAL: u32 = pg_sys::F_INT8EQ;

    fn is_equal(self, other: i64) -> bool {
        self == other
    }
}

/// An `integer`.
impl Value for i32 {
    unsafe fn from_datum(datum: Datum) -> i32 {
        datum.value() as i32
    }

    fn datum(self) -> Datum {
        Datum::from(self)
    }
}

impl Value for bool {
    unsafe fn from_datum(datum: Datum) -> bool {
        datum.value() != 0
    }

    fn datum(self) -> Datum {
        Datum::from(self)
    }
}

/// A `jsonb`: a varlena in the memory context that was current when it was made.
#[derive(Clone, Copy)]
pub struct Json(Datum);

impl Json {
    /// Makes it of `value`.
    pub fn new(value: serde_json::Value) -> Json {
        Json(pgrx::JsonB(value).into_datum().unwrap_or(Datum::null()))
    }
}

impl Value for Json {
    unsafe fn from_datum(datum: Datum) -> Json {
        Json(datum)
    }

    fn datum(self) -> Datum {
        self.0
    }
}

/// A column whose values are of type `T`.
#[derive(Clone, Copy)]
pub struct Column<T> {
    attribute: usize,
    values: PhantomData<T>,
}

impl<T: Value> Column<T> {
    /// The column with this attribute number, which counts from 1.
    pub const fn new(attribute: usize) -> Column<T> {
        assert!(attribute > 0);
        Column {
            attribute,
            values: PhantomData,
        }
    }

    /// Its attribute number.
    pub const fn attribute(self) -> usize {
        self.attribute
    }

    /// This value in this column.
    pub fn of(self, value: T) -> Cell {
        Cell {
            attribute: self.attribute,
            value: value.datum(),
            is_null: false,
        }
    }

    /// This value in this column, or null.
    pub fn of_option(self, value: Option<T>) -> Cell {
        Cell {
            attribute: self.attribute,
            value: value.map_or(Datum::null(), T::datum),
            is_null: value.is_none(),
        }
    }
}

impl<T: Key> Column<T> {
    /// The column as a part of a key that is searched for.
    pub const fn key(self) -> KeyColumn {
        KeyColumn {
            attribute: self.attribute,
            function: T::EQUAL,
            strategy: pg_sys::BTEqualStrategyNumber,
        }
    }
}

impl Column<i64> {
    /// The column, a `timestamptz`, as the last part of a key, of which all values up to the given one are
    /// searched for.
    pub const fn key_to(self) -> KeyColumn {
        KeyColumn {
            attribute: self.attribute,
            function: pg_sys::F_TIMESTAMPTZ_LE,
            strategy: pg_sys::BTLessEqualStrategyNumber,
        }
    }

    /// The same of all values from the given one on.
    pub const fn key_from(self) -> KeyColumn {
        KeyColumn {
            attribute: self.attribute,
            function: pg_sys::F_TIMESTAMPTZ_GE,
            strategy: pg_sys::BTGreaterEqualStrategyNumber,
        }
    }
}

/// A value in a column.
#[derive(Clone, Copy)]
pub struct Cell {
    pub(super) attribute: usize,
    pub(super) value: Datum,
    pub(super) is_null: bool,
}

/// A column of a key.
#[derive(Clone, Copy)]
pub struct KeyColumn {
    pub(super) attribute: usize,
    /// PostgreSQL's function that compares a value with the given one, and its place in the operator class.
    pub(super) function: u32,
    pub(super) strategy: u32,
}
