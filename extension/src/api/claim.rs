//! Claiming: `honcho_claim`, `honcho_claim_batch` and `honcho_claim_or_raise`.

use pgrx::prelude::*;

use crate::api::args;
use crate::api::outcome::{self, SqlOutcome};
use crate::claiming::decision;
use crate::claiming::outcome::{Outcome, Refusal};
use crate::claiming::store::Tables;
use crate::pg::errors::{self, Constraint};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;

/// The largest number of users in a batch.
const MAX_BATCH: usize = 10_000;

/// Claims one coupon for one user, in the caller's own transaction.
///
/// # Arguments
/// `user_id` and `coupon_name`: 1 to 255 characters.
///
/// # Returns
/// The outcome. A refusal has written nothing and locked no row. In order of precedence: `not_found`,
/// `already_claimed`, `not_started`, `ended`, `paused`, `sold_out`.
///
/// # Errors
/// `22004`, `22023` for a bad argument; `55P03` after `lock_timeout` in line, or as long again at its
/// head; `40001` under repeatable read and serializable when the coupon changed after the snapshot;
/// `40P01` on a deadlock; `25006` in a read-only transaction, unless the claim is refused.
///
/// # Locks
/// A refusal holds those of a `select`; if there was stock when the claim arrived, it has waited in the
/// queue too, and has left it. A claim holds the coupon's turn, its place in line if it had to wait, and
/// the coupon's row (`for no key update`), until the transaction ends.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_claim(
    user_id: Option<&str>,
    coupon_name: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> SqlOutcome {
    let user_id = args::text("user_id", user_id);
    let coupon_name = args::text("coupon_name", coupon_name);
    let schema = Schema::of_call(fcinfo);
    SqlOutcome::new(decision::claim_one(schema, user_id, coupon_name), schema)
}

/// Claims one coupon for many users, in the caller's own transaction: one wait in the queue, one
/// commit.
///
/// # Arguments
/// `coupon_name`: 1 to 255 characters. `user_ids`: at most 10,000 of 1 to 255 characters each; the
/// first ones get what is left. A user named twice gets `already_claimed` the second time.
///
/// # Returns
/// One row per user, in order: its ordinal from 1, and the outcome as `honcho_claim` gives it.
///
/// # Errors and locks
/// Those of `honcho_claim`. The error about a bad element gives its position, and nothing is written.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_claim_batch(
    coupon_name: Option<&str>,
    user_ids: Option<Array<'_, &str>>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> TableIterator<'static, (name!(ordinal, i32), name!(outcome, SqlOutcome))> {
    // First, because it checks the encoding: the elements of an array are not checked to be valid strings.
    let schema = Schema::of_call(fcinfo);
    let coupon_name = args::text("coupon_name", coupon_name);
    let user_ids = args::not_null("user_ids", user_ids);
    if user_ids.len() > MAX_BATCH {
        args::invalid(format!(
            "user_ids must have at most {MAX_BATCH} elements, not {}",
            user_ids.len()
        ));
    }
    let user_ids: Vec<&str> = user_ids
        .iter()
        .enumerate()
        .map(|(i, user_id)| match user_id {
            Some(user_id) if args::is_plain(user_id) => user_id,
            other => args::text(&format!("user_ids[{}]", i + 1), other),
        })
        .collect();
    let outcomes = decision::claim(schema, &user_ids, coupon_name);
    TableIterator::new((1..).zip(outcome::to_sql(outcomes, schema)))
}

/// Claims one coupon for one user; a refusal is an error that aborts the transaction.
///
/// # Returns
/// The claim's id.
///
/// # Errors
/// Those of `honcho_claim`, and for a refusal: `23505` already claimed, naming the key; `P0002` no such
/// coupon; `UC001` sold out, `UC002` not started, `UC003` ended, `UC004` paused. The detail is the
/// outcome's label.
///
/// # Locks
/// Those of `honcho_claim`.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_claim_or_raise(
    user_id: Option<&str>,
    coupon_name: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> i64 {
    let user_id = args::text("user_id", user_id);
    let coupon_name = args::text("coupon_name", coupon_name);
    let schema = Schema::of_call(fcinfo);
    let outcome = decision::claim_one(schema, user_id, coupon_name);
    let Some(Refusal { sqlstate, phrase }) = outcome.refusal() else {
        return decision::claim_id(schema, user_id, coupon_name);
    };
    let message = format!("coupon \"{coupon_name}\" {phrase}");
    if outcome == Outcome::AlreadyClaimed {
        let tables = Tables::open(schema);
        let constraint = Constraint {
            schema: &schema.name(),
            table: c"claims",
            name: tables.claims.key(),
        };
        errors::raise(sqlstate, message, outcome.label(), Some(constraint));
    }
    errors::raise(sqlstate, message, outcome.label(), None);
}
