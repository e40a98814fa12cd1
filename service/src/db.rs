//! The database: one method per function of the extension. Every SQL string that the service asks for
//! requests is here and in `reading`.
//!
//! The functions are found through the search path of the role we connect as, because the
//! extension may live in any schema.

mod connections;
mod places;
mod reading;

use std::{str::FromStr, sync::Arc, time::Instant};

use anyhow::anyhow;
use deadpool_postgres::Status as PoolStatus;
use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;

use self::connections::{Argument, Connections};
pub use self::reading::{Coupon, Reading};
use crate::{config, error::Error};

/// Every function of the extension that the service calls, as PostgreSQL names them: its role must be able to
/// execute them all.
pub(crate) const FUNCTIONS: [&str; 6] = [
    "honcho_create_coupon(text, integer, timestamp with time zone, timestamp with time zone)",
    "honcho_claim_batch(text, text[])",
    "honcho_get_coupon(text)",
    "honcho_list_coupons(bigint, integer)",
    "honcho_get_claim(text, text)",
    "honcho_list_claims(text, bigint, integer)",
];

/// What became of a claim: the extension's enum `honcho_outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The coupon is the user's, durably.
    Claimed,
    /// The user had it before.
    AlreadyClaimed,
    /// No stock is left.
    SoldOut,
    /// There is no such coupon.
    NotFound,
    /// Its time has not come.
    NotStarted,
    /// Its time is over.
    Ended,
    /// It is not being given out at present.
    Paused,
}

impl FromStr for Outcome {
    type Err = Error;

    fn from_str(label: &str) -> Result<Self, Error> {
        Ok(match label {
            "claimed" => Self::Claimed,
            "already_claimed" => Self::AlreadyClaimed,
            "sold_out" => Self::SoldOut,
            "not_found" => Self::NotFound,
            "not_started" => Self::NotStarted,
            "ended" => Self::Ended,
            "paused" => Self::Paused,
            other => return Err(Error::Internal(anyhow!("unknown honcho_outcome {other:?}"))),
        })
    }
}

/// A coupon's row.
#[derive(Debug, Serialize, ToSchema)]
pub struct CouponRow {
    /// Identity: what comes after it in a list has a greater one.
    #[schema(example = 17)]
    pub id: i64,
    /// Its name.
    #[schema(example = "PROMO_SUPER")]
    pub name: String,
    /// How many there are in all.
    #[schema(example = 100)]
    pub amount: i32,
    /// How many are left.
    #[schema(example = 58)]
    pub remaining_amount: i32,
    /// When it was created.
    #[schema(format = DateTime, example = "2026-01-31T11:55:00.000000Z")]
    pub created_at: String,
    /// First moment at which it can be claimed; null: at once.
    #[schema(format = DateTime, example = "2026-01-31T12:00:00.000000Z")]
    pub starts_at: Option<String>,
    /// First moment at which it no longer can; null: never.
    #[schema(format = DateTime, example = "2026-01-31T13:00:00.000000Z")]
    pub ends_at: Option<String>,
    /// Whether claims are refused for now.
    #[schema(example = false)]
    pub paused: bool,
}

/// A claim's row.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClaimRow {
    /// Identity: ascends in claim order.
    #[schema(example = 4711)]
    pub id: i64,
    /// Who claimed.
    #[schema(example = "user_12345")]
    pub user_id: String,
    /// What was claimed.
    #[schema(example = "PROMO_SUPER")]
    pub coupon_name: String,
    /// When, in the claim's turn.
    #[schema(format = DateTime, example = "2026-01-31T12:00:00.123456Z")]
    pub claimed_at: String,
}

/// A moment as RFC 3339 has it, in UTC. What lies outside of its years, such as infinity, becomes the
/// first or the last moment in them.
macro_rules! utc {
    ($column:literal) => {
        concat!(
            "case when ",
            $column,
            " is not null then to_char(least(greatest(",
            $column,
            ", '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999999+00') at time zone 'UTC', ",
            r#"'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') end"#
        )
    };
}

/// The database behind the service. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Database(Arc<Connections>);

impl Database {
    /// Prepares pools of connections. Connects to nothing yet, so it does not matter whether the
    /// database is up.
    pub fn new(config: &config::Database) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Connections::new(config)?)))
    }

    /// Whether there is no connection at all, in use or idle.
    pub(crate) fn is_without_connections(&self) -> bool {
        self.0.are_none()
    }

    /// Drops the connections that nobody uses: they lead to a server that is gone.
    pub(crate) fn forget_idle_connections(&self) {
        self.0.forget_idle();
    }

    /// Gives up whatever is still asked on connections from before `when`.
    pub(crate) fn has_moved(&self, when: Instant) {
        self.0.give_up(when);
    }

    /// Gives up all connections, those in use when they are done.
    pub fn close(&self) {
        self.0.close();
    }

    /// How the two pools of connections stand, by their names.
    pub fn pools(&self) -> [(&'static str, PoolStatus); 2] {
        self.0.status()
    }

    /// `honcho_create_coupon`: false when the name is taken. Without `starts_at` the coupon can be claimed at
    /// once, without `ends_at` for ever.
    pub async fn create_coupon(
        &self,
        name: &str,
        amount: i32,
        starts_at: Option<OffsetDateTime>,
        ends_at: Option<OffsetDateTime>,
    ) -> Result<bool, Error> {
        let sql = "select honcho_create_coupon($1, $2, $3, $4)";
        let rows = self
            .0
            .create(
                sql,
                vec![
                    Box::new(name.to_owned()),
                    Box::new(amount),
                    Box::new(starts_at),
                    Box::new(ends_at),
                ],
            )
            .await?;
        let row = rows
            .first()
            .ok_or_else(|| Error::Internal(anyhow!("no answer in the rows")))?;
        Ok(row.try_get(0)?)
    }

    /// `honcho_claim_batch`: one outcome for each of `user_ids`, in their order, once the batch has
    /// committed.
    pub async fn claim_batch(
        &self,
        coupon_name: &str,
        user_ids: &[&str],
    ) -> Result<Vec<Outcome>, Error> {
        // As text, which spares every connection the look-up of the enum, and all in one row, which is
        // less to send and to read.
        let sql = "select string_agg(outcome::text, ',' order by ordinal)
                   from honcho_claim_batch($1, $2)";
        let rows = self.0.write(sql, &[&coupon_name, &user_ids]).await?;
        let row = rows
            .first()
            .ok_or_else(|| Error::Internal(anyhow!("no answer in the rows")))?;
        let outcomes: Option<&str> = row.try_get(0)?;
        outcomes
            .into_iter()
            .flat_map(|outcomes| outcomes.split(','))
            .map(str::parse)
            .collect()
    }

    /// `honcho_get_coupon` and `honcho_list_claims`: a coupon, its first claimants, and those that follow,
    /// to be read page by page, if there are any; none when there is no such coupon. All are as of one
    /// moment.
    ///
    /// # Errors
    /// [`Error::TooManyLists`] if the list is long and too many such lists are being read; else those of
    /// the database.
    pub async fn read_coupon(
        &self,
        name: &str,
    ) -> Result<Option<(Coupon, Vec<String>, Option<Reading>)>, Error> {
        reading::begin(&self.0, name).await
    }

    /// `honcho_list_coupons`: the coupons with ids above `after`, in the order of their creation, at
    /// most `max`.
    pub async fn list_coupons(&self, after: i64, max: i32) -> Result<Vec<CouponRow>, Error> {
        let sql = concat!(
            "select id, name, amount, remaining_amount, ",
            utc!("created_at"),
            ", ",
            utc!("starts_at"),
            ", ",
            utc!("ends_at"),
            ", paused from honcho_list_coupons($1, $2)"
        );
        let rows = self
            .0
            .read(sql, vec![Box::new(after), Box::new(max)])
            .await?;
        rows.iter()
            .map(|row| {
                Ok(CouponRow {
                    id: row.try_get(0)?,
                    name: row.try_get(1)?,
                    amount: row.try_get(2)?,
                    remaining_amount: row.try_get(3)?,
                    created_at: row.try_get(4)?,
                    starts_at: row.try_get(5)?,
                    ends_at: row.try_get(6)?,
                    paused: row.try_get(7)?,
                })
            })
            .collect()
    }

    /// `honcho_list_claims`: the coupon's claims with ids above `after`, in claim order, at most
    /// `max`; none when there is no such coupon.
    pub async fn list_claims(
        &self,
        coupon_name: &str,
        after: i64,
        max: i32,
    ) -> Result<Option<Vec<ClaimRow>>, Error> {
        let sql = concat!(
            "select claim.id, user_id, coupon_name, ",
            utc!("claimed_at"),
            " from honcho_get_coupon($1)
              left join honcho_list_claims($1, $2, $3) as claim on true
             order by claim.id"
        );
        let coupon_name = Box::new(coupon_name.to_owned());
        let arguments: Vec<Argument> = vec![coupon_name, Box::new(after), Box::new(max)];
        let rows = self.0.read(sql, arguments).await?;
        of_a_coupon(&rows)
    }

    /// `honcho_get_claim`: the user's claim on the coupon, as a list of it alone or an empty one;
    /// none when there is no such coupon.
    pub async fn get_claim(
        &self,
        user_id: &str,
        coupon_name: &str,
    ) -> Result<Option<Vec<ClaimRow>>, Error> {
        let sql = concat!(
            "select claim.id, user_id, coupon_name, ",
            utc!("claimed_at"),
            " from honcho_get_coupon($2) left join honcho_get_claim($1, $2) as claim on true"
        );
        let user_id = Box::new(user_id.to_owned());
        let arguments: Vec<Argument> = vec![user_id, Box::new(coupon_name.to_owned())];
        let rows = self.0.read(sql, arguments).await?;
        of_a_coupon(&rows)
    }
}

/// The claims among the rows of a left join from their coupon: no row at all without a coupon, and one
/// of nulls without a claim.
fn of_a_coupon(rows: &[Row]) -> Result<Option<Vec<ClaimRow>>, Error> {
    if rows.is_empty() {
        return Ok(None);
    }
    let mut claims = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(id) = row.try_get(0)? {
            claims.push(ClaimRow {
                id,
                user_id: row.try_get(1)?,
                coupon_name: row.try_get(2)?,
                claimed_at: row.try_get(3)?,
            });
        }
    }
    Ok(Some(claims))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::FUNCTIONS;

    #[test]
    fn readiness_asks_for_every_function_that_is_called() {
        let name = |text: &'static str| text.split('(').next().unwrap_or_default();
        let listed: BTreeSet<&str> = FUNCTIONS.into_iter().map(name).collect();
        let mut called = BTreeSet::new();
        for source in [include_str!("db.rs"), include_str!("db/reading.rs")] {
            for (place, _) in source.match_indices("honcho_") {
                let rest = &source[place..];
                let end = rest
                    .find(|character: char| !character.is_ascii_lowercase() && character != '_')
                    .unwrap_or(rest.len());
                // A call has its arguments as parameters.
                if rest[end..].starts_with("($") {
                    called.insert(&rest[..end]);
                }
            }
        }
        assert_eq!(called, listed);
    }
}
