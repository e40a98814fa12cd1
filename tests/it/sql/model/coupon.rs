//! The model: a coupon in plain Rust, and the answers that the functions must give about it.

use std::collections::BTreeMap;

use super::{
    calls::{Bound, Call, Element, Key, Operation, User, request_key, user_id},
    sessions::{Answer, Row, Span},
};

/// The most expired holds that one operation takes back.
const SWEEP: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hold {
    /// In microseconds since 1970.
    pub expires_at: i64,
    pub key: Option<Key>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coupon {
    amount: i32,
    remaining: i32,
    pub starts: Bound,
    pub ends: Bound,
    paused: bool,
    /// In their order.
    claims: Vec<(User, Option<Key>)>,
    pub holds: BTreeMap<User, Hold>,
}

/// The rows of one coupon, and the events of the current step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub coupon: Option<Coupon>,
    /// Without those on the stock: an operation for several users may write one for all of them.
    pub events: Vec<String>,
    /// The number of expired holds that were taken back.
    pub swept: usize,
}

/// The answer to an operation for one user.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    outcome: &'static str,
    /// Of a hold, or of the first hold that expires.
    expires_at: Option<i64>,
    replayed: bool,
}

impl Reply {
    fn of(outcome: &'static str) -> Self {
        Self {
            outcome,
            expires_at: None,
            replayed: false,
        }
    }
}

impl Coupon {
    fn new(amount: i32, starts: Bound, ends: Bound) -> Self {
        Self {
            amount,
            remaining: amount,
            starts,
            ends,
            paused: false,
            claims: Vec::new(),
            holds: BTreeMap::new(),
        }
    }

    fn claim_of(&self, user: User) -> Option<&(User, Option<Key>)> {
        self.claims.iter().find(|(claimant, _)| *claimant == user)
    }

    /// The hold of `user` that lives at `now`.
    fn live_hold(&self, user: User, now: i64) -> Option<&Hold> {
        self.holds.get(&user).filter(|hold| now < hold.expires_at)
    }

    fn expired(&self, now: i64) -> Vec<User> {
        let mut expired: Vec<(i64, User)> = self
            .holds
            .iter()
            .filter(|(_, hold)| now >= hold.expires_at)
            .map(|(user, hold)| (hold.expires_at, *user))
            .collect();
        expired.sort_unstable();
        expired.into_iter().map(|(_, user)| user).collect()
    }

    /// Takes back up to `max` expired holds, the oldest first, and returns their number.
    fn sweep(&mut self, now: i64, max: usize) -> usize {
        let expired = self.expired(now);
        let count = expired.len().min(max);
        for user in &expired[..count] {
            self.holds.remove(user);
            self.remaining += 1;
        }
        count
    }

    fn first_expiry(&self) -> Option<i64> {
        self.holds.values().map(|hold| hold.expires_at).min()
    }

    /// The refusal by window and pause.
    fn closed(&self) -> Option<&'static str> {
        if self.starts == Bound::Future {
            Some("not_started")
        } else if self.ends == Bound::Past {
            Some("ended")
        } else if self.paused {
            Some("paused")
        } else {
            None
        }
    }

    fn state(&self, now: i64) -> &'static str {
        if let Some(closed) = self.closed() {
            closed
        } else if self.remaining > 0 || !self.expired(now).is_empty() {
            "open"
        } else if self.holds.is_empty() {
            "sold_out"
        } else {
            "all_held"
        }
    }

    /// The columns of the functions that return the coupon.
    fn row(&self, name: &str, now: i64) -> Row {
        let bound = |bound: Bound, at: &str| (bound != Bound::None).then(|| at.to_owned());
        vec![
            Some(name.to_owned()),
            Some(self.amount.to_string()),
            Some(self.remaining.to_string()),
            Some(self.holds.len().to_string()),
            bound(self.starts, self.starts.starts_at()),
            bound(self.ends, self.ends.ends_at()),
            flag(self.paused),
            Some(self.state(now).to_owned()),
        ]
    }
}

fn flag(value: bool) -> Option<String> {
    Some(if value { "t" } else { "f" }.to_owned())
}

impl State {
    /// The stock; none if there is no coupon.
    pub fn remaining(&self) -> Option<i32> {
        self.coupon.as_ref().map(|coupon| coupon.remaining)
    }

    /// The tables' rows of this coupon, in the form of [`super::sessions::Sessions::rows`].
    pub fn rows(&self) -> [String; 3] {
        let Some(coupon) = &self.coupon else {
            return Default::default();
        };
        let key = |key| request_key(key).unwrap_or_else(|| "-".to_owned());
        let bound = |bound: Bound, at: &'static str| if bound == Bound::None { "-" } else { at };
        let first = coupon.first_expiry().map(|micros| micros.to_string());
        let claims = coupon.claims.iter();
        let claims: Vec<String> = claims
            .map(|(user, used)| format!("{} {}", user_id(*user), key(*used)))
            .collect();
        let holds = coupon.holds.iter();
        let holds: Vec<String> = holds
            .map(|(user, hold)| format!("{} {} {}", user_id(*user), hold.expires_at, key(hold.key)))
            .collect();
        [
            format!(
                "{} {} {} {} {} {} {}",
                coupon.amount,
                coupon.remaining,
                coupon.holds.len(),
                bound(coupon.starts, coupon.starts.starts_at()),
                bound(coupon.ends, coupon.ends.ends_at()),
                if coupon.paused { "t" } else { "f" },
                first.unwrap_or_else(|| "-".to_owned()),
            ),
            claims.join(", "),
            holds.join(", "),
        ]
    }

    /// Carries out the operation of `element`, which `row` answers.
    ///
    /// # Errors
    /// The difference, if `row` is not the answer of the model.
    pub fn element(&mut self, element: &Element, row: &Row, span: Span) -> Result<(), String> {
        let told: Vec<Option<&str>> = row.iter().map(Option::as_deref).collect();
        let told_expiry = told.get(1).copied().flatten();
        let told_expiry = told_expiry.and_then(|micros| micros.parse().ok());
        let reply = self.reply(element, told_expiry, span)?;
        let outcome = Some(reply.outcome);
        let matches = match told[..] {
            [told] => told == outcome,
            [told, _] => told == outcome && told_expiry == reply.expires_at,
            [told, _, replayed] => {
                // A reservation may count as one too.
                let is_claim = element.operation == Operation::Claim;
                told == outcome
                    && told_expiry == reply.expires_at
                    && (!is_claim || replayed == flag(reply.replayed).as_deref())
            }
            _ => false,
        };
        if matches {
            Ok(())
        } else {
            Err(format!("{element:?} is {reply:?}, not {told:?}"))
        }
    }

    /// Carries out the operation of `element`. The expiry of a new hold is that of the answer, if it is possible.
    fn reply(
        &mut self,
        element: &Element,
        told_expiry: Option<i64>,
        span: Span,
    ) -> Result<Reply, String> {
        let Some(coupon) = &mut self.coupon else {
            return Ok(Reply::of("not_found"));
        };
        let (now, user) = (span.from, element.user);
        match element.operation {
            Operation::Claim | Operation::Reserve => {}
            Operation::Confirm => {
                if coupon.claim_of(user).is_some() {
                    return Ok(Reply::of("claimed"));
                }
                if coupon.live_hold(user, now).is_none() {
                    return Ok(Reply::of("not_held"));
                }
                let hold = coupon.holds.remove(&user);
                coupon.claims.push((user, hold.and_then(|hold| hold.key)));
                return Ok(Reply::of("claimed"));
            }
            Operation::Cancel => {
                if coupon.live_hold(user, now).is_none() {
                    return Ok(Reply::of("not_held"));
                }
                coupon.holds.remove(&user);
                coupon.remaining += 1;
                return Ok(Reply::of("cancelled"));
            }
            Operation::Release => {
                if coupon.claim_of(user).is_none() {
                    return Ok(Reply::of("not_claimed"));
                }
                coupon.claims.retain(|(claimant, _)| *claimant != user);
                coupon.remaining += 1;
                self.events.push(format!("released {}", user_id(user)));
                return Ok(Reply::of("released"));
            }
        }

        let claims = element.operation == Operation::Claim;
        if let Some((_, used)) = coupon.claim_of(user) {
            let replayed = claims && used.is_some() && *used == element.key;
            return Ok(Reply {
                replayed,
                ..Reply::of(if replayed {
                    "claimed"
                } else {
                    "already_claimed"
                })
            });
        }
        if let Some(hold) = coupon.live_hold(user, now).cloned() {
            if !claims {
                return Ok(Reply {
                    expires_at: Some(hold.expires_at),
                    ..Reply::of("held")
                });
            }
            coupon.holds.remove(&user);
            coupon.claims.push((user, element.key.or(hold.key)));
            return Ok(Reply::of("claimed"));
        }
        if let Some(closed) = coupon.closed() {
            return Ok(Reply::of(closed));
        }
        // An expired hold of the same user makes room for the new one.
        if coupon.holds.remove(&user).is_some() {
            coupon.remaining += 1;
            self.swept += 1;
        }
        if coupon.remaining == 0 {
            self.swept += coupon.sweep(now, SWEEP);
        }
        if coupon.remaining == 0 {
            let expires_at = coupon.first_expiry();
            let outcome = expires_at.map_or("sold_out", |_| "all_held");
            return Ok(Reply {
                expires_at,
                ..Reply::of(outcome)
            });
        }
        coupon.remaining -= 1;
        if claims {
            coupon.claims.push((user, element.key));
            return Ok(Reply::of("claimed"));
        }
        let lifetime = element.hours * 3_600_000_000;
        let possible = span.from + lifetime..=span.to + lifetime;
        let expires_at = told_expiry
            .filter(|told| possible.contains(told))
            .ok_or_else(|| {
                format!("{element:?}: expires at {told_expiry:?}, not in {possible:?}")
            })?;
        let key = element.key;
        coupon.holds.insert(user, Hold { expires_at, key });
        Ok(Reply {
            expires_at: Some(expires_at),
            ..Reply::of("held")
        })
    }

    /// Carries out a call that has no elements.
    ///
    /// # Errors
    /// The difference, if `answer` is not that of the model.
    pub fn call(
        &mut self,
        call: &Call,
        answer: &Answer,
        name: &str,
        span: Span,
    ) -> Result<(), String> {
        if matches!(call, Call::ListEvents) {
            return self.list_events(answer);
        }
        if call.elements().is_some() {
            return Err(format!("{call:?} gives {answer:?}"));
        }
        let expected = match call {
            Call::ClaimOrRaise(user) => return self.claim_or_raise(*user, answer, span),
            _ => self.answer(call, name, span.from),
        };
        if expected == *answer {
            Ok(())
        } else {
            Err(format!("{call:?} gives {expected:?}, not {answer:?}"))
        }
    }

    fn claim_or_raise(&mut self, user: User, answer: &Answer, span: Span) -> Result<(), String> {
        let element = Element {
            operation: Operation::Claim,
            user,
            key: None,
            hours: 0,
        };
        let outcome = self.reply(&element, None, span)?.outcome;
        let expected = match outcome {
            "claimed" => "",
            "not_found" => "P0002",
            "already_claimed" => "23505",
            "sold_out" => "UC001",
            "not_started" => "UC002",
            "ended" => "UC003",
            "paused" => "UC004",
            _ => "UC005",
        };
        let told = answer.as_ref().err().map_or("", String::as_str);
        if told == expected {
            Ok(())
        } else {
            Err(format!("{user} or raise is {outcome}, not {answer:?}"))
        }
    }

    /// The list may end early: events that another transaction may still precede come later.
    fn list_events(&self, answer: &Answer) -> Result<(), String> {
        let rows = answer.as_ref().map_err(Clone::clone)?;
        let told = rows.iter().filter_map(|row| row.first()?.as_deref());
        if told.clone().all(|kind| !kind.is_empty()) {
            Ok(())
        } else {
            Err(format!("events: {answer:?}"))
        }
    }

    fn answer(&mut self, call: &Call, name: &str, now: i64) -> Answer {
        let one = |text: String| Ok(vec![vec![Some(text)]]);
        if let Call::Create {
            amount,
            starts,
            ends,
        } = call
        {
            if self.coupon.is_some() {
                return one("f".to_owned());
            }
            self.coupon = Some(Coupon::new(*amount, *starts, *ends));
            self.events.push(format!("created {amount}"));
            return one("t".to_owned());
        }
        let Some(coupon) = &mut self.coupon else {
            return match call {
                Call::Update { .. } | Call::Restock(_) => {
                    let mut row = vec![None; 9];
                    row[0] = Some("not_found".to_owned());
                    Ok(vec![row])
                }
                Call::Delete { .. } => one("not_found".to_owned()),
                Call::Expire(_) => one("0".to_owned()),
                _ => Ok(Vec::new()),
            };
        };
        match call {
            Call::Update {
                amount,
                starts,
                ends,
                paused,
            } => {
                let starts = starts.unwrap_or(coupon.starts);
                let ends = ends.unwrap_or(coupon.ends);
                let amount = amount.unwrap_or(coupon.amount);
                let paused = paused.unwrap_or(coupon.paused);
                self.update(amount, starts, ends, paused, name, now)
            }
            Call::Restock(delta) => {
                let Coupon { starts, ends, .. } = *coupon;
                let (amount, paused) = (coupon.amount + delta, coupon.paused);
                self.update(amount, starts, ends, paused, name, now)
            }
            Call::Delete { with_claims } => {
                let lives = coupon.expired(now).len() < coupon.holds.len();
                if !with_claims && (lives || !coupon.claims.is_empty()) {
                    return one("in_use".to_owned());
                }
                self.events.push(format!("deleted {}", coupon.claims.len()));
                self.coupon = None;
                one("deleted".to_owned())
            }
            Call::Expire(max) => {
                let count = coupon.sweep(now, *max as usize);
                self.swept += count;
                one(count.to_string())
            }
            Call::GetStock => {
                let mut row = coupon.row(name, now);
                row.push(coupon.first_expiry().map(|micros| micros.to_string()));
                row.push(flag(!coupon.claims.is_empty()));
                Ok(vec![row])
            }
            Call::GetCoupon => {
                let mut row = coupon.row(name, now);
                row.truncate(7);
                row.remove(3);
                Ok(vec![row])
            }
            Call::GetHold(user) => {
                let hold = coupon.live_hold(*user, now);
                Ok(hold.iter().map(|hold| hold_row(*user, hold)).collect())
            }
            Call::ListHolds { after, max } => Ok(coupon
                .holds
                .iter()
                .filter(|(user, hold)| Some(**user) > *after && now < hold.expires_at)
                .take(*max as usize)
                .map(|(user, hold)| hold_row(*user, hold))
                .collect()),
            Call::GetClaim(user) => {
                let claim = coupon.claim_of(*user);
                Ok(claim.iter().map(|_| vec![Some(user_id(*user))]).collect())
            }
            Call::ListClaims => {
                let claims = coupon.claims.iter();
                Ok(claims.map(|(user, _)| vec![Some(user_id(*user))]).collect())
            }
            Call::ListUserClaims(user) => {
                let claim = coupon.claim_of(*user);
                Ok(claim.iter().map(|_| vec![Some(name.to_owned())]).collect())
            }
            _ => unreachable!("{call:?} is answered elsewhere"),
        }
    }

    fn update(
        &mut self,
        amount: i32,
        starts: Bound,
        ends: Bound,
        paused: bool,
        name: &str,
        now: i64,
    ) -> Answer {
        let coupon = self.coupon.as_mut().expect("a coupon");
        if (starts, ends) == (Bound::Future, Bound::Past) {
            return Err("22023".to_owned());
        }
        let answered = |outcome: &str, coupon: &Coupon| {
            let mut row = coupon.row(name, now);
            row.insert(0, Some(outcome.to_owned()));
            Ok(vec![row])
        };
        let delta = amount - coupon.amount;
        // Expired holds are stock: as many are taken back as are missing.
        let missing = usize::try_from(-(coupon.remaining + delta)).unwrap_or(0);
        if amount < 0 || missing > coupon.expired(now).len() {
            return answered("below_given", coupon);
        }
        self.swept += coupon.sweep(now, missing);
        coupon.amount = amount;
        coupon.remaining += delta;
        if (starts, ends) != (coupon.starts, coupon.ends) {
            (coupon.starts, coupon.ends) = (starts, ends);
            self.events.push("updated ".to_owned());
        }
        if paused != coupon.paused {
            coupon.paused = paused;
            let kind = if paused { "paused" } else { "resumed" };
            self.events.push(format!("{kind} "));
        }
        if delta != 0 {
            self.events.push(format!("restocked {delta} {amount}"));
        }
        answered("updated", coupon)
    }
}

fn hold_row(user: User, hold: &Hold) -> Row {
    vec![Some(user_id(user)), Some(hold.expires_at.to_string())]
}
