//! Creating and reading coupons by SQL, and the trigger that keeps claimed ones.

use pgrx::AllocatedByPostgres;
use pgrx::datum::{TimestampWithTimeZone, TryFromDatumError};
use pgrx::prelude::*;
use pgrx::spi;

use crate::api::args::{self, MAX_PAGE};
use crate::api::reading::{moment, reading};
use crate::claiming::store::{Tables, View, coupons};
use crate::claiming::{creation, reference};
use crate::pg::column::Text;
use crate::pg::errors::Context;
use crate::pg::plan::{Plan, column};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;
use crate::pg::session;

/// Creates a coupon.
///
/// # Arguments
/// `name`: 1 to 255 characters. `amount`: the number of claims that can be made, at least 1. `starts_at`:
/// the first moment for claims; `ends_at`: the first moment after them, which must lie after `starts_at`;
/// null, `-infinity` as `starts_at` and `infinity` as `ends_at` for no bound.
///
/// # Returns
/// True if it was created, false if the name is taken.
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
    let starts_at = starts_at.filter(|&starts_at| i64::from(starts_at) != i64::MIN);
    let ends_at = ends_at.filter(|&ends_at| i64::from(ends_at) != i64::MAX);
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
    if created {
        let moment = |moment: Option<TimestampWithTimeZone>| moment.map(i64::from);
        creation::write_event(schema, name, amount, moment(starts_at), moment(ends_at));
    } else {
        creation::wait_until_taken(schema, name);
    }
    Ok(created)
}

reading! {
    columns {
        id: [i64],
        name: [String],
        amount: [i32],
        remaining_amount: [i32],
        created_at: [TimestampWithTimeZone],
        starts_at: [Option<TimestampWithTimeZone>],
        ends_at: [Option<TimestampWithTimeZone>],
        paused: [bool],
    }
    look_up
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
        fn honcho_get_coupon(name: Option<&str>,) in schema
        {
            let name = args::text("name", name);
            let tables = Tables::open(schema);
            let coupon = View::of_query(&tables).coupon(Text::new(name));
            coupon.and_then(|coupon| {
                Some((
                    coupon.id,
                    name.to_owned(),
                    coupon.amount,
                    coupon.remaining,
                    moment(coupon.created_at)?,
                    coupon.starts_at.and_then(moment),
                    coupon.ends_at.and_then(moment),
                    coupon.paused,
                ))
            })
        }

    select
        "select id, name::pg_catalog.text, amount, remaining_amount, created_at, starts_at, ends_at, paused
         from {schema}.coupons"

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
    fn honcho_list_coupons(
        after: default!(Option<i64>, 0),
        max: default!(Option<i32>, 1000),
    )
    "where id operator(pg_catalog.>) $1 order by id limit $2", [INT8OID, INT4OID]
    {
        let after = args::not_null("after", after);
        let max = args::int("max", max, 1..=MAX_PAGE);
        [after.into(), max.into()]
    }
}

/// Refuses to delete, rename or truncate coupons that have claims: the function of the triggers on
/// `coupons`.
///
/// # Errors
/// `23503`, naming the table `claims` and the constraint `claims_coupon_name_fkey`.
///
/// # Locks
/// Those of a `select`. A claim in progress holds the coupon's row, so the statement has waited for it
/// before this runs.
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
