//! Early lock release: claims on one coupon share WAL flushes.
//!
//! A lock is normally held until its transaction's commit record is flushed, so claims on one coupon
//! cannot group-commit: each waits for the flush of the one before. A transaction that releases its
//! locks early commits as an asynchronous commit does, releases them, and then flushes before it
//! reports the commit. The commit record of the next claim comes later in the WAL, so if that claim is
//! durable, this one is too.
//!
//! The price: other sessions may see a claim a moment before it is durable. A refusal that rests on such
//! a claim therefore waits for the flush too ([`commit_position`], [`wait_until_durable`]).
//!
//! This hooks into the end of transactions and reads shared memory, so it has `unsafe` blocks, the only
//! ones outside `pg`, except those of types in `api::outcome`.

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

/// A position in the WAL that is always durable.
pub const NOTHING: pg_sys::XLogRecPtr = pg_sys::InvalidXLogRecPtr as pg_sys::XLogRecPtr;

/// The index of `XactTruncationLock` in PostgreSQL's array of named locks (lwlocknames.h), the same from
/// 15 to 18.
const XACT_TRUNCATION_LOCK: usize = 44;

/// The way in which the current transaction commits.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// It commits as PostgreSQL does.
    Ordinary,
    /// It will release its locks early.
    Early,
    /// It must not release its locks early.
    Late,
    /// It is committing without a flush, which is due when its locks are released. Holds the caller's
    /// `synchronous_commit`.
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
        c"The claim is reported only after the flush, so no claim that was reported is lost; other sessions may see it a moment earlier.",
        &EARLY_LOCK_RELEASE,
        GucContext::Userset,
        GucFlags::default(),
    );
    // SAFETY: both callbacks have static lifetime and are registered once per backend.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_event), ptr::null_mut());
        pg_sys::RegisterResourceReleaseCallback(Some(at_resource_release), ptr::null_mut());
        // From here on a misspelt `honcho.…` setting is an error; one that is set already, a warning.
        pg_sys::MarkGUCPrefixReserved(c"honcho".as_ptr());
    }
}

/// Lets the current transaction, which has claimed, release its locks before it flushes.
///
/// It still does so if the claim is rolled back to a savepoint; that costs nothing.
pub fn release_locks_early() {
    if EARLY_LOCK_RELEASE.get() && STATE.get() == State::Ordinary {
        STATE.set(State::Early);
    }
}

/// Keeps the locks of the current transaction until its commit is durable, even if it has claimed or will.
pub fn keep_locks() {
    STATE.set(State::Late);
}

/// Returns true if this transaction's commit waits for synchronous standbys.
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

/// The position up to which the WAL must be durable before the visible work of transaction `xid` may be
/// reported. It is [`NOTHING`] if `xid` is the caller's own transaction, if its commit was synchronous, or
/// if this is a standby.
///
/// PostgreSQL does not keep the position of a synchronous commit: it was flushed, and had waited as its
/// own `synchronous_commit` asks, before others could see it. If that setting asks for less than ours, or
/// if a cancel or a crash cut the wait for the standbys short, its work is visible without them. PostgreSQL
/// also forgets positions once the commit log has moved on by as many pages as fit in its buffers: a
/// million transactions, which matters only while a standby is away for that long. Waiting for all that was
/// flushed would close this gap, but then a standby that is away would stop every refusal that rests on an
/// old claim.
pub fn commit_position(xid: pg_sys::TransactionId) -> pg_sys::XLogRecPtr {
    // SAFETY: reads only what the commit log still has; the lock keeps it from being truncated meanwhile,
    // and an error releases the lock.
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
        // A row may be frozen before the commit that wrote it is durable, for early lock release makes the
        // commit visible before its flush. So the writer of a frozen row counts too, unless it is so old
        // that the commit log has forgotten it.
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(XACT_TRUNCATION_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
        let known = !precedes(xid, oldest.read()) && precedes(xid, next_transaction());
        // The page's position is not enough: the commit record comes after the row's.
        let position = if known {
            pg_sys::TransactionIdGetCommitLSN(xid)
        } else {
            NOTHING
        };
        pg_sys::LWLockRelease(lock);
        position
    }
}

/// Returns true if `xid` is this transaction, or a part of it.
pub fn is_own(xid: pg_sys::TransactionId) -> bool {
    // SAFETY: looks at the state of this backend.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xid) }
}

/// Returns true if transaction `a` is older than `b`. Transaction ids wrap around.
fn precedes(a: pg_sys::TransactionId, b: pg_sys::TransactionId) -> bool {
    (u32::from(a).wrapping_sub(u32::from(b)) as i32) < 0
}

/// The next transaction id.
fn next_transaction() -> pg_sys::TransactionId {
    // SAFETY: reads shared memory, under a lock that it takes itself.
    let next = unsafe { pg_sys::ReadNextFullTransactionId() };
    pg_sys::TransactionId::from(next.value as u32)
}

/// Returns true if everything up to `position` is flushed here, and on the synchronous standbys if this
/// session's commits wait for them.
pub fn is_durable(position: pg_sys::XLogRecPtr) -> bool {
    // SAFETY: compares positions.
    position == NOTHING || (unsafe { !pg_sys::XLogNeedsFlush(position) } && standbys_have(position))
}

/// Waits until everything up to `position` is as durable as a commit of this session would be.
///
/// The caller must hold no turn, pin or snapshot: the standbys may be away.
///
/// # Errors
/// `57014` if a cancel or a timeout cuts the wait for the standbys short. After a commit PostgreSQL only
/// warns of that, because the commit is done. A refusal is not: it must not be reported, and nothing is
/// lost with it.
pub fn wait_until_durable(position: pg_sys::XLogRecPtr) {
    if is_durable(position) {
        return;
    }
    // SAFETY: `position` has been written; the variables belong to this backend, and no error is raised
    // between where they are set and where they are restored.
    let cut_short = unsafe {
        pg_sys::XLogFlush(position);
        if standbys_have(position) {
            return;
        }
        // An interrupt that is pending after this has come during the wait.
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
        // The death of the postmaster ends the wait without setting InterruptPending.
        if pg_sys::ProcDiePending != 0 {
            pg_sys::InterruptPending = 1;
        }
        // The wait also ends if the server no longer has synchronous standbys, which is no interruption.
        pg_sys::InterruptPending != 0 && !standbys_have(position)
    };
    if cut_short {
        // Raises the error that ends the session, if that was the reason.
        pgrx::check_for_interrupts!();
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            "canceling statement while it waits for a synchronous standby",
            "The refusal rests on a commit that the standby has not confirmed."
        );
    }
}

/// Flushes everything up to `position` here.
pub fn flush(position: pg_sys::XLogRecPtr) {
    // SAFETY: `position` has been written.
    unsafe { pg_sys::XLogFlush(position) };
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

/// Makes the commit asynchronous if it releases locks early; called before the commit record is written.
///
/// The variable is set directly, not as a setting, for the few steps between here and the flush: no
/// rollback to a savepoint, no function with settings and no `show` can run in between. These commit as
/// usual: a transaction that deletes files; one with `synchronous_commit` off, or at `remote_apply`, which
/// the commit record itself carries to the standby; and a prepared transaction, which does not come here.
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

/// Returns true if the commit deletes files or may do so: a temporary table can be dropped at its end.
/// PostgreSQL flushes such a commit even if `synchronous_commit` is off, and keeps no position of it that
/// refusals could wait for.
fn drops_files() -> bool {
    let mut files = ptr::null_mut();
    // SAFETY: reads the state of this backend; the list is in the memory of the ending transaction.
    unsafe {
        pg_sys::MyXactFlags & pg_sys::XACT_FLAGS_ACCESSEDTEMPNAMESPACE as i32 != 0
            || pg_sys::smgrGetPendingDeletes(true, &mut files) > 0
    }
}

/// Flushes and waits for synchronous standbys, after the locks are released.
///
/// Interrupts are held off while a transaction ends, so no cancel comes between commit and flush.
/// PostgreSQL calls this once for each resource owner; all locks are released by the first call for the
/// top level.
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
    /// The setting `commit_delay`, in microseconds. pgrx has no binding for it.
    static mut CommitDelay: i32;
    /// The setting `commit_siblings`, likewise.
    static mut CommitSiblings: i32;
}

/// The recent flushes of this backend.
#[derive(Clone, Copy, Default)]
pub struct Pace {
    /// Their duration, including waits for other backends' flushes: a moving average over about eight,
    /// each counted as [`Pace::SLOWEST`] at most.
    duration: Duration,
    /// True if the last one flushed other commits as well.
    in_company: bool,
}

impl Pace {
    /// Flushes faster than this are not put off.
    const SLOW: Duration = Duration::from_micros(800);

    /// Flushes that take longer count as this: a disk that stalled for seconds says nothing about the next
    /// flush, and all commits of the server wait behind one that is put off.
    const SLOWEST: Duration = Duration::from_millis(8);

    /// Flushes the WAL up to `commit`.
    ///
    /// If flushes are slow and other sessions commit too, it is put off by a fraction of their duration, as
    /// `commit_delay` does. Otherwise the sessions that the last flush has freed, and that claim again
    /// immediately, just miss this one: they wait for its end, and then for a flush of their own. A
    /// `commit_delay` that is set stays as it is.
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

    /// The time by which to put off the next flush, if that is worth it: 2 ms at most.
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

/// Restores the caller's `synchronous_commit`; returns true if a flush was due.
fn restore() -> bool {
    let State::FlushDue(level) = STATE.get() else {
        return false;
    };
    // SAFETY: a backend-local variable; nothing else runs in this backend.
    unsafe { pg_sys::synchronous_commit = level };
    STATE.set(State::Ordinary);
    true
}
