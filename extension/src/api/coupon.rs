//! Creating and reading coupons: plain SQL, off the claim's path.

use pgrx::AllocatedByPostgres;
use pgrx::datum::{TimestampWithTimeZone, TryFromDatumError};
use pgrx::prelude::*;
use pgrx::spi::{self, SpiHeapTupleData};

use crate::api::args::{self, MAX_PAGE};
use crate::claiming::store::coupons;
use crate::claiming::{creation, reference};
use crate::pg::errors::Context;
use crate::pg::plan::{Plan, column};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;
use crate::pg::session;

type Coupon = (
    i64,
    String,
    i32,
    i32,
    TimestampWithTimeZone,
    Option<TimestampWithTimeZone>,
    Option<TimestampWithTimeZone>,
    bool,
);

/// Creates a coupon.
///
/// # Arguments
/// `name`: 1 to 255 characters. `amount`: how many can be claimed, at least 1. `starts_at`, `ends_at`:
/// from when and until when; null for no bound. `ends_at` must lie after `starts_at`.
///
/// # Returns
/// Whether it was created; false if the name is taken.
///
/// # Errors
/// `22004`, `22023` for a bad argument.
///
/// # Locks
/// Waits for a concurrent transaction that creates the same name.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_create_coupon(
    name: Option<&str>,
    amount: Option<i32>,
    starts_at: default!(Option<TimestampWithTimeZone>, "null"),
    ends_at: default!(Option<TimestampWithTimeZone>, "null"),
    fcinfo: pg_sys::FunctionCallInfo,
) -> spi::Result<bool> {
    let name = args::text("name", name);
    let amount = args::int("amount", amount, 1..=i32::MAX);
    if let (Some(starts_at), Some(ends_at)) = (starts_at, ends_at)
        && ends_at <= starts_at
    {
        args::invalid("ends_at must lie after starts_at".into());
    }
    session::require_writable(c"honcho_create_coupon()");
    thread_local!(static PLAN: Plan = const {
        Plan::new(
            "insert into {schema}.coupons (name, amount, remaining_amount, starts_at, ends_at)
             values ($1, $2, $2, $3, $4)
             on conflict (name) do nothing",
            &[
                PgBuiltInOids::TEXTOID,
                PgBuiltInOids::INT4OID,
                PgBuiltInOids::TIMESTAMPTZOID,
                PgBuiltInOids::TIMESTAMPTZOID,
            ],
        )
    });
    let schema = Schema::of_call(fcinfo);
    let _context = Context::new(c"while creating", name);
    let arguments = [name.into(), amount.into(), starts_at.into(), ends_at.into()];
    let created = Plan::write(&PLAN, schema, &arguments)? == 1;
    if !created {
        creation::wait_until_taken(schema, name);
    }
    Ok(created)
}

/// Reads one coupon.
///
/// # Arguments
/// `name`: 1 to 255 characters.
///
/// # Returns
/// Its row, or none.
///
/// # Errors
/// `22004`, `22023` for a bad argument.
#[pg_extern(stable, parallel_safe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn honcho_get_coupon(
    name: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> spi::Result<
    TableIterator<
        'static,
        (
            name!(id, i64),
            name!(name, String),
            name!(amount, i32),
            name!(remaining_amount, i32),
            name!(created_at, TimestampWithTimeZone),
            name!(starts_at, Option<TimestampWithTimeZone>),
            name!(ends_at, Option<TimestampWithTimeZone>),
            name!(paused, bool),
        ),
    >,
> {
    thread_local!(static PLAN: Plan = const {
        Plan::new(
            "select id, name::pg_catalog.text, amount, remaining_amount, created_at, starts_at, ends_at,
                    paused
             from {schema}.coupons where name operator(pg_catalog.=) $1",
            &[PgBuiltInOids::TEXTOID],
        )
    });
    let name = args::text("name", name);
    let schema = Schema::of_call(fcinfo);
    let rows = Plan::rows(&PLAN, schema, &[name.into()], coupon)?;
    Ok(TableIterator::new(rows))
}

/// Reads a page of the coupons, in the order in which they were created.
///
/// # Arguments
/// `after`: the id of the last coupon of the page before, 0 for the first page. `max`: the most rows
/// to return, 1 to 10,000.
///
/// # Returns
/// The coupons with greater ids, ascending; fewer than `max` of them on the last page.
///
/// # Errors
/// `22004`, `22023` for a bad argument.
#[pg_extern(stable, parallel_safe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn honcho_list_coupons(
    after: default!(Option<i64>, 0),
    max: default!(Option<i32>, 1000),
    fcinfo: pg_sys::FunctionCallInfo,
) -> spi::Result<
    TableIterator<
        'static,
        (
            name!(id, i64),
            name!(name, String),
            name!(amount, i32),
            name!(remaining_amount, i32),
            name!(created_at, TimestampWithTimeZone),
            name!(starts_at, Option<TimestampWithTimeZone>),
            name!(ends_at, Option<TimestampWithTimeZone>),
            name!(paused, bool),
        ),
    >,
> {
    thread_local!(static PLAN: Plan = const {
        Plan::new(
            "select id, name::pg_catalog.text, amount, remaining_amount, created_at, starts_at, ends_at,
                    paused
             from {schema}.coupons where id operator(pg_catalog.>) $1 order by id limit $2",
            &[PgBuiltInOids::INT8OID, PgBuiltInOids::INT4OID],
        )
    });
    let after = args::not_null("after", after);
    let max = args::int("max", max, 1..=MAX_PAGE);
    let schema = Schema::of_call(fcinfo);
    let rows = Plan::rows(&PLAN, schema, &[after.into(), max.into()], coupon)?;
    Ok(TableIterator::new(rows))
}

fn coupon(row: &SpiHeapTupleData<'_>) -> spi::Result<Coupon> {
    Ok((
        column(row, 1)?,
        column(row, 2)?,
        column(row, 3)?,
        column(row, 4)?,
        column(row, 5)?,
        row.get(6)?,
        row.get(7)?,
        column(row, 8)?,
    ))
}

/// Refuses to delete, rename or truncate coupons that have claims. The trigger on `coupons` after these.
///
/// # Errors
/// `23503`, naming the table `claims` and the constraint `claims_coupon_name_fkey`.
///
/// # Locks
/// Those of a `select`. A claim under way holds the coupon's row, so that the statement has waited for
/// it by the time this looks.
#[pg_trigger]
fn honcho_keep_claimed<'a>(
    trigger: &'a PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, AllocatedByPostgres>>, TryFromDatumError> {
    let schema = Schema::of_function(trigger.trigger().tgfoid);
    let name = |row: Option<PgHeapTuple<'_, AllocatedByPostgres>>| match row {
        Some(row) => coupons::name_in(&row),
        None => Ok(None),
    };
    let (old, new) = (name(trigger.old())?, name(trigger.new())?);
    reference::keep_claimed(schema, old.as_deref(), new.as_deref());
    Ok(None)
}
