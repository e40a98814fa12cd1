//! PostgreSQL as the extension needs it.
//!
//! `lookup` and `writer` make the calls that the executor and logical replication make, without a plan in
//! between: visibility, row locks, constraints, indexes, users' triggers and serializable conflicts are
//! those of any SQL statement, for a fraction of its time.
//!
//! Nothing here cleans up after an error: PostgreSQL releases locks, pins and snapshots as the transaction
//! aborts. pgrx carries an error as a panic, so each `drop` of these does nothing while a panic unwinds.

pub mod analysis;
pub mod btree;
// PostgreSQL 18 has checks that are not enforced and columns that are computed on reading: there the
// executor compiles the checks.
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
