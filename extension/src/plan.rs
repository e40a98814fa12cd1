//! Cached plans of the functions that are SQL.
//!
//! These functions run with their owner's rights, so their SQL resolves no name in a schema that others
//! may write to: tables are named with the extension's schema, operators, functions and types with
//! `pg_catalog`. The name of that schema may come to belong to another while a statement waits for a lock,
//! and PostgreSQL resolves it again then. So each analysis of a statement of ours is checked, before anything
//! of it is planned: the tables that it found must be the extension's own.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString};
use std::rc::Rc;
use std::thread::LocalKey;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{self, OwnedPreparedStatement, SpiHeapTupleData};
use pgrx::{FromDatum, IntoDatum, PgList};

use crate::schema::Schema;

/// A static statement that is planned once per backend.
pub struct Plan {
    sql: &'static str,
    arguments: &'static [PgBuiltInOids],
    prepared: RefCell<Option<Prepared>>,
}

/// A statement as it was prepared while the extension's schema had this name.
struct Prepared {
    schema: CString,
    sql: Rc<CStr>,
    statement: Rc<OwnedPreparedStatement>,
}

impl Plan {
    /// The plan of `sql`, which takes `arguments` as `$1` and so on, and has `{schema}` where the name
    /// of the extension's schema belongs.
    pub const fn new(sql: &'static str, arguments: &'static [PgBuiltInOids]) -> Plan {
        Plan {
            sql,
            arguments,
            prepared: RefCell::new(None),
        }
    }

    /// Runs it read-only on the tables of `schema` and reads each of its rows.
    pub fn rows<R>(
        plan: &'static LocalKey<Plan>,
        schema: Schema,
        arguments: &[DatumWithOid<'_>],
        mut read: impl FnMut(&SpiHeapTupleData<'_>) -> spi::Result<R>,
    ) -> spi::Result<Vec<R>> {
        Spi::connect(|client| {
            let (statement, _checked) = plan.with(|plan| plan.statement(client, schema))?;
            let found = client.select(&*statement, None, arguments)?;
            let mut rows = Vec::with_capacity(found.len());
            for row in found {
                rows.push(read(&row)?);
            }
            Ok(rows)
        })
    }

    /// Runs it on the tables of `schema`; the number of rows that it wrote.
    pub fn write(
        plan: &'static LocalKey<Plan>,
        schema: Schema,
        arguments: &[DatumWithOid<'_>],
    ) -> spi::Result<usize> {
        Spi::connect_mut(|client| {
            let (statement, _checked) = plan.with(|plan| plan.statement(client, schema))?;
            Ok(client.update(&*statement, None, arguments)?.len())
        })
    }

    /// The prepared statement, to be run while it is checked. The schema may have been renamed since, so the
    /// statement is prepared anew when the name has changed.
    fn statement(
        &self,
        client: &spi::SpiClient<'_>,
        schema: Schema,
    ) -> spi::Result<(Rc<OwnedPreparedStatement>, Checked)> {
        let name = schema.name();
        let mut prepared = self.prepared.borrow_mut();
        if let Some(prepared) = &*prepared
            && prepared.schema == name
        {
            let checked = Checked::new(schema, Rc::clone(&prepared.sql));
            return Ok((Rc::clone(&prepared.statement), checked));
        }
        let types: Vec<PgOid> = self
            .arguments
            .iter()
            .map(|&oid| PgOid::from(oid.value()))
            .collect();
        let quoted = spi::quote_identifier(name.to_string_lossy());
        let sql = self.sql.replace("{schema}", &quoted);
        let text = CString::new(sql.as_str()).map_err(|_| spi::Error::InvalidPosition)?;
        let text = Rc::from(text.into_boxed_c_str());
        let checked = Checked::new(schema, Rc::clone(&text));
        let statement = Rc::new(client.prepare(sql.as_str(), &types)?.keep());
        *prepared = Some(Prepared {
            schema: name,
            sql: text,
            statement: Rc::clone(&statement),
        });
        Ok((statement, checked))
    }
}

/// The relations that a statement of ours may name.
type Relations = [pg_sys::Oid; 4];

thread_local! {
    /// The statement of ours that is prepared or run now.
    static CHECKED: RefCell<Option<(Rc<CStr>, Relations)>> = const { RefCell::new(None) };
    static NEXT_HOOK: Cell<pg_sys::post_parse_analyze_hook_type> = const { Cell::new(None) };
}

/// While it lives, each analysis of a statement is checked. Restores what was checked before.
struct Checked(Option<(Rc<CStr>, Relations)>);

impl Checked {
    fn new(schema: Schema, sql: Rc<CStr>) -> Checked {
        let relations = [c"coupons", c"claims", c"coupons_id_seq", c"claims_id_seq"]
            .map(|name| schema.relation(name));
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

/// Called by PostgreSQL for each statement that it has analysed: its names are resolved, and nothing of it is
/// rewritten, planned or run yet.
///
/// # Safety
/// As PostgreSQL calls it. An error leaves by a jump; nothing here needs cleaning up then.
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

/// Refuses a statement of ours that names a relation which is not ours.
///
/// # Errors
/// `40001`: the schema was renamed while the statement waited, and its old name belongs to another.
#[pg_guard]
unsafe extern "C-unwind" fn check(state: *mut pg_sys::ParseState, query: *mut pg_sys::Query) {
    let is_foreign = CHECKED.with_borrow(|checked| {
        checked.as_ref().is_some_and(|(sql, relations)| {
            // SAFETY: as for `at_analysis`; the text of a statement is a C string or null. Statements of
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

/// Returns true if the tables, views and sequences in a query are all among `relations`. Looks where our
/// statements have any: in `from`, in what they write to, and in `with`.
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

/// A column's value, which the tables never leave null.
pub fn column<T: FromDatum + IntoDatum>(
    row: &SpiHeapTupleData<'_>,
    ordinal: usize,
) -> spi::Result<T> {
    row.get(ordinal)?.ok_or(spi::Error::InvalidPosition)
}
