//! Check constraints, compiled once per backend.
//!
//! The executor reads a table's check constraints from their catalog text and compiles them for every
//! statement that writes to it. For two comparisons of integers that took a quarter of a claim's
//! instructions, all of them while others wait.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use pgrx::{PgMemoryContexts, pg_guard, pg_sys};

/// The compiled checks of one table, in the order of its descriptor.
#[derive(Clone, Copy)]
struct Checks {
    expressions: *mut *mut pg_sys::ExprState,
    /// What owns them.
    memory: pg_sys::MemoryContext,
}

thread_local! {
    static CHECKS: RefCell<HashMap<pg_sys::Oid, Checks>> = RefCell::default();
    /// Whether a table or function changed since; the checks may be in use when that is heard, so
    /// they are given up only when they are next asked for.
    static STALE: Cell<bool> = const { Cell::new(false) };
}

/// Listens for changes to tables and to functions, which a check may call.
pub fn init() {
    // SAFETY: both callbacks have static lifetime and are registered once per backend.
    unsafe {
        let no_argument = pg_sys::Datum::null();
        pg_sys::CacheRegisterRelcacheCallback(Some(table_changed), no_argument);
        let functions = pg_sys::SysCacheIdentifier::PROCOID as i32;
        pg_sys::CacheRegisterSyscacheCallback(functions, Some(function_changed), no_argument);
    }
}

/// Gives `target` the compiled checks of its table.
///
/// # Safety
/// `target` is initialised, and the table is open and locked so that nobody else can change its
/// constraints (`RowExclusiveLock` does) until `target` is no longer used.
#[cfg(not(feature = "pg18"))]
pub unsafe fn attach(target: &mut pg_sys::ResultRelInfo) {
    // SAFETY: the table is open, so its descriptor is there; nobody uses what is given up.
    unsafe {
        if STALE.take() {
            for (_, old) in CHECKS.take() {
                pg_sys::MemoryContextDelete(old.memory);
            }
        }
        let table = target.ri_RelationDesc;
        let constraints = (*(*table).rd_att).constr;
        if constraints.is_null() || (*constraints).num_check == 0 {
            return;
        }
        let known = CHECKS.with_borrow(|all| all.get(&(*table).rd_id).copied());
        let checks = known.unwrap_or_else(|| {
            let checks = compile(&*constraints);
            CHECKS.with_borrow_mut(|all| all.insert((*table).rd_id, checks));
            checks
        });
        target.ri_ConstraintExprs = checks.expressions;
    }
}

/// PostgreSQL 18 has checks that are not enforced and columns that are computed on reading: there
/// the executor compiles for itself.
#[cfg(feature = "pg18")]
pub unsafe fn attach(_target: &mut pg_sys::ResultRelInfo) {}

/// # Safety
/// `constraints` has a check.
#[cfg(not(feature = "pg18"))]
unsafe fn compile(constraints: &pg_sys::TupleConstr) -> Checks {
    // SAFETY: `check` is an array of `num_check`; each text is a node that PostgreSQL wrote. The
    // memory lives until `attach` deletes it.
    unsafe {
        let checks = std::slice::from_raw_parts(constraints.check, constraints.num_check as usize);
        let memory = pg_sys::AllocSetContextCreateExtended(
            pg_sys::CacheMemoryContext,
            c"honcho checks".as_ptr(),
            pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
            pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
            pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
        );
        let expressions = PgMemoryContexts::For(memory).switch_to(|_| {
            let expressions = pg_sys::palloc0(size_of_val(checks)).cast::<*mut pg_sys::ExprState>();
            for (i, check) in checks.iter().enumerate() {
                let node = pg_sys::stringToNode(check.ccbin).cast();
                let node = pg_sys::expression_planner(node);
                *expressions.add(i) = pg_sys::ExecInitExpr(node, std::ptr::null_mut());
            }
            expressions
        });
        Checks {
            expressions,
            memory,
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn table_changed(_argument: pg_sys::Datum, table: pg_sys::Oid) {
    let known = || CHECKS.with_borrow(|all| all.contains_key(&table));
    if table == pg_sys::InvalidOid || known() {
        STALE.set(true);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn function_changed(_argument: pg_sys::Datum, _cache: i32, _hash: u32) {
    STALE.set(true);
}
