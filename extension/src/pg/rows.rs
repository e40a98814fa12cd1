//! The result of functions that return rows.
//!
//! pgrx's own `TableIterator` returns one row for each call, and PostgreSQL sets the search path and the user
//! of a `security definer` function anew for each call: a batch would pay that for each claim. This one
//! returns all rows in one call, in a tuple store.

use pgrx::callconv::RetAbi;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{IntoHeapTuple, PgMemoryContexts, iter, pg_sys};

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

// SAFETY: follows PostgreSQL's protocol for functions that return a tuple store: one call, which puts all
// rows into the call's `ReturnSetInfo` and returns null.
unsafe impl<Row: IntoHeapTuple> RetAbi for TableIterator<'_, Row> {
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
            for row in rows.0 {
                row_context.switch_to(|_| {
                    pg_sys::tuplestore_puttuple(store, row.into_heap_tuple(columns));
                });
                row_context.reset();
                pgrx::check_for_interrupts!();
            }
            (*fcinfo).isnull = true;
        }
        pg_sys::Datum::null()
    }

    unsafe fn move_into_fcinfo_fcx(self, _fcinfo: pg_sys::FunctionCallInfo) {}

    unsafe fn fill_fcinfo_fcx(&self, _fcinfo: pg_sys::FunctionCallInfo) {}
}
