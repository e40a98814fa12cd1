//! Insertions of keys that an index does not have.

use std::ptr;

use pgrx::pg_sys::{self, Datum};
use pgrx::varlena;

use super::page::Page;
use super::search::{Gap, Leaf, descend, values};
use super::{Kind, UnlockReleaseBuffer, Value};

unsafe extern "C-unwind" {
    // Not pgrx's declarations, as in the module above.
    fn MarkBufferDirty(buffer: pg_sys::Buffer);
    fn PageAddItemExtended(
        page: *mut u8,
        item: *const u8,
        size: usize,
        number: pg_sys::OffsetNumber,
        flags: i32,
    ) -> pg_sys::OffsetNumber;
    fn XLogBeginInsert();
    fn XLogRegisterData(data: *const u8, length: u32);
    fn XLogRegisterBuffer(id: u8, buffer: pg_sys::Buffer, flags: u8);
    fn XLogRegisterBufData(id: u8, data: *const u8, length: u32);
    fn XLogInsert(manager: pg_sys::RmgrId, info: u8) -> pg_sys::XLogRecPtr;
}

/// Returns true if `insert` can insert into `index`: its changes go to the write-ahead log.
///
/// # Safety
/// The index is open.
pub unsafe fn is_logged(index: pg_sys::Relation) -> bool {
    // SAFETY: the index has a row in `pg_class`, and the other is a variable of the server.
    unsafe {
        (*(*index).rd_rel).relpersistence as u8 == pg_sys::RELPERSISTENCE_PERMANENT
            && pg_sys::wal_level >= pg_sys::WalLevel::WAL_LEVEL_REPLICA as i32
    }
}

/// A key and the place of its row.
pub struct Entry<const N: usize> {
    pub key: [Datum; N],
    pub row: pg_sys::ItemPointerData,
    /// Where the key was absent, if it was looked for.
    pub gap: Option<Gap>,
}

/// Inserts the first of these entries into `index`, up to the first that is left to PostgreSQL, and returns their number.
/// No key of them is in the index, in any version of a row: each is looked for, with the page locked on which it would be.
///
/// # Safety
/// The index is open and locked for writing, unique, [logged](is_logged), and of these kinds. The keys have no nulls. The
/// transaction is not serializable.
pub unsafe fn insert<const N: usize>(
    index: pg_sys::Relation,
    kinds: [Kind; N],
    entries: &[Entry<N>],
) -> usize {
    // SAFETY: what is called raises no error while it has a page, except one that ends the server, and has nothing to drop.
    unsafe {
        pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| insert_guarded(index, kinds, entries))
    }
}

unsafe fn insert_guarded<const N: usize>(
    index: pg_sys::Relation,
    kinds: [Kind; N],
    entries: &[Entry<N>],
) -> usize {
    let mut leaf: Option<Leaf> = None;
    let mut done = 0;
    // SAFETY: as for `insert`.
    unsafe {
        while let Some(entry) = entries.get(done)
            && let Some(key) = values(kinds, entry.key)
            && let Some(tuple) = Tuple::new(&key, entry.row)
        {
            leaf = (leaf.take())
                .and_then(|leaf| leaf.behind(&key))
                .or_else(|| entry.gap?.lock(index))
                .or_else(|| descend(index, &key, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32));
            match &leaf {
                Some(leaf) if add(leaf, &tuple) => done += 1,
                _ => break,
            }
        }
        if let Some(leaf) = leaf {
            UnlockReleaseBuffer(leaf.buffer);
        }
    }
    done
}

/// Adds an entry to a leaf, as `_bt_insertonpg` does if there is room. Returns false if there is none.
unsafe fn add(leaf: &Leaf, tuple: &Tuple) -> bool {
    // SAFETY: the page is locked.
    unsafe {
        let page = pg_sys::BufferGetPage(leaf.buffer).cast::<u8>();
        let header = page.cast::<pg_sys::PageHeaderData>();
        if Page::of(leaf.buffer).is_none_or(|page| page.is_split()) {
            return false;
        }
        let number = leaf.number as pg_sys::OffsetNumber;
        // What fails from here on would leave the page and the log apart: PostgreSQL ends and recovers.
        pg_sys::CritSectionCount += 1;
        let added = PageAddItemExtended(page, tuple.start(), tuple.size, number, 0);
        if added != number {
            // There is no room, and nothing has happened.
            pg_sys::CritSectionCount -= 1;
            return false;
        }
        MarkBufferDirty(leaf.buffer);
        XLogBeginInsert();
        XLogRegisterData((&raw const number).cast(), size_of_val(&number) as u32);
        XLogRegisterBuffer(0, leaf.buffer, pg_sys::REGBUF_STANDARD as u8);
        XLogRegisterBufData(0, tuple.start(), tuple.size as u32);
        let position = XLogInsert(pg_sys::RmgrIds::RM_BTREE_ID as u8, INSERT_LEAF);
        (*header).pd_lsn.xlogid = (position >> 32) as u32;
        (*header).pd_lsn.xrecoff = position as u32;
        pg_sys::CritSectionCount -= 1;
        true
    }
}

/// `XLOG_BTREE_INSERT_LEAF`.
const INSERT_LEAF: u8 = 0x00;

/// The longest text with a header of one byte.
const SHORT: usize = 126;

/// An entry as the index has it.
struct Tuple {
    words: [u64; 1 + 2 * 16],
    size: usize,
}

impl Tuple {
    /// None if a text is long.
    fn new<const N: usize>(key: &[Value; N], row: pg_sys::ItemPointerData) -> Option<Tuple> {
        const { assert!(N <= 2) };
        let mut words = [0u64; 1 + 2 * 16];
        let start = words.as_mut_ptr().cast::<u8>();
        let mut end = size_of::<pg_sys::IndexTupleData>();
        let mut flags = 0;
        for value in key {
            // SAFETY: the array has room for two texts that are short, with their headers, and for numbers.
            unsafe {
                match *value {
                    Value::Text(text) => {
                        if text.len() > SHORT {
                            return None;
                        }
                        let length = text.len() + 1;
                        varlena::set_varsize_short(start.add(end).cast(), length as i32);
                        ptr::copy_nonoverlapping(text.as_ptr(), start.add(end + 1), text.len());
                        end += length;
                        flags = HAS_VARIABLE;
                    }
                    Value::Number(number) => {
                        end = end.next_multiple_of(align_of::<i64>());
                        start.add(end).cast::<i64>().write(number);
                        end += size_of::<i64>();
                    }
                }
            }
        }
        let size = end.next_multiple_of(pg_sys::MAXIMUM_ALIGNOF as usize);
        // SAFETY: the array begins with the header.
        unsafe {
            start
                .cast::<pg_sys::IndexTupleData>()
                .write(pg_sys::IndexTupleData {
                    t_tid: row,
                    t_info: size as u16 | flags,
                });
        }
        Some(Tuple { words, size })
    }

    fn start(&self) -> *const u8 {
        self.words.as_ptr().cast()
    }
}

/// `INDEX_VAR_MASK`.
const HAS_VARIABLE: u16 = 0x4000;
