//! Outcomes of claims: the one table from which errors, problem details, metrics and the API's description
//! come.

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
        /// Outcome of a claim: a value of the extension's enum `honcho_outcome`.
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
            /// All outcomes, in the order of their numbers.
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
}

impl Outcome {
    /// Returns the outcome of this label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.label() == label)
    }

    /// All outcomes that refuse a claim.
    pub fn refusals() -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(|outcome| !outcome.presentation().status.is_success())
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
        assert_eq!(Outcome::refusals().count(), Outcome::ALL.len() - 1);
    }
}
