//! Index look-ups and row locks.

use std::ptr;

use pgrx::pg_sys::{self, Datum};
use pgrx::{PgSqlErrorCode, ereport, error};

use crate::pg::column::Text;
use crate::pg::relation::{Relation, Row, Slot};

/// The most columns that an index look-up names.
const MAX_KEYS: usize = 2;

/// Look-ups in one index.
pub struct Lookup<'t> {
    table: &'t Relation,
    scan: pg_sys::IndexScanDesc,
    /// A key for each column of the index that is looked up, to be given its value.
    keys: [pg_sys::ScanKeyData; MAX_KEYS],
    /// Set once the scan has keys to search for.
    begun: bool,
    slot: Slot,
}

impl<'t> Lookup<'t> {
    /// Prepares look-ups of rows of `table` by all columns of `index`, under the active snapshot.
    pub fn new(table: &'t Relation, index: &Relation) -> Lookup<'t> {
        // SAFETY: the index is open.
        let columns = unsafe { (*(*index.0).rd_index).indnkeyatts };
        Lookup::by_first(columns as usize, table, index)
    }

    /// Prepares look-ups of rows of `table` by the first `columns` of `index`, under the active
    /// snapshot; with none of them, any row is found.
    pub fn by_first(columns: usize, table: &'t Relation, index: &Relation) -> Lookup<'t> {
        let slot = Slot::new(table);
        let mut keys = [pg_sys::ScanKeyData::default(); MAX_KEYS];
        // SAFETY: both relations are open and a snapshot is active; `drop` ends the scan. The index's
        // columns are texts, all with collation "C", which is what `ScanKeyInit` sets.
        let scan = unsafe {
            for (i, key) in keys.iter_mut().take(columns).enumerate() {
                pg_sys::ScanKeyInit(
                    key,
                    i as pg_sys::AttrNumber + 1,
                    pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
                    pg_sys::Oid::from(pg_sys::F_TEXTEQ),
                    Datum::null(),
                );
            }
            pg_sys::index_beginscan(
                table.0,
                index.0,
                pg_sys::GetActiveSnapshot(),
                #[cfg(feature = "pg18")]
                ptr::null_mut(),
                columns as i32,
                0,
            )
        };
        Lookup {
            table,
            scan,
            keys,
            begun: false,
            slot,
        }
    }

    /// Lets go of the row last found, if any: a pinned page cannot be pruned.
    pub fn release(&mut self) {
        if !self.begun {
            return;
        }
        // SAFETY: the slot and the scan are ours; without new keys a rescan keeps the old ones.
        unsafe {
            pg_sys::ExecClearTuple(self.slot.0);
            let keys = (*self.scan).numberOfKeys;
            pg_sys::index_rescan(self.scan, ptr::null_mut(), keys, ptr::null_mut(), 0);
        }
    }

    /// Goes on under the snapshot that is active now.
    pub fn renew(&mut self) {
        // SAFETY: the scan keeps the snapshot of each look-up no longer than until the next.
        unsafe { (*self.scan).xs_snapshot = pg_sys::GetActiveSnapshot() };
    }

    /// A row with these values in the columns with these attribute numbers, which are those that were
    /// prepared for, in any order.
    pub fn find(&mut self, key: &[(usize, Text)]) -> Option<Row<'_>> {
        self.begun = true;
        // SAFETY: the index is open, and the scan was begun for as many columns.
        let found = unsafe {
            let columns = &(*(*(*self.scan).indexRelation).rd_index).indkey.values;
            for (i, column) in columns.as_slice(key.len()).iter().enumerate() {
                let Some((_, value)) = key.iter().find(|(of, _)| *of as i16 == *column) else {
                    error!("an index of a honcho table has column {column}");
                };
                self.keys[i].sk_argument = value.datum();
            }
            pg_sys::index_rescan(
                self.scan,
                self.keys.as_mut_ptr(),
                key.len() as i32,
                ptr::null_mut(),
                0,
            );
            pg_sys::index_getnext_slot(
                self.scan,
                pg_sys::ScanDirection::ForwardScanDirection,
                self.slot.0,
            )
        };
        found.then_some(Row(&self.slot))
    }

    /// The row last found.
    pub fn found(&self) -> Row<'_> {
        Row(&self.slot)
    }

    /// Locks the row last found against all but foreign-key checks until the transaction ends, and
    /// reads its newest version; none if it was deleted, or no longer has this value in this column.
    ///
    /// # Errors
    /// `40001` under repeatable read and serializable when the row changed after the snapshot;
    /// `55P03`, `57014`, `40P01` as for any lock.
    pub fn lock(&mut self, attribute: usize, value: Text) -> Option<Row<'_>> {
        let mut failure = pg_sys::TM_FailureData::default();
        // SAFETY: the slot holds the row that `find` returned under the active snapshot.
        let (result, own_snapshot) = unsafe {
            let own_snapshot = pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32;
            let flags = if own_snapshot {
                0
            } else {
                pg_sys::TUPLE_LOCK_FLAG_FIND_LAST_VERSION as u8
            };
            let mut tid = (*self.slot.0).tts_tid;
            let result = pg_sys::table_tuple_lock(
                self.table.0,
                &mut tid,
                pg_sys::GetActiveSnapshot(),
                self.slot.0,
                pg_sys::GetCurrentCommandId(false),
                pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
                pg_sys::LockWaitPolicy::LockWaitBlock,
                flags,
                &mut failure,
            );
            (result, own_snapshot)
        };
        match result {
            pg_sys::TM_Result::TM_Ok => {
                let row = Row(&self.slot);
                (!failure.traversed || row.is(attribute, value)).then_some(row)
            }
            pg_sys::TM_Result::TM_Deleted if !own_snapshot => None,
            pg_sys::TM_Result::TM_Updated | pg_sys::TM_Result::TM_Deleted => {
                ereport!(
                    ERROR,
                    PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                    "could not serialize access due to concurrent update"
                );
            }
            other => error!("unexpected result {other} of locking a row"),
        }
    }
}

impl Drop for Lookup<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: begun by `new`, ended only here.
            unsafe { pg_sys::index_endscan(self.scan) };
        }
    }
}
