//! Operations on a coupon, and their answers.

use crate::claiming::outcome::Outcome;
use crate::pg::column::Text;

/// Action of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Claims the coupon for the user.
    Claim,
    /// Holds it for the user, for this many microseconds.
    Reserve(i64),
    /// Turns the user's hold into a claim.
    Confirm,
    /// Gives the user's hold back.
    Cancel,
    /// Gives the user's claim back.
    Release,
}

impl Action {
    /// The action with the label that SQL has for it; a reservation is made with `ttl`.
    pub fn from_label(label: &str, ttl: impl FnOnce() -> i64) -> Option<Action> {
        match label {
            "claim" => Some(Action::Claim),
            "reserve" => Some(Action::Reserve(ttl())),
            "confirm" => Some(Action::Confirm),
            "cancel" => Some(Action::Cancel),
            "release" => Some(Action::Release),
            _ => None,
        }
    }
}

/// An operation for one user.
#[derive(Clone, Copy)]
pub struct Operation<'a> {
    /// Its action.
    pub action: Action,
    /// The user.
    pub user_id: &'a str,
    /// The user, as the tables store it.
    pub user: Text,
    /// The key of the request, of a claim or a reservation.
    pub request_key: Option<&'a str>,
    /// The label of the actor in events; none for that of the session.
    pub actor: Option<&'a str>,
}

impl<'a> Operation<'a> {
    /// An operation without key and label.
    pub fn new(action: Action, user_id: &'a str) -> Operation<'a> {
        Operation {
            action,
            user_id,
            user: Text::new(user_id),
            request_key: None,
            actor: None,
        }
    }
}

/// The answer to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The outcome.
    pub outcome: Outcome,
    /// The moment when the hold expires, or when the first of all holds does if that is the reason of the
    /// refusal.
    pub expires_at: Option<i64>,
    /// True if the claim was made by an earlier request with the same key.
    pub replayed: bool,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Answer {
        Answer {
            outcome,
            expires_at: None,
            replayed: false,
        }
    }
}
