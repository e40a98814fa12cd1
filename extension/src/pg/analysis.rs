//! A check that the names in the extension's statements mean its own tables.
//!
//! A statement names its tables with the extension's schema. While it waits for a lock, that name may come to
//! belong to another schema, and PostgreSQL resolves names again after the wait. So each analysis of such a
//! statement is checked before the statement is rewritten, planned or run: the relations that it found must
//! be the extension's own.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::PgList;
use pgrx::prelude::*;

use crate::pg::schema::Schema;

/// The relations that the extension's statements may name.
type Relations = [pg_sys::Oid; 7];

thread_local! {
    /// The statement of the extension that is being prepared or run.
    static CHECKED: RefCell<Option<(Rc<CStr>, Relations)>> = const { RefCell::new(None) };
    static NEXT_HOOK: Cell<pg_sys::post_parse_analyze_hook_type> = const { Cell::new(None) };
}

/// Checks the analyses of one statement while it lives, and then those that were checked before.
pub struct Checked(Option<(Rc<CStr>, Relations)>);

impl Checked {
    /// Checks analyses of `sql`, which may name the relations of the extension in `schema`.
    pub fn new(schema: Schema, sql: Rc<CStr>) -> Checked {
        let relations = [
            c"coupons",
            c"claims",
            c"coupons_id_seq",
            c"claims_id_seq",
            c"holds",
            c"coupon_events",
            c"coupon_events_id_seq",
        ]
        .map(|name| schema.find_relation(name).unwrap_or(pg_sys::InvalidOid));
        Checked(CHECKED.replace(Some((sql, relations))))
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        CHECKED.set(self.0.take());
    }
}

/// Hooks into the analysis of statements.
pub fn init() {
    // SAFETY: a variable of this backend; once per backend, when the library is loaded.
    unsafe {
        NEXT_HOOK.set(pg_sys::post_parse_analyze_hook);
        pg_sys::post_parse_analyze_hook = Some(at_analysis);
    }
}

/// Called by PostgreSQL for each statement after its analysis: names are resolved, and the statement is not
/// rewritten, planned or run yet.
///
/// # Safety
/// Called by PostgreSQL only. An error leaves by a jump, and nothing here needs cleaning up then.
unsafe extern "C-unwind" fn at_analysis(
    state: *mut pg_sys::ParseState,
    query: *mut pg_sys::Query,
    jumble: *mut pg_sys::JumbleState,
) {
    // SAFETY: as above.
    unsafe {
        check(state, query);
        if let Some(next) = NEXT_HOOK.get() {
            next(state, query, jumble);
        }
    }
}

/// Refuses a statement of the extension that names a relation which does not belong to it.
///
/// # Errors
/// `40001`: the schema was renamed while the statement waited, and another schema has its old name.
#[pg_guard]
unsafe extern "C-unwind" fn check(state: *mut pg_sys::ParseState, query: *mut pg_sys::Query) {
    let is_foreign = CHECKED.with_borrow(|checked| {
        checked.as_ref().is_some_and(|(sql, relations)| {
            // SAFETY: as for `at_analysis`; the text of a statement is a C string or null. The statements of
            // users' triggers have other texts.
            unsafe {
                let text = (*state).p_sourcetext;
                !text.is_null() && CStr::from_ptr(text) == &**sql && !names_only(&*query, relations)
            }
        })
    });
    if is_foreign {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            "the schema of the honcho extension was renamed meanwhile"
        );
    }
}

/// Returns true if the tables, views and sequences in a query are all among `relations`. It looks where the
/// extension's statements have them: in `from`, in the target of a write, and in `with`.
///
/// # Safety
/// The query is analysed, and not rewritten yet.
unsafe fn names_only(query: &pg_sys::Query, relations: &Relations) -> bool {
    // SAFETY: the lists of a query hold what their names say; a common table expression holds a query.
    unsafe {
        let entries = PgList::<pg_sys::RangeTblEntry>::from_pg(query.rtable);
        let ctes = PgList::<pg_sys::CommonTableExpr>::from_pg(query.cteList);
        entries.iter_ptr().all(|entry| match (*entry).rtekind {
            pg_sys::RTEKind::RTE_RELATION => relations.contains(&(*entry).relid),
            pg_sys::RTEKind::RTE_SUBQUERY => names_only(&*(*entry).subquery, relations),
            _ => true,
        }) && ctes.iter_ptr().all(|cte| {
            let query = (*cte).ctequery.cast::<pg_sys::Query>();
            names_only(&*query, relations)
        })
    }
}
