//! Heavyweight locks on objects that are no relations.

use pgrx::pg_sys;

/// The moment at the end of a transaction when a lock is released.
#[derive(Clone, Copy)]
pub enum Release {
    /// With the locks on tables.
    WithOthers = pg_sys::DEFAULT_LOCKMETHOD as isize,
    /// After all of those.
    Last = pg_sys::USER_LOCKMETHOD as isize,
}

/// A heavyweight lock, an `object` lock in `pg_locks`.
pub struct Lock(pg_sys::LOCKTAG);

impl Lock {
    const MODE: pg_sys::LOCKMODE = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
    const SHARED: pg_sys::LOCKMODE = pg_sys::ShareLock as pg_sys::LOCKMODE;

    /// The lock of object `id` of the class `class`. The key has room for 48 bits of `id`.
    pub fn new(release: Release, class: pg_sys::Oid, id: i64) -> Lock {
        Lock(pg_sys::LOCKTAG {
            // SAFETY: set once, when the session connects to its database.
            locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
            locktag_field2: class.to_u32(),
            locktag_field3: id as u32,
            locktag_field4: (id >> 32) as u16,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: release as u8,
        })
    }

    /// Takes the lock; waits for it if another transaction has it.
    ///
    /// # Errors
    /// `55P03` after `lock_timeout`; `57014` on a cancel, `40P01` on a deadlock.
    pub fn acquire(&self) {
        // SAFETY: the tag is valid; an error leaves through pgrx's guard.
        unsafe { pg_sys::LockAcquire(&self.0, Self::MODE, false, false) };
    }

    /// Takes the lock in a mode that others may take as well, as `pg_locks` shows.
    pub fn share(&self) {
        // SAFETY: as above.
        unsafe { pg_sys::LockAcquire(&self.0, Self::SHARED, false, false) };
    }

    /// Returns true if this transaction has the lock in the shared mode.
    pub fn is_shared(&self) -> bool {
        // SAFETY: as above.
        unsafe {
            pg_sys::LockHeldByMe(
                &self.0,
                Self::SHARED,
                #[cfg(any(feature = "pg17", feature = "pg18"))]
                false,
            )
        }
    }

    /// Takes the lock if it is free; returns true if it did.
    pub fn try_acquire(&self) -> bool {
        // SAFETY: as above.
        let result = unsafe { pg_sys::LockAcquire(&self.0, Self::MODE, false, true) };
        result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }

    /// Gives the lock back once; it stays as often as it was taken before.
    pub fn release(&self) {
        // SAFETY: as above.
        unsafe { pg_sys::LockRelease(&self.0, Self::MODE, false) };
    }

    /// Returns true if another transaction waits for the lock, which this one has.
    pub fn has_waiters(&self) -> bool {
        // SAFETY: as above.
        unsafe { pg_sys::LockHasWaiters(&self.0, Self::MODE, false) }
    }
}

/// Takes in changes of the catalogs by other sessions, after a wait. The definitions of relations that are
/// open and locked stay as they are.
pub fn accept_invalidations() {
    // SAFETY: we are in a transaction; what is open is kept by its own locks.
    unsafe { pg_sys::AcceptInvalidationMessages() };
}
