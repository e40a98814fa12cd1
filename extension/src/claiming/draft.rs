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

use crate::claiming::operation::{Action, Answer, Operation};
use crate::claiming::outcome::Outcome;
use crate::claiming::store::coupons::Coupon;
use crate::claiming::store::events::Event;
use crate::claiming::store::holds::Hold;
use crate::claiming::store::{New, Row, View, Written};
use crate::pg::column::Text;
use crate::pg::session;

/// The most expired holds that are taken back for one operation that finds no stock: the work is bounded, and
/// the next operations find what is left of it.
const SWEEP: usize = 100;

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
    /// The users whose rows change.
    users: HashMap<Cow<'a, str>, Change<'a>>,
    /// The number of changes so far.
    changes: usize,
    /// The number of expired holds that are taken back.
    expired: usize,
    /// The claims that are given back: the user, and the label of the actor.
    released: Vec<(&'a str, Option<&'a str>)>,
    /// The first expiry of the holds that were there before and have not changed, if it is known.
    first_unchanged: Option<Option<i64>>,
    /// The first expiry of the holds that are new.
    first_new: Option<i64>,
}

/// The change of a user's rows.
struct Change<'a> {
    user: Text,
    before: Row,
    after: State<'a>,
    /// The place of the last change among all.
    place: usize,
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

/// What an answer rests on.
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
            before: coupon,
            now: session::now(),
            until: i64::MAX,
            users: HashMap::with_capacity(operations),
            changes: 0,
            expired: 0,
            released: Vec::new(),
            first_unchanged: None,
            first_new: None,
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

    /// Moves the decisions to this moment. Returns false if some of them would be others now.
    pub fn move_to_now(&mut self) -> bool {
        // The clock may be set back.
        self.now = self.now.max(session::now());
        self.now < self.until
    }

    /// Answers `operation` if it changes nothing.
    pub fn look(
        &mut self,
        view: &mut View<'_>,
        operation: &Operation<'a>,
    ) -> Option<(Answer, Basis)> {
        let (state, _, basis) = self.find(view, operation);
        let answer = self.decide(view, operation, &state).ok()?;
        Some((answer, basis))
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
        let request_key = operation.request_key.map(Cow::Borrowed);
        let (after, answer) = match step {
            Step::Claim => {
                self.take_one(view, &state, left);
                (State::Claimed(request_key), Outcome::Claimed.into())
            }
            Step::Hold(expires_at) => {
                self.take_one(view, &state, left);
                self.after.held += 1;
                self.first_new = Some(self.first_new.map_or(expires_at, |it| it.min(expires_at)));
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
                    State::Claimed(request_key.or(held_key)),
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
        let (mut expired, mut user_ids) = (0, Vec::new());
        let mut hold = view.first_hold(self.coupon_name);
        while let Some(found) = hold
            && found.expires_at() <= self.now
            && expired < max
        {
            if let Some(user_id) = found.user_id().map(Text::to_string)
                && !self.has_changed_hold(&user_id)
            {
                user_ids.push(user_id);
                expired += 1;
            }
            hold = view.next_hold();
        }
        for user_id in user_ids {
            let user = Text::new(&user_id);
            self.change(Cow::Owned(user_id), user, Row::Hold, State::Nothing);
        }
        self.expired += expired;
        self.after.held -= expired as i32;
        self.after.remaining += expired as i32;
    }

    /// The number of expired holds that are taken back.
    pub fn expired(&self) -> usize {
        self.expired
    }

    /// The rows to be written, in the order of the changes.
    pub fn rows(&self) -> Vec<Written> {
        let mut changes: Vec<_> = self.users.values().collect();
        changes.sort_unstable_by_key(|change| change.place);
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
        if let Some(change) = self.users.get(operation.user_id) {
            return (change.after.clone(), change.before, Basis::Draft);
        }
        let owned = |key: Text| Cow::Owned(key.to_string());
        if let Some(claim) = view.claim(operation.user, self.coupon_name) {
            let basis = Basis::Row(claim.written_by());
            // Only a request with a key is compared with it.
            let key = operation.request_key.and(claim.request_key()).map(owned);
            return (State::Claimed(key), Row::Claim, basis);
        }
        if self.before.held > 0
            && let Some(hold) = view.hold(operation.user, self.coupon_name)
        {
            let basis = Basis::Row(hold.written_by());
            let key = hold.request_key().map(owned);
            return (State::Held(hold.expires_at(), key), Row::Hold, basis);
        }
        (State::Nothing, Row::None, Basis::Coupon)
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
            Action::Reserve(ttl) => Step::Hold(self.now.saturating_add(ttl)),
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
        if self.after.held == 0 {
            return Some(Outcome::SoldOut.into());
        }
        let first = self.first_expiry(view);
        match first {
            Some(moment) if !self.is_before(moment) => None,
            _ => Some(Answer {
                expires_at: first,
                ..Outcome::AllHeld.into()
            }),
        }
    }

    /// Takes a piece off the stock for a user in this state. If nothing is left, expired holds become stock
    /// first, the user's own before others.
    fn take_one(&mut self, view: &mut View<'_>, state: &State<'a>, left: usize) {
        if let State::Held(..) = state {
            self.expired += 1;
            self.after.held -= 1;
            self.after.remaining += 1;
        } else if self.after.remaining == 0 {
            self.take_back(view, left.max(SWEEP));
        }
        self.after.remaining -= 1;
    }

    fn change(&mut self, user_id: Cow<'a, str>, user: Text, before: Row, after: State<'a>) {
        if before == Row::Hold {
            self.first_unchanged = None;
        }
        self.changes += 1;
        let place = self.changes;
        match self.users.entry(user_id) {
            Entry::Occupied(mut change) => {
                let change = change.get_mut();
                change.after = after;
                change.place = place;
            }
            Entry::Vacant(entry) => {
                entry.insert(Change {
                    user,
                    before,
                    after,
                    place,
                });
            }
        }
    }

    /// Returns true if the draft changes the hold that the user had before.
    fn has_changed_hold(&self, user_id: &str) -> bool {
        self.users
            .get(user_id)
            .is_some_and(|change| change.before == Row::Hold)
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
        let unchanged = match self.first_unchanged {
            Some(known) => known,
            None => {
                let mut hold = view.first_hold(self.coupon_name);
                while let Some(found) = hold
                    && found
                        .user_id()
                        .is_some_and(|user_id| self.has_changed_hold(&user_id.to_string()))
                {
                    hold = view.next_hold();
                }
                let first = hold.map(Hold::expires_at);
                self.first_unchanged = Some(first);
                first
            }
        };
        [unchanged, self.first_new].into_iter().flatten().min()
    }
}
