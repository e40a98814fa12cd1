//! Operations of users on one coupon: what lanes send, many in one call and one commit.

use std::time::Duration;

use anyhow::anyhow;
use tokio_postgres::types::ToSql;

use super::Database;
use crate::{
    error::Error,
    outcome::{Operation, Outcome},
};

/// Operation of a user on a coupon.
#[derive(Debug)]
pub struct UserOperation {
    operation: Operation,
    user_id: String,
    /// None for the most frequent operation, a claim without a request key.
    details: Option<Box<Details>>,
}

#[derive(Debug, Default)]
struct Details {
    /// Time for which a piece is held.
    ttl: Option<Duration>,
    request_key: Option<String>,
    /// Label of the caller in events.
    actor: Option<String>,
}

/// Answer to an operation of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its outcome.
    pub outcome: Outcome,
    /// True if the claim was made by an earlier request with the same key.
    pub is_replay: bool,
    /// Time at which the hold expires, if the outcome is `held`: RFC 3339, in UTC.
    pub expires_at: Option<Box<str>>,
    /// Time until the first hold expires, if the outcome is `all_held` and this is known.
    pub first_expiry: Option<Duration>,
}

impl From<Outcome> for Applied {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            is_replay: false,
            expires_at: None,
            first_expiry: None,
        }
    }
}

impl UserOperation {
    /// A claim. With a `request_key`, a repeated request with the same key has the same outcome.
    pub fn claim(user_id: String, request_key: Option<String>) -> Self {
        let mut claim = Self::new(Operation::Claim, user_id);
        if request_key.is_some() {
            claim.details_mut().request_key = request_key;
        }
        claim
    }

    /// A reservation for `ttl`, from 1 second to 24 hours. The claim out of the hold has the `request_key`.
    pub fn reserve(user_id: String, ttl: Duration, request_key: Option<String>) -> Self {
        let mut reservation = Self::new(Operation::Reserve, user_id);
        let details = reservation.details_mut();
        details.ttl = Some(ttl);
        details.request_key = request_key;
        reservation
    }

    /// A confirmation of the user's hold.
    pub fn confirm(user_id: String) -> Self {
        Self::new(Operation::Confirm, user_id)
    }

    /// A cancellation of the user's hold.
    pub fn cancel(user_id: String) -> Self {
        Self::new(Operation::Cancel, user_id)
    }

    /// A release of the user's claim. `actor` is the label of the caller in its event, which no other of these
    /// operations has.
    pub fn release(user_id: String, actor: Option<String>) -> Self {
        let mut release = Self::new(Operation::Release, user_id);
        if actor.is_some() {
            release.details_mut().actor = actor;
        }
        release
    }

    fn new(operation: Operation, user_id: String) -> Self {
        Self {
            operation,
            user_id,
            details: None,
        }
    }

    fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }

    /// The operation.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The user for whom it is.
    pub fn user_id(&self) -> &str {
        &self.user_id
    }

    /// Returns true if it is a claim without a request key.
    pub fn is_plain_claim(&self) -> bool {
        self.operation == Operation::Claim && self.details.is_none()
    }

    fn request_key(&self) -> Option<&str> {
        self.details.as_ref()?.request_key.as_deref()
    }

    fn actor(&self) -> Option<&str> {
        self.details.as_ref()?.actor.as_deref()
    }

    /// The time for which a piece is held, in a form that PostgreSQL reads as an interval.
    fn ttl(&self) -> Option<String> {
        let ttl = self.details.as_ref()?.ttl?;
        Some(format!("{} milliseconds", ttl.as_millis()))
    }
}

impl Database {
    /// `honcho_apply`: carries out the operations in order, and returns an answer to each after all have
    /// committed.
    pub async fn apply<'a>(
        &self,
        coupon_name: &str,
        operations: impl Iterator<Item = &'a UserOperation> + Clone,
    ) -> Result<Vec<Applied>, Error> {
        // As text in one row, which is less to send and to read, in the order of the function, as in `CLAIM_BATCH`: an
        // outcome, and after a space what belongs to it. Most have nothing.
        let sql = concat!(
            "select string_agg(case when not replayed and expires_at is null then outcome::text
                                    when replayed then outcome || ' '
                                    when outcome = 'held' then outcome || ' ' || ",
            utc!("expires_at"),
            "               else outcome || ' ' || extract(epoch from expires_at - clock_timestamp()) end, ',')
               from honcho_apply($1, $2, $3, $4::text[]::interval[], $5, $6)"
        );
        let names: Vec<&str> = operations.clone().map(|one| one.operation.name()).collect();
        let users: Vec<&str> = operations.clone().map(UserOperation::user_id).collect();
        let ttls = given(operations.clone().map(UserOperation::ttl));
        let keys = given(operations.clone().map(UserOperation::request_key));
        let actors = given(operations.map(UserOperation::actor));
        let arguments: [&(dyn ToSql + Sync); 6] =
            [&coupon_name, &names, &users, &ttls, &keys, &actors];
        let call = self.connections().write(sql, &arguments);
        let rows = self.newer(call).await?;
        let answers: Option<&str> = super::only(&rows)?.try_get(0)?;
        let answers = answers.into_iter().flat_map(|answers| answers.split(','));
        answers.map(applied).collect()
    }

    /// `honcho_get_stock`: returns the time until the first of the coupon's holds expires; none if there is no hold
    /// or no coupon. For lanes.
    pub async fn first_expiry(&self, coupon_name: &str) -> Result<Option<Duration>, Error> {
        let sql = "select extract(epoch from next_expiry - clock_timestamp())::float8
                     from honcho_get_stock($1)";
        let arguments: [&(dyn ToSql + Sync); 1] = [&coupon_name];
        let call = self.connections().read_for_lane(sql, &arguments);
        let rows = self.newer(call).await?;
        match rows.first() {
            Some(row) => Ok(row.try_get::<_, Option<f64>>(0)?.map(wait)),
            None => Ok(None),
        }
    }
}

/// The values for an array; none, which is null, if no operation has one.
fn given<T>(values: impl Iterator<Item = Option<T>>) -> Option<Vec<Option<T>>> {
    let values: Vec<Option<T>> = values.collect();
    values.iter().any(Option::is_some).then_some(values)
}

/// Reads an answer: the outcome's label alone or with what belongs to it.
fn applied(answer: &str) -> Result<Applied, Error> {
    let Some((label, rest)) = answer.split_once(' ') else {
        return super::outcome(answer).map(Applied::from);
    };
    let mut applied = Applied::from(super::outcome(label)?);
    match applied.outcome {
        Outcome::Claimed => applied.is_replay = true,
        Outcome::Held => applied.expires_at = Some(rest.into()),
        _ => {
            let seconds = rest.parse();
            let seconds = seconds.map_err(|error| Error::Internal(anyhow!("{error}: {answer}")))?;
            applied.first_expiry = Some(wait(seconds));
        }
    }
    Ok(applied)
}

/// Turns seconds, which may lie in the past, into a time to wait.
fn wait(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
