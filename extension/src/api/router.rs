//! The guard of the extension `honcho_router`, whose functions commit on a shard before they return.

use pgrx::prelude::*;

use crate::pg::session;

/// Refuses a call whose transaction could still be rolled back, or go on, after the call has returned.
///
/// The script of `honcho_router` declares it, so that a machine with shards and one with a router install the same
/// library; this extension's own script does not declare it.
///
/// # Arguments
/// `command`: the calling function, as the error names it.
///
/// # Errors
/// `25001` in a transaction block, a savepoint, a message of several statements, and after another statement of a
/// pipeline, unless `honcho_router.allow_autonomous` is on.
#[pg_extern(volatile, strict, parallel_unsafe, sql = false)]
fn honcho_router_guard(command: &str) {
    session::require_no_transaction_block(command);
}
