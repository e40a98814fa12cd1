//! The two tables, as claims read and write them.
//!
//! They go through [`crate::pg`], not through SQL: see there for the reason. Each table has a file with its
//! columns, by the attribute numbers of sql/tables.sql, its row, its search and its writer.

pub mod claims;
pub mod coupons;

use crate::claiming::store::claims::{Claim, ClaimSearch, ClaimWriter, Claims};
use crate::claiming::store::coupons::{Coupon, CouponSearch, CouponWriter, Coupons};
use crate::pg::column::Text;
use crate::pg::errors;
use crate::pg::schema::Schema;
use crate::pg::session::{self, Snapshot};

/// Both tables, open.
pub struct Tables {
    /// The coupons and their stock.
    pub coupons: Coupons,
    /// The claims.
    pub claims: Claims,
}

impl Tables {
    /// Opens the tables of `schema` for reading; holds the locks of a `select`.
    pub fn open(schema: Schema) -> Tables {
        Tables {
            coupons: Coupons::open(schema),
            claims: Claims::open(schema),
        }
    }
}

/// The tables' rows under one snapshot: under read committed the newest when the view was made or
/// renewed, under the stricter levels the transaction's own.
pub struct View<'t> {
    coupons: CouponSearch<'t>,
    claims: ClaimSearch<'t>,
    // Last, for fields are dropped in order: the scans end before their snapshot goes.
    snapshot: Option<Snapshot>,
}

impl<'t> View<'t> {
    /// Takes a snapshot.
    pub fn new(tables: &'t Tables) -> View<'t> {
        let snapshot = Some(Snapshot::push());
        View {
            coupons: tables.coupons.search(),
            claims: tables.claims.search(),
            snapshot,
        }
    }

    /// Holds neither snapshot nor pages until it is renewed.
    pub fn release(&mut self) {
        self.coupons.release();
        self.claims.release();
        self.snapshot = None;
    }

    /// Takes a new snapshot after `release`.
    pub fn renew(&mut self) {
        self.snapshot = Some(Snapshot::push());
        self.coupons.renew();
        self.claims.renew();
    }

    /// The coupon called `name`.
    pub fn coupon(&mut self, name: Text) -> Option<Coupon> {
        self.coupons.find(name)
    }

    /// Locks the coupon last found, called `name`: see [`CouponSearch::lock`].
    pub fn lock_coupon(&mut self, name: Text) -> Option<Coupon> {
        self.coupons.lock(name)
    }

    /// The claim of `user_id` on `coupon_name`.
    pub fn claim(&mut self, user_id: Text, coupon_name: Text) -> Option<Claim<'_>> {
        self.claims.find(user_id, coupon_name)
    }
}

/// Returns true if there is a claim on the coupon called `name`, or any claim if there is no name. At every
/// isolation level it sees all that is committed and all that this transaction has written.
pub fn is_claimed(schema: Schema, name: Option<&str>) -> bool {
    session::next_command();
    let tables = Tables::open(schema);
    let _snapshot = Snapshot::push_latest();
    tables.claims.exist(name.map(Text::new))
}

/// Both tables, open for writing: made before the wait in the queue, so that other waiters do not wait for
/// that too.
pub struct Ledger<'t> {
    tables: &'t Tables,
    coupons: CouponWriter<'t>,
    claims: ClaimWriter<'t>,
}

impl<'t> Ledger<'t> {
    /// Locks both tables as an `insert` or `update` does.
    pub fn open(tables: &'t Tables) -> Ledger<'t> {
        Ledger {
            coupons: tables.coupons.write(),
            claims: tables.claims.write(),
            tables,
        }
    }

    /// Writes the claims of `user_ids` on `coupon`, which `view` last locked, and takes them off its
    /// stock, which must suffice. Later commands of the transaction see both.
    ///
    /// # Errors
    /// `23505`, `23514` if a unique key or a check is violated, which only a write that bypassed the queue
    /// can cause; any error of a trigger; `09000` if a trigger has changed the written rows so that they are
    /// no claim.
    pub fn write(
        &mut self,
        view: &View<'_>,
        coupon: &Coupon,
        coupon_name: Text,
        user_ids: &[Text],
    ) {
        let has_user_triggers = self.coupons.has_user_triggers || self.claims.has_user_triggers;
        let count = user_ids.len() as i32;
        self.coupons
            .take(&view.coupons, coupon, count, has_user_triggers);
        self.claims.insert(coupon_name, user_ids);
        session::next_command();
        if has_user_triggers {
            self.require_written(coupon_name, user_ids);
        }
    }

    /// Fails unless the coupon and the claims are there.
    ///
    /// # Errors
    /// `09000`.
    fn require_written(&self, coupon_name: Text, user_ids: &[Text]) {
        let mut view = View::new(self.tables);
        if view.coupon(coupon_name).is_none() {
            errors::refuse_triggers_change("a trigger removed or renamed the coupon of the claim");
        }
        for &user_id in user_ids {
            if view.claim(user_id, coupon_name).is_none() {
                errors::refuse_triggers_change(
                    "a trigger removed the claim or changed its user or coupon",
                );
            }
        }
    }
}
