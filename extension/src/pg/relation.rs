//! Open tables and indexes, and their rows.

use std::ffi::CStr;
use std::ptr;

use pgrx::error;
use pgrx::pg_sys::{self, Datum};

use crate::pg::btree;
use crate::pg::column::{Cell, Column, Value};

unsafe extern "C-unwind" {
    // pgrx does not declare it.
    fn datum_image_eq(one: Datum, other: Datum, is_by_value: bool, length: i32) -> bool;
}

/// An open table or index; its lock is held until the transaction ends.
pub struct Relation(pub(super) pg_sys::Relation);

impl Relation {
    /// Opens the table `oid` as a `select` does.
    pub fn table(oid: pg_sys::Oid) -> Relation {
        // SAFETY: raises an error unless `oid` is a table.
        Relation(unsafe { pg_sys::table_open(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE) })
    }

    /// Opens the index `oid` as a `select` does.
    pub fn index(oid: pg_sys::Oid) -> Relation {
        // SAFETY: raises an error unless `oid` is an index.
        unsafe {
            let index = pg_sys::index_open(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            btree::quicken(index);
            Relation(index)
        }
    }

    /// Returns true if it has triggers other than PostgreSQL's own and those that call the function `ours`.
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

    /// The column called `name`, with values of the type with the OID `type_oid`, if there is one. Columns that
    /// a release has added are found by name: users may have added columns of their own before.
    pub fn column<T: Value>(&self, name: &CStr, type_oid: pg_sys::Oid) -> Option<Column<T>> {
        // SAFETY: the relation is open; its descriptor has an entry for each of its columns, whose name is a C
        // string.
        unsafe {
            let descriptor = (*self.0).rd_att;
            (0..(*descriptor).natts as usize).rev().find_map(|i| {
                let attribute = &*attribute(descriptor, i);
                (CStr::from_ptr(attribute.attname.data.as_ptr()) == name
                    && attribute.atttypid == type_oid
                    && !attribute.attisdropped)
                    .then(|| Column::new(i + 1))
            })
        }
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

/// The entry of column `i`, which counts from 0.
///
/// # Safety
/// The descriptor is valid and has that column.
unsafe fn attribute(
    descriptor: pg_sys::TupleDesc,
    i: usize,
) -> *const pg_sys::FormData_pg_attribute {
    #[cfg(not(feature = "pg18"))]
    // SAFETY: as above.
    unsafe {
        (*descriptor).attrs.as_ptr().add(i)
    }
    #[cfg(feature = "pg18")]
    // SAFETY: as above.
    unsafe {
        pg_sys::TupleDescAttr(descriptor, i as i32)
    }
}

/// Room for one row of a table.
pub(super) struct Slot(pub(super) *mut pg_sys::TupleTableSlot);

impl Slot {
    pub(super) fn new(table: &Relation) -> Slot {
        // SAFETY: the table is open; `drop` frees the slot.
        Slot(unsafe { pg_sys::table_slot_create(table.0, ptr::null_mut()) })
    }

    pub(super) fn columns(&self) -> usize {
        // SAFETY: a slot made by `new` has a descriptor.
        unsafe { (*(*self.0).tts_tupleDescriptor).natts as usize }
    }

    /// Returns true if the row has these values.
    ///
    /// # Safety
    /// The slot has a row of its table, with the values of all columns, and they are of the types of their columns.
    pub(super) unsafe fn has(&self, cells: &[Cell]) -> bool {
        // SAFETY: as above.
        unsafe {
            let slot = &*self.0;
            cells.iter().all(|cell| {
                let i = cell.attribute - 1;
                let (value, is_null) = (*slot.tts_values.add(i), *slot.tts_isnull.add(i));
                if is_null || cell.is_null {
                    return is_null && cell.is_null;
                }
                let attribute = &*attribute(slot.tts_tupleDescriptor, i);
                let (is_by_value, length) = (attribute.attbyval, i32::from(attribute.attlen));
                value == cell.value
                    || pg_sys::ffi::pg_guard_ffi_boundary(|| {
                        datum_image_eq(value, cell.value, is_by_value, length)
                    })
            })
        }
    }

    /// The attribute number, if there is such a column.
    fn require(&self, attribute: usize) -> usize {
        if attribute > self.columns() {
            error!("column {attribute} of a honcho table is missing");
        }
        attribute
    }

    /// Puts values into the slot's arrays, to be stored as a row.
    pub(super) fn put(&mut self, cells: &[Cell]) {
        for cell in cells {
            let attribute = self.require(cell.attribute);
            // SAFETY: the arrays have as many elements as the descriptor has columns.
            unsafe {
                *(*self.0).tts_values.add(attribute - 1) = cell.value;
                *(*self.0).tts_isnull.add(attribute - 1) = cell.is_null;
            }
        }
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

/// A version of a row, to be found again without a search. After the transaction, another may be in its place.
#[derive(Clone, Copy)]
pub struct Version {
    pub(super) place: pg_sys::ItemPointerData,
    /// The transaction that wrote it.
    pub written_by: pg_sys::TransactionId,
}

/// The row in a slot.
#[derive(Clone, Copy)]
pub struct Row<'a>(pub(super) &'a Slot);

impl Row<'_> {
    /// The value in `column`; none for null.
    pub fn get<T: Value>(self, column: Column<T>) -> Option<T> {
        let slot = self.0.0;
        let attribute = self.0.require(column.attribute());
        // SAFETY: the slot holds a row that has this attribute; a column has the type that
        // sql/tables.sql gives it.
        unsafe {
            if ((*slot).tts_nvalid as usize) < attribute {
                pg_sys::slot_getsomeattrs(slot, attribute as i32);
            }
            (!*(*slot).tts_isnull.add(attribute - 1))
                .then(|| T::from_datum(*(*slot).tts_values.add(attribute - 1)))
        }
    }

    /// Reads all columns at once, if most of them will be needed.
    pub fn read(self) {
        // SAFETY: the slot holds a row.
        unsafe { pg_sys::slot_getallattrs(self.0.0) };
    }

    /// This version of the row.
    pub fn version(self) -> Version {
        Version {
            // SAFETY: the slot holds a row.
            place: unsafe { (*self.0.0).tts_tid },
            written_by: self.written_by(),
        }
    }

    /// Returns true if a transaction has locked or changed this version, as far as its header says: one that is in
    /// progress, or one that has ended and only locked it.
    pub fn may_be_locked(self) -> bool {
        // SAFETY: as in `written_by`.
        unsafe {
            let tuple = pg_sys::ExecFetchSlotHeapTuple(self.0.0, false, ptr::null_mut());
            u32::from((*(*tuple).t_data).t_infomask) & pg_sys::HEAP_XMAX_INVALID == 0
        }
    }

    /// The version that a transaction has written in place of this one, whether it has committed or not; none if there
    /// is none.
    pub(super) fn successor(self) -> Option<Version> {
        // SAFETY: the slot holds a heap row in a page that is pinned. An update changes the header under the page's lock.
        unsafe {
            let buffer = (*self.0.0.cast::<pg_sys::BufferHeapTupleTableSlot>()).buffer;
            let tuple = pg_sys::ExecFetchSlotHeapTuple(self.0.0, false, ptr::null_mut());
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            let header = (*tuple).t_data;
            let place = (*header).t_ctid;
            let flags = u32::from((*header).t_infomask);
            let locks = flags & (pg_sys::HEAP_XMAX_IS_MULTI | pg_sys::HEAP_LOCK_MASK);
            let is_changed = flags & (pg_sys::HEAP_XMAX_INVALID | pg_sys::HEAP_XMAX_LOCK_ONLY) == 0
                && locks != pg_sys::HEAP_XMAX_EXCL_LOCK;
            let written_by = match flags & pg_sys::HEAP_XMAX_IS_MULTI {
                _ if !is_changed => pg_sys::InvalidTransactionId,
                0 => (*header).t_choice.t_heap.t_xmax,
                _ => pg_sys::HeapTupleGetUpdateXid(header),
            };
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
            let own = (*tuple).t_self;
            let is_own = (own.ip_blkid.bi_hi, own.ip_blkid.bi_lo, own.ip_posid)
                == (place.ip_blkid.bi_hi, place.ip_blkid.bi_lo, place.ip_posid);
            (is_changed && !is_own).then_some(Version { place, written_by })
        }
    }

    /// The transaction that wrote this version, also if the version has been frozen since, for freezing keeps
    /// the id. So it may be the id of a transaction long ago.
    pub fn written_by(self) -> pg_sys::TransactionId {
        // SAFETY: the slot holds a heap row (`using heap`), so this copies nothing.
        unsafe {
            let tuple = pg_sys::ExecFetchSlotHeapTuple(self.0.0, false, ptr::null_mut());
            (*(*tuple).t_data).t_choice.t_heap.t_xmin
        }
    }
}
