//! Cached plans of the reading functions.

use std::cell::OnceCell;
use std::thread::LocalKey;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{self, OwnedPreparedStatement, SpiHeapTupleData};
use pgrx::{FromDatum, IntoDatum};

/// A static statement that is planned once per backend.
pub struct Plan {
    sql: &'static str,
    arguments: &'static [PgBuiltInOids],
    prepared: OnceCell<OwnedPreparedStatement>,
}

impl Plan {
    /// The plan of `sql`, which takes `arguments` as `$1` and so on. It finds its tables by the
    /// search path that its function pins.
    pub const fn new(sql: &'static str, arguments: &'static [PgBuiltInOids]) -> Plan {
        Plan {
            sql,
            arguments,
            prepared: OnceCell::new(),
        }
    }

    /// Runs it read-only and reads each of its rows.
    pub fn rows<R>(
        plan: &'static LocalKey<Plan>,
        arguments: &[DatumWithOid<'_>],
        mut read: impl FnMut(&SpiHeapTupleData<'_>) -> spi::Result<R>,
    ) -> spi::Result<Vec<R>> {
        plan.with(|plan| {
            Spi::connect(|client| {
                let prepared = match plan.prepared.get() {
                    Some(prepared) => prepared,
                    None => {
                        let oids: Vec<PgOid> = plan
                            .arguments
                            .iter()
                            .map(|&oid| PgOid::from(oid.value()))
                            .collect();
                        let prepared = client.prepare(plan.sql, &oids)?.keep();
                        plan.prepared.get_or_init(|| prepared)
                    }
                };
                let found = client.select(prepared, None, arguments)?;
                let mut rows = Vec::with_capacity(found.len());
                for row in found {
                    rows.push(read(&row)?);
                }
                Ok(rows)
            })
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
