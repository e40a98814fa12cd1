//! Claiming and releasing: `honcho_claim`, `honcho_claim_batch`, `honcho_claim_many`, `honcho_claim_or_raise` and
//! `honcho_release`.

use std::collections::HashMap;

use pgrx::prelude::*;

use crate::api::args;
use crate::api::outcome::{self, SqlOutcome};
use crate::claiming::decision;
use crate::claiming::operation::{Action, Operation};
use crate::claiming::outcome::{Outcome, Refusal};
use crate::claiming::store::Tables;
use crate::pg::errors::{self, Constraint};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;
use crate::pg::session::Command;

/// The command of claims.
const CLAIM: Command = Command {
    name: c"honcho_claim()",
    doing: c"while claiming",
};

/// Claims one coupon for one user, in the caller's own transaction.
///
/// # Arguments
/// `user_id` and `coupon_name`: 1 to 255 characters.
///
/// # Returns
/// The outcome. A refusal has written nothing and locked no row. In order of precedence: `not_found`,
/// `already_claimed`, `not_started`, `ended`, `paused`, `all_held` or `sold_out`. The claim of a user who holds
/// the coupon is made out of the hold, whatever window and pause.
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
    let operation = Operation::new(Action::Claim, user_id);
    let answer = decision::operate_one(schema, CLAIM, coupon_name, operation);
    SqlOutcome::new(answer.outcome, schema)
}

/// Claims one coupon for one user, in the caller's own transaction; a repeated request is answered as the
/// first time.
///
/// # Arguments
/// `user_id` and `coupon_name`: 1 to 255 characters. `request_key`: 1 to 255 characters, by which the request
/// is recognised for this user and coupon; null for none.
///
/// # Returns
/// The outcome as without key, but `claimed` if the user's claim was made by a request with the same key. The
/// key is kept with the claim: a refusal is not kept, and a released claim takes its key along.
///
/// # Errors and locks
/// Those of `honcho_claim`.
#[pg_extern(volatile, parallel_unsafe, security_definer, name = "honcho_claim")]
#[search_path(pg_catalog, pg_temp)]
fn honcho_claim_keyed(
    user_id: Option<&str>,
    coupon_name: Option<&str>,
    request_key: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> SqlOutcome {
    let user_id = args::text("user_id", user_id);
    let coupon_name = args::text("coupon_name", coupon_name);
    let request_key = request_key.map(|key| args::text("request_key", Some(key)));
    let schema = Schema::of_call(fcinfo);
    let operation = Operation {
        request_key,
        ..Operation::new(Action::Claim, user_id)
    };
    let answer = decision::operate_one(schema, CLAIM, coupon_name, operation);
    SqlOutcome::new(answer.outcome, schema)
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
    let user_ids = args::texts("user_ids", user_ids.as_ref());
    let operations: Vec<_> = user_ids
        .into_iter()
        .map(|user_id| Operation::new(Action::Claim, user_id))
        .collect();
    let answers = decision::operate(schema, CLAIM, coupon_name, &operations);
    let outcomes = answers.into_iter().map(|answer| answer.outcome);
    TableIterator::new((1..).zip(outcome::to_sql(outcomes, schema)))
}

/// Claims one coupon for many users, in the caller's own transaction; repeated requests are answered as the
/// first time.
///
/// # Arguments
/// `coupon_name` and `user_ids`: as without keys. `request_keys`: the key of the request for each user, as
/// `honcho_claim` takes it; null for none.
///
/// # Returns
/// One row per user, in order: its ordinal from 1, and the outcome as `honcho_claim` gives it.
///
/// # Errors and locks
/// Those of `honcho_claim`. The error about a bad element gives its position, and nothing is written.
#[pg_extern(
    volatile,
    parallel_unsafe,
    security_definer,
    name = "honcho_claim_batch"
)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_claim_batch_keyed(
    coupon_name: Option<&str>,
    user_ids: Option<Array<'_, &str>>,
    request_keys: Option<Array<'_, &str>>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> TableIterator<'static, (name!(ordinal, i32), name!(outcome, SqlOutcome))> {
    let schema = Schema::of_call(fcinfo);
    let coupon_name = args::text("coupon_name", coupon_name);
    let user_ids = args::texts("user_ids", user_ids.as_ref());
    let request_keys = args::not_null("request_keys", request_keys.as_ref());
    let request_keys = args::optional_texts("request_keys", Some(request_keys), user_ids.len());
    let operations: Vec<_> = user_ids
        .into_iter()
        .zip(request_keys)
        .map(|(user_id, request_key)| Operation {
            request_key,
            ..Operation::new(Action::Claim, user_id)
        })
        .collect();
    let answers = decision::operate(schema, CLAIM, coupon_name, &operations);
    let outcomes = answers.into_iter().map(|answer| answer.outcome);
    TableIterator::new((1..).zip(outcome::to_sql(outcomes, schema)))
}

/// Claims many coupons for many users, in the caller's own transaction: one commit.
///
/// # Arguments
/// `user_ids` and `coupon_names`: at most 10,000 of 1 to 255 characters each; the elements in the same place belong
/// together. `wait`: false to leave out a coupon that another session is changing.
///
/// # Returns
/// One row per pair, in order: its ordinal from 1, and the outcome as `honcho_claim` gives it; null if the pair was
/// left out.
///
/// # Errors and locks
/// Those of `honcho_claim`. The turns are taken in the order of the coupons' ids, so two such calls do not
/// deadlock. The error about a bad element gives its position, and nothing is written.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_claim_many(
    user_ids: Option<Array<'_, &str>>,
    coupon_names: Option<Array<'_, &str>>,
    wait: default!(Option<bool>, true),
    fcinfo: pg_sys::FunctionCallInfo,
) -> TableIterator<'static, (name!(ordinal, i32), name!(outcome, Option<SqlOutcome>))> {
    let schema = Schema::of_call(fcinfo);
    let user_ids = args::texts("user_ids", user_ids.as_ref());
    let coupon_names = args::texts("coupon_names", coupon_names.as_ref());
    args::length("coupon_names", coupon_names.len(), user_ids.len());
    let wait = args::not_null("wait", wait);
    let mut places = HashMap::with_capacity(coupon_names.len());
    let mut coupons: Vec<(&str, Vec<Operation<'_>>)> = Vec::new();
    // Of each pair, the coupon and the place among its operations.
    let pairs: Vec<(usize, usize)> = user_ids
        .into_iter()
        .zip(coupon_names)
        .map(|(user_id, coupon_name)| {
            let coupon = *places.entry(coupon_name).or_insert_with(|| {
                coupons.push((coupon_name, Vec::new()));
                coupons.len() - 1
            });
            let operations = &mut coupons[coupon].1;
            operations.push(Operation::new(Action::Claim, user_id));
            (coupon, operations.len() - 1)
        })
        .collect();
    let answers = decision::operate_on_many(schema, CLAIM, &coupons, wait);
    let outcomes: Vec<Option<Outcome>> = pairs
        .into_iter()
        .map(|(coupon, place)| answers[coupon].as_ref().map(|it| it[place].outcome))
        .collect();
    TableIterator::new((1..).zip(outcome::to_sql_or_null(outcomes, schema)))
}

/// Claims one coupon for one user; a refusal is an error that aborts the transaction.
///
/// # Returns
/// The claim's id.
///
/// # Errors
/// Those of `honcho_claim`, and for a refusal: `23505` already claimed, naming the key; `P0002` no such
/// coupon; `UC001` sold out, `UC002` not started, `UC003` ended, `UC004` paused, `UC005` all
/// held. The detail is the outcome's label.
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
    let operation = Operation::new(Action::Claim, user_id);
    let outcome = decision::operate_one(schema, CLAIM, coupon_name, operation).outcome;
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

/// Gives a user's claim back, in the caller's own transaction: its piece is stock again.
///
/// # Arguments
/// `user_id` and `coupon_name`: 1 to 255 characters.
///
/// # Returns
/// `released`; `not_claimed`, also if the claim was released before; `not_found`. The user may claim again.
///
/// # Errors and locks
/// Those of `honcho_claim`.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_release(
    user_id: Option<&str>,
    coupon_name: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> SqlOutcome {
    let command = Command {
        name: c"honcho_release()",
        doing: c"while releasing",
    };
    let user_id = args::text("user_id", user_id);
    let coupon_name = args::text("coupon_name", coupon_name);
    let schema = Schema::of_call(fcinfo);
    let operation = Operation::new(Action::Release, user_id);
    let answer = decision::operate_one(schema, command, coupon_name, operation);
    SqlOutcome::new(answer.outcome, schema)
}
