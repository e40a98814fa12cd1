//! The rules: what each operation makes of a coupon and its user.
//!
//! A [`Draft`] is a coupon as a list of operations would leave it. It decides one operation after the other,
//! each on what those before have made of the coupon and its users, and writes nothing: the difference to what
//! the tables have is written at the end.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use pgrx::pg_sys;
use serde_json::json;

use crate::claiming::expiries::Expiries;
use crate::claiming::operation::{Action, Answer, Operation};
use crate::claiming::outcome::Outcome;
use crate::claiming::store::coupons::Coupon;
use crate::claiming::store::events::Event;
use crate::claiming::store::holds::Held;
use crate::claiming::store::{New, Row, View, Written};
use crate::pg::column::Text;
use crate::pg::session;

/// The most expired holds that are taken back for one operation that finds no stock: the work is bounded, and
/// the next operations find what is left of it.
const SWEEP: usize = 100;

/// The most holds for each claim or reservation of a call that are read together: each costs a tenth of a look-up.
const HOLDS: usize = 4;

/// The time in microseconds of a wait after which a draft is made again.
const MOMENT: i64 = 1000;

/// A coupon and its users as the operations so far leave them.
pub struct Draft<'a> {
    coupon_name: Text,
    /// The coupon as it was found.
    before: Coupon,
    /// The coupon as it is to be.
    after: Coupon,
    /// The moment of all decisions.
    now: i64,
    /// The first moment at which a decision would be another.
    until: i64,
    /// All holds by their users, if they have been read.
    holds: Option<HashMap<String, Held>>,
    /// The holds in the order of expiry.
    expiries: Expiries,
    /// A user whose rows are known.
    known: Option<Known<'a>>,
    /// The users whose rows change, and the index of each in `rows`.
    users: HashMap<Cow<'a, str>, usize>,
    /// The changes of their rows, apart from the map: that of a large batch is read all over, and should be small.
    rows: Vec<Change<'a>>,
    /// The number of changes so far.
    changes: usize,
    /// The number of expired holds that are taken back.
    expired: usize,
    /// The claims that are given back: the user, and the label of the actor.
    released: Vec<(&'a str, Option<&'a str>)>,
}

/// The change of a user's rows.
struct Change<'a> {
    user: Text,
    before: Row,
    after: State<'a>,
    /// The place of the last change among all.
    place: usize,
}

/// The rows of a user on the coupon, as they were found: the state, the row that the tables have, and what both rest on.
#[derive(Clone)]
struct Known<'a> {
    user_id: &'a str,
    found: (State<'a>, Row, Basis),
}

/// A coupon as it was found in a look, and the rows of the first user for whom something changes, if they were looked up.
#[derive(Clone)]
pub struct Seen<'a> {
    /// The coupon.
    pub coupon: Coupon,
    user: Option<Known<'a>>,
}

/// The state of a user on the coupon. A claim or a hold has the key of its request.
#[derive(Clone)]
enum State<'a> {
    Nothing,
    Claimed(Option<Cow<'a, str>>),
    Held(i64, Option<Cow<'a, str>>),
}

/// A change that an operation makes.
enum Step {
    /// A piece of the stock becomes a claim.
    Claim,
    /// A piece of the stock becomes a hold, until this moment.
    Hold(i64),
    /// The live hold becomes a claim.
    Confirm,
    /// The live hold becomes stock.
    Cancel,
    /// The claim becomes stock.
    Release,
}

/// Basis of an answer.
#[derive(Clone, Copy)]
pub enum Basis {
    /// The coupon's row.
    Coupon,
    /// The user's row, which this transaction wrote.
    Row(pg_sys::TransactionId),
    /// The draft.
    Draft,
}

impl<'a> Draft<'a> {
    /// Begins with `coupon`, at this moment, for this many operations.
    pub fn new(coupon: Coupon, coupon_name: Text, operations: usize) -> Draft<'a> {
        Draft {
            coupon_name,
            after: coupon.clone(),
            now: session::now(),
            until: i64::MAX,
            holds: None,
            expiries: Expiries::new(coupon.next_expiry),
            before: coupon,
            known: None,
            users: HashMap::with_capacity(operations),
            rows: Vec::with_capacity(operations),
            changes: 0,
            expired: 0,
            released: Vec::new(),
        }
    }

    /// Ends a look.
    pub fn seen(self) -> Seen<'a> {
        Seen {
            coupon: self.before,
            user: self.known,
        }
    }

    /// Begins with what was `seen` in a look before, if nothing of it has changed, at this moment, for this many
    /// operations.
    pub fn of_seen(seen: Seen<'a>, coupon_name: Text, operations: usize) -> Draft<'a> {
        Draft {
            known: seen.user,
            ..Draft::new(seen.coupon, coupon_name, operations)
        }
    }

    /// Reads all holds if that costs less than a look-up for each of the `operations` whose users likely have none.
    pub fn read_holds(&mut self, view: &View<'_>, operations: &[Operation<'_>]) {
        if self.before.held == 0 {
            return;
        }
        let is_new = |it: &&Operation<'_>| matches!(it.action, Action::Claim | Action::Reserve(_));
        let new_users = operations.iter().filter(is_new).count();
        let most = new_users.saturating_mul(HOLDS);
        let held = self.before.held as usize;
        if new_users > 1 && held <= most {
            self.holds = view.all_holds(self.coupon_name, held, most);
        }
    }

    /// Returns true if nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// The coupon as it was found.
    pub fn before(&self) -> &Coupon {
        &self.before
    }

    /// The coupon as it is to be.
    pub fn after(&self) -> &Coupon {
        &self.after
    }

    /// The coupon as it is to be, for changes of its settings.
    pub fn after_mut(&mut self) -> &mut Coupon {
        &mut self.after
    }

    /// The moment of all decisions.
    pub fn now(&self) -> i64 {
        self.now
    }

    /// Returns true if all decisions would be the same now, and no wait since the moment `asked` lets new holds end
    /// noticeably early.
    pub fn is_current(&self, asked: i64) -> bool {
        let now = session::now();
        now < self.until && now - asked < MOMENT
    }

    /// Answers `operation` if it changes nothing.
    pub fn look(
        &mut self,
        view: &mut View<'_>,
        operation: &Operation<'a>,
    ) -> Option<(Answer, Basis)> {
        if self.needs_turn(view, operation) {
            return None;
        }
        let found = self.find(view, operation);
        let (state, _, basis) = &found;
        match self.decide(view, operation, state) {
            Ok(answer) => Some((answer, *basis)),
            Err(_) => {
                self.known = Some(Known {
                    user_id: operation.user_id,
                    found,
                });
                None
            }
        }
    }

    /// Returns true if `operation` needs a turn whether or not the user has a hold. So this is not looked up.
    fn needs_turn(&mut self, view: &mut View<'_>, operation: &Operation<'a>) -> bool {
        matches!(operation.action, Action::Claim | Action::Reserve(_))
            && self.before.held > 0
            && self.before.remaining > 0
            && self.closed().is_none()
            && !(self.may_have_claimed(operation)
                && view.claim(operation.user, self.coupon_name).is_some())
    }

    /// Returns false if the coupon has no claims, and the user's needs no look-up. Only for a claim: even if a session
    /// that bypasses the functions has spoilt the books, the unique key stands behind it.
    fn may_have_claimed(&self, operation: &Operation<'_>) -> bool {
        operation.action != Action::Claim || self.before.claims() > 0
    }

    /// Makes the change of `operation`, if any, and answers it. `left` is the number of operations from this
    /// one on.
    pub fn apply(
        &mut self,
        view: &mut View<'_>,
        operation: &Operation<'a>,
        left: usize,
    ) -> (Answer, Basis) {
        let (state, before, basis) = self.find(view, operation);
        let step = match self.decide(view, operation, &state) {
            Ok(answer) => return (answer, basis),
            Err(step) => step,
        };
        if let State::Held(expires_at, _) = state {
            self.expiries.change(expires_at);
        }
        let request_key = operation.request_key.map(Cow::Borrowed);
        let (after, answer) = match step {
            Step::Claim => {
                if !self.take_one(view, &state, left) {
                    return (self.out_of_stock(view), basis);
                }
                (State::Claimed(request_key), Outcome::Claimed.into())
            }
            Step::Hold(expires_at) => {
                if !self.take_one(view, &state, left) {
                    return (self.out_of_stock(view), basis);
                }
                self.after.held += 1;
                let answer = Answer {
                    expires_at: Some(expires_at),
                    ..Outcome::Held.into()
                };
                (State::Held(expires_at, request_key), answer)
            }
            Step::Confirm => {
                self.after.held -= 1;
                let held_key = match state {
                    State::Held(_, held_key) => held_key,
                    _ => None,
                };
                (
                    State::Claimed(match operation.action {
                        Action::Claim => request_key.or(held_key),
                        _ => held_key,
                    }),
                    Outcome::Claimed.into(),
                )
            }
            Step::Cancel => {
                self.after.held -= 1;
                self.after.remaining += 1;
                (State::Nothing, Outcome::Cancelled.into())
            }
            Step::Release => {
                self.after.remaining += 1;
                self.released.push((operation.user_id, operation.actor));
                (State::Nothing, Outcome::Released.into())
            }
        };
        self.change(
            Cow::Borrowed(operation.user_id),
            operation.user,
            before,
            after,
        );
        (answer, Basis::Draft)
    }

    /// Takes up to `max` expired holds back.
    pub fn take_back(&mut self, view: &mut View<'_>, max: usize) {
        for _ in 0..max {
            let Some((user_id, held)) = self.first_unchanged(view) else {
                return;
            };
            if held.expires_at > self.now {
                return;
            }
            let user = Text::new(&user_id);
            let before = Row::Hold(held.version);
            self.expiries.change(held.expires_at);
            self.change(Cow::Owned(user_id), user, before, State::Nothing);
            self.expired += 1;
            self.after.held -= 1;
            self.after.remaining += 1;
        }
    }

    /// Ends the draft: notes the moment at which the first of the holds expires.
    pub fn settle(&mut self, view: &mut View<'_>) {
        self.after.next_expiry = self.first_expiry(view);
    }

    /// The number of expired holds that are taken back.
    pub fn expired(&self) -> usize {
        self.expired
    }

    /// The rows to be written, in the order of the changes.
    pub fn rows(&self) -> Vec<Written> {
        let mut changes: Vec<_> = self.rows.iter().collect();
        // They are in order, unless a user's rows change twice.
        changes.sort_by_key(|change| change.place);
        let text = |key: &Option<Cow<'_, str>>| key.as_deref().map(Text::new);
        changes
            .into_iter()
            .map(|change| Written {
                user_id: change.user,
                before: change.before,
                after: match &change.after {
                    State::Nothing => New::None,
                    State::Claimed(key) => New::Claim(text(key)),
                    State::Held(expires_at, key) => New::Hold(*expires_at, text(key)),
                },
            })
            .collect()
    }

    /// The events of the changes of rows and stock, in their order.
    pub fn events(&self) -> Vec<Event<'a>> {
        let event = |kind, details| Event {
            kind,
            actor: None,
            details,
        };
        let mut events = Vec::new();
        if self.expired > 0 {
            events.push(event("expired", json!({"count": self.expired})));
        }
        for &(user_id, actor) in &self.released {
            let details = json!({"user_id": user_id});
            events.push(Event {
                actor,
                ..event("released", details)
            });
        }
        match (self.before.remaining, self.after.remaining) {
            (0, remaining) if remaining > 0 => {
                events.push(event("available_again", json!({"remaining": remaining})));
            }
            (1.., 0) => events.push(event("sold_out", json!({"held": self.after.held}))),
            _ => {}
        }
        events
    }

    /// The user's state, the row that the tables have for it, and what both rest on.
    fn find(&self, view: &mut View<'_>, operation: &Operation<'a>) -> (State<'a>, Row, Basis) {
        if let Some(change) = self.changed(operation.user_id) {
            return (change.after.clone(), change.before, Basis::Draft);
        }
        if let Some(known) = &self.known
            && known.user_id == operation.user_id
        {
            return known.found.clone();
        }
        // A user has a claim or a hold, never both: what is likelier is looked up first.
        if matches!(operation.action, Action::Confirm | Action::Cancel)
            && let Some(held) = self.find_hold(view, operation)
        {
            return held;
        }
        let mut gap = None;
        if self.may_have_claimed(operation) {
            if let Some(claim) = view.claim(operation.user, self.coupon_name) {
                let version = claim.version();
                // Only a request with a key is compared with it.
                let key = operation
                    .request_key
                    .and(claim.request_key())
                    .map(|key| Cow::Owned(key.string()));
                let basis = Basis::Row(version.written_by);
                return (State::Claimed(key), Row::Claim(version), basis);
            }
            gap = view.claim_gap();
        }
        if matches!(operation.action, Action::Claim | Action::Reserve(_))
            && let Some(held) = self.find_hold(view, operation)
        {
            return held;
        }
        (State::Nothing, Row::None(gap), Basis::Coupon)
    }

    /// The hold of the user that the tables have.
    fn find_hold(
        &self,
        view: &mut View<'_>,
        operation: &Operation<'a>,
    ) -> Option<(State<'a>, Row, Basis)> {
        let hold = match &self.holds {
            Some(holds) => {
                let version = holds.get(operation.user_id)?.version;
                view.hold_again(version, operation.user, self.coupon_name)?
            }
            None if self.before.held == 0 => return None,
            None => match operation.action {
                // Most users of these have a hold, and of the others none.
                Action::Confirm | Action::Cancel => view.hold(operation.user, self.coupon_name)?,
                _ => view.rare_hold(operation.user, self.coupon_name)?,
            },
        };
        let Held {
            expires_at,
            version,
        } = hold.held();
        let key = hold.request_key().map(|key| Cow::Owned(key.string()));
        let basis = Basis::Row(version.written_by);
        Some((State::Held(expires_at, key), Row::Hold(version), basis))
    }

    /// Decides an operation for a user in this state: the change that it makes, or the answer if it makes
    /// none.
    fn decide(
        &mut self,
        view: &mut View<'_>,
        operation: &Operation<'a>,
        state: &State<'a>,
    ) -> Result<Answer, Step> {
        let action = operation.action;
        let live_until = match state {
            State::Held(expires_at, _) if self.is_before(*expires_at) => Some(*expires_at),
            _ => None,
        };
        match (action, state) {
            (Action::Claim, State::Claimed(key)) => {
                return Ok(match (key, operation.request_key) {
                    (Some(key), Some(request_key)) if key == request_key => Answer {
                        replayed: true,
                        ..Outcome::Claimed.into()
                    },
                    _ => Outcome::AlreadyClaimed.into(),
                });
            }
            // To confirm again is safe, and the answer is the same.
            (Action::Confirm, State::Claimed(_)) => return Ok(Outcome::Claimed.into()),
            (Action::Reserve(_), State::Claimed(_)) => return Ok(Outcome::AlreadyClaimed.into()),
            (Action::Release, State::Claimed(_)) => return Err(Step::Release),
            (Action::Release, _) => return Ok(Outcome::NotClaimed.into()),
            (Action::Claim | Action::Confirm, State::Held(..)) if live_until.is_some() => {
                return Err(Step::Confirm);
            }
            (Action::Reserve(_), State::Held(..)) if live_until.is_some() => {
                return Ok(Answer {
                    expires_at: live_until,
                    ..Outcome::Held.into()
                });
            }
            (Action::Cancel, State::Held(..)) if live_until.is_some() => return Err(Step::Cancel),
            (Action::Confirm | Action::Cancel, _) => return Ok(Outcome::NotHeld.into()),
            (Action::Claim | Action::Reserve(_), _) => {}
        }
        let refusal = match state {
            // The user's own hold has expired: its piece is there.
            State::Held(..) => self.closed().map(Answer::from),
            _ => self.refusal(view),
        };
        if let Some(refusal) = refusal {
            return Ok(refusal);
        }
        Err(match action {
            // Each a microsecond later than the one before, so that the search in the order of expiry does not
            // meet all that are made in one call again and again.
            Action::Reserve(ttl) => Step::Hold(self.now + ttl + self.changes as i64),
            _ => Step::Claim,
        })
    }

    /// The reason to refuse a claim or a reservation by a new user.
    pub fn refusal(&mut self, view: &mut View<'_>) -> Option<Answer> {
        if let Some(refusal) = self.closed() {
            return Some(refusal.into());
        }
        if self.after.remaining > 0 {
            return None;
        }
        // An expired hold is stock.
        let has_expired = self.after.held > 0
            && self
                .first_expiry(view)
                .is_some_and(|first| !self.is_before(first));
        (!has_expired).then(|| self.out_of_stock(view))
    }

    /// The answer if nothing is left.
    fn out_of_stock(&mut self, view: &mut View<'_>) -> Answer {
        if self.after.held == 0 {
            return Outcome::SoldOut.into();
        }
        Answer {
            expires_at: self.first_expiry(view),
            ..Outcome::AllHeld.into()
        }
    }

    /// Takes a piece off the stock for a user in this state. If nothing is left, expired holds become stock
    /// first, the user's own before others. Returns false if there are none, because a session that bypasses the
    /// functions has deleted them.
    fn take_one(&mut self, view: &mut View<'_>, state: &State<'a>, left: usize) -> bool {
        if let State::Held(..) = state {
            self.expired += 1;
            self.after.held -= 1;
            self.after.remaining += 1;
        } else if self.after.remaining == 0 {
            self.take_back(view, left.max(SWEEP));
        }
        if self.after.remaining == 0 {
            return false;
        }
        self.after.remaining -= 1;
        true
    }

    fn change(&mut self, user_id: Cow<'a, str>, user: Text, before: Row, after: State<'a>) {
        self.changes += 1;
        let place = self.changes;
        if let State::Held(expires_at, _) = after {
            self.expiries.add(expires_at);
        }
        match self.users.entry(user_id) {
            Entry::Occupied(index) => {
                let change = &mut self.rows[*index.get()];
                if let State::Held(expires_at, _) = change.after {
                    self.expiries.remove(expires_at);
                }
                change.after = after;
                change.place = place;
            }
            Entry::Vacant(entry) => {
                entry.insert(self.rows.len());
                self.rows.push(Change {
                    user,
                    before,
                    after,
                    place,
                });
            }
        }
    }

    /// The change of this user's rows, if there is one.
    fn changed(&self, user_id: &str) -> Option<&Change<'a>> {
        self.users.get(user_id).map(|&index| &self.rows[index])
    }

    /// The reason, other than the stock, to refuse claims and reservations.
    fn closed(&mut self) -> Option<Outcome> {
        for bound in [self.after.starts_at, self.after.ends_at] {
            bound.map(|bound| self.is_before(bound));
        }
        self.after.closed(self.now)
    }

    /// Returns true if `moment` is still to come, and notes that the decision rests on that.
    fn is_before(&mut self, moment: i64) -> bool {
        let is_before = self.now < moment;
        if is_before {
            self.until = self.until.min(moment);
        }
        is_before
    }

    /// The moment when the first of the coupon's holds expires.
    fn first_expiry(&mut self, view: &mut View<'_>) -> Option<i64> {
        let (users, rows) = (&self.users, &self.rows);
        let is_changed = |user_id: &str| has_changed_hold(users, rows, user_id);
        self.expiries
            .first(view, self.coupon_name, self.holds.as_ref(), is_changed)
    }

    /// The hold that expires first of those that were there before and do not change, and its user.
    fn first_unchanged(&mut self, view: &mut View<'_>) -> Option<(String, Held)> {
        let (users, rows) = (&self.users, &self.rows);
        let is_changed = |user_id: &str| has_changed_hold(users, rows, user_id);
        self.expiries
            .first_unchanged(view, self.coupon_name, self.holds.as_ref(), is_changed)
    }
}

/// Returns true if the hold that the user had before is among the changes.
fn has_changed_hold(
    users: &HashMap<Cow<'_, str>, usize>,
    rows: &[Change<'_>],
    user_id: &str,
) -> bool {
    let index = users.get(user_id);
    index.is_some_and(|&index| matches!(rows[index].before, Row::Hold(_)))
}
