//! Writes of rows.

mod keys;

use std::{mem, ptr, slice};

use pgrx::pg_sys::{self, Datum};

use crate::pg::btree::{self, Entry, Gap};
#[cfg(not(feature = "pg18"))]
use crate::pg::checks;
use crate::pg::column::Cell;
use crate::pg::errors;
use crate::pg::relation::{Relation, Row, Slot};
use keys::{QuickKey, has_only_keys_of, is_key_of};

/// Writes rows of one table, with constraints, indexes and row triggers. As when logical replication
/// applies a row, there is no statement, so statement triggers do not fire.
///
/// It locks the table as an `insert` or `update` does when it is made, opens the indexes when they are written to, unless
/// they are open by then, and writes between `begin` and `end`.
pub struct Writer<'t> {
    estate: *mut pg_sys::EState,
    target: *mut pg_sys::ResultRelInfo,
    /// True if the indexes are open.
    are_open: bool,
    /// The columns of keys that no update changes.
    kept: &'t [usize],
    /// True if there are no indexes but those of such keys.
    has_only_kept: bool,
    /// The indexes that the executor writes to are the first ones of the target; after them come those of the kept
    /// keys.
    kept_keys: usize,
    /// Keys whose entries need no executor when rows are inserted together: those of the last of its indexes.
    quick_keys: Vec<QuickKey>,
    /// Rows to be written: the first slot has the one that is written alone.
    slots: Vec<Slot>,
    /// Where an index has no entry for each row that is to be inserted.
    gaps: Vec<Option<Gap>>,
    /// The number of rows that are to be inserted, and true if they have columns to which no value was given.
    gathered: usize,
    have_other_columns: bool,
    /// False if something may have changed a row between its values as given and its insertion, as a trigger does.
    pub are_as_given: bool,
    table: &'t Relation,
}

/// The most rows that are inserted together: about as many as fit on a page.
const ROWS: usize = 64;

impl<'t> Writer<'t> {
    /// Prepares to write to `table`. Its triggers fire, except those that call the function `ours`: they fire
    /// only if there are triggers of users, which may change what it looks at.
    ///
    /// Neither an update nor a trigger changes the values of the columns `kept`. So updates write to their unique
    /// indexes without a search for duplicates: a row that is updated has none if it had none before, and the search
    /// would meet all versions of the row that an old snapshot keeps.
    pub fn new(table: &'t Relation, ours: Option<pg_sys::Oid>, kept: &'t [usize]) -> Writer<'t> {
        let slot = Slot::new(table);
        // SAFETY: the table stays open while the writer lives; `drop` frees what is made here, or the abort
        // of the transaction does.
        unsafe {
            pg_sys::LockRelationOid(table.oid(), pg_sys::RowExclusiveLock as pg_sys::LOCKMODE);
            let estate = pg_sys::CreateExecutorState();
            let target = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast();
            pg_sys::InitResultRelInfo(target, table.0, 0, ptr::null_mut(), 0);
            if let Some(ours) = ours
                && !table.has_user_triggers(Some(ours))
            {
                leave_out(&mut *target, ours);
            }
            #[cfg(not(feature = "pg18"))]
            checks::attach(&mut *target);
            Writer {
                estate,
                target,
                are_open: false,
                kept,
                has_only_kept: !kept.is_empty() && has_only_keys_of(table, kept),
                kept_keys: 0,
                quick_keys: Vec::new(),
                slots: vec![slot],
                gaps: Vec::new(),
                gathered: 0,
                have_other_columns: false,
                are_as_given: true,
                table,
            }
        }
    }

    /// Prepares for updates: opens the indexes, unless all are of kept keys, to which few updates write.
    pub fn prepare_updates(&mut self) {
        if !self.has_only_kept {
            self.prepare_inserts();
        }
    }

    /// Prepares for inserts: opens the indexes, and sets those of the kept keys or of the quick keys apart.
    pub fn prepare_inserts(&mut self) {
        if self.are_open {
            return;
        }
        self.are_open = true;
        // SAFETY: the target is initialised and has no indexes yet. `ExecOpenIndices` makes both arrays, with an element
        // for each index.
        unsafe {
            pg_sys::ExecOpenIndices(self.target, false);
            let target = &mut *self.target;
            let count = target.ri_NumIndices as usize;
            if count == 0 {
                return;
            }
            let indexes = slice::from_raw_parts_mut(target.ri_IndexRelationDescs, count);
            for &mut index in &mut *indexes {
                btree::quicken(index);
            }
            let infos = slice::from_raw_parts_mut(target.ri_IndexRelationInfo, count);
            let mut others = 0;
            for i in 0..count {
                let is_apart = if self.kept.is_empty() {
                    let key = QuickKey::of(indexes[i]);
                    self.quick_keys.extend(key);
                    key.is_some()
                } else {
                    is_key_of((*indexes[i]).rd_indextuple, self.kept)
                };
                if !is_apart {
                    indexes[others..=i].rotate_right(1);
                    infos[others..=i].rotate_right(1);
                    others += 1;
                }
            }
            if !self.kept.is_empty() {
                self.kept_keys = count - others;
                target.ri_NumIndices = others as i32;
            }
        }
    }

    /// Begins to write, under the active snapshot.
    pub fn begin(&mut self) {
        // SAFETY: a snapshot is active; `end` is the counterpart.
        unsafe {
            (*self.estate).es_snapshot = pg_sys::GetActiveSnapshot();
            (*self.estate).es_output_cid = pg_sys::GetCurrentCommandId(true);
            pg_sys::AfterTriggerBeginQuery();
        }
    }

    /// Inserts a row with these values; the other columns are null.
    ///
    /// # Errors
    /// `23505`, `23514`, `23502` if a constraint is violated, also one of a domain; any error of a trigger;
    /// `09000` if a trigger suppresses the write.
    pub fn insert(&mut self, cells: &[Cell]) {
        self.gather(cells, None);
        self.insert_gathered();
    }

    /// Inserts such a row together with others, before the next update or delete, and at `end` at the latest. If a trigger
    /// or a check may look for the rows before it, it is inserted by itself.
    ///
    /// # Arguments
    /// `gap`: where an index has no entry for the row, if it was looked for.
    ///
    /// # Errors
    /// As for `insert`.
    pub fn gather(&mut self, cells: &[Cell], gap: Option<Gap>) {
        if self.gathered == self.slots.len() {
            self.slots.push(Slot::new(self.table));
        }
        let slot = &mut self.slots[self.gathered];
        self.have_other_columns = slot.columns() > cells.len();
        // SAFETY: the arrays of a slot have as many elements as its descriptor has columns.
        unsafe {
            pg_sys::ExecClearTuple(slot.0);
            for i in 0..slot.columns() {
                *(*slot.0).tts_isnull.add(i) = true;
            }
            slot.put(cells);
            pg_sys::ExecStoreVirtualTuple(slot.0);
        }
        if !self.inserts_are_plain() {
            self.insert_alone(cells);
            return;
        }
        self.gaps.push(gap);
        self.gathered += 1;
        if self.gathered == ROWS {
            self.insert_gathered();
        }
    }

    /// Returns true if an insert is only a new row and its entries in the indexes: no trigger fires, nothing is checked but
    /// nulls, and no column is computed.
    fn inserts_are_plain(&self) -> bool {
        // SAFETY: the target is initialised, and its table open.
        let (triggers, constraints) = unsafe {
            let target = &*self.target;
            let constraints = (*(*target.ri_RelationDesc).rd_att).constr;
            (target.ri_TrigDesc.as_ref(), constraints.as_ref())
        };
        !self.has_computed_columns()
            && constraints.is_none_or(|constraints| constraints.num_check == 0)
            && triggers.is_none_or(|triggers| {
                !triggers.trig_insert_before_row && !triggers.trig_insert_after_row
            })
    }

    /// Inserts the rows that are gathered: the steps of `ExecSimpleRelationInsert` for plain inserts, with one record in
    /// the write-ahead log for all rows of a page.
    ///
    /// # Errors
    /// As for `insert`.
    fn insert_gathered(&mut self) {
        let count = mem::take(&mut self.gathered);
        if count == 0 {
            return;
        }
        self.prepare_inserts();
        let mut slots: Vec<_> = self.slots[..count].iter().map(|slot| slot.0).collect();
        // SAFETY: the slots have rows of the table, whose indexes are open. No list of indexes to be checked again is left:
        // a trigger would check them.
        unsafe {
            self.require_constraints(&slots);
            // Before the slots give up the values for the rows as they are written.
            let mut entries = self.entries(&slots, &self.gaps);
            let table = (*self.target).ri_RelationDesc;
            let command = (*self.estate).es_output_cid;
            if let [slot] = slots[..] {
                pg_sys::table_tuple_insert(table, slot, command, 0, ptr::null_mut());
            } else {
                let rows = slots.as_mut_ptr();
                pg_sys::table_multi_insert(table, rows, count as i32, command, 0, ptr::null_mut());
            }
            self.insert_entries(&mut entries, &slots);
        }
        self.gaps.clear();
        for i in 0..count {
            self.require_inserted(i);
        }
    }

    /// Inserts the row in the first slot, which was given these values: the steps of `ExecSimpleRelationInsert`.
    ///
    /// # Errors
    /// As for `insert`.
    fn insert_alone(&mut self, cells: &[Cell]) {
        self.prepare_inserts();
        let slot = self.slots[0].0;
        // SAFETY: the slot has a row of the table, whose indexes are open.
        unsafe {
            let (target, estate) = (self.target, self.estate);
            let triggers = (*target).ri_TrigDesc.as_ref();
            let has_before = triggers.is_some_and(|triggers| triggers.trig_insert_before_row);
            if self.has_computed_columns() {
                self.are_as_given = false;
                pg_sys::ExecSimpleRelationInsert(target, estate, slot);
            } else if !has_before || pg_sys::ExecBRInsertTriggers(estate, target, slot) {
                pg_sys::slot_getallattrs(slot);
                self.are_as_given &= !has_before || self.slots[0].has(cells);
                self.require_constraints(&[slot]);
                let mut entries = self.entries(&[slot], &[None]);
                // Triggers may have begun new commands.
                let command = pg_sys::GetCurrentCommandId(true);
                let table = (*target).ri_RelationDesc;
                pg_sys::table_tuple_insert(table, slot, command, 0, ptr::null_mut());
                let again = self.insert_entries(&mut entries, &[slot]);
                pg_sys::ExecARInsertTriggers(estate, target, slot, again, ptr::null_mut());
            }
        }
        self.require_inserted(0);
    }

    /// Fails unless the rows in these slots keep the constraints of the table.
    ///
    /// # Errors
    /// `23514`, `23502`.
    unsafe fn require_constraints(&self, slots: &[*mut pg_sys::TupleTableSlot]) {
        // SAFETY: the table is open, and the slots have rows of it.
        unsafe {
            let table = (*self.target).ri_RelationDesc;
            if !(*(*table).rd_att).constr.is_null() {
                for &slot in slots {
                    pg_sys::ExecConstraints(self.target, slot, self.estate);
                }
            }
        }
    }

    /// The entries of the rows in these slots for each of the quick keys.
    ///
    /// # Safety
    /// The slots have values for all columns.
    unsafe fn entries(
        &self,
        slots: &[*mut pg_sys::TupleTableSlot],
        gaps: &[Option<Gap>],
    ) -> Vec<Vec<Entry<2>>> {
        let of_key = |key: &QuickKey| {
            // SAFETY: as above.
            unsafe { key.entries(slots, gaps) }
        };
        self.quick_keys.iter().map(of_key).collect()
    }

    /// Adds the rows that were written from `slots` to the indexes. Returns the indexes in which the last one may not be
    /// unique, and must be looked for again.
    unsafe fn insert_entries(
        &self,
        entries: &mut [Vec<Entry<2>>],
        slots: &[*mut pg_sys::TupleTableSlot],
    ) -> *mut pg_sys::List {
        // SAFETY: the indexes of the target are open for writing, and the slots have rows of its table.
        unsafe {
            let target = &mut *self.target;
            let indexes = target.ri_NumIndices;
            let others = indexes as usize - entries.len();
            for (i, entries) in (others..).zip(entries) {
                self.insert_entries_of(i, self.quick_keys[i - others], entries, slots);
            }
            let mut again = ptr::null_mut();
            if others > 0 {
                target.ri_NumIndices = others as i32;
                for &slot in slots {
                    again = pg_sys::ExecInsertIndexTuples(
                        target,
                        slot,
                        self.estate,
                        false,
                        false,
                        ptr::null_mut(),
                        ptr::null_mut(),
                        #[cfg(not(feature = "pg15"))]
                        false,
                    );
                }
                target.ri_NumIndices = indexes;
            }
            again
        }
    }

    /// Adds the rows that were written from `slots` to index `i` of the target, which is of `key`. The rest of the slots, from
    /// the first without an entry on, and what the index may have are left to PostgreSQL.
    unsafe fn insert_entries_of(
        &self,
        i: usize,
        key: QuickKey,
        entries: &mut [Entry<2>],
        slots: &[*mut pg_sys::TupleTableSlot],
    ) {
        // SAFETY: the target has the index, open for writing, and the slots have rows of its table.
        unsafe {
            for (entry, &slot) in entries.iter_mut().zip(slots) {
                entry.row = (*slot).tts_tid;
            }
            let index = *(*self.target).ri_IndexRelationDescs.add(i);
            let mut done = 0;
            while let Some(&slot) = slots.get(done) {
                let inserted = btree::insert(index, key.kinds, entries.get(done..).unwrap_or(&[]));
                if inserted == 0 {
                    let unique = pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES;
                    self.insert_entry(i, slot, unique, false);
                }
                done += inserted.max(1);
            }
        }
    }

    /// Adds the row in `slot` to index `i` of the target.
    unsafe fn insert_entry(
        &self,
        i: usize,
        slot: *mut pg_sys::TupleTableSlot,
        unique: pg_sys::IndexUniqueCheck::Type,
        is_unchanged: bool,
    ) {
        // SAFETY: the target has the index, and the slot a row of its table. An index has at most `INDEX_MAX_KEYS` columns.
        unsafe {
            let target = &*self.target;
            let info = *target.ri_IndexRelationInfo.add(i);
            let mut values = [Datum::null(); pg_sys::INDEX_MAX_KEYS as usize];
            let mut nulls = [false; pg_sys::INDEX_MAX_KEYS as usize];
            let (values, nulls) = (values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::FormIndexDatum(info, slot, self.estate, values, nulls);
            pg_sys::index_insert(
                *target.ri_IndexRelationDescs.add(i),
                values,
                nulls,
                &mut (*slot).tts_tid,
                target.ri_RelationDesc,
                unique,
                is_unchanged,
                info,
            );
        }
    }

    /// Checks the nulls of a row that was written against their domains. In SQL an expression checks its value, but
    /// here no expression made the nulls.
    ///
    /// # Errors
    /// `23502`, `23514`.
    fn require_domains(&self, row: usize) {
        let slot = &self.slots[row];
        // SAFETY: the slot holds a row with that many columns; a null needs no value. A dropped column has
        // no type, so it has no domain.
        unsafe {
            pg_sys::slot_getallattrs(slot.0);
            let table = (*(*self.target).ri_RelationDesc).rd_id;
            for i in (0..slot.columns()).filter(|&i| *(*slot.0).tts_isnull.add(i)) {
                let domain = pg_sys::get_atttype(table, i as pg_sys::AttrNumber + 1);
                if pg_sys::get_typtype(domain) as u8 == pg_sys::TYPTYPE_DOMAIN {
                    let (cache, memory) = (ptr::null_mut(), ptr::null_mut());
                    pg_sys::domain_check(Datum::null(), true, domain, cache, memory);
                }
            }
        }
    }

    /// Sets these columns of `row`, which this transaction has locked.
    ///
    /// # Errors
    /// As for `insert`.
    pub fn update(&mut self, row: Row<'_>, cells: &[Cell]) {
        self.prepare_updates();
        self.put(row, cells);
        let (old, new) = (row.0.0, self.slots[0].0);
        // SAFETY: both slots have the table's descriptor; the old one outlives the new one's row.
        unsafe {
            // Used only by row triggers, and then only if another transaction changed the row.
            let mut recheck = pg_sys::EPQState::default();
            pg_sys::EvalPlanQualInit(
                &mut recheck,
                self.estate,
                ptr::null_mut(),
                ptr::null_mut(),
                -1,
                #[cfg(not(feature = "pg15"))]
                ptr::null_mut(),
            );
            pg_sys::ExecSimpleRelationUpdate(self.target, self.estate, &mut recheck, old, new);
            pg_sys::EvalPlanQualEnd(&mut recheck);
        }
        self.require_written(0);
        self.write_kept_keys();
    }

    /// Returns true if an update of this table is only a new version of the row, and writes to no indexes but those of the
    /// kept keys: no trigger fires, and no column is computed.
    pub fn is_plain(&self) -> bool {
        // SAFETY: the target is initialised.
        let target = unsafe { &*self.target };
        target.ri_TrigDesc.is_null() && target.ri_NumIndices == 0 && !self.has_computed_columns()
    }

    /// Returns true if columns are computed on writing, or the table is a partition, which has a constraint of its own.
    fn has_computed_columns(&self) -> bool {
        // SAFETY: the table is open.
        unsafe {
            let table = &*(*self.target).ri_RelationDesc;
            let constraints = (*table.rd_att).constr.as_ref();
            constraints.is_some_and(|constraints| constraints.has_generated_stored)
                || (*table.rd_rel).relispartition
        }
    }

    /// Sets these columns of `row`, which this transaction has not locked, in a table that [is plain](Self::is_plain).
    /// Writes nothing and returns false if another transaction has changed or deleted the row since it was found. It
    /// waits for one that has locked it.
    ///
    /// # Errors
    /// `23514`, `23502` if a constraint is violated; `55P03`, `57014`, `40P01` as for any lock.
    pub fn update_unlocked(&mut self, row: Row<'_>, cells: &[Cell]) -> bool {
        self.put(row, cells);
        let (old, new) = (row.0.0, self.slots[0].0);
        let mut failure = pg_sys::TM_FailureData::default();
        let (mut lock_mode, mut update_indexes) = Default::default();
        // SAFETY: both slots have the table's descriptor, and the old one holds a row found under the active snapshot.
        // These are the steps of `ExecSimpleRelationUpdate` for such a table, which fails if the row has changed.
        let result = unsafe {
            let table = (*self.target).ri_RelationDesc;
            pg_sys::CheckCmdReplicaIdentity(table, pg_sys::CmdType::CMD_UPDATE);
            pg_sys::ExecConstraints(self.target, new, self.estate);
            pg_sys::table_tuple_update(
                table,
                &mut (*old).tts_tid,
                new,
                (*self.estate).es_output_cid,
                (*self.estate).es_snapshot,
                ptr::null_mut(),
                true,
                &mut failure,
                &mut lock_mode,
                &mut update_indexes,
            )
        };
        let is_written = result == pg_sys::TM_Result::TM_Ok;
        if is_written {
            self.write_kept_keys();
        }
        is_written
    }

    /// Puts the new version of `row`, with these columns set, into the slot.
    fn put(&mut self, row: Row<'_>, cells: &[Cell]) {
        self.insert_gathered();
        let (old, new) = (row.0.0, self.slots[0].0);
        // SAFETY: both slots have the table's descriptor; the old one outlives the new one's row.
        unsafe {
            pg_sys::slot_getallattrs(old);
            pg_sys::ExecClearTuple(new);
            let columns = self.slots[0].columns();
            ptr::copy_nonoverlapping((*old).tts_values, (*new).tts_values, columns);
            ptr::copy_nonoverlapping((*old).tts_isnull, (*new).tts_isnull, columns);
            self.slots[0].put(cells);
            pg_sys::ExecStoreVirtualTuple(new);
        }
    }

    /// Adds the row last written to the indexes of the kept keys, unless it is reached by the entries of the version
    /// before.
    fn write_kept_keys(&mut self) {
        let slot = self.slots[0].0;
        // SAFETY: the slot holds the version that was written.
        let is_heap_only = unsafe {
            let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, false, ptr::null_mut());
            u32::from((*(*tuple).t_data).t_infomask2) & pg_sys::HEAP_ONLY_TUPLE != 0
        };
        if is_heap_only {
            return;
        }
        self.prepare_inserts();
        // SAFETY: `kept_keys` indexes follow the others.
        unsafe {
            let first = (*self.target).ri_NumIndices as usize;
            for i in first..first + self.kept_keys {
                let unique = pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO;
                self.insert_entry(i, slot, unique, true);
            }
        }
    }

    /// Deletes `row`, which must not have changed since it was found.
    ///
    /// # Errors
    /// Any error of a trigger; `XX000` if another session deletes or changes the row at the same moment.
    pub fn delete(&mut self, row: Row<'_>) {
        self.insert_gathered();
        // SAFETY: the slot holds a row of the table, found under the active snapshot.
        unsafe {
            let mut recheck = pg_sys::EPQState::default();
            pg_sys::EvalPlanQualInit(
                &mut recheck,
                self.estate,
                ptr::null_mut(),
                ptr::null_mut(),
                -1,
                #[cfg(not(feature = "pg15"))]
                ptr::null_mut(),
            );
            pg_sys::ExecSimpleRelationDelete(self.target, self.estate, &mut recheck, row.0.0);
            pg_sys::EvalPlanQualEnd(&mut recheck);
        }
    }

    /// The row last written, as triggers left it.
    pub fn written(&self) -> Row<'_> {
        Row(&self.slots[0])
    }

    /// Fails unless the row in this slot was inserted, with nulls that its domains allow.
    ///
    /// # Errors
    /// `09000`, `23502`, `23514`.
    fn require_inserted(&self, row: usize) {
        self.require_written(row);
        if self.have_other_columns {
            self.require_domains(row);
        }
    }

    /// Fails if a trigger suppressed the write of a row.
    ///
    /// # Errors
    /// `09000`.
    fn require_written(&self, row: usize) {
        let slot = self.slots[row].0;
        // SAFETY: a row that was written has a tuple identifier; one that is only in the slot has none.
        let written = unsafe { pgrx::itemptr::item_pointer_is_valid(&(*slot).tts_tid) };
        if !written {
            errors::refuse_triggers_change("a trigger suppressed a write of the claim");
        }
    }

    /// Ends writing: inserts what is gathered, and fires the triggers that run after the writes.
    ///
    /// # Errors
    /// As for `insert`.
    pub fn end(&mut self) {
        self.insert_gathered();
        // SAFETY: `begin` came before.
        unsafe { pg_sys::AfterTriggerEndQuery(self.estate) };
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: made by `new`, freed only here.
            unsafe {
                (*self.target).ri_NumIndices += self.kept_keys as i32;
                pg_sys::ExecCloseIndices(self.target);
                // The relations that triggers opened, if any.
                pg_sys::ExecCloseResultRelations(self.estate);
                pg_sys::ExecResetTupleTable((*self.estate).es_tupleTable, false);
                pg_sys::FreeExecutorState(self.estate);
            }
        }
    }
}

/// Takes the triggers that call `function` out of the target's own copy of its table's triggers. If none
/// is left, the update does not fetch the old row, either.
///
/// # Safety
/// `target` is initialised and has fired nothing yet.
unsafe fn leave_out(target: &mut pg_sys::ResultRelInfo, function: pg_sys::Oid) {
    // SAFETY: InitResultRelInfo copied the descriptor, with an array of `numtriggers`.
    unsafe {
        let Some(description) = target.ri_TrigDesc.as_mut() else {
            return;
        };
        let triggers =
            std::slice::from_raw_parts_mut(description.triggers, description.numtriggers as usize);
        let mut kept = 0;
        for i in 0..triggers.len() {
            if triggers[i].tgfoid != function {
                triggers.swap(kept, i);
                kept += 1;
            }
        }
        description.numtriggers = kept as i32;
        if kept == 0 {
            target.ri_TrigDesc = ptr::null_mut();
        }
    }
}
