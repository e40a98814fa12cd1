//! The session and its transaction: clock, commands, snapshots.

use std::ffi::CStr;

use pgrx::{IntoDatum, direct_function_call, pg_sys};

/// Keeps backtraces out of error details, which clients see.
///
/// `RUST_BACKTRACE` in the server's environment would put one into each. `RUST_LIB_BACKTRACE` asks for
/// that in particular and has the last word, so a server that sets it keeps them.
pub fn silence_backtraces() {
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
        // SAFETY: a backend has one thread.
        unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    }
}

/// The clock, in microseconds as PostgreSQL counts them.
pub fn now() -> i64 {
    // SAFETY: takes and touches nothing.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// The next value of `sequence`.
pub fn next_value(sequence: pg_sys::Oid) -> i64 {
    // SAFETY: `nextval_oid` takes one OID and returns a bigint, never null.
    let value =
        unsafe { direct_function_call::<i64>(pg_sys::nextval_oid, &[sequence.into_datum()]) };
    value.unwrap_or_default()
}

/// Makes what was written visible to the later commands of this transaction.
pub fn next_command() {
    // SAFETY: we are in a transaction, and not in a parallel worker, where a write would have failed.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Raises an error in a read-only transaction and on a standby.
///
/// # Errors
/// `25006`, naming `command`.
pub fn require_writable(command: &CStr) {
    // SAFETY: a valid C string; an error leaves through pgrx's guard.
    unsafe { pg_sys::PreventCommandIfReadOnly(command.as_ptr()) };
}

/// The active snapshot, from `push` to `drop`.
pub struct Snapshot(());

impl Snapshot {
    /// Makes the transaction's snapshot the active one: under read committed, a new one.
    pub fn push() -> Snapshot {
        // SAFETY: we are in a transaction; `drop` pops what is pushed here.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        Snapshot(())
    }

    /// Makes a snapshot of this moment the active one, at every isolation level.
    pub fn push_latest() -> Snapshot {
        // SAFETY: as above.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
        Snapshot(())
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: pushed by `push`; snapshots that are pushed later are popped earlier.
            unsafe { pg_sys::PopActiveSnapshot() };
        }
    }
}
