//! The schema that the extension was created in, and its objects by name.

use std::ffi::{CStr, CString};

use pgrx::{PgSqlErrorCode, ereport, pg_sys};

/// The schema of the extension's objects.
#[derive(Clone, Copy)]
pub struct Schema(pg_sys::Oid);

impl Schema {
    /// The schema of the function that is being called.
    pub fn of_call(fcinfo: pg_sys::FunctionCallInfo) -> Schema {
        // SAFETY: PostgreSQL hands every function a valid fcinfo with its flinfo.
        Schema::of_function(unsafe { (*(*fcinfo).flinfo).fn_oid })
    }

    /// The schema of the extension's function with this OID.
    ///
    /// # Errors
    /// `0A000` unless the database's encoding is UTF8: PostgreSQL would hand over texts that are no valid
    /// strings in Rust. `create extension` refuses other encodings, but earlier releases did not.
    pub fn of_function(function: pg_sys::Oid) -> Schema {
        // SAFETY: returns a setting of the database.
        if unsafe { pg_sys::GetDatabaseEncoding() } != pg_sys::pg_enc::PG_UTF8 as i32 {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "honcho works only in databases with the encoding UTF8"
            );
        }
        // SAFETY: a lookup in the system cache.
        Schema(unsafe { pg_sys::get_func_namespace(function) })
    }

    /// Its current name.
    pub fn name(self) -> CString {
        // SAFETY: a lookup in the system cache, which returns a copy of the name or null.
        unsafe {
            let name = pg_sys::get_namespace_name(self.0);
            if name.is_null() {
                missing(c"its schema");
            }
            CStr::from_ptr(name).to_owned()
        }
    }

    /// The OID of the table, index or sequence called `name`.
    pub fn relation(self, name: &CStr) -> pg_sys::Oid {
        self.find_relation(name).unwrap_or_else(|| missing(name))
    }

    /// The OID of the index of `table` with one of these names, the first one found. The SQL of earlier
    /// releases has other names, and there any role that may create in the schema can use the name of a
    /// later release for something else.
    pub fn index(self, table: pg_sys::Oid, names: &[&CStr]) -> pg_sys::Oid {
        let of_table = |&oid: &pg_sys::Oid| {
            // SAFETY: a lookup in the system cache; a relation that is no index has no table.
            unsafe { pg_sys::IndexGetRelation(oid, true) == table }
        };
        names
            .iter()
            .find_map(|name| self.find_relation(name).filter(of_table))
            .unwrap_or_else(|| missing(names[0]))
    }

    /// The OID of the function called `name` without arguments; none if the extension is not yet updated to a
    /// version that has it.
    pub fn function(self, name: &CStr) -> Option<pg_sys::Oid> {
        // SAFETY: a lookup in the system cache by valid arguments.
        let oid = unsafe {
            pg_sys::GetSysCacheOid(
                pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
                pg_sys::Anum_pg_proc_oid as pg_sys::AttrNumber,
                pg_sys::Datum::from(name.as_ptr()),
                pg_sys::Datum::from(pg_sys::buildoidvector(std::ptr::null(), 0)),
                pg_sys::Datum::from(self.0),
                pg_sys::Datum::null(),
            )
        };
        (oid != pg_sys::InvalidOid).then_some(oid)
    }

    /// The OID of the table, index or sequence called `name`; none if the extension is not yet updated to a
    /// version that has it.
    pub fn find_relation(self, name: &CStr) -> Option<pg_sys::Oid> {
        // SAFETY: a lookup in the system cache by valid arguments.
        let oid = unsafe { pg_sys::get_relname_relid(name.as_ptr(), self.0) };
        (oid != pg_sys::InvalidOid).then_some(oid)
    }

    /// The OID of `label` in the enum called `name`.
    pub fn enum_value(self, name: &CStr, label: &str) -> pg_sys::Oid {
        let Ok(label) = CString::new(label) else {
            missing(name)
        };
        // SAFETY: lookups in the system cache by valid arguments.
        let oid = unsafe {
            let enum_type = pg_sys::GetSysCacheOid(
                pg_sys::SysCacheIdentifier::TYPENAMENSP as i32,
                pg_sys::Anum_pg_type_oid as pg_sys::AttrNumber,
                pg_sys::Datum::from(name.as_ptr()),
                pg_sys::Datum::from(self.0),
                pg_sys::Datum::null(),
                pg_sys::Datum::null(),
            );
            pg_sys::GetSysCacheOid(
                pg_sys::SysCacheIdentifier::ENUMTYPOIDNAME as i32,
                pg_sys::Anum_pg_enum_oid as pg_sys::AttrNumber,
                pg_sys::Datum::from(enum_type),
                pg_sys::Datum::from(label.as_ptr()),
                pg_sys::Datum::null(),
                pg_sys::Datum::null(),
            )
        };
        if oid == pg_sys::InvalidOid {
            missing(name);
        }
        oid
    }
}

fn missing(name: &CStr) -> ! {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
        format!(
            "the honcho extension is incomplete: {} is missing",
            name.to_string_lossy()
        )
    );
}
