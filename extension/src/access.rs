//! PostgreSQL's access methods, as the claim needs them: snapshots, index look-ups, row locks, writes.
//!
//! These are the calls that the executor and logical replication make, without a plan in between:
//! visibility, row locks, constraints, indexes, users' triggers and serializable conflicts are those
//! of any SQL statement, for a fraction of its time. After an error nothing is cleaned up here:
//! PostgreSQL releases locks, pins and snapshots as the transaction aborts, so each `drop` does
//! nothing while a panic (which is how pgrx carries an error) unwinds.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr;

use pgrx::pg_sys::{self, Datum};
use pgrx::{IntoDatum, PgSqlErrorCode, direct_function_call, ereport, error};

/// The most columns that an index look-up names.
const MAX_KEYS: usize = 2;

/// A text as the tables store it: a varlena in the memory context current when it was made.
#[derive(Clone, Copy)]
pub struct Text(Datum);

impl Text {
    /// Copies `value` into the current memory context.
    pub fn new(value: &str) -> Text {
        Text(value.into_datum().unwrap_or(Datum::null()))
    }

    /// The value as a column takes it.
    pub fn datum(self) -> Datum {
        self.0
    }
}

/// The clock, in microseconds as PostgreSQL counts them.
pub fn now() -> i64 {
    // SAFETY: takes and touches nothing.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// The next value of `sequence`.
pub fn next_value(sequence: pg_sys::Oid) -> Datum {
    // SAFETY: `nextval_oid` takes one OID and returns a bigint, never null.
    let value =
        unsafe { direct_function_call::<i64>(pg_sys::nextval_oid, &[sequence.into_datum()]) };
    Datum::from(value.unwrap_or_default())
}

/// Makes what was written visible to the later commands of this transaction.
pub fn next_command() {
    // SAFETY: we are in a transaction, and not in a parallel worker, where a write had failed.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Refuses to go on where nothing may be written: a read-only transaction, a standby.
///
/// # Errors
/// `25006`, naming `command`.
pub fn require_writable(command: &CStr) {
    // SAFETY: a valid C string; an error leaves through pgrx's guard.
    unsafe { pg_sys::PreventCommandIfReadOnly(command.as_ptr()) };
}

/// Refuses what a trigger has made of a claim.
///
/// # Errors
/// `09000`, with `message`.
pub fn refuse_triggers_change(message: &'static str) -> ! {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_TRIGGERED_ACTION_EXCEPTION,
        message
    );
}

/// An open table or index; its lock is held until the transaction ends.
pub struct Relation(pg_sys::Relation);

impl Relation {
    /// Opens the table `oid` as a `select` does.
    pub fn table(oid: pg_sys::Oid) -> Relation {
        // SAFETY: raises an error unless `oid` is a table.
        Relation(unsafe { pg_sys::table_open(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE) })
    }

    /// Opens the index `oid` as a `select` does.
    pub fn index(oid: pg_sys::Oid) -> Relation {
        // SAFETY: raises an error unless `oid` is an index.
        Relation(unsafe { pg_sys::index_open(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE) })
    }

    /// Returns true if it has triggers besides PostgreSQL's own and those that call the function `ours`.
    pub fn has_user_triggers(&self, ours: Option<pg_sys::Oid>) -> bool {
        // SAFETY: the relation is open; its triggers are an array of `numtriggers`.
        unsafe {
            (*self.0).trigdesc.as_ref().is_some_and(|description| {
                let count = description.numtriggers as usize;
                let triggers = std::slice::from_raw_parts(description.triggers, count);
                triggers
                    .iter()
                    .any(|trigger| !trigger.tgisinternal && Some(trigger.tgfoid) != ours)
            })
        }
    }

    /// Its name.
    pub fn name(&self) -> &CStr {
        // SAFETY: the relation is open; its name is a C string in its entry of the relation cache.
        unsafe { CStr::from_ptr((*(*self.0).rd_rel).relname.data.as_ptr()) }
    }

    /// Its OID.
    pub fn oid(&self) -> pg_sys::Oid {
        // SAFETY: the relation is open.
        unsafe { (*self.0).rd_id }
    }
}

impl Drop for Relation {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by `table` or `index`, closed only here.
            unsafe { pg_sys::relation_close(self.0, pg_sys::NoLock as pg_sys::LOCKMODE) };
        }
    }
}

/// The active snapshot, from `push` to `drop`.
pub struct Snapshot(());

impl Snapshot {
    /// Makes the transaction's snapshot the active one: under read committed, a new one.
    pub fn push() -> Snapshot {
        // SAFETY: we are in a transaction; `drop` pops what is pushed here.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        Snapshot(())
    }

    /// Makes a snapshot of this moment the active one, at every isolation level.
    pub fn push_latest() -> Snapshot {
        // SAFETY: as above.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
        Snapshot(())
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: pushed by `push`; all that is pushed later is popped earlier.
            unsafe { pg_sys::PopActiveSnapshot() };
        }
    }
}

/// Room for one row of a table.
struct Slot(*mut pg_sys::TupleTableSlot);

impl Slot {
    fn new(table: &Relation) -> Slot {
        // SAFETY: the table is open; `drop` frees the slot.
        Slot(unsafe { pg_sys::table_slot_create(table.0, ptr::null_mut()) })
    }

    fn columns(&self) -> usize {
        // SAFETY: a slot made by `new` has a descriptor.
        unsafe { (*(*self.0).tts_tupleDescriptor).natts as usize }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: made by `new`, freed only here.
            unsafe { pg_sys::ExecDropSingleTupleTableSlot(self.0) };
        }
    }
}

/// A row that a [`Lookup`] found.
#[derive(Clone, Copy)]
pub struct Row<'a>(&'a Slot);

impl Row<'_> {
    /// The value of the column with this attribute number; none for null.
    pub fn get(self, attribute: usize) -> Option<Datum> {
        let slot = self.0.0;
        // SAFETY: the slot holds a row; the attribute number is checked against its descriptor.
        unsafe {
            if attribute > self.0.columns() {
                error!("column {attribute} of a honcho table is missing");
            }
            pg_sys::slot_getsomeattrs(slot, attribute as i32);
            (!*(*slot).tts_isnull.add(attribute - 1))
                .then(|| *(*slot).tts_values.add(attribute - 1))
        }
    }

    /// Whether the text column with this attribute number has this value.
    fn is(self, attribute: usize, value: Text) -> bool {
        let arguments = [self.get(attribute), Some(value.0)];
        // SAFETY: both are varlenas, and texts of equal bytes are equal.
        unsafe { direct_function_call::<bool>(pg_sys::byteaeq, &arguments) }.unwrap_or(false)
    }

    /// The transaction that wrote this version, even if the version has been frozen since: freezing
    /// keeps it. It is up to the caller to tell one that is long past from one of now.
    pub fn written_by(self) -> pg_sys::TransactionId {
        // SAFETY: the slot holds a heap row (`using heap`), so this copies nothing.
        unsafe {
            let tuple = pg_sys::ExecFetchSlotHeapTuple(self.0.0, false, ptr::null_mut());
            (*(*tuple).t_data).t_choice.t_heap.t_xmin
        }
    }
}

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
                self.keys[i].sk_argument = value.0;
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

/// Writes rows of one table: constraints, indexes and row triggers included. As when logical
/// replication applies a row, there is no statement, so statement triggers do not fire.
///
/// Made, it has locked the table as an `insert` or `update` does and opened its indexes; between
/// `begin` and `end` it writes.
pub struct Writer<'t> {
    estate: *mut pg_sys::EState,
    target: *mut pg_sys::ResultRelInfo,
    slot: Slot,
    table: PhantomData<&'t Relation>,
}

impl<'t> Writer<'t> {
    /// Prepares to write to `table`. Its triggers fire, but not those that call the function `ours`
    /// unless users' triggers may have changed what it looks at.
    pub fn new(table: &'t Relation, ours: Option<pg_sys::Oid>) -> Writer<'t> {
        let slot = Slot::new(table);
        // SAFETY: the table stays open while the writer lives; what is made here is freed by `drop`,
        // or with the transaction's memory after an error.
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
            crate::checks::attach(&mut *target);
            pg_sys::ExecOpenIndices(target, false);
            Writer {
                estate,
                target,
                slot,
                table: PhantomData,
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

    /// Inserts a row with these values by attribute number; the other columns are null.
    ///
    /// # Errors
    /// `23505`, `23514`, `23502` if a constraint is violated, also one of a domain; whatever a trigger
    /// raises.
    pub fn insert(&mut self, values: &[(usize, Datum)]) {
        let slot = self.slot.0;
        // SAFETY: attribute numbers are checked against the descriptor that sized the arrays.
        unsafe {
            pg_sys::ExecClearTuple(slot);
            for i in 0..self.slot.columns() {
                *(*slot).tts_isnull.add(i) = true;
            }
            for &(attribute, value) in values {
                if attribute > self.slot.columns() {
                    error!("column {attribute} of a honcho table is missing");
                }
                *(*slot).tts_values.add(attribute - 1) = value;
                *(*slot).tts_isnull.add(attribute - 1) = false;
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            pg_sys::ExecSimpleRelationInsert(self.target, self.estate, slot);
        }
        self.require_written();
        if self.slot.columns() > values.len() {
            self.require_domains();
        }
    }

    /// Checks the nulls that were written against their domains. SQL checks a value as it makes it, and
    /// nothing made these.
    ///
    /// # Errors
    /// `23502`, `23514`.
    fn require_domains(&self) {
        // SAFETY: the slot holds a row with so many columns; a null needs no value. The type of a
        // dropped column is none, which is no domain.
        unsafe {
            let slot = self.slot.0;
            pg_sys::slot_getallattrs(slot);
            let table = (*(*self.target).ri_RelationDesc).rd_id;
            for i in (0..self.slot.columns()).filter(|&i| *(*slot).tts_isnull.add(i)) {
                let domain = pg_sys::get_atttype(table, i as pg_sys::AttrNumber + 1);
                if pg_sys::get_typtype(domain) as u8 == pg_sys::TYPTYPE_DOMAIN {
                    let (cache, memory) = (ptr::null_mut(), ptr::null_mut());
                    pg_sys::domain_check(Datum::null(), true, domain, cache, memory);
                }
            }
        }
    }

    /// Sets one column of `row`, which this transaction has locked.
    ///
    /// # Errors
    /// As for `insert`.
    pub fn update(&mut self, row: Row<'_>, attribute: usize, value: Datum) {
        let (old, new) = (row.0.0, self.slot.0);
        // SAFETY: both slots have the table's descriptor; the old one outlives the new one's row.
        unsafe {
            pg_sys::slot_getallattrs(old);
            pg_sys::ExecClearTuple(new);
            let columns = self.slot.columns();
            ptr::copy_nonoverlapping((*old).tts_values, (*new).tts_values, columns);
            ptr::copy_nonoverlapping((*old).tts_isnull, (*new).tts_isnull, columns);
            *(*new).tts_values.add(attribute - 1) = value;
            pg_sys::ExecStoreVirtualTuple(new);
            // Consulted only by row triggers, and then only if someone else changed the row.
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
        self.require_written();
    }

    /// The row last written, as triggers left it.
    pub fn written(&self) -> Row<'_> {
        Row(&self.slot)
    }

    /// Fails if a trigger kept the row in the slot from being written.
    ///
    /// # Errors
    /// `09000`.
    fn require_written(&self) {
        // SAFETY: a row that is written has its place; one that is only put into the slot has none.
        let written = unsafe { pgrx::itemptr::item_pointer_is_valid(&(*self.slot.0).tts_tid) };
        if !written {
            refuse_triggers_change("a trigger suppressed a write of the claim");
        }
    }

    /// Ends writing: fires the triggers that were put off until then.
    pub fn end(&mut self) {
        // SAFETY: `begin` came before.
        unsafe { pg_sys::AfterTriggerEndQuery(self.estate) };
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: made by `new`, freed only here.
            unsafe {
                pg_sys::ExecCloseIndices(self.target);
                // What the triggers opened, if there were any.
                pg_sys::ExecCloseResultRelations(self.estate);
                pg_sys::ExecResetTupleTable((*self.estate).es_tupleTable, false);
                pg_sys::FreeExecutorState(self.estate);
            }
        }
    }
}

/// Takes the triggers that call `function` out of the target's own copy of its table's triggers. Left
/// with none, it does not fetch the row that was there before, either.
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
