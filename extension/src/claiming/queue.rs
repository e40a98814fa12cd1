//! The queue: claimers of one coupon take turns.
//!
//! Two heavyweight locks make it. Who has the *turn* may change the stock. Who finds it taken gets in
//! *line*, first in, first out; only the head of the line waits for the turn itself, and keeps its
//! place until its transaction ends or it passes. So when a transaction that stood in line ends, the
//! turn is free for as long as the next in line needs to wake up, and a claim that asks in that moment
//! takes it instead of letting it lie: the longer the line, the more that brings, for then each wakes
//! up slowly, with caches that others have filled since. Nobody is kept waiting by this for good,
//! because the head of the line is always the next once it is awake.
//!
//! Heavyweight locks wake one waiter at a time, know deadlocks and timeouts, and go with the
//! transaction; without them, all waiters would chase the versions of the coupon's row.

use crate::claiming::store::Tables;
use crate::pg::lock::{self, Lock, Release};

/// This transaction's turn to change the stock of a coupon, until it (or the savepoint around it)
/// ends.
pub struct Turn {
    turn: Lock,
    line: Lock,
    /// Whether the turn was waited for, in line.
    lined_up: bool,
}

impl Turn {
    /// Takes the turn for the coupon with this `id`; waits for it if it is taken.
    ///
    /// The locks show in `pg_locks` as `object` locks of the coupons table (the turn) and of the
    /// claims table (the line), so they can never meet one of the users' advisory locks. A lock's key
    /// has room for 48 bits of the id: two coupons whose ids differ only above share a queue, no more.
    ///
    /// # Errors
    /// `55P03` after `lock_timeout`, which counts for either lock; `57014` on a cancel, `40P01` on a
    /// deadlock.
    pub fn wait(tables: &Tables, id: i64) -> Turn {
        let turn = Lock::new(Release::WithOthers, tables.coupons.oid(), id);
        // The end of a transaction releases the locks of this method last: were the place in line gone
        // before the turn, the next one might wake up only to sleep again.
        let line = Lock::new(Release::Last, tables.claims.oid(), id);
        let lined_up = !turn.try_acquire();
        if lined_up {
            line.acquire();
            turn.acquire();
        }
        lock::accept_invalidations();
        Turn {
            turn,
            line,
            lined_up,
        }
    }

    /// Gives back the turn, with nothing changed. A turn that this transaction had before remains its
    /// own.
    pub fn pass(self) {
        self.turn.release();
        if self.lined_up {
            self.line.release();
        }
    }

    /// Whether somebody waits for the turn, or stands in line and is yet to wake up.
    pub fn is_awaited(&self) -> bool {
        // Whose the line is does not matter: this transaction may have stood in it for an earlier claim.
        self.turn.has_waiters() || !self.line.try_acquire() || {
            let others = self.line.has_waiters();
            self.line.release();
            others
        }
    }
}
