//! The result of functions that return rows.
//!
//! pgrx's own `TableIterator` returns one row for each call, and PostgreSQL sets the search path and the user
//! of a `security definer` function anew for each call: a batch would pay that for each claim. This one
//! returns all rows in one call, in a tuple store.

use pgrx::callconv::RetAbi;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{IntoDatum, PgMemoryContexts, iter, pg_sys};

/// The number of rows whose values are freed together.
const FREED: usize = 100;

/// The rows of a function. It has the name of pgrx's type, by which `#[pg_extern]` recognises columns.
pub struct TableIterator<'a, Row>(iter::TableIterator<'a, Row>);

impl<'a, Row: 'a> TableIterator<'a, Row> {
    /// These rows, in their order.
    pub fn new(rows: impl IntoIterator<Item = Row> + 'a) -> Self {
        Self(iter::TableIterator::new(rows))
    }
}

// SAFETY: in SQL it is the same as pgrx's.
unsafe impl<'a, Row> SqlTranslatable for TableIterator<'a, Row>
where
    iter::TableIterator<'a, Row>: SqlTranslatable,
{
    const TYPE_IDENT: &'static str = iter::TableIterator::<'a, Row>::TYPE_IDENT;
    const TYPE_ORIGIN: TypeOrigin = iter::TableIterator::<'a, Row>::TYPE_ORIGIN;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> =
        iter::TableIterator::<'a, Row>::ARGUMENT_SQL;
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> = iter::TableIterator::<'a, Row>::RETURN_SQL;
}

/// A row: the values of its columns, in their order.
pub trait Columns {
    /// Adds the row to a tuple store.
    ///
    /// # Safety
    /// The store is valid, and the row has the columns of the descriptor.
    unsafe fn put(self, store: *mut pg_sys::Tuplestorestate, columns: pg_sys::TupleDesc);
}

macro_rules! columns {
    ($(($($column:ident)+))+) => {
        $(columns!(@ $($column)+);)+
    };
    (@ $($column:ident)+) => {
        #[allow(non_snake_case)]
        impl<$($column: IntoDatum),+> Columns for ($($column,)+) {
            unsafe fn put(self, store: *mut pg_sys::Tuplestorestate, columns: pg_sys::TupleDesc) {
                let ($($column,)+) = self;
                let values = [$($column.into_datum()),+];
                let mut nulls = values.map(|value| value.is_none());
                let mut values = values.map(|value| value.unwrap_or(pg_sys::Datum::null()));
                // SAFETY: as above; the arrays have an element for each column.
                unsafe {
                    let (values, nulls) = (values.as_mut_ptr(), nulls.as_mut_ptr());
                    pg_sys::tuplestore_putvalues(store, columns, values, nulls);
                }
            }
        }
    };
}

columns! {
    (A B)
    (A B C)
    (A B C D)
    (A B C D E)
    (A B C D E F)
    (A B C D E F G)
    (A B C D E F G H)
    (A B C D E F G H I)
    (A B C D E F G H I J)
}

// SAFETY: follows PostgreSQL's protocol for functions that return a tuple store: one call, which puts all
// rows into the call's `ReturnSetInfo` and returns null.
unsafe impl<Row: Columns> RetAbi for TableIterator<'_, Row> {
    type Item = Row;
    type Ret = Self;

    fn to_ret(self) -> Self {
        self
    }

    unsafe fn box_ret_in_fcinfo(fcinfo: pg_sys::FunctionCallInfo, rows: Self) -> pg_sys::Datum {
        // SAFETY: PostgreSQL called the function that returns `rows` with this. It is an error if the caller
        // does not allow a tuple store; otherwise the call has a result to fill.
        unsafe {
            pg_sys::InitMaterializedSRF(fcinfo, 0);
            let result = (*fcinfo).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            let (store, columns) = ((*result).setResult, (*result).setDesc);
            let mut row_context = PgMemoryContexts::new("honcho row");
            for (i, row) in rows.0.enumerate() {
                // Not `switch_to`, which would cost more than the row.
                let outer = pg_sys::MemoryContextSwitchTo(row_context.value());
                row.put(store, columns);
                pg_sys::MemoryContextSwitchTo(outer);
                if i % FREED == FREED - 1 {
                    row_context.reset();
                }
                pgrx::check_for_interrupts!();
            }
            (*fcinfo).isnull = true;
        }
        pg_sys::Datum::null()
    }

    unsafe fn move_into_fcinfo_fcx(self, _fcinfo: pg_sys::FunctionCallInfo) {}

    unsafe fn fill_fcinfo_fcx(&self, _fcinfo: pg_sys::FunctionCallInfo) {}
}
