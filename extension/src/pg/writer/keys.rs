//! Keys of a table, by the columns of their indexes.

use std::ptr;

use pgrx::pg_sys::{self, Datum};

use crate::pg::btree::{self, Entry, Gap, Kind};
use crate::pg::relation::Relation;

/// A unique key of two columns into whose index `btree::insert` can insert.
#[derive(Clone, Copy)]
pub(super) struct QuickKey {
    pub kinds: [Kind; 2],
    attributes: [usize; 2],
}

impl QuickKey {
    /// The key of `index`; none if it is no such key, or the transaction is serializable.
    ///
    /// # Safety
    /// The index is open for writing.
    pub unsafe fn of(index: pg_sys::Relation) -> Option<QuickKey> {
        // SAFETY: the index has its row in `pg_index`, with a number for each of its columns: 0 stands for an expression.
        unsafe {
            let kinds = btree::kinds(index)?;
            let columns = (*(*index).rd_index).indkey.values.as_slice(2);
            let attributes = [columns[0] as usize, columns[1] as usize];
            let is_quick = pg_sys::XactIsoLevel < pg_sys::XACT_SERIALIZABLE as i32
                && columns.iter().all(|&column| column > 0)
                && is_key_of((*index).rd_indextuple, &attributes)
                && btree::is_logged(index);
            is_quick.then_some(QuickKey { kinds, attributes })
        }
    }

    /// The entries of the rows that are to be written from `slots`, up to the first with a null; their places are set
    /// later.
    ///
    /// # Safety
    /// The slots have values for all columns.
    pub unsafe fn entries(
        self,
        slots: &[*mut pg_sys::TupleTableSlot],
        gaps: &[Option<Gap>],
    ) -> Vec<Entry<2>> {
        let entry = |(&slot, &gap): (&*mut pg_sys::TupleTableSlot, &Option<Gap>)| {
            // SAFETY: as above.
            let value = |attribute: usize| unsafe {
                let is_null = *(*slot).tts_isnull.add(attribute - 1);
                (!is_null).then(|| *(*slot).tts_values.add(attribute - 1))
            };
            Some(Entry {
                key: [value(self.attributes[0])?, value(self.attributes[1])?],
                row: pg_sys::ItemPointerData::default(),
                gap,
            })
        };
        slots.iter().zip(gaps).map_while(entry).collect()
    }
}

/// Returns true if all indexes of `table` are those of keys of some of these columns.
///
/// # Safety
/// The table is open and locked.
pub(super) unsafe fn has_only_keys_of(table: &Relation, columns: &[usize]) -> bool {
    // SAFETY: the list and the tuples of the system cache are valid until they are released; an index of a locked table
    // is not dropped.
    unsafe {
        let indexes = pg_sys::RelationGetIndexList(table.0);
        let list = pgrx::PgList::<()>::from_pg(indexes);
        list.iter_oid().all(|oid| {
            let cache = pg_sys::SysCacheIdentifier::INDEXRELID as i32;
            let tuple = pg_sys::SearchSysCache1(cache, Datum::from(oid));
            if tuple.is_null() {
                return false;
            }
            let is_key = is_key_of(tuple, columns);
            pg_sys::ReleaseSysCache(tuple);
            is_key
        })
    }
}

/// Returns true if the index with this row in `pg_index` is that of a key of some of these columns, whose duplicates are
/// searched for at once, and which is written to.
///
/// # Safety
/// It is a row of `pg_index`.
pub(super) unsafe fn is_key_of(tuple: pg_sys::HeapTuple, columns: &[usize]) -> bool {
    // SAFETY: a row has its fixed columns, and as many numbers of columns as it says.
    unsafe {
        let index = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_index>();
        let predicate = pg_sys::Anum_pg_index_indpred as i32;
        index.indisunique
            && index.indimmediate
            && index.indisready
            && !index.indisexclusion
            && pg_sys::heap_attisnull(tuple, predicate, ptr::null_mut())
            && (index.indkey.values.as_slice(index.indnatts as usize))
                .iter()
                .all(|&attribute| columns.iter().any(|&column| column as i16 == attribute))
    }
}
