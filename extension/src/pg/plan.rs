//! Cached plans of static SQL.
//!
//! The functions run with their owner's rights, so their SQL must not resolve a name in a schema that others
//! may write to: it names tables with the extension's schema, and operators, functions and types with
//! `pg_catalog`. `analysis` also checks what the names mean.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::rc::Rc;
use std::thread::LocalKey;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{self, OwnedPreparedStatement, SpiHeapTupleData};
use pgrx::{FromDatum, IntoDatum};

use crate::pg::analysis::Checked;
use crate::pg::schema::Schema;

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
    /// The plan of `sql`, with `arguments` as the types of `$1` and so on, and with `{schema}` in place of the
    /// name of the extension's schema.
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

    /// Runs it on the tables of `schema`; returns the number of rows that it wrote.
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

    /// The prepared statement, and its check, which must live while it runs. It is prepared again if the schema
    /// has been renamed.
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

/// The value of a column that is never null.
pub fn column<T: FromDatum + IntoDatum>(
    row: &SpiHeapTupleData<'_>,
    ordinal: usize,
) -> spi::Result<T> {
    row.get(ordinal)?.ok_or(spi::Error::InvalidPosition)
}
