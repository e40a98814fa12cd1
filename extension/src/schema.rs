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
        Schema(unsafe { pg_sys::get_func_namespace((*(*fcinfo).flinfo).fn_oid) })
    }

    /// The OID of the table, index or sequence called `name`.
    pub fn relation(self, name: &CStr) -> pg_sys::Oid {
        self.find_relation(name).unwrap_or_else(|| missing(name))
    }

    /// The same for what has another name before the extension is updated.
    pub fn renamed_relation(self, name: &CStr, before: &CStr) -> pg_sys::Oid {
        self.find_relation(name)
            .or_else(|| self.find_relation(before))
            .unwrap_or_else(|| missing(name))
    }

    fn find_relation(self, name: &CStr) -> Option<pg_sys::Oid> {
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
