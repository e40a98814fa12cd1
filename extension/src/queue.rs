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

const EXCLUSIVE: pg_sys::LOCKMODE = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;

fn key(id: i64) -> (pg_sys::Oid, u16) {
    (pg_sys::Oid::from(id as u32), (id >> 32) as u16)
}
