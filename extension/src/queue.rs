//! The queue lock: claimers of one coupon wait in line, first in, first out.

use pgrx::pg_sys;

/// Waits until it is this transaction's turn to change the stock of coupon `id`, and keeps the turn
/// until the transaction (or the savepoint around it) ends.
///
/// A heavyweight lock wakes one waiter at a time; without it, all waiters chase the versions of the
/// coupon's row. It is keyed by the coupons table and the coupon's id, so it can never meet one of
/// the users' advisory locks, and shows in `pg_locks` as an `object` lock of that table. A lock's key
/// has room for 48 bits of the id: two coupons whose ids differ only above share a line, no more.
///
/// # Errors
/// `55P03` after `lock_timeout`, `57014` on a cancel, `40P01` on a deadlock.
pub fn wait_for_turn(coupons: pg_sys::Oid, id: i64) {
    let (low, high) = key(id);
    // SAFETY: takes plain values; an error leaves through pgrx's guard.
    unsafe { pg_sys::LockDatabaseObject(coupons, low, high, EXCLUSIVE) };
}

/// Gives back the turn that was waited for last, with nothing changed. A turn that this transaction
/// had before remains its own.
pub fn pass(coupons: pg_sys::Oid, id: i64) {
    let (low, high) = key(id);
    // SAFETY: as above.
    unsafe { pg_sys::UnlockDatabaseObject(coupons, low, high, EXCLUSIVE) };
}

/// Whether somebody waits for the turn, which this transaction has.
pub fn is_awaited(coupons: pg_sys::Oid, id: i64) -> bool {
    let (low, high) = key(id);
    // SAFETY: the tag is the one that `LockDatabaseObject` made of the same values.
    unsafe {
        let turn = pg_sys::LOCKTAG {
            locktag_field1: pg_sys::MyDatabaseId.to_u32(),
            locktag_field2: coupons.to_u32(),
            locktag_field3: low.to_u32(),
            locktag_field4: high,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        };
        pg_sys::LockHasWaiters(&turn, EXCLUSIVE, false)
    }
}

const EXCLUSIVE: pg_sys::LOCKMODE = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;

fn key(id: i64) -> (pg_sys::Oid, u16) {
    (pg_sys::Oid::from(id as u32), (id >> 32) as u16)
}
