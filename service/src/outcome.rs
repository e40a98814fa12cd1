//! Outcomes: the one table from which errors, problem details, metrics and the API's description come, and the
//! operations that have them.

use axum::http::StatusCode;

/// Presentation of an outcome or an error to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presentation {
    /// Status of the answer.
    pub status: StatusCode,
    /// Problem type: a URN that ends with the code.
    pub kind: &'static str,
    /// Stable name for programs.
    pub code: &'static str,
    /// Short description for people.
    pub title: &'static str,
    /// Explanation for people.
    pub detail: &'static str,
}

/// Makes a [`Presentation`]: status, code, title, detail.
macro_rules! presentation {
    ($status:ident, $code:literal, $title:literal, $detail:expr) => {
        $crate::outcome::Presentation {
            status: axum::http::StatusCode::$status,
            kind: concat!("urn:problem-type:honcho:", $code),
            code: $code,
            title: $title,
            detail: $detail,
        }
    };
}

pub(crate) use presentation;

/// Makes the enum of outcomes, the list of all of them, and the table of their labels and presentations.
macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident: $label:literal,
       $status:ident $code:literal $title:literal $detail:literal;)+) => {
        /// Outcome of an operation: a value of the extension's enum `honcho_outcome`.
        ///
        /// ```
        /// use honcho_service::outcome::Outcome;
        ///
        /// let outcome = Outcome::from_label("sold_out").expect("a label of the enum");
        /// assert_eq!(outcome, Outcome::SoldOut);
        /// assert_eq!(outcome.presentation().status, 409);
        /// assert!(Outcome::refusals().any(|refusal| refusal == outcome));
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Outcome {
            $($(#[$doc])* $name,)+
        }

        impl Outcome {
            /// All outcomes, in the order of the enum.
            pub const ALL: [Self; [$($label),+].len()] = [$(Self::$name),+];

            /// Label in PostgreSQL and in metrics.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }

            /// Presentation to clients.
            pub const fn presentation(self) -> Presentation {
                match self {
                    $(Self::$name => presentation!($status, $code, $title, $detail),)+
                }
            }
        }
    };
}

outcomes! {
    /// The coupon is the user's, durably.
    Claimed: "claimed",
        OK "claimed" "Claimed" "the coupon is the user's";
    /// The user has a claim already.
    AlreadyClaimed: "already_claimed",
        CONFLICT "already_claimed" "Already claimed" "this user has claimed this coupon before";
    /// No stock is left.
    SoldOut: "sold_out",
        CONFLICT "sold_out" "Sold out" "no stock of this coupon is left";
    /// No coupon has this name.
    NotFound: "not_found",
        NOT_FOUND "coupon_not_found" "No such coupon" "there is no coupon of this name";
    /// The coupon's window has not begun.
    NotStarted: "not_started",
        CONFLICT "not_started" "Not started" "this coupon cannot be claimed yet";
    /// The coupon's window is over.
    Ended: "ended",
        CONFLICT "ended" "Ended" "this coupon can no longer be claimed";
    /// The coupon is paused.
    Paused: "paused",
        CONFLICT "paused" "Paused" "this coupon is paused";
    /// No stock is left, but some is held: it may come back.
    AllHeld: "all_held",
        CONFLICT "all_held" "All held"
        "what is left of this coupon is held by other users: Retry-After says when the first hold expires";
    /// The user holds a piece.
    Held: "held",
        CREATED "held" "Held" "a piece of the coupon is held for the user";
    /// The user has no live hold.
    NotHeld: "not_held",
        CONFLICT "not_held" "Not held"
        "this user has no live hold on this coupon: it has expired, was cancelled or confirmed, or never was";
    /// The hold is gone and its piece is stock again.
    Cancelled: "cancelled",
        OK "cancelled" "Cancelled" "the hold is cancelled";
    /// The claim is gone and its piece is stock again.
    Released: "released",
        OK "released" "Released" "the claim is released";
    /// The user has no claim.
    NotClaimed: "not_claimed",
        NOT_FOUND "claim_not_found" "No such claim" "this user has no claim on this coupon";
    /// The coupon is as the change asked for.
    Updated: "updated",
        OK "updated" "Updated" "the coupon is changed";
    /// The new amount would be less than what is claimed and held.
    BelowGiven: "below_given",
        CONFLICT "below_given" "Below what is given"
        "more of this coupon is claimed and held than the new amount: nothing was changed";
    /// The coupon is gone.
    Deleted: "deleted",
        NO_CONTENT "deleted" "Deleted" "the coupon is deleted";
    /// The coupon has claims or live holds.
    InUse: "in_use",
        CONFLICT "in_use" "In use" "this coupon has claims or holds, which claims=true would delete, too: nothing was changed";
}

impl Outcome {
    /// Returns the outcome of this label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.label() == label)
    }

    /// All outcomes that refuse something.
    pub fn refusals() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|outcome| outcome.refuses())
    }

    /// Returns true if nothing was changed because of the state of the coupon.
    fn refuses(self) -> bool {
        !self.presentation().status.is_success()
    }
}

/// Operation that has an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Takes a piece for a user.
    Claim,
    /// Holds a piece for a user.
    Reserve,
    /// Turns a hold into a claim.
    Confirm,
    /// Gives a hold back.
    Cancel,
    /// Gives a claim back.
    Release,
    /// Changes a coupon.
    Update,
    /// Changes a coupon's amount by a difference.
    Restock,
    /// Deletes a coupon.
    Delete,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 8] = [
        Self::Claim,
        Self::Reserve,
        Self::Confirm,
        Self::Cancel,
        Self::Release,
        Self::Update,
        Self::Restock,
        Self::Delete,
    ];

    /// Name in `honcho_apply` and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Reserve => "reserve",
            Self::Confirm => "confirm",
            Self::Cancel => "cancel",
            Self::Release => "release",
            Self::Update => "update",
            Self::Restock => "restock",
            Self::Delete => "delete",
        }
    }

    /// Every outcome of this operation.
    pub const fn outcomes(self) -> &'static [Outcome] {
        use Outcome::{
            AllHeld, AlreadyClaimed, BelowGiven, Cancelled, Claimed, Deleted, Ended, Held, InUse,
            NotClaimed, NotFound, NotHeld, NotStarted, Paused, Released, SoldOut, Updated,
        };
        match self {
            Self::Claim => &[
                Claimed,
                AlreadyClaimed,
                SoldOut,
                NotFound,
                NotStarted,
                Ended,
                Paused,
                AllHeld,
            ],
            Self::Reserve => &[
                Held,
                AlreadyClaimed,
                SoldOut,
                NotFound,
                NotStarted,
                Ended,
                Paused,
                AllHeld,
            ],
            Self::Confirm => &[Claimed, NotFound, NotHeld],
            Self::Cancel => &[Cancelled, NotFound, NotHeld],
            Self::Release => &[Released, NotFound, NotClaimed],
            Self::Update | Self::Restock => &[Updated, NotFound, BelowGiven],
            Self::Delete => &[Deleted, NotFound, InUse],
        }
    }

    /// The outcomes that refuse this operation.
    pub fn refusals(self) -> impl Iterator<Item = Outcome> {
        let outcomes = self.outcomes().iter().copied();
        outcomes.filter(|outcome| outcome.refuses())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn outcomes_have_labels_and_codes_of_their_own() {
        let labels: BTreeSet<_> = Outcome::ALL.map(Outcome::label).into();
        let codes: BTreeSet<_> = Outcome::ALL
            .map(|outcome| outcome.presentation().code)
            .into();
        assert_eq!(labels.len(), Outcome::ALL.len());
        assert_eq!(codes.len(), Outcome::ALL.len());
        for (number, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, number);
            assert_eq!(Outcome::from_label(outcome.label()), Some(outcome));
        }
        assert_eq!(Outcome::from_label("told"), None);
        // Success: claimed, held, cancelled, released, updated, deleted.
        assert_eq!(Outcome::refusals().count(), Outcome::ALL.len() - 6);
    }

    #[test]
    fn operations_have_one_success_and_every_outcome_has_an_operation() {
        let mut reached = BTreeSet::new();
        for operation in Operation::ALL {
            let outcomes = operation.outcomes();
            reached.extend(outcomes.iter().map(|outcome| outcome.label()));
            assert_eq!(operation.refusals().count(), outcomes.len() - 1);
            assert!(!outcomes[0].refuses(), "{operation:?}");
        }
        assert_eq!(reached, Outcome::ALL.map(Outcome::label).into());
    }
}
