//! Pages of an index.

use std::cmp::Ordering;

use pgrx::pg_sys;

use super::{Value, bytes};

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
/// `BTP_INCOMPLETE_SPLIT`.
const IS_SPLIT: u16 = 1 << 7;

/// The next step of a search.
pub(super) enum Step {
    /// Read this page, of the same level.
    Right(pg_sys::BlockNumber),
    /// Read this page, of the level below.
    Down(pg_sys::BlockNumber),
    /// There is no such entry. It would have this number.
    Absent(usize),
    /// There is one, or this cannot be told here.
    Unsure,
}

/// A page of an index, while it is locked.
pub(super) struct Page {
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
    pub unsafe fn of(buffer: pg_sys::Buffer) -> Option<Page> {
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

    pub fn is_root(&self) -> bool {
        let opaque = self.opaque;
        opaque.flags & IS_GONE == 0 && opaque.previous == NONE && opaque.next == NONE
    }

    pub fn level(&self) -> u32 {
        self.opaque.level
    }

    /// Returns true if it was split, and the page above does not lead to the new one yet.
    pub fn is_split(&self) -> bool {
        self.opaque.flags & IS_SPLIT != 0
    }

    /// The next step of the search for `key`, which this page or one to the right of it leads to.
    pub unsafe fn step<const N: usize>(&self, key: &[Value; N]) -> Step {
        let opaque = self.opaque;
        // SAFETY: the page has the entries that it counts.
        unsafe {
            let is_rightmost = opaque.next == NONE;
            if opaque.flags & IS_GONE != 0 {
                return if is_rightmost {
                    Step::Unsure
                } else {
                    Step::Right(opaque.next)
                };
            }
            let mut first = 1;
            if !is_rightmost {
                // The first entry is the upper bound of the page. A split since its parent was read has moved greater ones.
                if self.count == 0 {
                    return Step::Unsure;
                }
                match self.compare(key, 1) {
                    Some(Ordering::Greater) => return Step::Right(opaque.next),
                    Some(Ordering::Less) => first = 2,
                    Some(Ordering::Equal) | None => return Step::Unsure,
                }
            }
            let is_leaf = opaque.level == 0;
            let Some(low) = self.number_from(first, key) else {
                return Step::Unsure;
            };
            if is_leaf {
                Step::Absent(low)
            } else if low > first {
                Step::Down(self.child(low - 1))
            } else {
                Step::Unsure
            }
        }
    }

    /// The number of the first entry that is not less than `key`, among those from number `low` on; none if one is equal.
    unsafe fn number_from<const N: usize>(
        &self,
        mut low: usize,
        key: &[Value; N],
    ) -> Option<usize> {
        let mut high = self.count + 1;
        while low < high {
            let middle = low.midpoint(high);
            // SAFETY: the page has the entries that it counts.
            match unsafe { self.compare(key, middle) }? {
                Ordering::Greater => low = middle + 1,
                Ordering::Less => high = middle,
                Ordering::Equal => return None,
            }
        }
        Some(low)
    }

    /// The number that the entry of `key` would have, if it would be on this leaf behind the entry `number`, and the
    /// page has no equal one.
    pub unsafe fn number_behind<const N: usize>(
        &self,
        number: usize,
        key: &[Value; N],
    ) -> Option<usize> {
        // SAFETY: the page has the entries that it counts.
        unsafe {
            let is_here = self.opaque.next == NONE || self.compare(key, 1) == Some(Ordering::Less);
            if is_here && self.compare(key, number) == Some(Ordering::Greater) {
                self.number_from(number + 1, key)
            } else {
                None
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
    unsafe fn compare<const N: usize>(&self, key: &[Value; N], number: usize) -> Option<Ordering> {
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
            for (i, value) in key.iter().enumerate() {
                if i >= columns {
                    return Some(Ordering::Greater);
                }
                let (order, end) = match *value {
                    Value::Text(text) => {
                        if *column == 0 {
                            // A gap before a long text.
                            column = column.add(column.align_offset(align_of::<u32>()));
                        }
                        let found = bytes(column.cast())?;
                        (text.cmp(found), found.as_ptr_range().end)
                    }
                    Value::Number(number) => {
                        let place = column.add(column.align_offset(align_of::<i64>()));
                        (number.cmp(&place.cast::<i64>().read()), place.add(8))
                    }
                };
                if order.is_ne() {
                    return Some(order);
                }
                column = end;
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
