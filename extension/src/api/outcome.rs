//! The enum `honcho_outcome`.

use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::prelude::*;

use crate::claiming::outcome::Outcome;
use crate::pg::schema::Schema;

/// An [`Outcome`] as PostgreSQL stores it: the OID of its `pg_enum` row.
#[derive(Clone, Copy)]
pub struct SqlOutcome(pg_sys::Oid);

impl SqlOutcome {
    /// The value of `outcome` in the enum of `schema`.
    pub fn new(outcome: Outcome, schema: Schema) -> SqlOutcome {
        SqlOutcome(schema.enum_value(c"honcho_outcome", outcome.label()))
    }
}

/// The values of many outcomes, each kind looked up once.
pub fn to_sql(
    outcomes: impl Iterator<Item = Outcome>,
    schema: Schema,
) -> impl Iterator<Item = SqlOutcome> {
    let mut known = Known::default();
    outcomes.map(move |outcome| known.value(outcome, schema))
}

/// The same of outcomes that may be missing.
pub fn to_sql_or_null(
    outcomes: impl IntoIterator<Item = Option<Outcome>>,
    schema: Schema,
) -> impl Iterator<Item = Option<SqlOutcome>> {
    let mut known = Known::default();
    let outcomes = outcomes.into_iter();
    outcomes.map(move |outcome| outcome.map(|outcome| known.value(outcome, schema)))
}

/// The values of the outcomes that were looked up.
#[derive(Default)]
struct Known([Option<SqlOutcome>; Outcome::ALL.len()]);

impl Known {
    fn value(&mut self, outcome: Outcome, schema: Schema) -> SqlOutcome {
        *self.0[outcome as usize].get_or_insert_with(|| SqlOutcome::new(outcome, schema))
    }
}

impl IntoDatum for SqlOutcome {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        self.0.into_datum()
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::ANYENUMOID
    }
}

// SAFETY: an enum is passed by value, as the OID that this wraps.
unsafe impl pgrx::callconv::BoxRet for SqlOutcome {
    unsafe fn box_into<'fcx>(
        self,
        fcinfo: &mut pgrx::callconv::FcInfo<'fcx>,
    ) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: as above.
        unsafe { fcinfo.return_raw_datum(pg_sys::Datum::from(self.0)) }
    }
}

// SAFETY: `honcho_outcome` is made by sql/tables.sql before any function that returns it.
unsafe impl SqlTranslatable for SqlOutcome {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(SqlOutcome);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> =
        Ok(SqlMappingRef::literal("honcho_outcome"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("honcho_outcome")));
}
