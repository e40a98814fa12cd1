//! The session and its transaction: clock, commands, snapshots.

use std::ffi::{CStr, CString};
use std::time::SystemTime;

use pgrx::{
    GucContext, GucFlags, GucRegistry, GucSetting, IntoDatum, PgSqlErrorCode, direct_function_call,
    ereport, pg_sys,
};

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

/// The beginning of PostgreSQL's years, 2000-01-01, in microseconds after that of Unix.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// The clock, in microseconds as PostgreSQL counts them, which is what `clock_timestamp()` reads.
pub fn now() -> i64 {
    let unix = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    unix.as_micros() as i64 - POSTGRES_EPOCH
}

unsafe extern "C-unwind" {
    /// PostgreSQL's, from commands/sequence.h.
    fn nextval_internal(relid: pg_sys::Oid, check_permissions: bool) -> i64;
}

/// The next value of `sequence`. As for an identity column, it needs no right on the sequence.
pub fn next_value(sequence: pg_sys::Oid) -> i64 {
    // SAFETY: it raises an error, which the boundary catches, unless the relation is a sequence.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| nextval_internal(sequence, false)) }
}

/// The last value that `sequence` has given, 0 if none.
pub fn last_value(sequence: pg_sys::Oid) -> i64 {
    // SAFETY: `pg_sequence_last_value` takes one OID and returns a bigint, or null before the first value.
    let value = unsafe {
        direct_function_call::<i64>(pg_sys::pg_sequence_last_value, &[sequence.into_datum()])
    };
    value.unwrap_or_default()
}

/// A function that writes, as errors name it.
#[derive(Clone, Copy)]
pub struct Command {
    /// The function, for users.
    pub name: &'static CStr,
    /// The beginning of the context of errors, which the coupon ends.
    pub doing: &'static CStr,
}

static ACTOR: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

static ALLOW_AUTONOMOUS: GucSetting<bool> = GucSetting::<bool>::new(false);

/// Defines `honcho.actor` and `honcho_router.allow_autonomous`.
pub fn init() {
    GucRegistry::define_bool_guc(
        c"honcho_router.allow_autonomous",
        c"Lets the functions of honcho_router run in a transaction block.",
        c"They commit on the shard before they return, so a rollback of the transaction does not undo them.",
        &ALLOW_AUTONOMOUS,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"honcho.actor",
        c"Label that the events of this session carry, after the session's user.",
        c"A service that acts for others sets it to a name of them.",
        &ACTOR,
        GucContext::Userset,
        GucFlags::default(),
    );
}

/// The label in `honcho.actor`, if there is one.
pub fn actor() -> Option<String> {
    let label = ACTOR.get()?.to_string_lossy().into_owned();
    (!label.is_empty()).then_some(label)
}

/// The name of the session's user.
pub fn user() -> String {
    // SAFETY: returns a copy of the role's name, or null if the role was dropped meanwhile.
    unsafe {
        let role = pg_sys::GetSessionUserId();
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() {
            return role.to_u32().to_string();
        }
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// Raises an error unless the transaction's statements see what was committed before each of them.
///
/// # Errors
/// `0A000` under repeatable read and serializable, naming `command`.
pub fn require_read_committed(command: &str) {
    // SAFETY: a backend-local variable.
    if unsafe { pg_sys::XactIsoLevel } >= pg_sys::XACT_REPEATABLE_READ as i32 {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("{command} works only at the isolation level read committed")
        );
    }
}

/// Raises an error unless this statement is a transaction of its own, or `honcho_router.allow_autonomous` is on. The
/// transaction of a statement in a pipeline then ends with the statement.
///
/// # Errors
/// `25001`, naming `command`.
pub fn require_no_transaction_block(command: &str) {
    if ALLOW_AUTONOMOUS.get() {
        return;
    }
    // SAFETY: reads backend-local variables. A function does not know if its statement is at the top level.
    if unsafe { pg_sys::IsInTransactionBlock(true) } {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            format!(
                "{command} cannot run inside a transaction block: it commits on the shard at once"
            ),
            "Call it by itself, or set honcho_router.allow_autonomous if a rollback need not undo it."
        );
    }
    // SAFETY: as above, so it raises no error and reads no name: it only has the transaction end with this statement.
    unsafe { pg_sys::PreventInTransactionBlock(true, c"".as_ptr()) };
}

/// Returns true if a rollback may undo what this statement does after it has been reported: in a transaction block, a
/// savepoint or an exception block.
pub fn may_roll_back_alone() -> bool {
    // SAFETY: reads backend-local variables.
    unsafe { pg_sys::IsInTransactionBlock(true) }
}

/// Returns true on a standby.
pub fn is_standby() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Makes what was written visible to the later commands of this transaction.
pub fn next_command() {
    // SAFETY: we are in a transaction, and not in a parallel worker, where a write would have failed.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// The command of this transaction that is being carried out. Each one that triggers carry out has another.
pub fn command() -> pg_sys::CommandId {
    // SAFETY: we are in a transaction.
    unsafe { pg_sys::GetCurrentCommandId(false) }
}

/// Returns true if this transaction may have written something that a new command would see.
pub fn may_have_written() -> bool {
    // SAFETY: both read backend-local variables. A parallel worker cannot begin a command.
    unsafe {
        pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId
            && !pg_sys::IsInParallelMode()
    }
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

    /// Keeps the snapshot of the calling statement the active one.
    pub fn push_active() -> Snapshot {
        // SAFETY: as above; a statement that calls a function has an active snapshot.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetActiveSnapshot()) };
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
