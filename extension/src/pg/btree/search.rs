//! The search for a key that an index is likely not to have.

use pgrx::pg_sys::{self, Datum};

use super::page::{Page, Step};
use super::{Kind, LockBuffer, ReadBuffer, UnlockReleaseBuffer, Value};

/// The place in an index at which a key was absent.
#[derive(Clone, Copy)]
pub struct Gap {
    /// The OID of the index.
    index: pg_sys::Oid,
    block: pg_sys::BlockNumber,
    /// The number that the key's entry would have on the page.
    number: usize,
    /// The position in the write-ahead log of the last change of the page.
    changed: pg_sys::PageXLogRecPtr,
}

/// The place of this key, one text for each of its columns, in `index`, if it has no entry with it; none if it may have one.
///
/// # Safety
/// The index is open, and all its columns are [texts](super::kinds), as many as the key has. A snapshot is active. The
/// transaction is not serializable: PostgreSQL's scan leaves a lock for a key that is absent, and this search does not.
pub unsafe fn gap<const N: usize>(index: pg_sys::Relation, key: [Datum; N]) -> Option<Gap> {
    // Old snapshots then fail where a page has lost what they would see.
    // SAFETY: a variable of the session.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    if unsafe { pg_sys::old_snapshot_threshold } >= 0 {
        return None;
    }
    // SAFETY: the key is of texts.
    let key = unsafe { values([Kind::Text; N], key) }?;
    // SAFETY: the search raises no error while it has a page, and has nothing to drop.
    unsafe {
        pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| {
            let leaf = descend(index, &key, pg_sys::BUFFER_LOCK_SHARE as i32)?;
            let gap = Gap {
                index: (*index).rd_id,
                block: leaf.block,
                number: leaf.number,
                changed: changed(leaf.buffer),
            };
            UnlockReleaseBuffer(leaf.buffer);
            Some(gap)
        })
    }
}

/// The values of a key of these kinds; none if one is compressed or elsewhere.
///
/// # Safety
/// They are of these kinds, not null, and outlive the values.
pub(super) unsafe fn values<'a, const N: usize>(
    kinds: [Kind; N],
    key: [Datum; N],
) -> Option<[Value<'a>; N]> {
    let mut values = [Value::Number(0); N];
    for ((value, kind), datum) in values.iter_mut().zip(kinds).zip(key) {
        // SAFETY: as above.
        *value = unsafe { kind.value(datum) }?;
    }
    Some(values)
}

/// A page in which a key would be, locked.
pub(super) struct Leaf {
    pub buffer: pg_sys::Buffer,
    block: pg_sys::BlockNumber,
    /// The number that the key's entry would have.
    pub number: usize,
}

impl Leaf {
    /// The same page for `key`, if its entry would be behind that of this key, which is there now. Otherwise lets go of it.
    ///
    /// # Safety
    /// The page is locked. Within a guard.
    pub(super) unsafe fn behind<const N: usize>(mut self, key: &[Value; N]) -> Option<Leaf> {
        // SAFETY: as above.
        unsafe {
            let number =
                Page::of(self.buffer).and_then(|page| page.number_behind(self.number, key));
            match number {
                Some(number) => {
                    self.number = number;
                    Some(self)
                }
                None => {
                    UnlockReleaseBuffer(self.buffer);
                    None
                }
            }
        }
    }
}

impl Gap {
    /// Locks the page for writing; none if this is not a place in `index`, or the page has changed since.
    ///
    /// # Safety
    /// The index is open, and has been since the key was absent; its changes go to the write-ahead log. Within a guard.
    pub(super) unsafe fn lock(self, index: pg_sys::Relation) -> Option<Leaf> {
        // SAFETY: as above.
        unsafe {
            if (*index).rd_id != self.index {
                return None;
            }
            let buffer = ReadBuffer(index, self.block);
            LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
            let (was, is) = (self.changed, changed(buffer));
            if (was.xlogid, was.xrecoff) == (is.xlogid, is.xrecoff) {
                return Some(Leaf {
                    buffer,
                    block: self.block,
                    number: self.number,
                });
            }
            UnlockReleaseBuffer(buffer);
            None
        }
    }
}

/// The position in the write-ahead log of the last change of a page, which is locked.
unsafe fn changed(buffer: pg_sys::Buffer) -> pg_sys::PageXLogRecPtr {
    // SAFETY: a page has a header.
    unsafe { (*pg_sys::BufferGetPage(buffer).cast::<pg_sys::PageHeaderData>()).pd_lsn }
}

/// The most pages that a search reads.
const PAGES: usize = 64;

/// Finds the page in which `key` would be, and locks it in this mode; none if the index may have the key.
///
/// # Safety
/// As for `gap`; within a guard.
pub(super) unsafe fn descend<const N: usize>(
    index: pg_sys::Relation,
    key: &[Value; N],
    mode: i32,
) -> Option<Leaf> {
    // SAFETY: PostgreSQL keeps a copy of the first page of the index here, once it has read it.
    let meta = unsafe { (*index).rd_amcache.cast::<Meta>().as_ref() }?;
    if meta.magic != MAGIC || meta.version != VERSION {
        return None;
    }
    let (mut block, mut level) = (meta.fast_root, meta.fast_level);
    for i in 0..PAGES {
        // SAFETY: the page stays as it is while it is locked.
        unsafe {
            let buffer = ReadBuffer(index, block);
            let mode = if level == 0 {
                mode
            } else {
                pg_sys::BUFFER_LOCK_SHARE as i32
            };
            LockBuffer(buffer, mode);
            // As PostgreSQL does, it takes the root from the copy if it still is one.
            let step = match Page::of(buffer) {
                Some(page) if page.level() == level && (i > 0 || page.is_root()) => page.step(key),
                _ => Step::Unsure,
            };
            if let Step::Absent(number) = step {
                return Some(Leaf {
                    buffer,
                    block,
                    number,
                });
            }
            UnlockReleaseBuffer(buffer);
            match step {
                Step::Right(next) => block = next,
                Step::Down(next) => {
                    block = next;
                    level -= 1;
                }
                _ => return None,
            }
        }
    }
    None
}

/// `BTMetaPageData`, as far as it is read.
#[repr(C)]
struct Meta {
    magic: u32,
    version: u32,
    root: pg_sys::BlockNumber,
    level: u32,
    fast_root: pg_sys::BlockNumber,
    fast_level: u32,
}

/// `BTREE_MAGIC`, and the version since PostgreSQL 12, in which entries of equal keys are in the order of their rows.
const MAGIC: u32 = 0x05_31_62;
const VERSION: u32 = 4;
