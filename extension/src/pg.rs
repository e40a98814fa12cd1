//! PostgreSQL as the extension needs it.
//!
//! `lookup` and `writer` make the calls that the executor and logical replication make, without a plan in
//! between: visibility, row locks, constraints, indexes, users' triggers and serializable conflicts are
//! those of any SQL statement, for a fraction of its time.
//!
//! After an error nothing is cleaned up here: PostgreSQL releases locks, pins and snapshots as the
//! transaction aborts. So each `drop` does nothing while a panic, which is how pgrx carries an error,
//! unwinds.

pub mod analysis;
// PostgreSQL 18 has checks that are not enforced and columns that are computed on reading: there the
// executor compiles for itself.
#[cfg(not(feature = "pg18"))]
pub mod checks;
pub mod column;
pub mod errors;
pub mod lock;
pub mod lookup;
pub mod plan;
pub mod relation;
pub mod rows;
pub mod schema;
pub mod session;
pub mod writer;
