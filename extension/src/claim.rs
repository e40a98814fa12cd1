//! Claiming: what the project exists for.
//!
//! Look before you queue: one unlocked look decides most requests of a sale, for which nothing is
//! locked, no transaction id is taken and nothing is written. The rest wait for their turn, look
//! again, and take.

use std::collections::HashSet;

use pgrx::prelude::*;

use crate::access::{self, Text};
use crate::outcome::{Outcome, SqlOutcome};
use crate::schema::Schema;
use crate::store::{Coupon, Tables, View};
use crate::{args, durability, queue};

/// The most users that one batch may name.
const MAX_BATCH: usize = 10_000;

/// Claims one coupon for one user, in the caller's own transaction.
///
/// # Arguments
/// `user_id` and `coupon_name`: 1 to 255 characters.
///
/// # Returns
/// The outcome; anything but `claimed` has written nothing and locked no row. In order of
/// precedence: `not_found`, `already_claimed`, `not_started`, `ended`, `paused`, `sold_out`.
///
/// # Errors
/// `22004`, `22023` for a bad argument; `55P03` after `lock_timeout` in the queue; `40001` under
/// repeatable read and serializable when the coupon changed after the snapshot; `40P01` on a
/// deadlock; `25006` in a read-only transaction, unless the claim is refused.
///
/// # Locks
/// A refusal: those of a `select`. Else the coupon's queue lock and its row (`for no key update`),
/// until the transaction ends.
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
    claim_one(schema, user_id, coupon_name).to_sql(schema)
}

/// Claims one coupon for many users, in the caller's own transaction: one wait in the queue, one
/// commit.
///
/// # Arguments
/// `coupon_name`: 1 to 255 characters. `user_ids`: at most 10,000 of 1 to 255 characters each; the
/// first ones in order get what is left. A user named twice gets `already_claimed` the second time.
///
/// # Returns
/// One row per user, in order: its ordinal from 1, and the outcome as `honcho_claim` gives it.
///
/// # Errors and locks
/// Those of `honcho_claim`; a bad element is named by its position, and then nothing is written.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_claim_batch(
    coupon_name: Option<&str>,
    user_ids: Option<Array<'_, &str>>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> TableIterator<'static, (name!(ordinal, i32), name!(outcome, SqlOutcome))> {
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
    let schema = Schema::of_call(fcinfo);
    let outcomes = claim(schema, &user_ids, coupon_name);
    TableIterator::new((1..).zip(Outcome::all_to_sql(outcomes, schema)))
}

/// Claims one coupon for one user, for callers who want a refusal to abort their transaction.
///
/// # Returns
/// The claim's id.
///
/// # Errors
/// Those of `honcho_claim`, and for a refusal: `23505` already claimed, `02000` no such coupon,
/// `55000` sold out, not started, ended or paused.
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
    let (code, reason) = match claim_one(schema, user_id, coupon_name) {
        Outcome::Claimed => return claim_id(schema, user_id, coupon_name),
        Outcome::AlreadyClaimed => (
            PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION,
            "is already claimed by this user",
        ),
        Outcome::NotFound => (PgSqlErrorCode::ERRCODE_NO_DATA, "does not exist"),
        Outcome::SoldOut => (
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "is sold out",
        ),
        Outcome::NotStarted => (
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "cannot be claimed yet",
        ),
        Outcome::Ended => (
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "can no longer be claimed",
        ),
        Outcome::Paused => (
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "is paused",
        ),
    };
    ereport!(ERROR, code, format!("coupon \"{coupon_name}\" {reason}"));
}

fn claim_one(schema: Schema, user_id: &str, coupon_name: &str) -> Outcome {
    claim(schema, &[user_id], coupon_name)[0]
}

fn claim_id(schema: Schema, user_id: &str, coupon_name: &str) -> i64 {
    let tables = Tables::open(schema);
    let id = View::new(&tables).claim_id(Text::new(user_id), Text::new(coupon_name));
    // Only a trigger that deletes what it just saw inserted can bring this about.
    id.unwrap_or_else(|| error!("the claim vanished as it was made"))
}

/// Claims `coupon_name` for each of `user_ids`; the outcomes in their order.
fn claim(schema: Schema, user_ids: &[&str], coupon_name: &str) -> Vec<Outcome> {
    let coupon_name = Text::new(coupon_name);
    let users: Vec<Text> = user_ids.iter().map(|user_id| Text::new(user_id)).collect();
    let tables = Tables::open(schema);

    let mut look = View::new(&tables);
    let Some(coupon) = look.coupon(coupon_name) else {
        return vec![Outcome::NotFound; users.len()];
    };
    let mut outcomes = Vec::with_capacity(users.len());
    refuse_leading(&mut look, &coupon, coupon_name, &users, &mut outcomes);
    drop(look);

    if outcomes.len() < users.len() {
        access::require_writable(c"honcho_claim()");
        queue::wait_for_turn(tables.coupons_oid(), coupon.id);
        take(
            &mut View::new(&tables),
            coupon_name,
            user_ids,
            &users,
            &mut outcomes,
        );
    }
    outcomes
}

/// Decides the refusals at the head of `users`, up to the first who may claim.
///
/// Whoever is refused here is told what others did: that must be durable first.
fn refuse_leading(
    view: &mut View<'_>,
    coupon: &Coupon,
    coupon_name: Text,
    users: &[Text],
    outcomes: &mut Vec<Outcome>,
) {
    let refusal = coupon.refusal();
    for &user_id in &users[outcomes.len()..] {
        if let Some(writer) = view.claim_written_by(user_id, coupon_name) {
            durability::wait_until_durable(writer);
            outcomes.push(Outcome::AlreadyClaimed);
        } else if let Some(refusal) = refusal {
            outcomes.push(refusal);
        } else {
            return;
        }
    }
    if refusal.is_some() {
        durability::wait_until_durable(coupon.written_by);
    }
}

/// Decides the rest of `users`, in their turn, and writes their claims.
fn take(
    view: &mut View<'_>,
    coupon_name: Text,
    user_ids: &[&str],
    users: &[Text],
    outcomes: &mut Vec<Outcome>,
) {
    // What was seen before the wait may be long past: look again, and lock only if there is
    // something to take.
    let mut coupon = view.coupon(coupon_name);
    if let Some(found) = &coupon {
        refuse_leading(view, found, coupon_name, users, outcomes);
        if outcomes.len() == users.len() {
            return;
        }
        coupon = view.lock_coupon();
    }
    let Some(coupon) = coupon else {
        outcomes.resize(users.len(), Outcome::NotFound);
        return;
    };

    let refusal = coupon.refusal();
    let mut claimers = Vec::new();
    let mut named = HashSet::new();
    for (&user_id, &text) in users.iter().zip(user_ids).skip(outcomes.len()) {
        let outcome = if named.contains(text) {
            Outcome::AlreadyClaimed
        } else if let Some(writer) = view.claim_written_by(user_id, coupon_name) {
            durability::wait_until_durable(writer);
            Outcome::AlreadyClaimed
        } else if let Some(refusal) = refusal {
            refusal
        } else if claimers.len() as i64 == i64::from(coupon.remaining) {
            Outcome::SoldOut
        } else {
            named.insert(text);
            claimers.push(user_id);
            Outcome::Claimed
        };
        outcomes.push(outcome);
    }
    if claimers.is_empty() {
        durability::wait_until_durable(coupon.written_by);
    } else {
        view.write_claims(&coupon, coupon_name, &claimers);
        durability::release_locks_early();
    }
}
