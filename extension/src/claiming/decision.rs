//! The decision of a claim: look before you queue.
//!
//! One look without a lock decides most requests of a sale: it takes no transaction id and writes nothing.
//! The rest wait for their turn, look again, and take.

use std::collections::HashSet;

use pgrx::{error, pg_sys};

use crate::claiming::durability;
use crate::claiming::outcome::Outcome;
use crate::claiming::queue::Turn;
use crate::claiming::store::claims::Claim;
use crate::claiming::store::coupons::Coupon;
use crate::claiming::store::{Ledger, Tables, View};
use crate::pg::column::Text;
use crate::pg::errors::Context;
use crate::pg::schema::Schema;
use crate::pg::session;

/// Claims `coupon_name` for one user.
pub fn claim_one(schema: Schema, user_id: &str, coupon_name: &str) -> Outcome {
    claim(schema, &[user_id], coupon_name)[0]
}

/// The id of the claim that this transaction has just made.
///
/// # Errors
/// `XX000` if a trigger has deleted or moved the claim.
pub fn claim_id(schema: Schema, user_id: &str, coupon_name: &str) -> i64 {
    let tables = Tables::open(schema);
    let mut view = View::new(&tables);
    let id = view
        .claim(Text::new(user_id), Text::new(coupon_name))
        .and_then(Claim::id);
    id.unwrap_or_else(|| error!("the claim vanished as it was made"))
}

/// Claims `coupon_name` for each of `user_ids`; returns the outcomes in their order.
pub fn claim(schema: Schema, user_ids: &[&str], coupon_name: &str) -> Vec<Outcome> {
    let _context = Context::new(c"while claiming", coupon_name);
    let request = Request {
        coupon_name: Text::new(coupon_name),
        users: user_ids.iter().map(|user_id| Text::new(user_id)).collect(),
        user_ids,
    };
    // Makes visible what the caller's own statement has written so far.
    session::next_command();
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

    session::require_writable(c"honcho_claim()");
    let mut ledger = Ledger::open(&tables);
    view.release();
    loop {
        // Without turn and snapshot: a standby that is away must not hold up other sessions.
        decided.wait();
        let turn = Turn::wait(&tables, coupon.id);
        view.renew();
        match request.take(&mut view, &mut ledger, &mut decided) {
            Taken::Some => {
                // A batch shares one flush anyway, and an asynchronous commit wakes the WAL writer, which
                // competes with it. So a batch does this only if a session waits for the coupon already,
                // or would wait for a standby.
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

/// A coupon and the users who want it.
struct Request<'a> {
    coupon_name: Text,
    user_ids: &'a [&'a str],
    /// The same users as `user_ids`.
    users: Vec<Text>,
}

/// The outcomes so far, of the first users.
struct Decided {
    outcomes: Vec<Outcome>,
    /// The position in the WAL up to which it must be durable before the refusals may be reported.
    rests_on: pg_sys::XLogRecPtr,
    /// The position that the wait has reached. A wait may end early: if the server no longer has
    /// synchronous standbys, and this session has yet to read the new setting.
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

    /// Waits until the outcomes may be reported, and returns them.
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
    /// Some users may claim, and other refusals rest on work that is not durable yet. Nothing is written:
    /// the turn must be given back for the wait, and taken again after it.
    NotYet,
}

impl Request<'_> {
    /// Decides the leading users, up to the first who may claim: they are refused.
    fn refuse_leading(&self, view: &mut View<'_>, coupon: &Coupon, decided: &mut Decided) {
        let refusal = coupon.refusal();
        // The claims of a batch have one writer.
        let mut last = pg_sys::InvalidTransactionId;
        for &user in &self.users {
            if let Some(claim) = view.claim(user, self.coupon_name) {
                let writer = claim.written_by();
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

    /// Decides the rest of the users, in the turn, and writes their claims.
    fn take(&self, view: &mut View<'_>, ledger: &mut Ledger<'_>, decided: &mut Decided) -> Taken {
        let first = decided.outcomes.len();
        let users = &self.users[first..];
        // The look before the wait may be outdated: look again, and lock the row only if there is something
        // to take.
        let Some(coupon) = view.coupon(self.coupon_name) else {
            decided.outcomes.resize(self.users.len(), Outcome::NotFound);
            return Taken::None;
        };
        let refusal = coupon.refusal();
        let mut last = pg_sys::InvalidTransactionId;
        let refusals: Vec<Option<Outcome>> = users
            .iter()
            .map(|&user| {
                let Some(claim) = view.claim(user, self.coupon_name) else {
                    return refusal;
                };
                let writer = claim.written_by();
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
