//! B-tree indexes of texts and numbers: comparisons without a detour, a search that ends at the first sign of a key, and
//! insertions of keys that are not there.
//!
//! They rest on what the pages of such an index are like in PostgreSQL 15 to 18 (nbtree.h), and leave whatever is
//! unusual to PostgreSQL's own functions.

mod insertion;
mod page;
mod search;

use std::slice;

use pgrx::pg_sys::{self, Datum};
use pgrx::varlena;

pub(super) use insertion::{Entry, insert, is_logged};
pub use search::Gap;
pub(super) use search::gap;

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

/// The type of a column of a key.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// `text`, with the collation "C".
    Text,
    /// `bigint`.
    Number,
}

/// A value of a column of a key.
#[derive(Clone, Copy)]
enum Value<'a> {
    Text(&'a [u8]),
    Number(i64),
}

impl Kind {
    /// The value that `datum` is; none if it is compressed or elsewhere.
    ///
    /// # Safety
    /// It is of this kind, not null, and outlives the value.
    unsafe fn value<'a>(self, datum: Datum) -> Option<Value<'a>> {
        match self {
            // SAFETY: as above.
            Kind::Text => unsafe { bytes(datum.cast_mut_ptr()) }.map(Value::Text),
            Kind::Number => Some(Value::Number(datum.value() as i64)),
        }
    }
}

/// The kinds of the columns of `index`, if it is a B-tree of this number of columns that all are of a known kind, ascending,
/// with nothing beside them.
///
/// # Safety
/// The index is open.
pub(super) unsafe fn kinds<const N: usize>(index: pg_sys::Relation) -> Option<[Kind; N]> {
    // SAFETY: the index has a description, and an operator family, its type, a collation and options for each column of
    // its key.
    unsafe {
        let description = &*(*index).rd_index;
        if (*(*index).rd_rel).relam != pg_sys::BTREE_AM_OID
            || description.indnkeyatts as usize != N
            || description.indnatts as usize != N
        {
            return None;
        }
        let mut kinds = [Kind::Text; N];
        for (i, kind) in kinds.iter_mut().enumerate() {
            let family = *(*index).rd_opfamily.add(i);
            let class = *(*index).rd_opcintype.add(i);
            let collation = *(*index).rd_indcollation.add(i);
            let options = *(*index).rd_indoption.add(i);
            *kind = match (family, class, options) {
                (pg_sys::TEXT_BTREE_FAM_OID, pg_sys::TEXTOID, 0)
                    if collation == pg_sys::C_COLLATION_OID =>
                {
                    Kind::Text
                }
                (pg_sys::INTEGER_BTREE_FAM_OID, pg_sys::INT8OID, 0) => Kind::Number,
                _ => return None,
            };
        }
        Some(kinds)
    }
}
