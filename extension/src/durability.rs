//! Early lock release: claims on one coupon share WAL flushes.
//!
//! A lock is normally held until its transaction's commit record is flushed, so claims on one coupon
//! cannot group-commit: each waits for the flush of the one before. A transaction that releases its
//! locks early therefore commits as an asynchronous commit does, releases them, and then flushes
//! before anybody is told that it committed. The next claim's commit record lies behind ours in the
//! WAL, so if it is durable, so are we.
//!
//! What changes is that others may see what a claim did a moment before it is durable. A refusal that
//! rests on such a claim therefore waits for the flush too ([`wait_until_durable`]).

use std::cell::Cell;
use std::ptr;
use std::time::{Duration, Instant};

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_guard, pg_sys};

static EARLY_LOCK_RELEASE: GucSetting<bool> = GucSetting::<bool>::new(true);

const OFF: i32 = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32;
const LOCAL_FLUSH: i32 = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_LOCAL_FLUSH as i32;
const REMOTE_APPLY: i32 = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_APPLY as i32;

/// How far the transaction at hand is.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// It commits as PostgreSQL does.
    Ordinary,
    /// It is to release its locks early.
    Early,
    /// It is committing without a flush; the flush is due when its locks are released. Holds the
    /// caller's `synchronous_commit`.
    FlushDue(i32),
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State::Ordinary) };
    static PACE: Cell<Pace> = const { Cell::new(Pace { duration: Duration::ZERO, in_company: false }) };
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
        pg_sys::RegisterXactCallback(Some(at_transaction_event), ptr::null_mut());
        pg_sys::RegisterResourceReleaseCallback(Some(at_resource_release), ptr::null_mut());
    }
}

/// Lets the current transaction, which has claimed, release its locks before it flushes.
///
/// If the claim is rolled back to a savepoint the transaction still does so; that costs nothing.
pub fn release_locks_early() {
    if EARLY_LOCK_RELEASE.get() && STATE.get() == State::Ordinary {
        STATE.set(State::Early);
    }
}

/// Whether this transaction's commit waits for synchronous standbys.
pub fn waits_for_standbys() -> bool {
    // SAFETY: backend-local variables; the names are null or a C string.
    unsafe {
        let names = pg_sys::SyncRepStandbyNames;
        pg_sys::max_wal_senders > 0
            && pg_sys::synchronous_commit > LOCAL_FLUSH
            && !names.is_null()
            && *names != 0
    }
}

/// Waits until the commit of transaction `xid`, whose work was seen, is durable: flushed here, and on
/// the synchronous standbys where there are any. Returns at once for the caller's own transaction and
/// for any commit that is.
///
/// Nobody keeps the LSN of a synchronous commit, so nothing waits for that: it was flushed, and had
/// waited for what its own `synchronous_commit` asked, before anybody saw it. Where that was less, or
/// where its wait for the standbys was broken off, by a cancel or a crash, its work is visible without
/// them. To wait here for all that was flushed would close this gap, but then every refusal that rests
/// on an old claim would stop with the standby.
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
        // As at a commit, this wait is not broken off but by a cancel, with a warning.
        pg_sys::InterruptHoldoffCount += 1;
        pg_sys::SyncRepWaitForLSN(commit, true);
        pg_sys::InterruptHoldoffCount -= 1;
    }
}

/// Before the commit record is written: makes the commit asynchronous if it releases locks early.
///
/// The variable is set past the settings' machinery, for the few steps between here and the flush,
/// so that no rollback to a savepoint, no function with settings of its own and no `show` meets it.
/// A caller who turned `synchronous_commit` off keeps that, and so does one who set `remote_apply`,
/// which asks the standby for its word in the commit record itself. A prepared transaction never comes by
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
                if STATE.get() == State::Early
                    && pg_sys::synchronous_commit > OFF
                    && pg_sys::synchronous_commit < REMOTE_APPLY
                {
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
            let commit = pg_sys::XactLastCommitEnd;
            PACE.set(PACE.get().flush(commit));
            pg_sys::SyncRepWaitForLSN(commit, true);
        }
    }
    STATE.set(State::Ordinary);
}

unsafe extern "C" {
    /// `commit_delay`, in microseconds, which pgrx does not bind.
    static mut CommitDelay: i32;
    /// `commit_siblings`, likewise.
    static mut CommitSiblings: i32;
}

/// What this backend's flushes were like lately.
#[derive(Clone, Copy)]
struct Pace {
    /// How long they took, waits for others' included: a moving average over about eight.
    duration: Duration,
    /// Whether the last one took others' commits along.
    in_company: bool,
}

impl Pace {
    /// Flushes less costly than this are not worth waiting for.
    const SLOW: Duration = Duration::from_micros(800);

    /// Flushes the WAL up to `commit`.
    ///
    /// Where that is slow and others are committing too, the flush is put off by a fraction of it,
    /// as `commit_delay` does: else those who were told by the last flush and come back at once miss
    /// this one by little, wait for it to end, and only then for their own. A `commit_delay` that
    /// somebody has set is left as it is.
    ///
    /// # Safety
    /// `commit` is the end of a record that was written.
    unsafe fn flush(self, commit: pg_sys::XLogRecPtr) -> Pace {
        let start = Instant::now();
        // SAFETY: backend-local variables; nothing else runs in this backend.
        unsafe {
            let set = (CommitDelay, CommitSiblings);
            if self.in_company && self.duration > Self::SLOW && set.0 == 0 {
                CommitDelay = self.duration.as_micros() as i32 / 4;
                CommitSiblings = 0;
            }
            pg_sys::XLogFlush(commit);
            (CommitDelay, CommitSiblings) = set;
            Pace {
                duration: (self.duration * 7 + start.elapsed()) / 8,
                in_company: pg_sys::GetFlushRecPtr(ptr::null_mut()) > commit,
            }
        }
    }
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
