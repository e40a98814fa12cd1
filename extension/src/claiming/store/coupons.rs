//! The table `coupons`.

use std::num::NonZeroUsize;

use pgrx::AllocatedByPostgres;
use pgrx::datum::TryFromDatumError;
use pgrx::heap_tuple::PgHeapTuple;
use pgrx::pg_sys;

use crate::claiming::outcome::Outcome;
use crate::pg::column::{Column, Text};
use crate::pg::errors;
use crate::pg::lookup::Lookup;
use crate::pg::relation::{Relation, Row};
use crate::pg::schema::Schema;
use crate::pg::session;
use crate::pg::writer::Writer;

const ID: Column<i64> = Column::new(1);
const NAME: Column<Text> = Column::new(2);
const AMOUNT: Column<i32> = Column::new(3);
const REMAINING_AMOUNT: Column<i32> = Column::new(4);
const STARTS_AT: Column<i64> = Column::new(6);
const ENDS_AT: Column<i64> = Column::new(7);
const PAUSED: Column<bool> = Column::new(8);

/// The table, open with the index that it is searched by.
pub struct Coupons {
    schema: Schema,
    table: Relation,
    by_name: Relation,
}

impl Coupons {
    /// Opens the table for reading; holds the locks of a `select`.
    pub fn open(schema: Schema) -> Coupons {
        let table = Relation::table(schema.relation(c"coupons"));
        let by_name = Relation::index(schema.index(table.oid(), &[c"coupons_name_key"]));
        Coupons {
            schema,
            table,
            by_name,
        }
    }

    /// The table's OID.
    pub fn oid(&self) -> pg_sys::Oid {
        self.table.oid()
    }

    /// Prepares to search it, under the active snapshot.
    pub fn search(&self) -> CouponSearch<'_> {
        CouponSearch(Lookup::new(&self.table, &self.by_name, [NAME.key()]))
    }

    /// Locks it as an `update` does, and prepares to write.
    pub fn write(&self) -> CouponWriter<'_> {
        // A claim neither deletes nor renames a coupon.
        let ours = self.schema.function(c"honcho_keep_claimed");
        CouponWriter {
            writer: Writer::new(&self.table, ours),
            has_user_triggers: self.table.has_user_triggers(ours),
        }
    }
}

/// A coupon's row.
pub struct Coupon {
    /// Its identity.
    pub id: i64,
    /// The number of claims that can still be made.
    pub remaining: i32,
    /// The transaction that wrote this version.
    pub written_by: pg_sys::TransactionId,
    amount: i32,
    starts_at: Option<i64>,
    ends_at: Option<i64>,
    paused: bool,
}

impl Coupon {
    fn read(row: Row<'_>) -> Coupon {
        Coupon {
            id: row.get(ID).unwrap_or(0),
            remaining: row.get(REMAINING_AMOUNT).unwrap_or(0),
            written_by: row.written_by(),
            amount: row.get(AMOUNT).unwrap_or(0),
            starts_at: row.get(STARTS_AT),
            ends_at: row.get(ENDS_AT),
            paused: row.get(PAUSED).unwrap_or(false),
        }
    }

    /// The number of claims that were made, by the stock.
    fn given(&self) -> i32 {
        self.amount.wrapping_sub(self.remaining)
    }

    /// The reason to refuse any user who does not hold the coupon, now.
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

/// The name of the coupon in `row`, as a trigger gets it; none if `row` has no such column.
pub fn name_in(
    row: &PgHeapTuple<'_, AllocatedByPostgres>,
) -> Result<Option<String>, TryFromDatumError> {
    NonZeroUsize::new(NAME.attribute()).map_or(Ok(None), |attribute| row.get_by_index(attribute))
}

/// Searches the table by name.
pub struct CouponSearch<'t>(Lookup<'t, 1>);

impl CouponSearch<'_> {
    /// The coupon called `name`.
    pub fn find(&mut self, name: Text) -> Option<Coupon> {
        self.0.find([NAME.of(name)]).map(Coupon::read)
    }

    /// Locks the row of the coupon last found, called `name`, as an `update` of its stock does, and
    /// reads it again; none if it was deleted or renamed meanwhile. Only a session that bypasses the queue
    /// can make this wait.
    ///
    /// # Errors
    /// `40001` under repeatable read and serializable when the row changed after the snapshot.
    pub fn lock(&mut self, name: Text) -> Option<Coupon> {
        self.0.lock(NAME, name).map(Coupon::read)
    }

    /// Releases the row last found.
    pub fn release(&mut self) {
        self.0.release();
    }

    /// Continues under the snapshot that is active now.
    pub fn renew(&mut self) {
        self.0.renew();
    }
}

/// Writes to the table.
pub struct CouponWriter<'t> {
    writer: Writer<'t>,
    /// Users' triggers may change what is written.
    pub has_user_triggers: bool,
}

impl CouponWriter<'_> {
    /// Takes `count` off the stock of `coupon`, which `search` last locked; looks at what was written if
    /// `is_checked`.
    ///
    /// # Errors
    /// `23514` if a check is violated; any error of a trigger; `09000` if a trigger has changed the number
    /// of claims that the stock says were made.
    pub fn take(
        &mut self,
        search: &CouponSearch<'_>,
        coupon: &Coupon,
        count: i32,
        is_checked: bool,
    ) {
        let left = coupon.remaining - count;
        self.writer.begin();
        self.writer
            .update(search.0.found(), &[REMAINING_AMOUNT.of(left)]);
        // A trigger may restock in passing: what counts is how many claims were made.
        if is_checked && Coupon::read(self.writer.written()).given() != coupon.given() + count {
            errors::refuse_triggers_change("a trigger on coupons left the stock as it was");
        }
        self.writer.end();
    }
}
