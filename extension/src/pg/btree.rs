//! B-tree indexes of texts: comparisons without a detour, and a search that ends at the first sign of a key.
//!
//! Both rest on what the pages of such an index are like in PostgreSQL 15 to 18 (nbtree.h), and leave whatever is
//! unusual to PostgreSQL's own functions.

use std::cmp::Ordering;
use std::slice;

use pgrx::pg_sys::{self, Datum};
use pgrx::varlena;

unsafe extern "C-unwind" {
    // pgrx's declarations return errors as panics, which takes as long as the calls themselves. Here, an error passes over
    // frames that have nothing to drop.
    fn bttextcmp(call: pg_sys::FunctionCallInfo) -> Datum;
    fn ReadBuffer(index: pg_sys::Relation, block: pg_sys::BlockNumber) -> pg_sys::Buffer;
    fn LockBuffer(buffer: pg_sys::Buffer, mode: i32);
    fn UnlockReleaseBuffer(buffer: pg_sys::Buffer);
}

/// `BTORDER_PROC`: the number of the comparison among the functions of an operator class.
const ORDER: u16 = 1;

/// Lets PostgreSQL compare the texts of `index` by their bytes at once, where their collation is "C". Its own function
/// looks the collation up for each comparison, of which an insertion has about 20.
///
/// # Safety
/// The index is open.
pub(super) unsafe fn quicken(index: pg_sys::Relation) {
    // SAFETY: the index has a description, and a collation and a type for each column of its key.
    unsafe {
        if (*(*index).rd_rel).relam != pg_sys::BTREE_AM_OID {
            return;
        }
        for column in 1..=(*(*index).rd_index).indnkeyatts {
            let collation = *(*index).rd_indcollation.add(column as usize - 1);
            if collation != pg_sys::C_COLLATION_OID {
                continue;
            }
            // The entry belongs to this session's cache of the index.
            let function = &mut *pg_sys::index_getprocinfo(index, column, ORDER);
            if function.fn_oid == pg_sys::Oid::from(pg_sys::F_BTTEXTCMP) {
                function.fn_addr = Some(compare_texts);
            }
        }
    }
}

/// `bttextcmp` for the collation "C".
///
/// # Safety
/// A call with two texts that are not null.
unsafe extern "C-unwind" fn compare_texts(call: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: as above.
    unsafe {
        let arguments = (*call).args.as_slice(2);
        let [left, right] = [0, 1].map(|i: usize| bytes(arguments[i].value.cast_mut_ptr()));
        match (left, right) {
            (Some(left), Some(right)) => Datum::from(left.cmp(right) as i32),
            // One is compressed.
            _ => bttextcmp(call),
        }
    }
}

/// The bytes of a text; none if it is compressed or elsewhere.
///
/// # Safety
/// It is a varlena, which outlives the bytes.
unsafe fn bytes<'a>(text: *const pg_sys::varlena) -> Option<&'a [u8]> {
    // SAFETY: as above.
    unsafe {
        let is_here = if varlena::varatt_is_1b(text) {
            !varlena::varatt_is_1b_e(text)
        } else {
            varlena::varatt_is_4b_u(text)
        };
        is_here.then(|| {
            slice::from_raw_parts(
                varlena::vardata_any(text).cast(),
                varlena::varsize_any_exhdr(text),
            )
        })
    }
}

/// Returns true if `may_have` can search `index`, with a text for each column of its key.
///
/// # Safety
/// The index is open.
pub(super) unsafe fn is_of_texts(index: pg_sys::Relation) -> bool {
    // SAFETY: the index has a description, and an operator family, its type, a collation and options for each column of
    // its key.
    unsafe {
        let columns = (*(*index).rd_index).indnkeyatts as usize;
        (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
            && (0..columns).all(|i| {
                *(*index).rd_opfamily.add(i) == pg_sys::TEXT_BTREE_FAM_OID
                    && *(*index).rd_opcintype.add(i) == pg_sys::TEXTOID
                    && *(*index).rd_indcollation.add(i) == pg_sys::C_COLLATION_OID
                    && *(*index).rd_indoption.add(i) == 0
            })
    }
}

/// Returns false if `index` has no entry with this key, one text for each of its columns; true if it may have one.
///
/// # Safety
/// The index is open and [of texts](is_of_texts), as many as the key has. A snapshot is active. The transaction is not
/// serializable: PostgreSQL's scan leaves a lock for a key that is absent, and this search does not.
pub(super) unsafe fn may_have<const N: usize>(index: pg_sys::Relation, key: [Datum; N]) -> bool {
    // Old snapshots then fail where a page has lost what they would see.
    // SAFETY: a variable of the session.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    if unsafe { pg_sys::old_snapshot_threshold } >= 0 {
        return true;
    }
    // SAFETY: the key is of texts.
    let key = key.map(|text| unsafe { bytes(text.cast_mut_ptr()) });
    let mut texts = [&[][..]; N];
    for (text, value) in texts.iter_mut().zip(key) {
        match value {
            Some(value) => *text = value,
            None => return true,
        }
    }
    // SAFETY: the search raises no error while it has a page, and has nothing to drop.
    unsafe { pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| search(index, texts)) }
}

/// The most pages that a search reads.
const PAGES: usize = 64;

/// # Safety
/// As for `may_have`; within a guard.
unsafe fn search<const N: usize>(index: pg_sys::Relation, key: [&[u8]; N]) -> bool {
    // SAFETY: PostgreSQL keeps a copy of the first page of the index here, once it has read it.
    let Some(meta) = (unsafe { (*index).rd_amcache.cast::<Meta>().as_ref() }) else {
        return true;
    };
    if meta.magic != MAGIC || meta.version != VERSION {
        return true;
    }
    let mut block = meta.fast_root;
    for i in 0..PAGES {
        // SAFETY: the page stays as it is while it is locked.
        let step = unsafe {
            let buffer = ReadBuffer(index, block);
            LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            // As PostgreSQL does, it takes the root from the copy if it still is one.
            let step = match Page::of(buffer) {
                Some(page) if i > 0 || page.is_root(meta.fast_level) => page.step(&key),
                _ => Step::Unsure,
            };
            UnlockReleaseBuffer(buffer);
            step
        };
        match step {
            Step::To(next) => block = next,
            Step::Absent => return false,
            Step::Unsure => return true,
        }
    }
    true
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

/// `BTPageOpaqueData`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Opaque {
    previous: pg_sys::BlockNumber,
    next: pg_sys::BlockNumber,
    level: u32,
    flags: u16,
    cycle: u16,
}

/// `P_NONE`.
const NONE: pg_sys::BlockNumber = 0;
/// `BTP_DELETED` and `BTP_HALF_DEAD`.
const IS_GONE: u16 = 1 << 2 | 1 << 4;

/// The next step of a search.
enum Step {
    /// Read this page.
    To(pg_sys::BlockNumber),
    /// There is no such entry.
    Absent,
    /// There is one, or this cannot be told here.
    Unsure,
}

/// A page of an index, while it is locked.
struct Page {
    start: *const u8,
    opaque: Opaque,
    /// The number of its entries.
    count: usize,
}

impl Page {
    /// None if it is damaged: PostgreSQL raises the error.
    ///
    /// # Safety
    /// The buffer has a page of a B-tree index, and is locked while this is used.
    unsafe fn of(buffer: pg_sys::Buffer) -> Option<Page> {
        // SAFETY: as above. Others change hints in the header meanwhile, but not what is read here.
        unsafe {
            let start = pg_sys::BufferGetPage(buffer).cast::<u8>().cast_const();
            let header = start.cast::<pg_sys::PageHeaderData>();
            let special = usize::from((&raw const (*header).pd_special).read());
            let lower = usize::from((&raw const (*header).pd_lower).read());
            let entries = lower.checked_sub(size_of::<pg_sys::PageHeaderData>())?;
            let is_sound = special == pg_sys::BLCKSZ as usize - size_of::<Opaque>();
            is_sound.then(|| Page {
                start,
                opaque: start.add(special).cast::<Opaque>().read(),
                count: entries / size_of::<pg_sys::ItemIdData>(),
            })
        }
    }

    fn is_root(&self, level: u32) -> bool {
        let opaque = self.opaque;
        opaque.flags & IS_GONE == 0
            && opaque.level == level
            && opaque.previous == NONE
            && opaque.next == NONE
    }

    /// The next step of the search for `key`, which this page or one to the right of it leads to.
    unsafe fn step<const N: usize>(&self, key: &[&[u8]; N]) -> Step {
        let opaque = self.opaque;
        // SAFETY: the page has the entries that it counts.
        unsafe {
            let is_rightmost = opaque.next == NONE;
            if opaque.flags & IS_GONE != 0 {
                return if is_rightmost {
                    Step::Unsure
                } else {
                    Step::To(opaque.next)
                };
            }
            let mut first = 1;
            if !is_rightmost {
                // The first entry is the upper bound of the page. A split since its parent was read has moved greater ones.
                if self.count == 0 {
                    return Step::Unsure;
                }
                match self.compare(key, 1) {
                    Some(Ordering::Greater) => return Step::To(opaque.next),
                    Some(Ordering::Less) => first = 2,
                    Some(Ordering::Equal) | None => return Step::Unsure,
                }
            }
            // The first entry that is not less than the key.
            let is_leaf = opaque.level == 0;
            let (mut low, mut high) = (first, self.count + 1);
            while low < high {
                let middle = low.midpoint(high);
                match self.compare(key, middle) {
                    Some(Ordering::Greater) => low = middle + 1,
                    Some(Ordering::Less) => high = middle,
                    Some(Ordering::Equal) | None => return Step::Unsure,
                }
            }
            if is_leaf {
                Step::Absent
            } else if low > first {
                Step::To(self.child(low - 1))
            } else {
                Step::Unsure
            }
        }
    }

    /// Entry `number`, counted from 1.
    unsafe fn entry(&self, number: usize) -> *const pg_sys::IndexTupleData {
        // SAFETY: the page has the entry.
        unsafe {
            let items = self.start.add(size_of::<pg_sys::PageHeaderData>());
            let item = items.cast::<pg_sys::ItemIdData>().add(number - 1).read();
            self.start.add(item.lp_off() as usize).cast()
        }
    }

    /// The page below entry `number`.
    unsafe fn child(&self, number: usize) -> pg_sys::BlockNumber {
        // SAFETY: the page has the entry.
        let place = unsafe { (*self.entry(number)).t_tid.ip_blkid };
        pg_sys::BlockNumber::from(place.bi_hi) << 16 | pg_sys::BlockNumber::from(place.bi_lo)
    }

    /// Compares `key` with entry `number`; none if this cannot be told.
    unsafe fn compare<const N: usize>(&self, key: &[&[u8]; N], number: usize) -> Option<Ordering> {
        // SAFETY: the page has the entry, and an entry the columns that it counts, one after the other.
        unsafe {
            let entry = self.entry(number);
            let flags = u32::from((*entry).t_info);
            if flags & pg_sys::INDEX_NULL_MASK != 0 {
                return None;
            }
            let (mut columns, mut has_row) = (N, true);
            if flags & IS_SPECIAL != 0 {
                let place = (*entry).t_tid.ip_posid;
                if place & IS_POSTING == 0 {
                    // It separates pages: columns and the row are left out at its end if they are not needed for that,
                    // and stand for less than any value.
                    columns = usize::from(place & COLUMNS);
                    has_row = place & HAS_ROW != 0;
                }
            }
            let mut column = entry.add(1).cast::<u8>();
            for (i, text) in key.iter().enumerate() {
                if i >= columns {
                    return Some(Ordering::Greater);
                }
                if *column == 0 {
                    // A gap before a long text.
                    column = column.add(column.align_offset(align_of::<u32>()));
                }
                let found = bytes(column.cast())?;
                match (*text).cmp(found) {
                    Ordering::Equal => column = found.as_ptr_range().end,
                    order => return Some(order),
                }
            }
            Some(if has_row {
                Ordering::Equal
            } else {
                Ordering::Greater
            })
        }
    }
}

/// `INDEX_ALT_TID_MASK`: the place of the row has another meaning.
const IS_SPECIAL: u32 = 0x2000;
/// `BT_IS_POSTING`: the entry is of several rows with equal keys.
const IS_POSTING: u16 = 0x2000;
/// `BT_OFFSET_MASK`: the number of columns.
const COLUMNS: u16 = 0x0FFF;
/// `BT_PIVOT_HEAP_TID_ATTR`: it has the place of a row after them.
const HAS_ROW: u16 = 0x1000;
