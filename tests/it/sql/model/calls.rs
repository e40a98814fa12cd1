//! Calls of the extension's functions in small numbers: a handful of users and request keys, one coupon.

use proptest::{collection::vec, option, prelude::*};

/// The number of users. There are more than pieces of a coupon, so stock runs out.
const USERS: u8 = 5;

/// The number of request keys, which users share.
const KEYS: u8 = 2;

pub type User = u8;
pub type Key = u8;

/// A bound of a coupon's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bound {
    None,
    Past,
    Future,
}

/// The operations that `honcho_apply` knows, each of which has a function of its own too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Claim,
    Reserve,
    Confirm,
    Cancel,
    Release,
}

/// One operation for one user.
#[derive(Clone, Debug)]
pub struct Element {
    pub operation: Operation,
    pub user: User,
    /// Of claims and reservations only.
    pub key: Option<Key>,
    /// The lifetime of a reservation, in hours.
    pub hours: i64,
}

/// One call of a function.
#[derive(Clone, Debug)]
pub enum Call {
    One(Element),
    ClaimOrRaise(User),
    ClaimBatch(Vec<User>),
    KeyedBatch(Vec<(User, Option<Key>)>),
    Apply(Vec<Element>),
    Create {
        amount: i32,
        starts: Bound,
        ends: Bound,
    },
    Update {
        amount: Option<i32>,
        starts: Option<Bound>,
        ends: Option<Bound>,
        paused: Option<bool>,
    },
    Restock(i32),
    Delete {
        with_claims: bool,
    },
    Expire(i32),
    GetStock,
    GetCoupon,
    GetHold(User),
    ListHolds {
        after: Option<User>,
        max: i32,
    },
    GetClaim(User),
    ListClaims,
    ListUserClaims(User),
    ListEvents,
}

/// A part of a transaction.
#[derive(Clone, Debug)]
pub enum Item {
    Call(Call),
    /// Calls after a savepoint, which is then released or rolled back.
    Attempt {
        calls: Vec<Call>,
        keep: bool,
    },
}

/// The end of a transaction; a single statement without a transaction block has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Automatic,
    Commit,
    Rollback,
}

/// A transaction of one session.
#[derive(Clone, Debug)]
pub struct Transaction {
    pub items: Vec<Item>,
    pub end: End,
}

/// A step of a sequence.
#[derive(Clone, Debug)]
pub enum Step {
    /// Transactions of as many sessions, all at once.
    Together(Vec<Transaction>),
    /// The same, but the first has carried out its calls before the others begin, and ends when each of them has
    /// ended or waits.
    Behind(Vec<Transaction>),
    /// Deletes all events.
    Purge,
    /// Makes the holds of these users expire, by moving their time.
    Lapse(Vec<User>),
    /// Sets the window by hand, as time does.
    Window { starts: Bound, ends: Bound },
}

impl Bound {
    /// The literal for `starts_at`.
    pub fn starts_at(self) -> &'static str {
        match self {
            Self::None => "-infinity",
            Self::Past => "2001-01-01 00:00:00+00",
            Self::Future => "2100-01-01 00:00:00+00",
        }
    }

    /// The literal for `ends_at`.
    pub fn ends_at(self) -> &'static str {
        match self {
            Self::None => "infinity",
            Self::Past => "2002-01-01 00:00:00+00",
            Self::Future => "2200-01-01 00:00:00+00",
        }
    }
}

impl Operation {
    pub fn label(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Reserve => "reserve",
            Self::Confirm => "confirm",
            Self::Cancel => "cancel",
            Self::Release => "release",
        }
    }
}

pub fn user_id(user: User) -> String {
    format!("u{user}")
}

pub fn request_key(key: Option<Key>) -> Option<String> {
    key.map(|key| format!("k{key}"))
}

/// Columns of the functions that return the coupon.
const STOCK: &str =
    "name, amount, remaining_amount, held_amount, starts_at, ends_at, paused, state";

/// A moment as an integer, in microseconds.
fn micros(column: &str) -> String {
    format!("(extract(epoch from {column}) * 1000000)::bigint")
}

fn quoted(text: Option<String>) -> String {
    text.map_or_else(|| "null".to_owned(), |text| format!("'{text}'"))
}

fn array(elements: impl Iterator<Item = String>, kind: &str) -> String {
    let elements: Vec<String> = elements.collect();
    format!("array[{}]::{kind}[]", elements.join(", "))
}

fn users<'a>(users: impl Iterator<Item = &'a User>) -> String {
    array(users.map(|user| format!("'{}'", user_id(*user))), "text")
}

fn moment(bound: Option<&'static str>) -> String {
    quoted(bound.map(str::to_owned))
}

impl Element {
    fn sql(&self, coupon: &str) -> String {
        let user = user_id(self.user);
        match (self.operation, self.key) {
            (Operation::Claim, None) => format!("select honcho_claim('{user}', '{coupon}')"),
            (Operation::Claim, key) => format!(
                "select honcho_claim('{user}', '{coupon}', {})",
                quoted(request_key(key))
            ),
            (Operation::Reserve, key) => format!(
                "select outcome, {} from honcho_reserve('{user}', '{coupon}', '{} hours', {})",
                micros("expires_at"),
                self.hours,
                quoted(request_key(key))
            ),
            (operation, _) => {
                format!("select honcho_{}('{user}', '{coupon}')", operation.label())
            }
        }
    }
}

impl Call {
    /// The statement that makes the call.
    pub fn sql(&self, coupon: &str) -> String {
        match self {
            Self::One(element) => element.sql(coupon),
            Self::ClaimOrRaise(user) => {
                format!(
                    "select honcho_claim_or_raise('{}', '{coupon}')",
                    user_id(*user)
                )
            }
            Self::ClaimBatch(batch) => format!(
                "select outcome from honcho_claim_batch('{coupon}', {}) order by ordinal",
                users(batch.iter())
            ),
            Self::KeyedBatch(batch) => format!(
                "select outcome from honcho_claim_batch('{coupon}', {}, {}) order by ordinal",
                users(batch.iter().map(|(user, _)| user)),
                array(
                    batch.iter().map(|(_, key)| quoted(request_key(*key))),
                    "text"
                ),
            ),
            Self::Apply(elements) => {
                let labels = elements.iter();
                let labels = labels.map(|element| format!("'{}'", element.operation.label()));
                let ttls = elements.iter().map(|element| match element.operation {
                    Operation::Reserve => format!("'{} hours'", element.hours),
                    _ => "null".to_owned(),
                });
                let keys = elements.iter();
                let keys = keys.map(|element| quoted(request_key(element.key)));
                format!(
                    "select outcome, {}, replayed from honcho_apply('{coupon}', {}, {}, {}, {}) order by ordinal",
                    micros("expires_at"),
                    array(labels, "text"),
                    users(elements.iter().map(|element| &element.user)),
                    array(ttls, "interval"),
                    array(keys, "text"),
                )
            }
            Self::Create {
                amount,
                starts,
                ends,
            } => {
                let bound = |bound: Bound, at| (bound != Bound::None).then_some(at);
                format!(
                    "select honcho_create_coupon('{coupon}', {amount}, {}, {})",
                    moment(bound(*starts, starts.starts_at())),
                    moment(bound(*ends, ends.ends_at())),
                )
            }
            Self::Update {
                amount,
                starts,
                ends,
                paused,
            } => format!(
                "select outcome, {STOCK} from honcho_update_coupon('{coupon}', {}, {}, {}, {})",
                amount.map_or_else(|| "null".to_owned(), |amount| amount.to_string()),
                moment(starts.map(Bound::starts_at)),
                moment(ends.map(Bound::ends_at)),
                paused.map_or("null", |paused| if paused { "true" } else { "false" }),
            ),
            Self::Restock(delta) => {
                format!("select outcome, {STOCK} from honcho_restock('{coupon}', {delta})")
            }
            Self::Delete { with_claims } => {
                format!("select honcho_delete_coupon('{coupon}', {with_claims})")
            }
            Self::Expire(max) => format!("select honcho_expire({max})"),
            Self::GetStock => format!(
                "select {STOCK}, {}, last_claim_id > 0 from honcho_get_stock('{coupon}')",
                micros("next_expiry")
            ),
            Self::GetCoupon => format!(
                "select name, amount, remaining_amount, starts_at, ends_at, paused
                   from honcho_get_coupon('{coupon}')"
            ),
            Self::GetHold(user) => format!(
                "select user_id, {} from honcho_get_hold('{}', '{coupon}')",
                micros("expires_at"),
                user_id(*user)
            ),
            Self::ListHolds { after, max } => format!(
                "select user_id, {} from honcho_list_holds('{coupon}', '{}', {max})",
                micros("expires_at"),
                after.map(user_id).unwrap_or_default()
            ),
            Self::GetClaim(user) => format!(
                "select user_id from honcho_get_claim('{}', '{coupon}')",
                user_id(*user)
            ),
            Self::ListClaims => format!("select user_id from honcho_list_claims('{coupon}')"),
            Self::ListUserClaims(user) => format!(
                "select coupon_name from honcho_list_user_claims('{}')",
                user_id(*user)
            ),
            Self::ListEvents => {
                format!("select kind from honcho_list_events(0, 1000, '{coupon}')")
            }
        }
    }

    /// The operations of a call for several users, or for one; each is answered by a row.
    pub fn elements(&self) -> Option<Vec<Element>> {
        let claim = |user, key| Element {
            operation: Operation::Claim,
            user,
            key,
            hours: 0,
        };
        match self {
            Self::One(element) => Some(vec![element.clone()]),
            Self::ClaimBatch(users) => Some(users.iter().map(|user| claim(*user, None)).collect()),
            Self::KeyedBatch(batch) => {
                Some(batch.iter().map(|(user, key)| claim(*user, *key)).collect())
            }
            Self::Apply(elements) => Some(elements.clone()),
            _ => None,
        }
    }
}

fn user() -> impl Strategy<Value = User> {
    0..USERS
}

fn key() -> impl Strategy<Value = Option<Key>> {
    option::of(0..KEYS)
}

fn bound() -> impl Strategy<Value = Bound> {
    prop_oneof![
        4 => Just(Bound::None),
        1 => Just(Bound::Past),
        1 => Just(Bound::Future),
    ]
}

/// A window that has not ended before it starts.
fn window() -> impl Strategy<Value = (Bound, Bound)> {
    (bound(), bound()).prop_map(|(starts, ends)| match (starts, ends) {
        (Bound::Future, Bound::Past) => (Bound::Future, Bound::None),
        window => window,
    })
}

fn element() -> impl Strategy<Value = Element> {
    let operation = prop_oneof![
        4 => Just(Operation::Claim),
        4 => Just(Operation::Reserve),
        3 => Just(Operation::Confirm),
        2 => Just(Operation::Cancel),
        3 => Just(Operation::Release),
    ];
    (operation, user(), key(), 1_i64..=24).prop_map(|(operation, user, key, hours)| Element {
        operation,
        user,
        // The others take none.
        key: key.filter(|_| matches!(operation, Operation::Claim | Operation::Reserve)),
        hours,
    })
}

fn read() -> impl Strategy<Value = Call> {
    prop_oneof![
        2 => Just(Call::GetStock),
        1 => Just(Call::GetCoupon),
        1 => user().prop_map(Call::GetHold),
        1 => (option::of(user()), 1..4).prop_map(|(after, max)| Call::ListHolds { after, max }),
        1 => user().prop_map(Call::GetClaim),
        1 => Just(Call::ListClaims),
        1 => user().prop_map(Call::ListUserClaims),
        1 => Just(Call::ListEvents),
    ]
}

fn update() -> impl Strategy<Value = Call> {
    let window = prop_oneof![
        4 => Just((None, None)),
        1 => window().prop_map(|(starts, ends)| (Some(starts), Some(ends))),
        1 => bound().prop_map(|starts| (Some(starts), None)),
        1 => bound().prop_map(|ends| (None, Some(ends))),
    ];
    let paused = prop_oneof![
        4 => Just(None),
        2 => Just(Some(false)),
        1 => Just(Some(true)),
    ];
    (option::of(0..6), window, paused).prop_map(|(amount, (starts, ends), paused)| Call::Update {
        amount,
        starts,
        ends,
        paused,
    })
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        22 => element().prop_map(Call::One),
        2 => user().prop_map(Call::ClaimOrRaise),
        2 => vec(user(), 0..6).prop_map(Call::ClaimBatch),
        2 => vec((user(), key()), 0..6).prop_map(Call::KeyedBatch),
        4 => vec(element(), 0..6).prop_map(Call::Apply),
        2 => (1..4, window()).prop_map(|(amount, (starts, ends))| Call::Create {
            amount,
            starts,
            ends
        }),
        3 => update(),
        3 => (-3..4).prop_map(Call::Restock),
        1 => prop::bool::weighted(0.3).prop_map(|with_claims| Call::Delete { with_claims }),
        2 => prop_oneof![1..3, Just(1000)].prop_map(Call::Expire),
        8 => read(),
    ]
}

fn single() -> impl Strategy<Value = Transaction> {
    call().prop_map(|call| Transaction {
        items: vec![Item::Call(call)],
        end: End::Automatic,
    })
}

fn block() -> impl Strategy<Value = Transaction> {
    let item = prop_oneof![
        4 => call().prop_map(Item::Call),
        1 => (vec(call(), 1..3), any::<bool>())
            .prop_map(|(calls, keep)| Item::Attempt { calls, keep }),
    ];
    let end = prop_oneof![
        2 => Just(End::Commit),
        1 => Just(End::Rollback),
    ];
    (vec(item, 1..4), end).prop_map(|(items, end)| Transaction { items, end })
}

/// A step of any kind.
pub fn step() -> impl Strategy<Value = Step> {
    let others = || prop_oneof![4 => single(), 1 => block()];
    prop_oneof![
        12 => single().prop_map(|transaction| Step::Together(vec![transaction])),
        2 => block().prop_map(|transaction| Step::Together(vec![transaction])),
        3 => vec(others(), 2..4).prop_map(Step::Together),
        4 => (block(), vec(others(), 1..3)).prop_map(|(first, mut others)| {
            others.insert(0, first);
            Step::Behind(others)
        }),
        3 => vec(user(), 1..4).prop_map(Step::Lapse),
        1 => window().prop_map(|(starts, ends)| Step::Window { starts, ends }),
        1 => Just(Step::Purge),
    ]
}
