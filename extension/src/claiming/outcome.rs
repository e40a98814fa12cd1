//! The outcomes of a claim.

/// What a claim came to. A refusal is a value, not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The user has the coupon, if the caller's transaction commits.
    Claimed,
    /// The user had it already.
    AlreadyClaimed,
    /// Nothing is left.
    SoldOut,
    /// There is no such coupon.
    NotFound,
    /// Claiming starts later.
    NotStarted,
    /// Claiming is over.
    Ended,
    /// Claiming is suspended.
    Paused,
}

impl Outcome {
    /// The enum's label in SQL, the same as the service's machine-readable code.
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Claimed => "claimed",
            Outcome::AlreadyClaimed => "already_claimed",
            Outcome::SoldOut => "sold_out",
            Outcome::NotFound => "not_found",
            Outcome::NotStarted => "not_started",
            Outcome::Ended => "ended",
            Outcome::Paused => "paused",
        }
    }

    /// The SQLSTATE of the refusal as an error, and the rest of a sentence about the coupon; none for
    /// `claimed`.
    ///
    /// Refusals that PostgreSQL has no code for have codes of their own, in a class that SQL leaves to
    /// implementations, so that callers and drivers can tell them from each other and from faults.
    pub fn refusal(self) -> Option<(&'static [u8; 5], &'static str)> {
        match self {
            Outcome::Claimed => None,
            Outcome::AlreadyClaimed => Some((b"23505", "is already claimed by this user")),
            Outcome::NotFound => Some((b"P0002", "does not exist")),
            Outcome::SoldOut => Some((b"UC001", "is sold out")),
            Outcome::NotStarted => Some((b"UC002", "cannot be claimed yet")),
            Outcome::Ended => Some((b"UC003", "can no longer be claimed")),
            Outcome::Paused => Some((b"UC004", "is paused")),
        }
    }
}
