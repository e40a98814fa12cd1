//! Early lock release: claims on one coupon share WAL flushes.
//!
//! A lock is normally held until its transaction's commit record is flushed, so claims on one coupon
//! cannot group-commit: each waits for the flush of the one before. A transaction that releases its
//! locks early therefore commits as an asynchronous commit does, releases them, and then flushes
//! before anybody is told that it committed. The next claim's commit record lies behind ours in the
//! WAL, so if it is durable, so are we.
//!
//! What changes is that others may see what a claim did a moment before it is durable. A refusal that
//! rests on such a claim therefore waits for the flush too ([`commit_position`],
//! [`wait_until_durable`]).

use std::cell::Cell;
use std::ptr;
use std::time::{Duration, Instant};

use pgrx::{
    GucContext, GucFlags, GucRegistry, GucSetting, PgLogLevel, PgSqlErrorCode, ereport, pg_guard,
    pg_sys,
};

static EARLY_LOCK_RELEASE: GucSetting<bool> = GucSetting::<bool>::new(true);

const OFF: i32 = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32;
const LOCAL_FLUSH: i32 = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_LOCAL_FLUSH as i32;
const REMOTE_WRITE: i32 = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_WRITE as i32;
const REMOTE_APPLY: i32 = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_APPLY as i32;

/// The position in the WAL for which nothing waits.
pub const NOTHING: pg_sys::XLogRecPtr = pg_sys::InvalidXLogRecPtr as pg_sys::XLogRecPtr;

/// The place of PostgreSQL's `XactTruncationLock` among its named locks (lwlocknames.h), the same from
/// 15 to 18.
const XACT_TRUNCATION_LOCK: usize = 44;

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
        // A misspelt setting of ours is an error from here on, and a warning if it is set already.
        pg_sys::MarkGUCPrefixReserved(c"honcho".as_ptr());
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

/// The position in the WAL up to which it must be durable before the work of transaction `xid`, which
/// was seen, may be reported; [`NOTHING`] if it may be reported at once: because it is the caller's own,
/// because this is a standby, or because the commit was synchronous.
///
/// PostgreSQL does not keep the position of a synchronous commit: that was flushed, and had waited for
/// what its own `synchronous_commit` asked, before anybody saw it. If that was less, or if its wait for
/// the standbys was cut short, by a cancel or a crash, its work is visible without them. Neither does it keep
/// any position once the commit log has moved on by as many pages as fit in its buffers: a million transactions,
/// which can only matter while a standby is away for as long. To wait for
/// everything that was flushed would close this gap, but then every refusal that rests on an old claim
/// would stop with the standby.
pub fn commit_position(xid: pg_sys::TransactionId) -> pg_sys::XLogRecPtr {
    // SAFETY: the commit log is asked only for what it still has; the lock keeps it from being
    // truncated meanwhile, and an error releases it.
    unsafe {
        if xid < pg_sys::FirstNormalTransactionId
            || pg_sys::TransactionIdIsCurrentTransactionId(xid)
            || pg_sys::RecoveryInProgress()
        {
            return NOTHING;
        }
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        let oldest = &raw const (*pg_sys::ShmemVariableCache).oldestClogXid;
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        let oldest = &raw const (*pg_sys::TransamVariables).oldestClogXid;
        // A row may be frozen before the commit that wrote it is durable: early lock release ends the
        // transaction, as far as others can tell, before its flush. So a frozen row's writer counts
        // too, unless it is from so long ago that the commit log has forgotten it.
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(XACT_TRUNCATION_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
        let known = !precedes(xid, oldest.read()) && precedes(xid, next_transaction());
        // The page's position would not do: the commit record lies behind the row's.
        let position = if known {
            pg_sys::TransactionIdGetCommitLSN(xid)
        } else {
            NOTHING
        };
        pg_sys::LWLockRelease(lock);
        position
    }
}

/// Returns true if transaction `a` is older than `b`, as PostgreSQL counts them: in a circle.
fn precedes(a: pg_sys::TransactionId, b: pg_sys::TransactionId) -> bool {
    (u32::from(a).wrapping_sub(u32::from(b)) as i32) < 0
}

/// The transaction id that is given out next.
fn next_transaction() -> pg_sys::TransactionId {
    // SAFETY: reads shared memory under a lock of its own.
    let next = unsafe { pg_sys::ReadNextFullTransactionId() };
    pg_sys::TransactionId::from(next.value as u32)
}

/// Returns true if everything up to `position` is flushed here, and on the synchronous standbys if this
/// session's commits wait for them.
pub fn is_durable(position: pg_sys::XLogRecPtr) -> bool {
    // SAFETY: compares positions.
    position == NOTHING || (unsafe { !pg_sys::XLogNeedsFlush(position) } && standbys_have(position))
}

/// Waits until everything up to `position` is durable, as a commit of this session would be.
///
/// Call it with no turn, pin or snapshot held: the standbys may be away.
///
/// # Errors
/// `57014` if a cancel or a timeout cuts the wait for the standbys short. PostgreSQL answers with a
/// warning there, for a commit is done whatever the standbys say. A refusal is not: it must not be
/// reported, and nothing is lost with it.
pub fn wait_until_durable(position: pg_sys::XLogRecPtr) {
    if is_durable(position) {
        return;
    }
    // SAFETY: `position` lies within what was written; the variables belong to this backend, and
    // nothing leaves between where they are set and where they are put back.
    let cut_short = unsafe {
        pg_sys::XLogFlush(position);
        if standbys_have(position) {
            return;
        }
        // So that what is pending afterwards came during the wait.
        pgrx::check_for_interrupts!();
        let reporting = (
            pg_sys::client_min_messages,
            pg_sys::log_min_messages,
            pg_sys::whereToSendOutput,
        );
        // The warnings are about a commit.
        pg_sys::client_min_messages = PgLogLevel::ERROR as i32;
        pg_sys::log_min_messages = PgLogLevel::ERROR as i32;
        pg_sys::InterruptHoldoffCount += 1;
        pg_sys::SyncRepWaitForLSN(position, true);
        pg_sys::InterruptHoldoffCount -= 1;
        (
            pg_sys::client_min_messages,
            pg_sys::log_min_messages,
            pg_sys::whereToSendOutput,
        ) = reporting;
        // The death of the postmaster ends the wait without a word to the interrupts' machinery.
        if pg_sys::ProcDiePending != 0 {
            pg_sys::InterruptPending = 1;
        }
        // A wait that ends for want of standbys to wait for is no interruption.
        pg_sys::InterruptPending != 0 && !standbys_have(position)
    };
    if cut_short {
        // The session's end, if it is that.
        pgrx::check_for_interrupts!();
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            "canceling statement while it waits for a synchronous standby",
            "The refusal rests on a commit that the standby has not confirmed."
        );
    }
}

/// Returns true if the synchronous standbys have confirmed the WAL up to `position`, as far as this session's
/// commits wait for that.
fn standbys_have(position: pg_sys::XLogRecPtr) -> bool {
    if !waits_for_standbys() {
        return true;
    }
    // SAFETY: shared memory that is there for the life of the server. A torn or stale value of eight
    // aligned bytes cannot be read, and a position only grows.
    unsafe {
        let mode = match pg_sys::synchronous_commit {
            level if level == REMOTE_WRITE => pg_sys::SYNC_REP_WAIT_WRITE,
            level if level == REMOTE_APPLY => pg_sys::SYNC_REP_WAIT_APPLY,
            _ => pg_sys::SYNC_REP_WAIT_FLUSH,
        };
        let confirmed = &raw const (*pg_sys::WalSndCtl).lsn[mode as usize];
        position <= confirmed.read_volatile()
    }
}

/// Before the commit record is written: makes the commit asynchronous if it releases locks early.
///
/// The variable is set past the settings' machinery, for the few steps between here and the flush,
/// so that no rollback to a savepoint, no function with settings of its own and no `show` meets it.
/// A transaction that deletes files commits as ever. A caller who turned `synchronous_commit` off keeps that, and so does one who set `remote_apply`,
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
                    && !drops_files()
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

/// Returns true if the commit deletes files, or may: a temporary table can be dropped at its end. PostgreSQL
/// flushes such a commit at once whatever `synchronous_commit` says, and keeps no position of it for refusals to
/// wait for.
fn drops_files() -> bool {
    let mut files = ptr::null_mut();
    // SAFETY: reads this backend's state; the list is in the memory of the transaction that ends.
    unsafe {
        pg_sys::MyXactFlags & pg_sys::XACT_FLAGS_ACCESSEDTEMPNAMESPACE as i32 != 0
            || pg_sys::smgrGetPendingDeletes(true, &mut files) > 0
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
#[derive(Clone, Copy, Default)]
pub struct Pace {
    /// Their duration, waits for others' included: a moving average over about eight, each counted
    /// as [`Pace::SLOWEST`] at most.
    duration: Duration,
    /// Whether the last one took others' commits along.
    in_company: bool,
}

impl Pace {
    /// Flushes less costly than this are not worth waiting for.
    const SLOW: Duration = Duration::from_micros(800);

    /// Flushes that take longer count as this: a disk that stalled for seconds says nothing of the next
    /// flush, and all the server's commits wait behind one that is put off.
    const SLOWEST: Duration = Duration::from_millis(8);

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
            if set.0 == 0
                && let Some(delay) = self.delay()
            {
                CommitDelay = delay.as_micros() as i32;
                CommitSiblings = 0;
            }
            pg_sys::XLogFlush(commit);
            (CommitDelay, CommitSiblings) = set;
            let in_company = pg_sys::GetFlushRecPtr(ptr::null_mut()) > commit;
            self.after(start.elapsed(), in_company)
        }
    }

    /// The time to put the next flush off, if that is worth it: 2 ms at most.
    pub fn delay(self) -> Option<Duration> {
        (self.in_company && self.duration > Self::SLOW).then(|| self.duration / 4)
    }

    /// The pace after one more flush, which took `duration`.
    pub fn after(self, duration: Duration, in_company: bool) -> Pace {
        Pace {
            duration: (self.duration * 7 + duration.min(Self::SLOWEST)) / 8,
            in_company,
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
