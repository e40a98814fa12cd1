//! The queue: claimers of one coupon take turns.
//!
//! It consists of two heavyweight locks. The holder of the *turn* may change the stock. A claimer that
//! finds it taken gets in *line*, first in, first out. Only the head of the line waits for the turn, and it
//! keeps its place until its transaction ends or it passes the turn on.
//!
//! So when a transaction that stood in line ends, the turn is free until the next in line has woken up, and
//! a claim that arrives in that moment takes it. The longer the line, the more this gains, for a waiter wakes
//! up slowly, with caches that others have filled since. No waiter starves: the head of the line is always
//! the next once it is awake.
//!
//! Heavyweight locks wake one waiter at a time, detect deadlocks, have timeouts, and end with the
//! transaction. Without them, all waiters would chase the versions of the coupon's row.

use crate::claiming::store::Tables;
use crate::pg::lock::{self, Lock, Release};

/// The turn of this transaction to change the stock of a coupon, until the transaction or the savepoint
/// around it ends.
pub struct Turn {
    turn: Lock,
    line: Lock,
    /// True if this session waited for the turn, in line.
    lined_up: bool,
}

impl Turn {
    /// Takes the turn for the coupon with this `id`; waits for it if it is taken.
    ///
    /// The locks show in `pg_locks` as `object` locks of the coupons table (the turn) and of the
    /// claims table (the line), so they cannot collide with advisory locks. A lock's key has room for
    /// 48 bits of the id: two coupons whose ids differ only in higher bits share a queue, no more.
    ///
    /// # Errors
    /// `55P03` after `lock_timeout`, which applies to each of the locks; `57014` on a cancel, `40P01` on a
    /// deadlock.
    pub fn wait(tables: &Tables, id: i64) -> Turn {
        let mut turn = Turn::of(tables, id);
        if !turn.turn.try_acquire() {
            turn.lined_up = true;
            turn.line.acquire();
            turn.turn.acquire();
        }
        lock::accept_invalidations();
        turn
    }

    /// Takes the turn for the coupon with this `id` if it is free.
    pub fn try_take(tables: &Tables, id: i64) -> Option<Turn> {
        let turn = Turn::of(tables, id);
        if !turn.turn.try_acquire() {
            return None;
        }
        lock::accept_invalidations();
        Some(turn)
    }

    fn of(tables: &Tables, id: i64) -> Turn {
        Turn {
            turn: Lock::new(Release::WithOthers, tables.coupons.oid(), id),
            // Last: if the place in line were released before the turn, the next waiter might wake up only to
            // sleep again.
            line: Lock::new(Release::Last, tables.claims.oid(), id),
            lined_up: false,
        }
    }

    /// Returns true if this session took the turn without a wait.
    pub fn was_free(&self) -> bool {
        !self.lined_up
    }

    /// Gives the turn back, with nothing changed. A turn that this transaction had before stays with it.
    pub fn pass(self) {
        self.turn.release();
        if self.lined_up {
            self.line.release();
        }
    }

    /// Returns true if a session waits for the turn, or stands in line and has yet to wake up.
    pub fn is_awaited(&self) -> bool {
        // This transaction may be the head of the line itself, for an earlier claim.
        self.turn.has_waiters() || !self.line.try_acquire() || {
            let others = self.line.has_waiters();
            self.line.release();
            others
        }
    }
}
