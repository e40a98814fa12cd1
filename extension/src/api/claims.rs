//! Reading claims: who holds which coupon.

use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::spi::{self, SpiHeapTupleData};

use crate::api::args::{self, MAX_PAGE};
use crate::pg::plan::{Plan, column};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;

type Claim = (i64, String, String, TimestampWithTimeZone);

/// Reads one claim.
///
/// # Arguments
/// `user_id` and `coupon_name`: 1 to 255 characters.
///
/// # Returns
/// Its row, or none.
///
/// # Errors
/// `22004`, `22023` for a bad argument.
#[pg_extern(stable, parallel_safe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn honcho_get_claim(
    user_id: Option<&str>,
    coupon_name: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> spi::Result<
    TableIterator<
        'static,
        (
            name!(id, i64),
            name!(user_id, String),
            name!(coupon_name, String),
            name!(claimed_at, TimestampWithTimeZone),
        ),
    >,
> {
    thread_local!(static PLAN: Plan = const {
        Plan::new(
            "select id, user_id::pg_catalog.text, coupon_name::pg_catalog.text, claimed_at
             from {schema}.claims
             where user_id operator(pg_catalog.=) $1 and coupon_name operator(pg_catalog.=) $2",
            &[PgBuiltInOids::TEXTOID, PgBuiltInOids::TEXTOID],
        )
    });
    let user_id = args::text("user_id", user_id);
    let coupon_name = args::text("coupon_name", coupon_name);
    let schema = Schema::of_call(fcinfo);
    let rows = Plan::rows(&PLAN, schema, &[user_id.into(), coupon_name.into()], claim)?;
    Ok(TableIterator::new(rows))
}

/// Reads a page of a coupon's claims, in claim order.
///
/// # Arguments
/// `coupon_name`: 1 to 255 characters. `after`: the id of the last claim of the page before, 0 for
/// the first page. `max`: the most rows to return, 1 to 10,000.
///
/// # Returns
/// The claims with greater ids, ascending; fewer than `max` of them on the last page.
///
/// # Errors
/// `22004`, `22023` for a bad argument.
#[pg_extern(stable, parallel_safe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn honcho_list_claims(
    coupon_name: Option<&str>,
    after: default!(Option<i64>, 0),
    max: default!(Option<i32>, 1000),
    fcinfo: pg_sys::FunctionCallInfo,
) -> spi::Result<
    TableIterator<
        'static,
        (
            name!(id, i64),
            name!(user_id, String),
            name!(coupon_name, String),
            name!(claimed_at, TimestampWithTimeZone),
        ),
    >,
> {
    thread_local!(static PLAN: Plan = const {
        Plan::new(
            "select id, user_id::pg_catalog.text, coupon_name::pg_catalog.text, claimed_at
             from {schema}.claims
             where coupon_name operator(pg_catalog.=) $1 and id operator(pg_catalog.>) $2
             order by id limit $3",
            &[PgBuiltInOids::TEXTOID, PgBuiltInOids::INT8OID, PgBuiltInOids::INT4OID],
        )
    });
    let coupon_name = args::text("coupon_name", coupon_name);
    let schema = Schema::of_call(fcinfo);
    let after = args::not_null("after", after);
    let max = args::int("max", max, 1..=MAX_PAGE);
    let rows = Plan::rows(
        &PLAN,
        schema,
        &[coupon_name.into(), after.into(), max.into()],
        claim,
    )?;
    Ok(TableIterator::new(rows))
}

fn claim(row: &SpiHeapTupleData<'_>) -> spi::Result<Claim> {
    Ok((
        column(row, 1)?,
        column(row, 2)?,
        column(row, 3)?,
        column(row, 4)?,
    ))
}
