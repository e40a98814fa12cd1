//! A coupon's life: `honcho_update_coupon`, `honcho_restock`, `honcho_delete_coupon` and `honcho_get_stock`.

use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::spi;

use crate::api::args;
use crate::api::outcome::SqlOutcome;
use crate::api::reading::moment;
use crate::claiming::life::{self, Amount, Change, Fault};
use crate::claiming::stock::{self, Stock};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;
use crate::pg::session::Command;

/// The largest amount, as errors name it.
const MAX_AMOUNT: i32 = i32::MAX;

/// Columns of a coupon after a change.
type Changed = (
    SqlOutcome,
    Option<String>,
    Option<i32>,
    Option<i32>,
    Option<i32>,
    Option<TimestampWithTimeZone>,
    Option<TimestampWithTimeZone>,
    Option<bool>,
    Option<String>,
);

/// Changes a coupon's amount, window and pause, in the caller's own transaction.
///
/// # Arguments
/// `name`: 1 to 255 characters. Null leaves each of the others as it is. `amount`: 0 or more; the stock changes
/// by the difference to the amount before. `starts_at`: the first moment for claims, `-infinity` for no bound.
/// `ends_at`: the first moment after them, which must lie after `starts_at`, `infinity` for no bound. `paused`:
/// true to refuse claims.
///
/// # Returns
/// One row: the outcome and the coupon as it is then, with its state as `honcho_get_stock` gives it. `updated`;
/// `below_given` if the amount would be below the claims and holds: then nothing is changed; `not_found`, and
/// nulls.
///
/// # Errors
/// `22004`, `22023` for a bad argument; `55P03`, `40001`, `40P01`, `25006` as for `honcho_claim`.
///
/// # Locks
/// It waits in the coupon's queue as a claim does. It holds the coupon's turn, its place in line if it had to
/// wait, and the coupon's row, until the transaction ends: no claim is made after its commit that it forbids.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn honcho_update_coupon(
    name: Option<&str>,
    amount: default!(Option<i32>, "null"),
    starts_at: default!(Option<TimestampWithTimeZone>, "null"),
    ends_at: default!(Option<TimestampWithTimeZone>, "null"),
    paused: default!(Option<bool>, "null"),
    fcinfo: pg_sys::FunctionCallInfo,
) -> TableIterator<
    'static,
    (
        name!(outcome, SqlOutcome),
        name!(name, Option<String>),
        name!(amount, Option<i32>),
        name!(remaining_amount, Option<i32>),
        name!(held_amount, Option<i32>),
        name!(starts_at, Option<TimestampWithTimeZone>),
        name!(ends_at, Option<TimestampWithTimeZone>),
        name!(paused, Option<bool>),
        name!(state, Option<String>),
    ),
> {
    let command = Command {
        name: c"honcho_update_coupon()",
        doing: c"while updating",
    };
    let name = args::text("name", name);
    let amount = amount.map(|amount| Amount::To(args::int("amount", Some(amount), 0..=MAX_AMOUNT)));
    let starts_at = starts_at.map(|starts_at| bound("starts_at", starts_at, i64::MIN));
    let ends_at = ends_at.map(|ends_at| bound("ends_at", ends_at, i64::MAX));
    let change = Change {
        amount,
        starts_at,
        ends_at,
        paused,
    };
    changed(Schema::of_call(fcinfo), command, name, &change)
}

/// Changes a coupon's amount and stock by a difference, in the caller's own transaction.
///
/// # Arguments
/// `name`: 1 to 255 characters. `delta`: the number of pieces to add, negative to take some away.
///
/// # Returns, errors and locks
/// Those of `honcho_update_coupon`; `22023` if the amount would be above 2147483647.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn honcho_restock(
    name: Option<&str>,
    delta: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> TableIterator<
    'static,
    (
        name!(outcome, SqlOutcome),
        name!(name, Option<String>),
        name!(amount, Option<i32>),
        name!(remaining_amount, Option<i32>),
        name!(held_amount, Option<i32>),
        name!(starts_at, Option<TimestampWithTimeZone>),
        name!(ends_at, Option<TimestampWithTimeZone>),
        name!(paused, Option<bool>),
        name!(state, Option<String>),
    ),
> {
    let command = Command {
        name: c"honcho_restock()",
        doing: c"while restocking",
    };
    let name = args::text("name", name);
    let delta = args::not_null("delta", delta);
    let change = Change {
        amount: Some(Amount::By(delta)),
        ..Change::default()
    };
    changed(Schema::of_call(fcinfo), command, name, &change)
}

/// Deletes a coupon, in the caller's own transaction. Its name is free afterwards; its events stay.
///
/// # Arguments
/// `name`: 1 to 255 characters. `with_claims`: true to delete its claims and holds too.
///
/// # Returns
/// `deleted`; `in_use` if it has claims or live holds and `with_claims` is false; `not_found`.
///
/// # Errors
/// `22004`, `22023` for a bad argument; `23503` if something else refers to it; `55P03`, `40001`, `40P01`,
/// `25006` as for `honcho_claim`.
///
/// # Locks
/// It waits in the coupon's queue as a claim does. It holds the coupon's turn and the deleted rows until the
/// transaction ends.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_delete_coupon(
    name: Option<&str>,
    with_claims: default!(Option<bool>, false),
    fcinfo: pg_sys::FunctionCallInfo,
) -> spi::Result<SqlOutcome> {
    let command = Command {
        name: c"honcho_delete_coupon()",
        doing: c"while deleting",
    };
    let name = args::text("name", name);
    let with_claims = args::not_null("with_claims", with_claims);
    let schema = Schema::of_call(fcinfo);
    let outcome = life::delete(schema, command, name, with_claims)?;
    Ok(SqlOutcome::new(outcome, schema))
}

/// Reads a coupon's stock and state.
///
/// # Arguments
/// `name`: 1 to 255 characters.
///
/// # Returns
/// One row, or none if there is no such coupon. `state`: what a claim by a new user would meet now: `open`,
/// `not_started`, `ended`, `paused`, `sold_out` or `all_held`. `next_expiry`: the time at which the first hold
/// expires, which may have passed; null if there is none. `last_claim_id`: the id of the newest claim, 0 if
/// there is none.
///
/// # Errors
/// `22004`, `22023` for a bad argument.
#[pg_extern(stable, parallel_restricted, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn honcho_get_stock(
    name: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> TableIterator<
    'static,
    (
        name!(name, String),
        name!(amount, i32),
        name!(remaining_amount, i32),
        name!(held_amount, i32),
        name!(starts_at, Option<TimestampWithTimeZone>),
        name!(ends_at, Option<TimestampWithTimeZone>),
        name!(paused, bool),
        name!(state, String),
        name!(next_expiry, Option<TimestampWithTimeZone>),
        name!(last_claim_id, i64),
    ),
> {
    let name = args::text("name", name);
    let stock = stock::read(Schema::of_call(fcinfo), name);
    let row = stock.map(|stock| {
        let Stock {
            coupon,
            state,
            last_claim_id,
        } = stock;
        (
            name.to_owned(),
            coupon.amount,
            coupon.remaining,
            coupon.held,
            coupon.starts_at.and_then(moment),
            coupon.ends_at.and_then(moment),
            coupon.paused,
            state.to_owned(),
            coupon.next_expiry.and_then(moment),
            last_claim_id,
        )
    });
    TableIterator::new(row)
}

/// The bound of a window: none if it is the infinity that means no bound.
///
/// # Errors
/// `22023` for the other infinity.
fn bound(name: &str, value: TimestampWithTimeZone, none: i64) -> Option<i64> {
    let value: i64 = value.into();
    if value == none {
        return None;
    }
    if value == i64::MIN || value == i64::MAX {
        let none = if none == i64::MIN {
            "-infinity"
        } else {
            "infinity"
        };
        args::invalid(format!("{name} must be a time, or {none} for no bound"));
    }
    Some(value)
}

/// Changes a coupon, and makes the row of the result.
fn changed(
    schema: Schema,
    command: Command,
    name: &str,
    change: &Change,
) -> TableIterator<'static, Changed> {
    let (outcome, changed) = match life::change(schema, command, name, change) {
        Ok(result) => result,
        Err(Fault::EmptyWindow) => args::invalid("ends_at must lie after starts_at".into()),
        Err(Fault::AmountTooLarge(amount)) => args::invalid(format!(
            "the amount must be at most {MAX_AMOUNT}, and would be {amount}"
        )),
    };
    let outcome = SqlOutcome::new(outcome, schema);
    TableIterator::new([match changed {
        None => (outcome, None, None, None, None, None, None, None, None),
        Some((coupon, state)) => (
            outcome,
            Some(name.to_owned()),
            Some(coupon.amount),
            Some(coupon.remaining),
            Some(coupon.held),
            coupon.starts_at.and_then(moment),
            coupon.ends_at.and_then(moment),
            Some(coupon.paused),
            Some(state.to_owned()),
        ),
    }])
}
