//! Index look-ups and row locks.

use std::ptr;

use pgrx::itemptr::item_pointer_get_block_number_no_check;
use pgrx::pg_sys::{self, Datum};
use pgrx::{PgSqlErrorCode, ereport, error};

use crate::pg::btree::{self, Gap, Kind};
use crate::pg::column::{Cell, Column, Key, KeyColumn};
use crate::pg::relation::{Relation, Row, Slot, Version};

/// Number of entries of the index after which `find_from` goes another way. There are one or two, unless a snapshot keeps old
/// versions and their order is not that of their places.
const FEW: usize = 4;

/// The most versions from one to the next, so that a way that leads nowhere takes little time.
const STEPS: usize = 100;

/// Look-ups in one index, by `N` of its columns.
pub struct Lookup<'t, const N: usize> {
    table: &'t Relation,
    scan: pg_sys::IndexScanDesc,
    /// The keys in the order of the index, to be given their values.
    keys: [pg_sys::ScanKeyData; N],
    /// The place of each key in the order in which values are given.
    places: [usize; N],
    /// True if a text is given for each column of the index.
    is_of_texts: bool,
    /// Where the index had no entry for the key of the last `find_rare`, if that was seen.
    gap: Option<Gap>,
    /// Set once the scan has keys to search for.
    begun: bool,
    /// Room for the row last found, made for the first: most look-ups for a claim find none.
    slot: Option<Slot>,
}

impl<'t, const N: usize> Lookup<'t, N> {
    /// Prepares look-ups of rows of `table`, under the active snapshot, by `columns`: the first ones of
    /// `index`, in any order. With none of them, any row is found.
    pub fn new(table: &'t Relation, index: &Relation, columns: [KeyColumn; N]) -> Lookup<'t, N> {
        let mut keys = [pg_sys::ScanKeyData::default(); N];
        let mut places = [0; N];
        // SAFETY: both relations are open and a snapshot is active; `drop` ends the scan. An index has
        // as many attribute numbers as columns. Texts have collation "C", which `ScanKeyInit` sets.
        let (scan, is_of_texts) = unsafe {
            let description = &*(*index.0).rd_index;
            let count = description.indnkeyatts as usize;
            let mut unused = keys.iter_mut().zip(&mut places);
            for (i, attribute) in description.indkey.values.as_slice(count).iter().enumerate() {
                for (j, column) in columns.iter().enumerate() {
                    if column.attribute as i16 == *attribute
                        && let Some((key, place)) = unused.next()
                    {
                        *place = j;
                        pg_sys::ScanKeyInit(
                            key,
                            i as pg_sys::AttrNumber + 1,
                            column.strategy as pg_sys::StrategyNumber,
                            pg_sys::Oid::from(column.function),
                            Datum::null(),
                        );
                    }
                }
            }
            if unused.next().is_some() {
                error!("an index of a honcho table lacks a column");
            }
            let scan = pg_sys::index_beginscan(
                table.0,
                index.0,
                pg_sys::GetActiveSnapshot(),
                #[cfg(feature = "pg18")]
                ptr::null_mut(),
                N as i32,
                0,
            );
            (scan, btree::kinds(index.0) == Some([Kind::Text; N]))
        };
        Lookup {
            table,
            scan,
            keys,
            places,
            is_of_texts,
            gap: None,
            begun: false,
            slot: None,
        }
    }

    /// The OID of the table.
    pub fn table(&self) -> pg_sys::Oid {
        self.table.oid()
    }

    /// Releases the row last found, if any: a pinned page cannot be pruned.
    pub fn release(&mut self) {
        if !self.begun {
            return;
        }
        // SAFETY: the scan is begun by `new`, and the slot is one of its table; without new keys a rescan keeps
        // the old ones.
        unsafe {
            if let Some(slot) = &self.slot {
                pg_sys::ExecClearTuple(slot.0);
            }
            let keys = (*self.scan).numberOfKeys;
            pg_sys::index_rescan(self.scan, ptr::null_mut(), keys, ptr::null_mut(), 0);
        }
    }

    /// Continues under the snapshot that is active now.
    pub fn renew(&mut self) {
        // SAFETY: the scan keeps the snapshot of each look-up no longer than until the next.
        unsafe { (*self.scan).xs_snapshot = pg_sys::GetActiveSnapshot() };
    }

    /// The row with these values in the columns that were prepared for, in their order: the last one in the order
    /// of the index.
    ///
    /// While an old snapshot lives, the index has an entry for many versions of a row, in the order of their places
    /// in the table. There, the newest version comes last, unless it fills a gap. So this finds it at once,
    /// where a search from the other end meets all versions before it. An index whose entries are merged
    /// (`deduplicate_items`) gives merged ones from the first on in either direction.
    pub fn find(&mut self, key: [Cell; N]) -> Option<Row<'_>> {
        self.begin(key);
        self.fetch(pg_sys::ScanDirection::BackwardScanDirection)
    }

    /// The same for an index that may have many versions of the row, in an order in which the newest is not the first.
    /// If a few entries are in vain, this goes from `known`, a version of the row that was found before, from each version
    /// to the next. If that does not lead to a row for which `is_same`, it goes on in the index. Also returns true if a
    /// few entries were in vain.
    pub fn find_from(
        &mut self,
        key: [Cell; N],
        known: impl FnOnce() -> Option<Version>,
        is_same: impl FnOnce(Row<'_>) -> bool,
    ) -> (Option<Row<'_>>, bool) {
        self.begin(key);
        let direction = pg_sys::ScanDirection::BackwardScanDirection;
        for _ in 0..FEW {
            match self.fetch_one(direction) {
                None => return (None, false),
                Some(true) => return (Some(self.found()), false),
                Some(false) => {}
            }
        }
        if known().is_some_and(|version| self.follow(version)) && is_same(self.found()) {
            return (Some(self.found()), true);
        }
        (self.fetch(direction), true)
    }

    /// Finds the version that the snapshot sees, from `version` on. Returns false if there is none within `STEPS`. The row
    /// may be another one: the place of `version` may have been given away.
    fn follow(&mut self, mut version: Version) -> bool {
        // The lock on the table keeps a vacuum from making it shorter meanwhile, but one may have done so before: a
        // version may be left whose successor is gone.
        // SAFETY: the table is open.
        let blocks = unsafe {
            pg_sys::RelationGetNumberOfBlocksInFork(self.table.0, pg_sys::ForkNumber::MAIN_FORKNUM)
        };
        // SAFETY: the scan has the snapshot of this look-up.
        let snapshot = unsafe { (*self.scan).xs_snapshot };
        for _ in 0..STEPS {
            // SAFETY: the place is from the header of a row, or from a slot.
            let block = unsafe { item_pointer_get_block_number_no_check(version.place) };
            if block >= blocks
                || !self.fetch_version(version, &raw mut pg_sys::SnapshotAnyData)
                || self.found().written_by() != version.written_by
            {
                return false;
            }
            let successor = self.found().successor();
            if self.fetch_version(version, snapshot) {
                return true;
            }
            match successor {
                Some(successor) => version = successor,
                None => return false,
            }
        }
        false
    }

    /// Puts the row in the place of `version` into the slot, if `snapshot` sees it. Returns true if so.
    fn fetch_version(&mut self, mut version: Version, snapshot: pg_sys::Snapshot) -> bool {
        let slot = self.slot.get_or_insert_with(|| Slot::new(self.table));
        // SAFETY: the slot is one of the table, which is open, and the place is in it.
        unsafe {
            pg_sys::table_tuple_fetch_row_version(
                self.table.0,
                &mut version.place,
                snapshot,
                slot.0,
            )
        }
    }

    /// The same for a key that the index is likely not to have, which is quicker to tell.
    pub fn find_rare(&mut self, key: [Cell; N]) -> Option<Row<'_>> {
        self.gap = None;
        // SAFETY: the index is open, a snapshot is active.
        unsafe {
            if self.is_of_texts && pg_sys::XactIsoLevel < pg_sys::XACT_SERIALIZABLE as i32 {
                let key = self.places.map(|i| key[i].value);
                self.gap = btree::gap((*self.scan).indexRelation, key);
            }
        }
        if self.gap.is_some() {
            return None;
        }
        self.find(key)
    }

    /// The place in the index of the key that `find_rare` has last not found, if it was noted.
    pub fn gap(&self) -> Option<Gap> {
        self.gap
    }

    /// Finds `version` again without a search, if the snapshot sees it. Returns true if so.
    pub fn find_again(&mut self, version: Version) -> bool {
        // SAFETY: a snapshot is active.
        let is_there = self.fetch_version(version, unsafe { pg_sys::GetActiveSnapshot() });
        // Its place may have been given to another row meanwhile.
        is_there && self.found().written_by() == version.written_by
    }

    /// The first such row in the order of the index.
    pub fn find_first(&mut self, key: [Cell; N]) -> Option<Row<'_>> {
        self.begin(key);
        self.fetch(pg_sys::ScanDirection::ForwardScanDirection)
    }

    /// The row after the one last found by `find_first` or this.
    pub fn next(&mut self) -> Option<Row<'_>> {
        self.fetch(pg_sys::ScanDirection::ForwardScanDirection)
    }

    /// Passes all such rows to `each`, in the order of the index. Returns false if it meets more than `most` entries of
    /// the index, visible or not, and stops there.
    pub fn each(&mut self, key: [Cell; N], most: usize, mut each: impl FnMut(Row<'_>)) -> bool {
        self.begin(key);
        for _ in 0..=most {
            match self.fetch_one(pg_sys::ScanDirection::ForwardScanDirection) {
                None => return true,
                Some(true) => each(self.found()),
                Some(false) => {}
            }
        }
        false
    }

    fn begin(&mut self, key: [Cell; N]) {
        self.begun = true;
        for (own, &place) in self.keys.iter_mut().zip(&self.places) {
            own.sk_argument = key[place].value;
        }
        // SAFETY: the index is open, and the scan was begun for `N` keys.
        unsafe {
            pg_sys::index_rescan(
                self.scan,
                self.keys.as_mut_ptr(),
                N as i32,
                ptr::null_mut(),
                0,
            );
        }
    }

    fn fetch(&mut self, direction: pg_sys::ScanDirection::Type) -> Option<Row<'_>> {
        while !self.fetch_one(direction)? {}
        Some(self.found())
    }

    /// Goes to the next entry of the index, as `index_getnext_slot` does; none if there are no more. Returns true if it
    /// has a version that the snapshot sees, of which there is at most one.
    fn fetch_one(&mut self, direction: pg_sys::ScanDirection::Type) -> Option<bool> {
        // SAFETY: the scan has its keys.
        if unsafe { pg_sys::index_getnext_tid(self.scan, direction) }.is_null() {
            return None;
        }
        let slot = self.slot.get_or_insert_with(|| Slot::new(self.table));
        // SAFETY: the slot is one of the scan's table.
        Some(unsafe { pg_sys::index_fetch_heap(self.scan, slot.0) })
    }

    /// The row last found.
    pub fn found(&self) -> Row<'_> {
        let Some(slot) = &self.slot else {
            error!("a look-up has found no row");
        };
        Row(slot)
    }

    /// Locks the row last found until the transaction ends, against everything except foreign-key checks,
    /// and reads its newest version; none if it was deleted, or no longer has `value` in `column`.
    ///
    /// # Errors
    /// `40001` under repeatable read and serializable when the row changed after the snapshot;
    /// `55P03`, `57014`, `40P01` as for any lock.
    pub fn lock<K: Key>(&mut self, column: Column<K>, value: K) -> Option<Row<'_>> {
        let mut failure = pg_sys::TM_FailureData::default();
        let slot = self.found().0;
        // SAFETY: the slot holds the row that `find` returned under the active snapshot.
        let (result, own_snapshot) = unsafe {
            let own_snapshot = pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32;
            let flags = if own_snapshot {
                0
            } else {
                pg_sys::TUPLE_LOCK_FLAG_FIND_LAST_VERSION as u8
            };
            let mut tid = (*slot.0).tts_tid;
            let result = pg_sys::table_tuple_lock(
                self.table.0,
                &mut tid,
                pg_sys::GetActiveSnapshot(),
                slot.0,
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
                let row = Row(slot);
                let is_same = |found: K| found.is_equal(value);
                (!failure.traversed || row.get(column).is_some_and(is_same)).then_some(row)
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

impl<const N: usize> Drop for Lookup<'_, N> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: begun by `new`, ended only here.
            unsafe { pg_sys::index_endscan(self.scan) };
        }
    }
}
