//! The tables, as the operations read and write them.
//!
//! They go through [`crate::pg`], not through SQL: see there for the reason. Each table has a file with its
//! columns, by the attribute numbers of sql/tables.sql, its row, its search and its writer.

pub mod claims;
pub mod coupons;
pub mod events;
pub mod holds;

use std::cell::OnceCell;
use std::collections::HashMap;

use crate::claiming::store::claims::{Claim, ClaimSearch, ClaimWriter, Claims};
use crate::claiming::store::coupons::{Coupon, CouponSearch, CouponWriter, Coupons};
use crate::claiming::store::holds::{Held, Hold, HoldSearch, HoldWriter, Holds};
use crate::pg::btree::Gap;
use crate::pg::column::Text;
use crate::pg::errors;
use crate::pg::relation::Version;
use crate::pg::schema::Schema;
use crate::pg::session::{self, Snapshot};

/// The tables, open.
pub struct Tables {
    /// The coupons and their stock.
    pub coupons: Coupons,
    /// The claims.
    pub claims: Claims,
    /// The schema that they are in.
    pub schema: Schema,
    /// The holds, opened when they are needed first: a coupon without holds does not pay for them.
    holds: OnceCell<Holds>,
}

impl Tables {
    /// Opens the tables of `schema` for reading; holds the locks of a `select`.
    pub fn open(schema: Schema) -> Tables {
        Tables {
            coupons: Coupons::open(schema),
            claims: Claims::open(schema),
            schema,
            holds: OnceCell::new(),
        }
    }

    fn holds(&self) -> Option<&Holds> {
        let open = || Holds::open(self.schema);
        self.coupons
            .have_holds()
            .then(|| self.holds.get_or_init(open))
    }
}

/// The tables' rows under one snapshot: under read committed the newest when the view was made or
/// renewed, under the stricter levels the transaction's own.
pub struct View<'t> {
    tables: &'t Tables,
    coupons: CouponSearch<'t>,
    claims: ClaimSearch<'t>,
    holds: Option<HoldSearch<'t>>,
    // Last, for fields are dropped in order: the scans end before their snapshot goes.
    snapshot: Option<Snapshot>,
}

impl<'t> View<'t> {
    /// Takes a snapshot.
    pub fn new(tables: &'t Tables) -> View<'t> {
        View::under(tables, Snapshot::push())
    }

    /// Reads what the calling statement reads.
    pub fn of_statement(tables: &'t Tables) -> View<'t> {
        View::under(tables, Snapshot::push_active())
    }

    /// Reads what a query in a function of the calling statement would read: what the statement reads, and in a
    /// transaction that has written also what is there by now.
    pub fn of_query(tables: &'t Tables) -> View<'t> {
        if session::may_have_written() {
            session::next_command();
            View::new(tables)
        } else {
            View::of_statement(tables)
        }
    }

    fn under(tables: &'t Tables, snapshot: Snapshot) -> View<'t> {
        View {
            tables,
            coupons: tables.coupons.search(),
            claims: tables.claims.search(),
            holds: None,
            snapshot: Some(snapshot),
        }
    }

    /// Holds neither snapshot nor pages until it is renewed.
    pub fn release(&mut self) {
        self.coupons.release();
        self.claims.release();
        if let Some(holds) = &mut self.holds {
            holds.release();
        }
        self.snapshot = None;
    }

    /// Takes a new snapshot after `release`.
    pub fn renew(&mut self) {
        self.snapshot = Some(Snapshot::push());
        self.coupons.renew();
        self.claims.renew();
        if let Some(holds) = &mut self.holds {
            holds.renew();
        }
    }

    /// The coupon called `name`.
    pub fn coupon(&mut self, name: Text) -> Option<Coupon> {
        self.coupons.find(name)
    }

    /// Finds `coupon` again, without a search. Returns false if it has changed. If it has not, no claim or hold on it has.
    pub fn find_unchanged(&mut self, coupon: &Coupon) -> bool {
        self.coupons.find_unchanged(coupon)
    }

    /// Locks the coupon last found, called `name`: see [`CouponSearch::lock`].
    pub fn lock_coupon(&mut self, name: Text) -> Option<Coupon> {
        self.coupons.lock(name)
    }

    /// The claim of `user_id` on `coupon_name`.
    pub fn claim(&mut self, user_id: Text, coupon_name: Text) -> Option<Claim<'_>> {
        self.claims.find(user_id, coupon_name)
    }

    /// Where the claim that was last not found would be in its index.
    pub fn claim_gap(&self) -> Option<Gap> {
        self.claims.gap()
    }

    /// The hold of `user_id` on `coupon_name`.
    pub fn hold(&mut self, user_id: Text, coupon_name: Text) -> Option<Hold<'_>> {
        self.holds()?.find(user_id, coupon_name)
    }

    /// The hold of `user_id` on `coupon_name`, if there is likely none.
    pub fn rare_hold(&mut self, user_id: Text, coupon_name: Text) -> Option<Hold<'_>> {
        self.holds()?.find_rare(user_id, coupon_name)
    }

    /// The hold of `user_id` on `coupon_name`, which was this `version` when it was found before.
    pub fn hold_again(
        &mut self,
        version: Version,
        user_id: Text,
        coupon_name: Text,
    ) -> Option<Hold<'_>> {
        self.holds()?.find_again(version, user_id, coupon_name)
    }

    /// All `held` holds on `coupon_name` by their users: see [`Holds::all`].
    pub fn all_holds(
        &self,
        coupon_name: Text,
        held: usize,
        most: usize,
    ) -> Option<HashMap<String, Held>> {
        self.tables.holds()?.all(coupon_name, held, most)
    }

    /// The hold on `coupon_name` that expires first of those that expire at `moment` or later.
    pub fn first_hold_from(&mut self, coupon_name: Text, moment: i64) -> Option<Hold<'_>> {
        self.holds()?.first_from(coupon_name, moment)
    }

    /// The hold on `coupon_name` that expires last.
    pub fn last_hold(&mut self, coupon_name: Text) -> Option<Hold<'_>> {
        self.holds()?.last(coupon_name)
    }

    /// The hold that expires next after the one last found by `first_hold_from` or this.
    pub fn next_hold(&mut self) -> Option<Hold<'_>> {
        self.holds()?.next()
    }

    fn holds(&mut self) -> Option<&mut HoldSearch<'t>> {
        if self.holds.is_none() {
            self.holds = self.tables.holds().map(Holds::search);
        }
        self.holds.as_mut()
    }
}

/// The rows that the coupon called `name` has, or any coupon if there is no name; claims before holds. At every
/// isolation level it sees all that is committed and all that this transaction has written.
pub fn given(schema: Schema, name: Option<&str>) -> Row {
    session::next_command();
    let tables = Tables::open(schema);
    let _snapshot = Snapshot::push_latest();
    let name = name.map(Text::new);
    if let Some(version) = tables.claims.any(name) {
        Row::Claim(version)
    } else if let Some(version) = tables.holds().and_then(|holds| holds.any(name)) {
        Row::Hold(version)
    } else {
        Row::None(None)
    }
}

/// The state of a user on a coupon, to be written.
pub struct Written {
    /// The user.
    pub user_id: Text,
    /// Row of the user in the tables.
    pub before: Row,
    /// Row that is to be there.
    pub after: New,
}

/// The row that the tables have for a user of a coupon.
#[derive(Clone, Copy)]
pub enum Row {
    /// None. Where the index of the claims has none, if it was looked for.
    None(Option<Gap>),
    /// A claim.
    Claim(Version),
    /// A hold.
    Hold(Version),
}

/// A row that the tables are to have for a user of a coupon.
pub enum New {
    /// None.
    None,
    /// A claim with this key of its request.
    Claim(Option<Text>),
    /// A hold that expires at this moment, with this key of its request.
    Hold(i64, Option<Text>),
}

/// The kind of write that a table is prepared for, before the wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Rows are deleted, for which no index is opened.
    Delete,
    /// Rows are inserted.
    Insert,
}

/// The tables, open for writing: made before the wait in the queue, so that other waiters do not wait for
/// that too.
pub struct Ledger<'t> {
    tables: &'t Tables,
    coupons: CouponWriter<'t>,
    claims: Option<ClaimWriter<'t>>,
    holds: Option<HoldWriter<'t>>,
}

impl<'t> Ledger<'t> {
    /// Locks the coupons as an `update` does, and the others as an `insert` or a `delete` does, if they are needed for
    /// certain.
    pub fn open(tables: &'t Tables, claims: Option<Need>, holds: Option<Need>) -> Ledger<'t> {
        let mut ledger = Ledger {
            coupons: tables.coupons.write(),
            claims: None,
            holds: None,
            tables,
        };
        if let Some(need) = claims {
            let writer = ledger.open_claims();
            if need == Need::Insert {
                writer.prepare_inserts();
            }
        }
        if let Some(need) = holds {
            let writer = ledger.open_holds();
            if need == Need::Insert {
                writer.prepare_inserts();
            }
        }
        ledger
    }

    fn open_claims(&mut self) -> &mut ClaimWriter<'t> {
        let tables = self.tables;
        self.claims.get_or_insert_with(|| tables.claims.write())
    }

    /// The schema of the tables.
    pub fn schema(&self) -> Schema {
        self.tables.schema
    }

    fn open_holds(&mut self) -> &mut HoldWriter<'t> {
        let tables = self.tables;
        self.holds.get_or_insert_with(|| {
            let Some(holds) = tables.holds() else {
                errors::refuse_missing("holds");
            };
            holds.write()
        })
    }

    /// Changes the coupon that `view` last locked from `old` to `new`, and the rows of `users` on it, at the
    /// moment `now`. Later commands of the transaction see all of it.
    ///
    /// # Errors
    /// `23505`, `23514` if a unique key or a check is violated, and `40001` if a row is gone, which only a write
    /// that bypassed the queue can cause; any error of a trigger; `09000` if a trigger has changed the written rows so that they are
    /// not those that the stock says there are.
    pub fn write(
        &mut self,
        view: &mut View<'_>,
        coupon_name: Text,
        (old, new): (&Coupon, &Coupon),
        users: &[Written],
        now: i64,
    ) {
        self.open_for(users);
        let has_user_triggers = self.has_user_triggers();
        let command = session::command();
        self.coupons
            .change(&view.coupons, old, new, has_user_triggers);
        self.write_users(view, coupon_name, users, now);
        let is_certain = session::command() == command && self.is_as_given(users);
        session::next_command();
        if has_user_triggers && !is_certain {
            self.require_written(coupon_name, users);
        }
    }

    /// Does the same if no other session has locked or changed the row of the coupon that `view` last found, and there
    /// are no triggers of users: the update of the row is its lock, too. Otherwise it writes nothing and returns false.
    ///
    /// # Errors
    /// As for `write`.
    pub fn write_unlocked(
        &mut self,
        view: &mut View<'_>,
        coupon_name: Text,
        (old, new): (&Coupon, &Coupon),
        users: &[Written],
        now: i64,
    ) -> bool {
        self.open_for(users);
        if self.has_user_triggers() || !self.coupons.change_unlocked(&view.coupons, old, new) {
            return false;
        }
        self.write_users(view, coupon_name, users, now);
        session::next_command();
        true
    }

    /// Opens the tables that have the rows of `users`.
    fn open_for(&mut self, users: &[Written]) {
        for user in users {
            if matches!(user.before, Row::Claim(_)) || matches!(user.after, New::Claim(_)) {
                self.open_claims();
            }
            if matches!(user.before, Row::Hold(_)) || matches!(user.after, New::Hold(..)) {
                self.open_holds();
            }
        }
    }

    fn has_user_triggers(&self) -> bool {
        let claims_have = self.claims.as_ref().is_some_and(|it| it.has_user_triggers);
        let holds_have = self.holds.as_ref().is_some_and(|it| it.has_user_triggers);
        self.coupons.has_user_triggers || claims_have || holds_have
    }

    /// Returns true if triggers have left the written rows as they were given, unless one of them has written something
    /// else. All of these are claims of users who had nothing.
    fn is_as_given(&self, users: &[Written]) -> bool {
        let is_new = |it: &Written| matches!((it.before, &it.after), (Row::None(_), New::Claim(_)));
        !self.coupons.has_user_triggers
            && users.iter().all(is_new)
            && self.claims.as_ref().is_some_and(ClaimWriter::are_as_given)
    }

    /// Changes the rows of `users`.
    fn write_users(&mut self, view: &mut View<'_>, coupon_name: Text, users: &[Written], now: i64) {
        for user in users {
            match user.before {
                Row::None(_) => {}
                Row::Claim(version) => {
                    let claims = &mut view.claims;
                    if !claims.find_again(version, user.user_id, coupon_name)
                        || !claims.lock(user.user_id)
                    {
                        errors::refuse_concurrent_delete("claim");
                    }
                    if let Some(writer) = &mut self.claims {
                        writer.delete(&view.claims);
                    }
                }
                Row::Hold(version) => {
                    let (Some(writer), Some(search)) = (&mut self.holds, view.holds()) else {
                        continue;
                    };
                    let found = search.find_again(version, user.user_id, coupon_name);
                    if found.is_none() {
                        errors::refuse_concurrent_delete("hold");
                    }
                    writer.delete(search);
                }
            }
        }
        let claims = users.iter().filter_map(|user| match user.after {
            New::Claim(request_key) => {
                let gap = match user.before {
                    Row::None(gap) => gap,
                    _ => None,
                };
                Some((user.user_id, request_key, gap))
            }
            _ => None,
        });
        if let Some(writer) = &mut self.claims {
            writer.insert(coupon_name, now, claims);
        }
        if let Some(writer) = &mut self.holds {
            for user in users {
                if let New::Hold(expires_at, request_key) = user.after {
                    writer.insert(coupon_name, user.user_id, now, expires_at, request_key);
                }
            }
        }
    }

    /// Fails unless the coupon and the rows of `users` are there as they were written.
    ///
    /// # Errors
    /// `09000`.
    fn require_written(&self, coupon_name: Text, users: &[Written]) {
        let mut view = View::new(self.tables);
        if view.coupon(coupon_name).is_none() {
            errors::refuse_triggers_change("a trigger removed or renamed the coupon of the claim");
        }
        for user in users {
            let claim = view.claim(user.user_id, coupon_name).is_some();
            let hold = view
                .hold(user.user_id, coupon_name)
                .map(|hold| hold.expires_at());
            match user.after {
                New::Claim(_) if !claim => errors::refuse_triggers_change(
                    "a trigger removed the claim or changed its user or coupon",
                ),
                New::Hold(expires_at, _) if hold != Some(expires_at) => {
                    errors::refuse_triggers_change(
                        "a trigger removed the hold or changed its user, coupon or expiry",
                    );
                }
                New::None | New::Hold(..) if claim => {
                    errors::refuse_triggers_change("a trigger kept the claim from being deleted");
                }
                New::None | New::Claim(_) if hold.is_some() => {
                    errors::refuse_triggers_change("a trigger kept the hold from being deleted");
                }
                _ => {}
            }
        }
    }
}
