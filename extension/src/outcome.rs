//! The enum `honcho_outcome`.

use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::prelude::*;

use crate::schema::Schema;

/// What a claim came to. A refusal is a value, not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The user has the coupon, if the caller's transaction commits.
    Claimed,
    /// The user had it already.
    AlreadyClaimed,
    /// Nothing is left.
    SoldOut,
    /// There is no such coupon.
    NotFound,
    /// Claiming starts later.
    NotStarted,
    /// Claiming is over.
    Ended,
    /// Claiming is suspended.
    Paused,
}

impl Outcome {
    /// The enum's label in SQL, the same as the service's machine-readable code.
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Claimed => "claimed",
            Outcome::AlreadyClaimed => "already_claimed",
            Outcome::SoldOut => "sold_out",
            Outcome::NotFound => "not_found",
            Outcome::NotStarted => "not_started",
            Outcome::Ended => "ended",
            Outcome::Paused => "paused",
        }
    }

    /// The SQLSTATE of the refusal as an error, and the rest of a sentence about the coupon; none for
    /// `claimed`.
    ///
    /// Refusals that PostgreSQL has no code for have codes of their own, in a class that SQL leaves to
    /// implementations, so that callers and drivers can tell them from each other and from faults.
    pub fn refusal(self) -> Option<(&'static [u8; 5], &'static str)> {
        match self {
            Outcome::Claimed => None,
            Outcome::AlreadyClaimed => Some((b"23505", "is already claimed by this user")),
            Outcome::NotFound => Some((b"P0002", "does not exist")),
            Outcome::SoldOut => Some((b"UC001", "is sold out")),
            Outcome::NotStarted => Some((b"UC002", "cannot be claimed yet")),
            Outcome::Ended => Some((b"UC003", "can no longer be claimed")),
            Outcome::Paused => Some((b"UC004", "is paused")),
        }
    }

    /// The value as SQL knows it in `schema`.
    pub fn to_sql(self, schema: Schema) -> SqlOutcome {
        SqlOutcome(schema.enum_value(c"honcho_outcome", self.label()))
    }

    /// The values of many outcomes, each kind looked up once.
    pub fn all_to_sql(
        outcomes: Vec<Outcome>,
        schema: Schema,
    ) -> impl Iterator<Item = SqlOutcome> + use<> {
        let mut known = [None; Outcome::Paused as usize + 1];
        outcomes.into_iter().map(move |outcome| {
            *known[outcome as usize].get_or_insert_with(|| outcome.to_sql(schema))
        })
    }
}

/// An [`Outcome`] as PostgreSQL stores it: the OID of its `pg_enum` row.
#[derive(Clone, Copy)]
pub struct SqlOutcome(pg_sys::Oid);

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
