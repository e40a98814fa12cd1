//! Claiming: what the project exists for.
//!
//! Look before you queue: one unlocked look decides most requests of a sale, for which nothing is
//! locked, no transaction id is taken and nothing is written. The rest wait for their turn, look
//! again, and take.

use std::collections::HashSet;

use pgrx::prelude::*;

use crate::access::{self, Text};
use crate::errors::{self, Context, Key};
use crate::outcome::{Outcome, SqlOutcome};
use crate::queue::Turn;
use crate::rows::TableIterator;
use crate::schema::Schema;
use crate::store::{Coupon, Ledger, Tables, View};
use crate::{args, durability};

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
/// `22004`, `22023` for a bad argument; `55P03` after `lock_timeout` in line, or as long again at its
/// head; `40001` under repeatable read and serializable when the coupon changed after the snapshot;
/// `40P01` on a deadlock; `25006` in a read-only transaction, unless the claim is refused.
///
/// # Locks
/// A refusal: those of a `select`; if there was stock when it was asked for, it waited in the queue
/// too, and has left it again. Else the coupon's turn, its place in line if it had to wait, and the
/// coupon's row (`for no key update`), until the transaction ends.
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
    // First: the elements of an array are not checked to be valid strings.
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
    let outcomes = claim(schema, &user_ids, coupon_name);
    TableIterator::new((1..).zip(Outcome::all_to_sql(outcomes, schema)))
}

/// Claims one coupon for one user, for callers who want a refusal to abort their transaction.
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
    let outcome = claim_one(schema, user_id, coupon_name);
    let Some((sqlstate, phrase)) = outcome.refusal() else {
        return claim_id(schema, user_id, coupon_name);
    };
    let message = format!("coupon \"{coupon_name}\" {phrase}");
    if outcome == Outcome::AlreadyClaimed {
        let tables = Tables::open(schema);
        let key = Key {
            schema: &schema.name(),
            table: c"claims",
            constraint: tables.claims_key(),
        };
        errors::raise(sqlstate, message, outcome.label(), Some(key));
    }
    errors::raise(sqlstate, message, outcome.label(), None);
}

fn claim_one(schema: Schema, user_id: &str, coupon_name: &str) -> Outcome {
    claim(schema, &[user_id], coupon_name)[0]
}

fn claim_id(schema: Schema, user_id: &str, coupon_name: &str) -> i64 {
    let tables = Tables::open(schema);
    let id = View::new(&tables).claim_id(Text::new(user_id), Text::new(coupon_name));
    // Only a trigger that deletes what it just saw inserted, or moves it, can bring this about.
    id.unwrap_or_else(|| error!("the claim vanished as it was made"))
}

/// Claims `coupon_name` for each of `user_ids`; the outcomes in their order.
fn claim(schema: Schema, user_ids: &[&str], coupon_name: &str) -> Vec<Outcome> {
    let _context = Context::new(c"while claiming", coupon_name);
    let request = Request {
        coupon_name: Text::new(coupon_name),
        users: user_ids.iter().map(|user_id| Text::new(user_id)).collect(),
        user_ids,
    };
    // What the caller's own statement has written so far counts.
    access::next_command();
    let tables = Tables::open(schema);
    let mut view = View::new(&tables);
    let Some(coupon) = view.coupon(request.coupon_name) else {
        return vec![Outcome::NotFound; user_ids.len()];
    };
    let mut decided = Decided {
        outcomes: Vec::with_capacity(user_ids.len()),
        rests_on: durability::NOTHING,
        waited_for: durability::NOTHING,
    };
    request.refuse_leading(&mut view, &coupon, &mut decided);
    if decided.outcomes.len() == user_ids.len() {
        view.release();
        return decided.reported();
    }

    access::require_writable(c"honcho_claim()");
    let mut ledger = Ledger::open(&tables);
    view.release();
    loop {
        // With neither turn nor snapshot: a standby that is away must hold up no other session.
        decided.wait();
        let turn = Turn::wait(&tables, coupon.id);
        view.renew();
        match request.take(&mut view, &mut ledger, &mut decided) {
            Taken::Some => {
                // A batch shares one flush anyway, and an asynchronous commit wakes the WAL writer,
                // which competes with it. So only where somebody waits already, or would wait for a
                // standby.
                if user_ids.len() == 1 || durability::waits_for_standbys() || turn.is_awaited() {
                    durability::release_locks_early();
                }
                return decided.outcomes;
            }
            Taken::None => {
                turn.pass();
                view.release();
                return decided.reported();
            }
            Taken::NotYet => {
                turn.pass();
                view.release();
            }
        }
    }
}

/// Who wants what.
struct Request<'a> {
    coupon_name: Text,
    user_ids: &'a [&'a str],
    /// The same as `user_ids`.
    users: Vec<Text>,
}

/// The outcomes so far, of the first users.
struct Decided {
    outcomes: Vec<Outcome>,
    /// The position in the WAL up to which it must be durable before the refusals may be reported.
    rests_on: pg_sys::XLogRecPtr,
    /// The position that the wait has reached. It may end early, when the server no longer has
    /// synchronous standbys and this session has yet to learn of it.
    waited_for: pg_sys::XLogRecPtr,
}

impl Decided {
    /// Notes that a refusal rests on the work of `writer`.
    fn rest_on(&mut self, writer: pg_sys::TransactionId) {
        self.rests_on = self.rests_on.max(durability::commit_position(writer));
    }

    /// Returns true if the refusals may be reported without a wait.
    fn is_durable(&self) -> bool {
        self.rests_on <= self.waited_for || durability::is_durable(self.rests_on)
    }

    /// Waits until the refusals may be reported.
    fn wait(&mut self) {
        durability::wait_until_durable(self.rests_on);
        self.waited_for = self.rests_on;
    }

    /// The outcomes, once they may be reported.
    fn reported(mut self) -> Vec<Outcome> {
        self.wait();
        self.outcomes
    }
}

/// The result of a turn.
enum Taken {
    /// Claims were written.
    Some,
    /// Every user is refused, and nothing is written.
    None,
    /// Some users may claim, and others are refused for what is not durable yet. Nothing is written: the
    /// turn must be given back for the wait, and taken again after it.
    NotYet,
}

impl Request<'_> {
    /// Decides the refusals at the head of the users that are undecided yet, up to the first who may
    /// claim.
    fn refuse_leading(&self, view: &mut View<'_>, coupon: &Coupon, decided: &mut Decided) {
        let refusal = coupon.refusal();
        // The claims of a batch have one writer.
        let mut last = pg_sys::InvalidTransactionId;
        for &user in &self.users {
            if let Some(writer) = view.claim_written_by(user, self.coupon_name) {
                if writer != last {
                    decided.rest_on(writer);
                    last = writer;
                }
                decided.outcomes.push(Outcome::AlreadyClaimed);
            } else if let Some(refusal) = refusal {
                decided.outcomes.push(refusal);
            } else {
                return;
            }
        }
        if refusal.is_some() {
            decided.rest_on(coupon.written_by);
        }
    }

    /// Decides the rest of the users, in their turn, and writes their claims.
    fn take(&self, view: &mut View<'_>, ledger: &mut Ledger<'_>, decided: &mut Decided) -> Taken {
        let first = decided.outcomes.len();
        let users = &self.users[first..];
        // What was seen before the wait may be long past: look again, and lock the row only if there is
        // something to take.
        let Some(coupon) = view.coupon(self.coupon_name) else {
            decided.outcomes.resize(self.users.len(), Outcome::NotFound);
            return Taken::None;
        };
        let refusal = coupon.refusal();
        let mut last = pg_sys::InvalidTransactionId;
        let refusals: Vec<Option<Outcome>> = users
            .iter()
            .map(|&user| {
                let Some(writer) = view.claim_written_by(user, self.coupon_name) else {
                    return refusal;
                };
                if writer != last {
                    decided.rest_on(writer);
                    last = writer;
                }
                Some(Outcome::AlreadyClaimed)
            })
            .collect();
        if refusals.iter().all(Option::is_some) {
            if refusal.is_some() {
                decided.rest_on(coupon.written_by);
            }
            decided.outcomes.extend(refusals.into_iter().flatten());
            return Taken::None;
        }
        if !decided.is_durable() {
            return Taken::NotYet;
        }

        let Some(coupon) = view.lock_coupon(self.coupon_name) else {
            decided.outcomes.resize(self.users.len(), Outcome::NotFound);
            return Taken::None;
        };
        // Only a writer that bypasses the queue can have changed it.
        let refusal = coupon.refusal();
        let mut claimers = Vec::with_capacity(users.len());
        let mut named = HashSet::with_capacity(users.len());
        for (i, known) in refusals.into_iter().enumerate() {
            let user_id = self.user_ids[first + i];
            let outcome = if let Some(known) = known {
                known
            } else if named.contains(user_id) {
                Outcome::AlreadyClaimed
            } else if let Some(refusal) = refusal {
                refusal
            } else if claimers.len() as i64 == i64::from(coupon.remaining) {
                Outcome::SoldOut
            } else {
                named.insert(user_id);
                claimers.push(users[i]);
                Outcome::Claimed
            };
            decided.outcomes.push(outcome);
        }
        if claimers.is_empty() {
            decided.rest_on(coupon.written_by);
            return Taken::None;
        }
        ledger.write(view, &coupon, self.coupon_name, &claimers);
        Taken::Some
    }
}
