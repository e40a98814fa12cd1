//! Early lock release: claims on one coupon share WAL flushes.
//!
//! A lock is normally held until its transaction's commit record is flushed, so claims on one coupon
//! cannot group-commit: each waits for the flush of the one before. A transaction that claimed
//! therefore commits as an asynchronous commit does, releases its locks, and then flushes before
//! anybody is told that it committed. The next claim's commit record lies behind ours in the WAL, so
//! if it is durable, so are we.
//!
//! What changes is that others may see what a claim did a moment before it is durable. A refusal that
//! rests on such a claim therefore waits for the flush too ([`wait_until_durable`]).

use std::cell::Cell;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_guard, pg_sys};

static EARLY_LOCK_RELEASE: GucSetting<bool> = GucSetting::<bool>::new(true);

const OFF: i32 = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32;

/// How far the transaction at hand is.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// It has not claimed, or commits as PostgreSQL does.
    Ordinary,
    /// It has claimed.
    Claimed,
    /// It is committing without a flush; the flush is due when its locks are released. Holds the
    /// caller's `synchronous_commit`.
    FlushDue(i32),
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State::Ordinary) };
}

/// Defines `honcho.early_lock_release` and hooks into the end of transactions.
pub fn init() {
    GucRegistry::define_bool_guc(
        c"honcho.early_lock_release",
        c"Releases a claim's locks before its commit is flushed to disk.",
        c"The claim is reported only after the flush, so none that was reported is ever lost; others may see it a moment earlier.",
        &EARLY_LOCK_RELEASE,
        GucContext::Userset,
        GucFlags::default(),
    );
    // SAFETY: both callbacks have static lifetime and are registered once per backend.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_event), std::ptr::null_mut());
        pg_sys::RegisterResourceReleaseCallback(Some(at_resource_release), std::ptr::null_mut());
    }
}

/// Lets the current transaction release its locks before it flushes, because it has claimed.
///
/// If the claim is rolled back to a savepoint the transaction still does so; that costs nothing.
pub fn release_locks_early() {
    if EARLY_LOCK_RELEASE.get() {
        STATE.set(State::Claimed);
    }
}

/// Waits until the commit of transaction `xid`, whose work was seen, is durable. Returns at once for
/// the caller's own transaction and for any commit that was flushed.
pub fn wait_until_durable(xid: pg_sys::TransactionId) {
    // SAFETY: look-ups by an xid that a visible row carries, hence within the commit log.
    unsafe {
        let normal = xid >= pg_sys::FirstNormalTransactionId;
        if !normal
            || pg_sys::TransactionIdIsCurrentTransactionId(xid)
            || pg_sys::RecoveryInProgress()
        {
            return;
        }
        // The page's LSN would not do: the commit record lies behind the row's.
        let commit = pg_sys::TransactionIdGetCommitLSN(xid);
        if pg_sys::XLogNeedsFlush(commit) {
            pg_sys::XLogFlush(commit);
        }
    }
}

/// Before the commit record is written: makes this commit asynchronous if the transaction claimed.
///
/// The variable is set past the settings' machinery, for the few steps between here and the flush,
/// so that no rollback to a savepoint, no function with settings of its own and no `show` meets it.
/// A caller who turned `synchronous_commit` off keeps that. A prepared transaction never comes by
/// here: it is flushed as ever.
#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_event(
    event: pg_sys::XactEvent::Type,
    _arg: *mut std::ffi::c_void,
) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT => {
            // SAFETY: a backend-local variable; nothing else runs in this backend.
            unsafe {
                if STATE.get() == State::Claimed && pg_sys::synchronous_commit > OFF {
                    STATE.set(State::FlushDue(pg_sys::synchronous_commit));
                    pg_sys::synchronous_commit = OFF;
                }
            }
        }
        pg_sys::XactEvent::XACT_EVENT_ABORT => {
            restore();
            STATE.set(State::Ordinary);
        }
        pg_sys::XactEvent::XACT_EVENT_PREPARE => STATE.set(State::Ordinary),
        _ => {}
    }
}

/// After the locks are released: flushes, then waits for synchronous standbys where there are any.
///
/// Interrupts are held off during the end of a transaction, so no cancel comes between commit and
/// flush. Called once for each resource owner; the first of the top level finds all locks released.
#[pg_guard]
unsafe extern "C-unwind" fn at_resource_release(
    phase: pg_sys::ResourceReleasePhase::Type,
    is_commit: bool,
    is_top_level: bool,
    _arg: *mut std::ffi::c_void,
) {
    let after_locks = pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_AFTER_LOCKS;
    if phase != after_locks || !is_commit || !is_top_level {
        return;
    }
    if restore() {
        // SAFETY: the commit record was written by this backend; its end is XactLastCommitEnd.
        unsafe {
            pg_sys::XLogFlush(pg_sys::XactLastCommitEnd);
            pg_sys::SyncRepWaitForLSN(pg_sys::XactLastCommitEnd, true);
        }
    }
    STATE.set(State::Ordinary);
}

/// Puts the caller's `synchronous_commit` back; whether a flush was due.
fn restore() -> bool {
    let State::FlushDue(level) = STATE.get() else {
        return false;
    };
    // SAFETY: a backend-local variable; nothing else runs in this backend.
    unsafe { pg_sys::synchronous_commit = level };
    STATE.set(State::Ordinary);
    true
}
