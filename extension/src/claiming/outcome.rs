//! The outcomes of operations, in one table.
//!
//! It is here and not with the SQL functions, because the rules decide outcomes; their values in SQL are
//! in `api::outcome`.

/// An error that stands for a refusal, for callers who want one.
pub struct Refusal {
    /// Its SQLSTATE. Refusals that PostgreSQL has no code for have codes of their own, in a class that the
    /// SQL standard leaves to implementations, so that callers can tell them from each other and from
    /// faults.
    pub sqlstate: &'static [u8; 5],
    /// The rest of a sentence that begins with the coupon.
    pub phrase: &'static str,
}

/// Makes the enum and all that is known of each outcome.
macro_rules! outcomes {
    ($($(#[$doc:meta])* $outcome:ident: $label:literal $(, $sqlstate:literal, $phrase:literal)?;)+) => {
        /// The result of an operation. A refusal is a value, not an error.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Outcome {
            $($(#[$doc])* $outcome,)+
        }

        impl Outcome {
            /// All outcomes, in the order of the enum in SQL.
            pub const ALL: &[Outcome] = &[$(Outcome::$outcome),+];

            /// The label in SQL, the same as the machine-readable code in the HTTP API.
            pub fn label(self) -> &'static str {
                match self {
                    $(Outcome::$outcome => $label,)+
                }
            }

            /// The refusal of a claim as an error; none for other outcomes.
            pub fn refusal(self) -> Option<Refusal> {
                match self {
                    $(Outcome::$outcome => outcomes!(@refusal $($sqlstate, $phrase)?),)+
                }
            }
        }
    };
    (@refusal) => { None };
    (@refusal $sqlstate:literal, $phrase:literal) => {
        Some(Refusal { sqlstate: $sqlstate, phrase: $phrase })
    };
}

outcomes! {
    /// The user has the coupon, if the caller's transaction commits.
    Claimed: "claimed";
    /// The user had it already.
    AlreadyClaimed: "already_claimed", b"23505", "is already claimed by this user";
    /// Nothing is left.
    SoldOut: "sold_out", b"UC001", "is sold out";
    /// There is no such coupon.
    NotFound: "not_found", b"P0002", "does not exist";
    /// Claiming starts later.
    NotStarted: "not_started", b"UC002", "cannot be claimed yet";
    /// Claiming is over.
    Ended: "ended", b"UC003", "can no longer be claimed";
    /// Claiming is suspended.
    Paused: "paused", b"UC004", "is paused";
    /// Nothing is left, but some of it is only held and may come back.
    AllHeld: "all_held", b"UC005", "is held by others";
    /// A piece is held for the user.
    Held: "held";
    /// No piece is held for the user.
    NotHeld: "not_held";
    /// The user's hold is given back.
    Cancelled: "cancelled";
    /// The user's claim is given back.
    Released: "released";
    /// The user has no claim.
    NotClaimed: "not_claimed";
    /// The coupon is as requested.
    Updated: "updated";
    /// The amount would be below the claims and holds.
    BelowGiven: "below_given";
    /// The coupon is deleted.
    Deleted: "deleted";
    /// The coupon has claims or holds.
    InUse: "in_use";
}
