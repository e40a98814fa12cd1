//! Changes of a coupon itself: its window, pause and amount, its end, and holds that have expired.

use pgrx::prelude::*;
use pgrx::spi;
use serde_json::{Map, json};

use crate::claiming::decision;
use crate::claiming::draft::Draft;
use crate::claiming::durability;
use crate::claiming::outcome::Outcome;
use crate::claiming::queue::Turn;
use crate::claiming::stock;
use crate::claiming::store::coupons::Coupon;
use crate::claiming::store::events::{self, Event};
use crate::claiming::store::{self, Ledger, Need, Row, Tables, View};
use crate::pg::column::Text;
use crate::pg::errors::{self, Context};
use crate::pg::plan::{Plan, column};
use crate::pg::schema::Schema;
use crate::pg::session::{self, Command};

/// The most coupons that are tidied in one call: each takes room in the server's table of locks.
const MOST_TIDIED: i64 = 1000;

/// A change of a coupon's settings; none leaves them as they are.
#[derive(Default)]
pub struct Change {
    /// The amount.
    pub amount: Option<Amount>,
    /// The first moment for claims; no bound if it is none.
    pub starts_at: Option<Option<i64>>,
    /// The first moment after them; no bound if it is none.
    pub ends_at: Option<Option<i64>>,
    /// True to refuse claims.
    pub paused: Option<bool>,
}

/// A change of a coupon's amount.
#[derive(Clone, Copy)]
pub enum Amount {
    /// To this amount.
    To(i32),
    /// By this difference.
    By(i32),
}

/// A reason to reject a change, which names the argument.
pub enum Fault {
    /// The amount would be above the largest integer.
    AmountTooLarge(i64),
    /// The window would end before it starts.
    EmptyWindow,
}

/// A coupon and its state, as `honcho_get_stock` gives it.
pub type CouponAndState = (Coupon, &'static str);

/// Changes the coupon called `name`, in its turn. Returns the outcome and the coupon as it was decided on or left: if
/// nothing is changed, the next in the queue may have changed it by the time of the answer.
///
/// # Errors
/// The fault of the change, which has changed nothing.
pub fn change(
    schema: Schema,
    command: Command,
    name: &str,
    change: &Change,
) -> Result<(Outcome, Option<CouponAndState>), Fault> {
    let _context = Context::new(command.doing, name);
    let coupon_name = Text::new(name);
    let decide = |view: &mut View<'_>, mut draft: Draft<'static>| {
        let before = draft.before().clone();
        let unchanged = |view: &mut View<'_>, outcome| {
            let state = stock::state_of(view, coupon_name, before.clone());
            Err(Ok((outcome, Some((before.clone(), state)))))
        };
        let mut after = before.clone();
        after.starts_at = change.starts_at.unwrap_or(before.starts_at);
        after.ends_at = change.ends_at.unwrap_or(before.ends_at);
        after.paused = change.paused.unwrap_or(before.paused);
        if let (Some(starts_at), Some(ends_at)) = (after.starts_at, after.ends_at)
            && ends_at <= starts_at
        {
            return Err(Err(Fault::EmptyWindow));
        }
        let amount = match change.amount {
            None => i64::from(before.amount),
            Some(Amount::To(amount)) => i64::from(amount),
            Some(Amount::By(delta)) => i64::from(before.amount) + i64::from(delta),
        };
        let delta = amount - i64::from(before.amount);
        let missing = -(i64::from(before.remaining) + delta);
        if missing > 0 {
            draft.take_back(view, missing as usize);
            if (draft.expired() as i64) < missing {
                return unchanged(view, Outcome::BelowGiven);
            }
        }
        let Ok(amount) = i32::try_from(amount) else {
            return Err(Err(Fault::AmountTooLarge(amount)));
        };
        after.amount = amount;
        // Neither can leave the range of the amount.
        after.remaining = (i64::from(draft.after().remaining) + delta) as i32;
        after.held = draft.after().held;
        if after.has_settings_of(&before) {
            return unchanged(view, Outcome::Updated);
        }
        *draft.after_mut() = after;
        Ok((draft, Ok((Outcome::Updated, None))))
    };
    let write = |ledger: &mut Ledger<'_>, view: &mut View<'_>, draft: &mut Draft<'_>| {
        let mut events = settings_events(draft.before(), draft.after());
        events.extend(draft.events());
        decision::write(ledger, view, coupon_name, draft, &events);
        durability::release_locks_early();
    };
    match in_turn(schema, command, coupon_name, decide, write) {
        None => Ok((Outcome::NotFound, None)),
        Some(Ok((Outcome::Updated, None))) => Ok((Outcome::Updated, stock::changed(schema, name))),
        Some(result) => result,
    }
}

/// The events of a change of settings.
fn settings_events(before: &Coupon, after: &Coupon) -> Vec<Event<'static>> {
    let event = |kind, details| Event {
        kind,
        actor: None,
        details,
    };
    let mut events = Vec::new();
    let mut details = Map::new();
    for (field, old, new) in [
        ("starts_at", before.starts_at, after.starts_at),
        ("ends_at", before.ends_at, after.ends_at),
    ] {
        if old != new {
            let change = json!({"from": old.map(events::moment), "to": new.map(events::moment)});
            details.insert(field.to_owned(), change);
        }
    }
    if !details.is_empty() {
        events.push(event("updated", details.into()));
    }
    match (before.paused, after.paused) {
        (false, true) => events.push(event("paused", json!({}))),
        (true, false) => events.push(event("resumed", json!({}))),
        _ => {}
    }
    if before.amount != after.amount {
        let delta = i64::from(after.amount) - i64::from(before.amount);
        let details = json!({"delta": delta, "amount": after.amount});
        events.push(event("restocked", details));
    }
    events
}

/// Deletes the coupon called `name`, in its turn. If it has claims or live holds, only if `with_claims`.
pub fn delete(
    schema: Schema,
    command: Command,
    name: &str,
    with_claims: bool,
) -> spi::Result<Outcome> {
    let _context = Context::new(command.doing, name);
    let coupon_name = Text::new(name);
    let decide = |view: &mut View<'_>, draft: Draft<'static>| {
        let is_in_use = match store::given(schema, Some(name)) {
            Row::None(_) => false,
            Row::Claim(_) => true,
            Row::Hold(_) => view
                .last_hold(coupon_name)
                .is_some_and(|hold| hold.expires_at() > draft.now()),
        };
        if is_in_use && !with_claims {
            Err(Ok(Outcome::InUse))
        } else {
            Ok((draft, Ok(Outcome::Deleted)))
        }
    };
    let mut result = Ok(());
    let write = |_: &mut Ledger<'_>, _: &mut View<'_>, draft: &mut Draft<'_>| {
        result = delete_rows(schema, name, draft);
    };
    let outcome =
        in_turn(schema, command, coupon_name, decide, write).unwrap_or(Ok(Outcome::NotFound));
    result.and(outcome)
}

/// Deletes the rows of a coupon, which this transaction has locked.
fn delete_rows(schema: Schema, name: &str, draft: &Draft<'_>) -> spi::Result<()> {
    thread_local! {
        static CLAIMS: Plan = const {
            Plan::new(
                "delete from {schema}.claims where coupon_name operator(pg_catalog.=) $1",
                &[PgBuiltInOids::TEXTOID],
            )
        };
        static HOLDS: Plan = const {
            Plan::new(
                "delete from {schema}.holds where coupon_name operator(pg_catalog.=) $1",
                &[PgBuiltInOids::TEXTOID],
            )
        };
        static COUPON: Plan = const {
            Plan::new(
                "delete from {schema}.coupons where id operator(pg_catalog.=) $1",
                &[PgBuiltInOids::INT8OID],
            )
        };
    }
    let claims = Plan::write(&CLAIMS, schema, &[name.into()])?;
    let holds = Plan::write(&HOLDS, schema, &[name.into()])?;
    if Plan::write(&COUPON, schema, &[draft.before().id.into()])? != 1 {
        errors::refuse_triggers_change("a trigger kept the coupon from being deleted");
    }
    let event = Event {
        kind: "deleted",
        actor: None,
        details: json!({"claims": claims, "holds": holds}),
    };
    events::write(schema, Text::new(name), draft.now(), &[event]);
    Ok(())
}

/// Takes up to `max` expired holds back, coupon by coupon in the order of their ids; skips coupons whose turn is
/// taken. Returns the number of holds.
pub fn expire(schema: Schema, command: Command, max: usize) -> spi::Result<usize> {
    thread_local!(static PLAN: Plan = const {
        Plan::new(
            "select id, name::pg_catalog.text from {schema}.coupons
             where next_expiry operator(pg_catalog.<=) pg_catalog.clock_timestamp()
             order by id limit $1",
            &[PgBuiltInOids::INT8OID],
        )
    });
    session::require_writable(command.name);
    session::next_command();
    let coupons: Vec<(i64, String)> = Plan::rows(&PLAN, schema, &[MOST_TIDIED.into()], |row| {
        Ok((column(row, 1)?, column(row, 2)?))
    })?;
    let tables = Tables::open(schema);
    let mut ledger = Ledger::open(&tables, None, Some(Need::Delete));
    let mut view = View::new(&tables);
    view.release();
    let mut expired = 0;
    for (id, name) in coupons {
        if expired == max {
            break;
        }
        let _context = Context::new(command.doing, &name);
        let coupon_name = Text::new(&name);
        let Some(turn) = Turn::try_take(&tables, id) else {
            continue;
        };
        view.renew();
        let draft = view
            .coupon(coupon_name)
            .filter(|coupon| coupon.id == id)
            .map(|coupon| {
                let mut draft = Draft::new(coupon, coupon_name, 0);
                draft.take_back(&mut view, max - expired);
                draft
            })
            .filter(|draft| !draft.is_empty());
        match draft {
            Some(mut draft) if is_locked_as(&mut view, coupon_name, &draft) => {
                expired += draft.expired();
                let events = draft.events();
                decision::write(&mut ledger, &mut view, coupon_name, &mut draft, &events);
                durability::release_locks_early();
            }
            _ => turn.pass(),
        }
        view.release();
    }
    Ok(expired)
}

/// Locks the coupon that `view` last found; returns true if it is as `draft` found it.
fn is_locked_as(view: &mut View<'_>, coupon_name: Text, draft: &Draft<'_>) -> bool {
    view.lock_coupon(coupon_name)
        .is_some_and(|coupon| coupon.version.written_by == draft.before().version.written_by)
}

/// Takes the turn of the coupon and lets `decide` make a draft and a result of it, and `write` write the draft
/// if `decide` does not refuse. Returns none if there is no such coupon.
fn in_turn<R>(
    schema: Schema,
    command: Command,
    coupon_name: Text,
    mut decide: impl FnMut(&mut View<'_>, Draft<'static>) -> Result<(Draft<'static>, R), R>,
    mut write: impl FnMut(&mut Ledger<'_>, &mut View<'_>, &mut Draft<'_>),
) -> Option<R> {
    session::next_command();
    let tables = Tables::open(schema);
    let mut view = View::new(&tables);
    let mut id = view.coupon(coupon_name)?.id;
    session::require_writable(command.name);
    let mut ledger = Ledger::open(&tables, None, None);
    view.release();
    loop {
        let turn = Turn::wait(&tables, id);
        view.renew();
        let Some(coupon) = view.coupon(coupon_name) else {
            turn.pass();
            return None;
        };
        if coupon.id != id {
            id = coupon.id;
            turn.pass();
            view.release();
            continue;
        }
        let writer = coupon.version.written_by;
        match decide(&mut view, Draft::new(coupon, coupon_name, 0)) {
            Ok((mut draft, result)) => {
                if is_locked_as(&mut view, coupon_name, &draft) {
                    write(&mut ledger, &mut view, &mut draft);
                    return Some(result);
                }
                // A writer that bypasses the queue has changed it: the next look sees that.
                turn.pass();
                view.release();
            }
            Err(refused) => {
                turn.pass();
                view.release();
                durability::wait_until_durable(durability::commit_position(writer));
                return Some(refused);
            }
        }
    }
}
