//! Check constraints, compiled once per backend.
//!
//! The executor reads a table's check constraints from the catalog and compiles them for every statement
//! that writes to the table. For two comparisons of integers that took a quarter of a claim's instructions,
//! all of them while others wait.
//!
//! A compiled check is kept by its text. The text is the whole definition as long as it names only built-in
//! objects, so what is kept here cannot become stale and is never dropped.

use std::cell::RefCell;
use std::ffi::{CStr, CString};

use pgrx::{PgMemoryContexts, pg_sys};

/// The largest number of checks that are kept. The extension has three.
const MOST: usize = 16;

thread_local! {
    /// The checks by their texts. There are few, and to compare texts takes less time than to hash one.
    static COMPILED: RefCell<Vec<(CString, *mut pg_sys::ExprState)>> = RefCell::default();
}

/// Gives `target` the compiled checks of its table, if all of them may be kept. If not, the executor
/// compiles them as usual.
///
/// # Safety
/// `target` is initialised. Until it is no longer used, its table is open and locked against changes of its
/// constraints, as `RowExclusiveLock` does.
pub unsafe fn attach(target: &mut pg_sys::ResultRelInfo) {
    // SAFETY: the table is open, so its descriptor is there; `check` is an array of `num_check`.
    unsafe {
        let constraints = (*(*target.ri_RelationDesc).rd_att).constr;
        if constraints.is_null() || (*constraints).num_check == 0 {
            return;
        }
        let count = (*constraints).num_check as usize;
        let checks = std::slice::from_raw_parts((*constraints).check, count);
        let compiled: Option<Vec<_>> = checks
            .iter()
            .map(|check| compiled(CStr::from_ptr(check.ccbin)))
            .collect();
        if let Some(compiled) = compiled {
            let array = pg_sys::palloc(size_of_val(compiled.as_slice()));
            let array = array.cast::<*mut pg_sys::ExprState>();
            array.copy_from_nonoverlapping(compiled.as_ptr(), count);
            target.ri_ConstraintExprs = array;
        }
    }
}

/// The check with this text, compiled; none if it may not be kept.
///
/// # Safety
/// `text` is a node as PostgreSQL writes it to `pg_constraint`.
unsafe fn compiled(text: &CStr) -> Option<*mut pg_sys::ExprState> {
    let known = COMPILED.with_borrow(|all| {
        all.iter()
            .find_map(|(known, check)| (**known == *text).then_some(*check))
    });
    if known.is_some() {
        return known;
    }
    if !names_only_built_ins(text) || COMPILED.with_borrow(Vec::len) == MOST {
        return None;
    }
    // SAFETY: as above; the expression lives as long as the backend.
    let expression = unsafe {
        PgMemoryContexts::CacheMemoryContext.switch_to(|_| {
            let node = pg_sys::stringToNode(text.as_ptr()).cast();
            pg_sys::ExecInitExpr(pg_sys::expression_planner(node), std::ptr::null_mut())
        })
    };
    COMPILED.with_borrow_mut(|all| all.push((text.to_owned(), expression)));
    Some(expression)
}

/// Returns true if a node names only built-in functions, operators and types: every number in its text is
/// below the first OID of users' objects. The numbers that are no OIDs do no harm: they can only keep a check
/// from being kept.
fn names_only_built_ins(text: &CStr) -> bool {
    text.to_bytes()
        .split(|byte| !byte.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .all(|digits| {
            let number = str::from_utf8(digits)
                .ok()
                .and_then(|digits| digits.parse::<u32>().ok());
            number.is_some_and(|number| number < pg_sys::FirstNormalObjectId)
        })
}
