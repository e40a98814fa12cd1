//! Operations on a coupon for its users: look before you queue.
//!
//! One look without a lock decides most requests of a sale: it takes no transaction id and writes nothing.
//! The rest wait for their turn, look again, and change the coupon. The rules are in [`Draft`].

use std::cell::Cell;

use pgrx::{error, pg_sys};

use crate::claiming::draft::{Basis, Draft, Seen};
use crate::claiming::durability;
use crate::claiming::operation::{Action, Answer, Operation};
use crate::claiming::outcome::Outcome;
use crate::claiming::queue::Turn;
use crate::claiming::store::claims::Claim;
use crate::claiming::store::coupons::Coupon;
use crate::claiming::store::events::{Event, Log};
use crate::claiming::store::{Ledger, Need, Tables, View};
use crate::pg::column::Text;
use crate::pg::errors::Context;
use crate::pg::schema::Schema;
use crate::pg::session::{self, Command};

/// The most times that a call gives its turn back to wait for the commits that some of its answers rest on.
const MOST_WAITS: u32 = 2;

/// The number of turns without a comparison of the coupon with the look, after a coupon that had changed.
const PAUSE: u32 = 15;

thread_local! {
    /// The number of such turns that are left, of this session.
    static UNTRIED: Cell<u32> = const { Cell::new(0) };
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

/// Carries out one operation on the coupon called `coupon_name`.
pub fn operate_one(
    schema: Schema,
    command: Command,
    coupon_name: &str,
    operation: Operation<'_>,
) -> Answer {
    operate(schema, command, coupon_name, &[operation])[0]
}

/// Carries out `operations` on the coupon called `coupon_name`, one after the other, and returns their answers.
/// `command` is the SQL function that does so.
pub fn operate(
    schema: Schema,
    command: Command,
    coupon_name: &str,
    operations: &[Operation<'_>],
) -> Vec<Answer> {
    let _context = Context::new(command.doing, coupon_name);
    // Makes visible what the caller's own statement has written so far.
    session::next_command();
    let tables = Tables::open(schema);
    let mut view = View::new(&tables);
    let Part {
        request,
        mut id,
        held,
        mut seen,
        mut decided,
    } = Part::look(&mut view, coupon_name, operations);
    view.release();
    if decided.answers.len() == operations.len() {
        return decided.reported();
    }

    session::require_writable(command.name);
    let mut ledger = Ledger::open(&tables, request.needs_claims(), request.needs_holds(held));
    loop {
        // Without turn and snapshot: a standby that is away must not hold up other sessions.
        decided.wait();
        let turn = Turn::wait(&tables, id);
        view.renew();
        // After a wait it has changed.
        let seen = seen.take().filter(|_| turn.was_free());
        match request.take(&mut view, &mut ledger, id, seen, &mut decided) {
            Taken::Some => {
                // A batch shares one flush anyway, and an asynchronous commit wakes the WAL writer, which
                // competes with it. So a batch does this only if a session waits for the coupon already,
                // or would wait for a standby.
                if operations.len() == 1 || durability::waits_for_standbys() || turn.is_awaited() {
                    durability::release_locks_early();
                }
                if !decided.is_durable() {
                    view.release();
                    settle(decided.rests_on);
                }
                return decided.answers;
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
            Taken::Other(other) => {
                turn.pass();
                view.release();
                id = other;
            }
        }
    }
}

/// Carries out operations on several coupons, each given with its operations and only once, and returns their
/// answers. The turns are taken in the order of the coupons' ids. Without `waits`, a coupon whose turn another
/// session has is left out, and has no answers.
pub fn operate_on_many(
    schema: Schema,
    command: Command,
    coupons: &[(&str, Vec<Operation<'_>>)],
    waits: bool,
) -> Vec<Option<Vec<Answer>>> {
    session::next_command();
    let tables = Tables::open(schema);
    let mut view = View::new(&tables);
    let mut parts: Vec<Part<'_>> = coupons
        .iter()
        .map(|(coupon_name, operations)| {
            let _context = Context::new(command.doing, coupon_name);
            Part::look(&mut view, coupon_name, operations)
        })
        .collect();
    view.release();
    if session::may_roll_back_alone() {
        // Without turns, as far as that is possible.
        durability::wait_until_durable(last_basis(&parts));
    }
    let mut open: Vec<usize> = (0..parts.len())
        .filter(|&i| parts[i].decided.answers.len() < coupons[i].1.len())
        .collect();
    open.sort_by_key(|&i| parts[i].id);
    let mut left_out = vec![false; parts.len()];
    let mut turns = Vec::new();
    if !open.is_empty() {
        session::require_writable(command.name);
        let open_parts = || open.iter().map(|&i| &parts[i]);
        let claims = open_parts().filter_map(|it| it.request.needs_claims());
        let holds = open_parts().filter_map(|it| it.request.needs_holds(it.held));
        let mut ledger = Ledger::open(&tables, claims.max(), holds.max());
        for i in open {
            let _context = Context::new(command.doing, coupons[i].0);
            match parts[i].take(&tables, &mut view, &mut ledger, waits) {
                Ok(turn) => turns.extend(turn),
                Err(Busy) => left_out[i] = true,
            }
        }
    }
    let rests_on = last_basis(&parts);
    if turns.is_empty() {
        durability::wait_until_durable(rests_on);
    } else {
        settle(rests_on);
        if durability::waits_for_standbys() || turns.iter().any(Turn::is_awaited) {
            durability::release_locks_early();
        }
    }
    let answers = parts.into_iter().zip(left_out);
    answers
        .map(|(part, left_out)| (!left_out).then_some(part.decided.answers))
        .collect()
}

/// Makes answers durable that rest on others' work up to `rests_on`, after this transaction has changed something.
///
/// Their flush is short. If they still wait for a standby, so will the commit of this transaction, which comes after what
/// they rest on, and before they are reported. In a transaction block they are reported first, and a rollback does not
/// wait: there they wait here, although the turns that this transaction has wait with them.
fn settle(rests_on: pg_sys::XLogRecPtr) {
    if session::may_roll_back_alone() {
        durability::wait_until_durable(rests_on);
    } else {
        durability::flush(rests_on);
    }
}

/// The position in the WAL that the answers of all `parts` rest on.
fn last_basis(parts: &[Part<'_>]) -> pg_sys::XLogRecPtr {
    let rests_on = parts.iter().map(|part| part.decided.rests_on);
    rests_on.max().unwrap_or(durability::NOTHING)
}

/// A coupon, the operations on it, and the answers so far.
struct Part<'a> {
    request: Request<'a>,
    /// The coupon's id, 0 if there is none.
    id: i64,
    /// The number of pieces that are held.
    held: i32,
    /// Result of the look, until the first turn.
    seen: Option<Seen<'a>>,
    decided: Decided,
}

/// Another session has the turn.
struct Busy;

impl<'a> Part<'a> {
    /// Answers the leading operations that change nothing.
    fn look(view: &mut View<'_>, coupon_name: &str, operations: &'a [Operation<'a>]) -> Part<'a> {
        let request = Request {
            coupon_name: Text::new(coupon_name),
            operations,
        };
        let mut part = Part {
            request,
            id: 0,
            held: 0,
            seen: None,
            decided: Decided {
                answers: Vec::with_capacity(operations.len()),
                rests_on: durability::NOTHING,
                waits: 0,
                waited_for: durability::NOTHING,
            },
        };
        match view.coupon(part.request.coupon_name) {
            Some(coupon) => {
                (part.id, part.held) = (coupon.id, coupon.held);
                let draft = Draft::new(coupon, part.request.coupon_name, 0);
                part.seen = Some(part.request.look(view, draft, &mut part.decided));
            }
            None => {
                part.request.not_found(&mut part.decided);
            }
        }
        part
    }

    /// Carries out the rest of the operations while this transaction may have the turns of other coupons, and
    /// returns the turn if it has changed something.
    ///
    /// # Errors
    /// Without `waits`, another session has the turn.
    fn take(
        &mut self,
        tables: &Tables,
        view: &mut View<'_>,
        ledger: &mut Ledger<'_>,
        waits: bool,
    ) -> Result<Option<Turn>, Busy> {
        // No wait for a standby while others wait for those turns.
        self.decided.waits = MOST_WAITS;
        loop {
            let turn = if waits {
                Turn::wait(tables, self.id)
            } else {
                Turn::try_take(tables, self.id).ok_or(Busy)?
            };
            view.renew();
            let seen = self.seen.take().filter(|_| turn.was_free());
            let taken = self
                .request
                .take(view, ledger, self.id, seen, &mut self.decided);
            view.release();
            match taken {
                Taken::Some => return Ok(Some(turn)),
                Taken::None | Taken::NotYet => {
                    turn.pass();
                    return Ok(None);
                }
                Taken::Other(other) => {
                    turn.pass();
                    self.id = other;
                }
            }
        }
    }
}

/// A coupon and the operations on it.
struct Request<'a> {
    coupon_name: Text,
    operations: &'a [Operation<'a>],
}

/// The answers so far, to the first operations.
struct Decided {
    answers: Vec<Answer>,
    /// The position in the WAL up to which it must be durable before the answers may be reported that rest on
    /// others' work.
    rests_on: pg_sys::XLogRecPtr,
    /// The number of waits so far.
    waits: u32,
    /// The position that the wait has reached. A wait may end early: if the server no longer has
    /// synchronous standbys, and this session has yet to read the new setting.
    waited_for: pg_sys::XLogRecPtr,
}

impl Decided {
    /// Returns true if the answers may be reported without a wait.
    fn is_durable(&self) -> bool {
        self.rests_on <= self.waited_for || durability::is_durable(self.rests_on)
    }

    /// Waits until the answers may be reported.
    fn wait(&mut self) {
        if !self.is_durable() {
            self.waits += 1;
        }
        durability::wait_until_durable(self.rests_on);
        self.waited_for = self.rests_on;
    }

    /// Waits until the answers may be reported, and returns them.
    fn reported(mut self) -> Vec<Answer> {
        self.wait();
        self.answers
    }
}

/// The transactions that answers rest on, and the position in the WAL up to which their work must be durable.
struct Bases {
    coupon: pg_sys::TransactionId,
    rests_on_coupon: bool,
    /// The rows of a batch have one writer.
    last: pg_sys::TransactionId,
    position: pg_sys::XLogRecPtr,
}

impl Bases {
    fn new(coupon: pg_sys::TransactionId, position: pg_sys::XLogRecPtr) -> Bases {
        Bases {
            coupon,
            rests_on_coupon: false,
            last: pg_sys::InvalidTransactionId,
            position,
        }
    }

    fn add(&mut self, basis: Basis) {
        match basis {
            Basis::Row(writer) if writer != self.last => {
                self.position = self.position.max(durability::commit_position(writer));
                self.last = writer;
            }
            Basis::Coupon => self.rests_on_coupon = true,
            Basis::Row(_) | Basis::Draft => {}
        }
    }

    fn position(self) -> pg_sys::XLogRecPtr {
        if self.rests_on_coupon {
            self.position.max(durability::commit_position(self.coupon))
        } else {
            self.position
        }
    }
}

/// The result of a turn.
enum Taken {
    /// Something was written.
    Some,
    /// No operation changes anything, and nothing is written.
    None,
    /// Some operations change something, and answers to others rest on work that is not durable yet. Nothing is
    /// written: the turn must be given back for the wait, and taken again after it.
    NotYet,
    /// It was the turn of another coupon: the name now belongs to the one with this id.
    Other(i64),
}

impl<'a> Request<'a> {
    /// The kind of write that the claims need, if anything changes.
    fn needs_claims(&self) -> Option<Need> {
        let needs = self.operations.iter().filter_map(|it| match it.action {
            Action::Claim | Action::Confirm => Some(Need::Insert),
            Action::Release => Some(Need::Delete),
            Action::Reserve(_) | Action::Cancel => None,
        });
        needs.max()
    }

    /// The kind of write that the holds need, if anything changes on a coupon with `held` pieces.
    fn needs_holds(&self, held: i32) -> Option<Need> {
        let needs = self.operations.iter().filter_map(|it| match it.action {
            Action::Reserve(_) => Some(Need::Insert),
            Action::Confirm | Action::Cancel => Some(Need::Delete),
            Action::Claim | Action::Release => None,
        });
        // A claim may be made out of a hold, or take expired ones back.
        needs.max().max((held > 0).then_some(Need::Delete))
    }

    /// Answers the leading operations, up to the first that changes something. Returns what it has found.
    fn look(&self, view: &mut View<'_>, mut draft: Draft<'a>, decided: &mut Decided) -> Seen<'a> {
        let mut bases = Bases::new(draft.before().version.written_by, decided.rests_on);
        for operation in self.operations {
            let Some((answer, basis)) = draft.look(view, operation) else {
                break;
            };
            bases.add(basis);
            decided.answers.push(answer);
        }
        decided.rests_on = bases.position();
        draft.seen()
    }

    /// Decides the rest of the operations, in the turn of the coupon with this `id`, and writes their changes. What was
    /// `seen` before is looked up again only if the coupon has changed since: each change of its claims and holds is one
    /// of its row, too.
    fn take(
        &self,
        view: &mut View<'_>,
        ledger: &mut Ledger<'_>,
        id: i64,
        seen: Option<Seen<'a>>,
        decided: &mut Decided,
    ) -> Taken {
        let operations = &self.operations[decided.answers.len()..];
        // The look before the wait may be outdated: look again, and lock the row only if there is something
        // to write.
        let mut draft = match seen {
            Some(seen) if is_unchanged(view, &seen.coupon) => {
                Draft::of_seen(seen, self.coupon_name, operations.len())
            }
            _ => {
                let Some(coupon) = view.coupon(self.coupon_name) else {
                    return self.not_found(decided);
                };
                if coupon.id != id {
                    return Taken::Other(coupon.id);
                }
                Draft::new(coupon, self.coupon_name, operations.len())
            }
        };
        let (mut answers, rests_on) = draft_all(&mut draft, view, operations);
        decided.rests_on = decided.rests_on.max(rests_on);
        if draft.is_empty() {
            decided.answers.append(&mut answers);
            return Taken::None;
        }
        // On a hot coupon there is always a newer commit: the last time, they are made durable after the change.
        if !decided.is_durable() && decided.waits < MOST_WAITS {
            return Taken::NotYet;
        }
        if draft.is_current(session::now())
            && write_unlocked(ledger, view, self.coupon_name, &mut draft)
        {
            decided.answers.append(&mut answers);
            return Taken::Some;
        }

        let asked = session::now();
        let Some(coupon) = view.lock_coupon(self.coupon_name) else {
            return self.gone(view, decided);
        };
        // Only a writer that bypasses the queue can have changed it or made this wait. Its work must be seen.
        if coupon.version.written_by != draft.before().version.written_by
            || !draft.is_current(asked)
        {
            view.release();
            view.renew();
            if view.coupon(self.coupon_name).is_none() {
                return self.not_found(decided);
            }
            let Some(coupon) = view.lock_coupon(self.coupon_name) else {
                return self.gone(view, decided);
            };
            draft = Draft::new(coupon, self.coupon_name, operations.len());
            let (again, rests_on) = draft_all(&mut draft, view, operations);
            answers = again;
            decided.rests_on = decided.rests_on.max(rests_on);
            if draft.is_empty() {
                decided.answers.append(&mut answers);
                return Taken::None;
            }
        }
        decided.answers.append(&mut answers);
        let events = draft.events();
        write(ledger, view, self.coupon_name, &mut draft, &events);
        Taken::Some
    }

    /// The coupon was deleted or renamed during the wait for its row. The name may belong to another one by now.
    fn gone(&self, view: &mut View<'_>, decided: &mut Decided) -> Taken {
        view.release();
        view.renew();
        match view.coupon(self.coupon_name) {
            Some(coupon) => Taken::Other(coupon.id),
            None => self.not_found(decided),
        }
    }

    fn not_found(&self, decided: &mut Decided) -> Taken {
        decided
            .answers
            .resize(self.operations.len(), Outcome::NotFound.into());
        Taken::None
    }
}

/// Returns true if `coupon` is as it was found, as far as it is worth a try: on a hot coupon it has nearly always changed.
fn is_unchanged(view: &mut View<'_>, coupon: &Coupon) -> bool {
    let left_out = UNTRIED.get();
    if left_out > 0 {
        UNTRIED.set(left_out - 1);
        return false;
    }
    let is_unchanged = view.find_unchanged(coupon);
    if !is_unchanged {
        UNTRIED.set(PAUSE);
    }
    is_unchanged
}

/// Applies `operations` to `draft`; returns the answers, and the position in the WAL that those rest on which
/// change nothing.
fn draft_all<'a>(
    draft: &mut Draft<'a>,
    view: &mut View<'_>,
    operations: &[Operation<'a>],
) -> (Vec<Answer>, pg_sys::XLogRecPtr) {
    draft.read_holds(view, operations);
    let mut bases = Bases::new(draft.before().version.written_by, durability::NOTHING);
    let answers = operations
        .iter()
        .enumerate()
        .map(|(i, operation)| {
            let (answer, basis) = draft.apply(view, operation, operations.len() - i);
            bases.add(basis);
            answer
        })
        .collect();
    (answers, bases.position())
}

/// Writes what `draft` makes of the coupon that `view` last found, if there are no events and no other session has locked
/// or changed the coupon's row. Returns false if it has written nothing.
fn write_unlocked(
    ledger: &mut Ledger<'_>,
    view: &mut View<'_>,
    coupon_name: Text,
    draft: &mut Draft<'_>,
) -> bool {
    draft.settle(view);
    let stock = (draft.before(), draft.after());
    draft.events().is_empty()
        && ledger.write_unlocked(view, coupon_name, stock, &draft.rows(), draft.now())
}

/// Writes `events` and what `draft` makes of the coupon that `view` last locked. The events come first, because
/// triggers of users on the rows may call functions that write more of them; triggers on the events run last.
pub fn write(
    ledger: &mut Ledger<'_>,
    view: &mut View<'_>,
    coupon_name: Text,
    draft: &mut Draft<'_>,
    events: &[Event<'_>],
) {
    draft.settle(view);
    let log = match events {
        [] => None,
        _ => Log::open(ledger.schema()),
    };
    let inserted = log
        .as_ref()
        .map(|log| log.insert(coupon_name, draft.now(), events));
    let stock = (draft.before(), draft.after());
    ledger.write(view, coupon_name, stock, &draft.rows(), draft.now());
    if let Some(inserted) = inserted {
        inserted.end();
    }
}
