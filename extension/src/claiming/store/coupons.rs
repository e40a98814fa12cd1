//! The table `coupons`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroUsize;

use pgrx::AllocatedByPostgres;
use pgrx::datum::TryFromDatumError;
use pgrx::heap_tuple::PgHeapTuple;
use pgrx::pg_sys;

use crate::claiming::outcome::Outcome;
use crate::pg::column::{Cell, Column, Key, Text};
use crate::pg::errors;
use crate::pg::lookup::Lookup;
use crate::pg::relation::{Relation, Row, Version};
use crate::pg::schema::Schema;
use crate::pg::writer::Writer;

const ID: Column<i64> = Column::new(1);
const NAME: Column<Text> = Column::new(2);
const AMOUNT: Column<i32> = Column::new(3);
const REMAINING_AMOUNT: Column<i32> = Column::new(4);
const CREATED_AT: Column<i64> = Column::new(5);
const STARTS_AT: Column<i64> = Column::new(6);
const ENDS_AT: Column<i64> = Column::new(7);
const PAUSED: Column<bool> = Column::new(8);

/// The most coupons in `KNOWN`.
const MOST_KNOWN: usize = 1000;

thread_local! {
    /// The version that this session found last of each coupon whose index has had many, by table and name.
    static KNOWN: RefCell<HashMap<(pg_sys::Oid, String), Version>> = RefCell::default();
}

/// The columns that no operation changes.
const IDENTITY: [usize; 2] = [ID.attribute(), NAME.attribute()];

/// The table, open with the index that it is searched by.
pub struct Coupons {
    schema: Schema,
    table: Relation,
    by_name: Relation,
    of_holds: Option<OfHolds>,
}

/// The columns about holds.
#[derive(Clone, Copy)]
struct OfHolds {
    held_amount: Column<i32>,
    next_expiry: Column<i64>,
}

impl Coupons {
    /// Opens the table for reading; holds the locks of a `select`.
    pub fn open(schema: Schema) -> Coupons {
        let table = Relation::table(schema.relation(c"coupons"));
        let by_name = Relation::index(schema.index(table.oid(), &[c"coupons_name_key"]));
        let of_holds = table
            .column(c"held_amount", pg_sys::INT4OID)
            .zip(table.column(c"next_expiry", pg_sys::TIMESTAMPTZOID))
            .map(|(held_amount, next_expiry)| OfHolds {
                held_amount,
                next_expiry,
            });
        Coupons {
            schema,
            table,
            by_name,
            of_holds,
        }
    }

    /// Returns true if the extension is updated to a version that has holds and events. The names alone of these
    /// tables say nothing before: any role that may create in the schema can use them.
    pub fn have_holds(&self) -> bool {
        self.of_holds.is_some()
    }

    /// The table's OID.
    pub fn oid(&self) -> pg_sys::Oid {
        self.table.oid()
    }

    /// Prepares to search it, under the active snapshot.
    pub fn search(&self) -> CouponSearch<'_> {
        CouponSearch {
            by_name: Lookup::new(&self.table, &self.by_name, [NAME.key()]),
            of_holds: self.of_holds,
        }
    }

    /// Locks it as an `update` does, and prepares to write.
    pub fn write(&self) -> CouponWriter<'_> {
        // A claim neither deletes nor renames a coupon.
        let ours = self.schema.function(c"honcho_keep_claimed");
        let has_user_triggers = self.table.has_user_triggers(ours);
        let kept: &[usize] = if has_user_triggers { &[] } else { &IDENTITY };
        let mut writer = Writer::new(&self.table, ours, kept);
        writer.prepare_updates();
        CouponWriter {
            is_plain: writer.is_plain(),
            writer,
            has_user_triggers,
            of_holds: self.of_holds,
        }
    }
}

/// A coupon's row.
#[derive(Clone)]
pub struct Coupon {
    /// Its identity.
    pub id: i64,
    /// The number of pieces in total.
    pub amount: i32,
    /// The number of pieces that can still be claimed.
    pub remaining: i32,
    /// The number of pieces that are held, including expired holds that have not been taken back.
    pub held: i32,
    /// The first moment at which one of the holds expires or has expired.
    pub next_expiry: Option<i64>,
    /// The moment of its creation.
    pub created_at: i64,
    /// The first moment for claims.
    pub starts_at: Option<i64>,
    /// The first moment after them.
    pub ends_at: Option<i64>,
    /// True while claims are refused.
    pub paused: bool,
    /// The version of the row.
    pub version: Version,
}

impl Coupon {
    fn read(row: Row<'_>, of_holds: Option<OfHolds>) -> Coupon {
        row.read();
        Coupon {
            id: row.get(ID).unwrap_or(0),
            amount: row.get(AMOUNT).unwrap_or(0),
            remaining: row.get(REMAINING_AMOUNT).unwrap_or(0),
            held: of_holds.and_then(|it| row.get(it.held_amount)).unwrap_or(0),
            next_expiry: of_holds.and_then(|it| row.get(it.next_expiry)),
            created_at: row.get(CREATED_AT).unwrap_or(0),
            starts_at: row.get(STARTS_AT),
            ends_at: row.get(ENDS_AT),
            paused: row.get(PAUSED).unwrap_or(false),
            version: row.version(),
        }
    }

    /// Returns true if nothing but the stock differs from `other`.
    pub fn has_settings_of(&self, other: &Coupon) -> bool {
        self.amount == other.amount
            && self.starts_at == other.starts_at
            && self.ends_at == other.ends_at
            && self.paused == other.paused
    }

    /// The number of claims, by the stock.
    pub fn claims(&self) -> i32 {
        self.amount
            .wrapping_sub(self.remaining)
            .wrapping_sub(self.held)
    }

    /// The reason, other than the stock, to refuse a claim or a reservation at the moment `now`.
    pub fn closed(&self, now: i64) -> Option<Outcome> {
        if self.starts_at.is_some_and(|starts_at| now < starts_at) {
            Some(Outcome::NotStarted)
        } else if self.ends_at.is_some_and(|ends_at| now >= ends_at) {
            Some(Outcome::Ended)
        } else if self.paused {
            Some(Outcome::Paused)
        } else {
            None
        }
    }
}

/// The name of the coupon in `row`, as a trigger gets it; none if `row` has no such column.
pub fn name_in(
    row: &PgHeapTuple<'_, AllocatedByPostgres>,
) -> Result<Option<String>, TryFromDatumError> {
    NonZeroUsize::new(NAME.attribute()).map_or(Ok(None), |attribute| row.get_by_index(attribute))
}

/// Searches the table by name.
pub struct CouponSearch<'t> {
    by_name: Lookup<'t, 1>,
    of_holds: Option<OfHolds>,
}

impl CouponSearch<'_> {
    /// The coupon called `name`.
    pub fn find(&mut self, name: Text) -> Option<Coupon> {
        let table = self.by_name.table();
        let known = || KNOWN.with_borrow(|known| known.get(&(table, name.string())).copied());
        let is_same = |row: Row<'_>| row.get(NAME).is_some_and(|found| found.is_equal(name));
        let (found, has_many) = self.by_name.find_from([NAME.of(name)], known, is_same);
        let coupon = found.map(|row| Coupon::read(row, self.of_holds));
        if has_many && let Some(coupon) = &coupon {
            KNOWN.with_borrow_mut(|known| {
                if known.len() >= MOST_KNOWN {
                    known.clear();
                }
                known.insert((table, name.string()), coupon.version);
            });
        }
        coupon
    }

    /// Finds `coupon` again, without a search. Returns false if it has changed.
    pub fn find_unchanged(&mut self, coupon: &Coupon) -> bool {
        self.by_name.find_again(coupon.version)
    }

    /// Returns true if another session may have locked the row of the coupon last found.
    fn may_be_locked(&self) -> bool {
        self.by_name.found().may_be_locked()
    }

    /// Locks the row of the coupon last found, called `name`, as an `update` of its stock does, and
    /// reads it again; none if it was deleted or renamed meanwhile. Only a session that bypasses the queue
    /// can make this wait.
    ///
    /// # Errors
    /// `40001` under repeatable read and serializable when the row changed after the snapshot.
    pub fn lock(&mut self, name: Text) -> Option<Coupon> {
        let locked = self.by_name.lock(NAME, name);
        locked.map(|row| Coupon::read(row, self.of_holds))
    }

    /// Releases the row last found.
    pub fn release(&mut self) {
        self.by_name.release();
    }

    /// Continues under the snapshot that is active now.
    pub fn renew(&mut self) {
        self.by_name.renew();
    }
}

/// Writes to the table.
pub struct CouponWriter<'t> {
    writer: Writer<'t>,
    of_holds: Option<OfHolds>,
    /// See [`Writer::is_plain`].
    is_plain: bool,
    /// Users' triggers may change what is written.
    pub has_user_triggers: bool,
}

impl CouponWriter<'_> {
    /// Changes the coupon that `search` last locked from `old` to `new`, except for its identity; looks at
    /// what was written if `is_checked`.
    ///
    /// # Errors
    /// `23514` if a check is violated; any error of a trigger; `09000` if a trigger has changed the number
    /// of claims or of holds that the stock says there are.
    pub fn change(
        &mut self,
        search: &CouponSearch<'_>,
        old: &Coupon,
        new: &Coupon,
        is_checked: bool,
    ) {
        let cells = self.cells(old, new);
        self.writer.begin();
        self.writer.update(search.by_name.found(), &cells);
        if is_checked {
            // A trigger may restock in passing: what counts is how many claims and holds there are.
            let written = Coupon::read(self.writer.written(), self.of_holds);
            if written.claims() != new.claims() || written.held != new.held {
                errors::refuse_triggers_change("a trigger on coupons left the stock as it was");
            }
        }
        self.writer.end();
    }

    /// Changes the coupon that `search` last found from `old` to `new`, except for its identity. The update is the lock
    /// of its row, too. Writes nothing and returns false if another session may have locked or changed the row.
    ///
    /// # Errors
    /// `23514` if a check is violated.
    pub fn change_unlocked(
        &mut self,
        search: &CouponSearch<'_>,
        old: &Coupon,
        new: &Coupon,
    ) -> bool {
        if !self.is_plain || search.may_be_locked() {
            return false;
        }
        let cells = self.cells(old, new);
        self.writer.begin();
        let is_changed = self.writer.update_unlocked(search.by_name.found(), &cells);
        self.writer.end();
        is_changed
    }

    /// The columns that differ between `old` and `new`, and the stock.
    fn cells(&self, old: &Coupon, new: &Coupon) -> Vec<Cell> {
        let mut cells = vec![REMAINING_AMOUNT.of(new.remaining)];
        if let Some(of_holds) = self.of_holds
            && (old.held, old.next_expiry) != (new.held, new.next_expiry)
        {
            cells.push(of_holds.held_amount.of(new.held));
            cells.push(of_holds.next_expiry.of_option(new.next_expiry));
        }
        if !new.has_settings_of(old) {
            cells.extend([
                AMOUNT.of(new.amount),
                STARTS_AT.of_option(new.starts_at),
                ENDS_AT.of_option(new.ends_at),
                PAUSED.of(new.paused),
            ]);
        }
        cells
    }
}
