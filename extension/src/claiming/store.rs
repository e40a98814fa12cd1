//! The tables `coupons` and `claims` as the claim reads and writes them.
//!
//! The claim goes through [`crate::pg`] rather than through SQL: see there for why. Columns are
//! found by the attribute numbers of sql/tables.sql.

use std::ffi::CStr;
use std::num::NonZeroUsize;

use pgrx::AllocatedByPostgres;
use pgrx::datum::TryFromDatumError;
use pgrx::heap_tuple::PgHeapTuple;
use pgrx::pg_sys::{self, Datum};

use crate::claiming::outcome::Outcome;
use crate::pg::column::Text;
use crate::pg::errors;
use crate::pg::lookup::Lookup;
use crate::pg::relation::{Relation, Row};
use crate::pg::schema::Schema;
use crate::pg::session::{self, Snapshot};
use crate::pg::writer::Writer;

const ID: usize = 1;
const NAME: usize = 2;
const AMOUNT: usize = 3;
const REMAINING_AMOUNT: usize = 4;
const STARTS_AT: usize = 6;
const ENDS_AT: usize = 7;
const PAUSED: usize = 8;

const CLAIM_ID: usize = 1;
const CLAIM_USER_ID: usize = 2;
const CLAIM_COUPON_NAME: usize = 3;
const CLAIM_CLAIMED_AT: usize = 4;

/// A coupon's row, as a [`View`] shows it.
pub struct Coupon {
    /// Its identity.
    pub id: i64,
    /// How many were issued.
    pub amount: i32,
    /// How many are left to claim.
    pub remaining: i32,
    /// The transaction that wrote this version.
    pub written_by: pg_sys::TransactionId,
    starts_at: Option<i64>,
    ends_at: Option<i64>,
    paused: bool,
}

impl Coupon {
    fn read(row: Row<'_>) -> Coupon {
        Coupon {
            id: row.get(ID).map_or(0, |id| id.value() as i64),
            amount: row.get(AMOUNT).map_or(0, |amount| amount.value() as i32),
            remaining: row
                .get(REMAINING_AMOUNT)
                .map_or(0, |remaining| remaining.value() as i32),
            written_by: row.written_by(),
            starts_at: row.get(STARTS_AT).map(|starts_at| starts_at.value() as i64),
            ends_at: row.get(ENDS_AT).map(|ends_at| ends_at.value() as i64),
            paused: row.get(PAUSED).is_some_and(|paused| paused.value() != 0),
        }
    }

    /// How many are given.
    fn given(&self) -> i32 {
        self.amount.wrapping_sub(self.remaining)
    }

    /// Why a user who holds none is refused now, if so.
    pub fn refusal(&self) -> Option<Outcome> {
        if self.starts_at.is_some() || self.ends_at.is_some() {
            let now = session::now();
            if self.starts_at.is_some_and(|starts_at| now < starts_at) {
                return Some(Outcome::NotStarted);
            }
            if self.ends_at.is_some_and(|ends_at| now >= ends_at) {
                return Some(Outcome::Ended);
            }
        }
        if self.paused {
            return Some(Outcome::Paused);
        }
        (self.remaining == 0).then_some(Outcome::SoldOut)
    }
}

/// Both tables, open.
pub struct Tables {
    schema: Schema,
    coupons: Relation,
    claims: Relation,
    coupons_by_name: Relation,
    claims_by_user: Relation,
}

impl Tables {
    /// Opens the tables of `schema` for reading; holds the locks of a `select`.
    pub fn open(schema: Schema) -> Tables {
        let coupons = Relation::table(schema.relation(c"coupons"));
        let claims = Relation::table(schema.relation(c"claims"));
        let coupons_by_name = schema.index(coupons.oid(), &[c"coupons_name_key"]);
        // The second name is that of 0.1.0.
        let claims_keys = [
            c"claims_coupon_name_user_id_key",
            c"claims_user_id_coupon_name_key",
        ];
        let claims_by_user = schema.index(claims.oid(), &claims_keys);
        Tables {
            schema,
            coupons,
            claims,
            coupons_by_name: Relation::index(coupons_by_name),
            claims_by_user: Relation::index(claims_by_user),
        }
    }

    /// The name of the key that lets a user claim a coupon once.
    pub fn claims_key(&self) -> &CStr {
        self.claims_by_user.name()
    }

    /// The OID of the coupons table.
    pub fn coupons_oid(&self) -> pg_sys::Oid {
        self.coupons.oid()
    }

    /// The OID of the claims table.
    pub fn claims_oid(&self) -> pg_sys::Oid {
        self.claims.oid()
    }
}

/// What the tables hold for one snapshot: under read committed the newest when the view was made or
/// renewed, under the stricter levels the transaction's own.
pub struct View<'t> {
    coupons: Lookup<'t>,
    claims: Lookup<'t>,
    // Last, for fields are dropped in order: the scans end before their snapshot goes.
    snapshot: Option<Snapshot>,
}

impl<'t> View<'t> {
    /// Takes a snapshot.
    pub fn new(tables: &'t Tables) -> View<'t> {
        let snapshot = Some(Snapshot::push());
        View {
            coupons: Lookup::new(&tables.coupons, &tables.coupons_by_name),
            claims: Lookup::new(&tables.claims, &tables.claims_by_user),
            snapshot,
        }
    }

    /// Holds on to nothing, neither snapshot nor pages, until it is renewed.
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
        self.coupons.find(&[(NAME, name)]).map(Coupon::read)
    }

    /// The transaction that wrote the claim of `user_id` on `coupon_name`, if there is one.
    pub fn claim_written_by(
        &mut self,
        user_id: Text,
        coupon_name: Text,
    ) -> Option<pg_sys::TransactionId> {
        self.claim(user_id, coupon_name)
            .map(|claim| claim.written_by())
    }

    /// The id of the claim of `user_id` on `coupon_name`, if there is one.
    pub fn claim_id(&mut self, user_id: Text, coupon_name: Text) -> Option<i64> {
        let claim = self.claim(user_id, coupon_name)?;
        claim.get(CLAIM_ID).map(|id| id.value() as i64)
    }

    fn claim(&mut self, user_id: Text, coupon_name: Text) -> Option<Row<'_>> {
        self.claims
            .find(&[(CLAIM_COUPON_NAME, coupon_name), (CLAIM_USER_ID, user_id)])
    }

    /// Locks the row of the coupon last found, called `name`, as an `update` of its stock does, and
    /// reads it again; none if it was deleted or renamed meanwhile. Only someone who bypasses the queue can make this wait.
    ///
    /// # Errors
    /// `40001` under repeatable read and serializable when the row changed after the snapshot.
    pub fn lock_coupon(&mut self, name: Text) -> Option<Coupon> {
        self.coupons.lock(NAME, name).map(Coupon::read)
    }
}

/// The name of the coupon in `row`, as a trigger gets it; none if the row is none of `coupons`.
pub fn coupon_name(
    row: &PgHeapTuple<'_, AllocatedByPostgres>,
) -> Result<Option<String>, TryFromDatumError> {
    NonZeroUsize::new(NAME).map_or(Ok(None), |attribute| row.get_by_index(attribute))
}

/// Returns true if there is a claim on the coupon called `name`, or on any coupon if there is no name.
/// It sees all that is committed and all that this transaction has written, at every isolation level.
pub fn is_claimed(schema: Schema, name: Option<&str>) -> bool {
    session::next_command();
    let tables = Tables::open(schema);
    let _snapshot = Snapshot::push_latest();
    let name = name.map(Text::new);
    let mut claims = Lookup::by_first(
        usize::from(name.is_some()),
        &tables.claims,
        &tables.claims_by_user,
    );
    match name {
        Some(name) => claims.find(&[(CLAIM_COUPON_NAME, name)]),
        None => claims.find(&[]),
    }
    .is_some()
}

/// Both tables, open for writing: made before the wait in the queue, so that those behind do not wait
/// for it.
pub struct Ledger<'t> {
    tables: &'t Tables,
    coupons: Writer<'t>,
    claims: Writer<'t>,
    claim_ids: pg_sys::Oid,
    /// Users' triggers may change what is written.
    has_user_triggers: bool,
}

impl<'t> Ledger<'t> {
    /// Locks both tables as an `insert` or `update` does.
    pub fn open(tables: &'t Tables) -> Ledger<'t> {
        // A claim neither deletes nor renames a coupon.
        let ours = tables.schema.function(c"honcho_keep_claimed");
        Ledger {
            coupons: Writer::new(&tables.coupons, ours),
            claims: Writer::new(&tables.claims, None),
            claim_ids: tables.schema.relation(c"claims_id_seq"),
            has_user_triggers: tables.coupons.has_user_triggers(ours)
                || tables.claims.has_user_triggers(None),
            tables,
        }
    }

    /// Writes the claims of `user_ids` on the coupon that `view` last locked, and takes them off its
    /// stock, which must suffice. Later commands of the transaction see both.
    ///
    /// # Errors
    /// `23505`, `23514` if a unique key or a check is violated, which nothing but a write that
    /// bypassed the queue can bring about; whatever a trigger raises; `09000` if a trigger has changed
    /// what is written so that it is no claim.
    pub fn write(
        &mut self,
        view: &View<'_>,
        coupon: &Coupon,
        coupon_name: Text,
        user_ids: &[Text],
    ) {
        let left = coupon.remaining - user_ids.len() as i32;
        self.coupons.begin();
        self.coupons
            .update(view.coupons.found(), REMAINING_AMOUNT, Datum::from(left));
        if self.has_user_triggers {
            // A trigger may restock in passing: what counts is how many are given.
            let given = coupon.given() + user_ids.len() as i32;
            if Coupon::read(self.coupons.written()).given() != given {
                errors::refuse_triggers_change("a trigger on coupons left the stock as it was");
            }
        }
        self.coupons.end();

        let claimed_at = session::now();
        self.claims.begin();
        for user_id in user_ids {
            self.claims.insert(&[
                (CLAIM_ID, session::next_value(self.claim_ids)),
                (CLAIM_USER_ID, user_id.datum()),
                (CLAIM_COUPON_NAME, coupon_name.datum()),
                (CLAIM_CLAIMED_AT, Datum::from(claimed_at)),
            ]);
        }
        self.claims.end();
        session::next_command();
        if self.has_user_triggers {
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
