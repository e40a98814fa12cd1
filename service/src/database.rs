//! The database: one method per function of the extension. All SQL of requests is here, in `claimants` and
//! in `events`.
//!
//! The functions are found through the search path of the service's role, because the extension may be in any
//! schema.

mod claimants;
mod connections;
mod events;
mod options;
mod permits;
pub mod server;
pub(crate) mod settings;
pub(crate) mod sqlstate;
pub(crate) mod symptoms;

use std::{sync::Arc, time::Instant};

use anyhow::anyhow;
use deadpool_postgres::Status as PoolStatus;
use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;

use self::connections::{Argument, Connections};
pub use self::{
    claimants::{Claimants, CouponStock},
    events::{CouponEvent, WatchedStock},
    options::{DatabaseOptions, Sessions},
};
use crate::{error::Error, outcome::Outcome};

/// Every function of the extension that the service calls, with its argument types: the service's role must be
/// able to execute them all.
pub(crate) const FUNCTIONS: [&str; 7] = [
    "honcho_create_coupon(text, integer, timestamp with time zone, timestamp with time zone)",
    "honcho_claim_batch(text, text[])",
    "honcho_get_coupon(text)",
    "honcho_list_coupons(bigint, integer)",
    "honcho_get_claim(text, text)",
    "honcho_list_claims(text, bigint, integer)",
    "honcho_list_events(bigint, integer, text)",
];

/// A coupon.
#[derive(Debug, Serialize, ToSchema)]
pub struct Coupon {
    /// Ascending id: the order of creation.
    #[schema(example = 17)]
    pub id: i64,
    /// Unique name.
    #[schema(example = "PROMO_SUPER")]
    pub name: String,
    /// Total stock, in pieces.
    #[schema(example = 100)]
    pub amount: i32,
    /// Stock that can still be claimed.
    #[schema(example = 58)]
    pub remaining_amount: i32,
    /// Time of creation.
    #[schema(format = DateTime, example = "2026-01-31T11:55:00.000000Z")]
    pub created_at: String,
    /// First moment at which it can be claimed; null if it can from its creation on.
    #[schema(format = DateTime, example = "2026-01-31T12:00:00.000000Z")]
    pub starts_at: Option<String>,
    /// First moment at which it can no longer be claimed; null if it has no end.
    #[schema(format = DateTime, example = "2026-01-31T13:00:00.000000Z")]
    pub ends_at: Option<String>,
    /// True while claims are refused because an operator has paused the coupon.
    #[schema(example = false)]
    pub paused: bool,
}

/// A claim.
#[derive(Debug, Serialize, ToSchema)]
pub struct Claim {
    /// Ascending id: the order of claims.
    #[schema(example = 4711)]
    pub id: i64,
    /// User who has claimed.
    #[schema(example = "user_12345")]
    pub user_id: String,
    /// Name of the coupon.
    #[schema(example = "PROMO_SUPER")]
    pub coupon_name: String,
    /// Time of the claim, taken in its turn.
    #[schema(format = DateTime, example = "2026-01-31T12:00:00.123456Z")]
    pub claimed_at: String,
}

/// SQL that formats a timestamp as RFC 3339, in UTC. Values beyond its years, such as infinity, become the
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

use utc;

/// The database. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Database(Arc<Connections>);

impl Database {
    /// Prepares the pools of connections. Does not connect yet, so the database may be down.
    pub fn new(options: &DatabaseOptions) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Connections::new(options)?)))
    }

    /// Returns true if there is no connection, in use or idle.
    pub(crate) fn is_without_connections(&self) -> bool {
        self.0.are_none()
    }

    /// Drops idle connections: they lead to a server that is gone.
    pub(crate) fn forget_idle_connections(&self) {
        self.0.forget_idle();
    }

    /// Gives up the calls on connections from before `when`.
    pub(crate) fn give_up_before(&self, when: Instant) {
        self.0.give_up_before(when);
    }

    /// Closes all connections, those in use at the end of their calls.
    pub fn close(&self) {
        self.0.close();
    }

    /// Status of the two pools, with their names.
    pub fn pools(&self) -> [(&'static str, PoolStatus); 2] {
        self.0.status()
    }

    /// `honcho_create_coupon`: returns false if the name is taken. Without `starts_at` the coupon can be claimed
    /// from its creation on, without `ends_at` it has no end.
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
            .ok_or_else(|| Error::Internal(anyhow!("the result has no row")))?;
        Ok(row.try_get(0)?)
    }

    /// `honcho_claim_batch`: returns an outcome for each of `user_ids`, in their order, after the batch has
    /// committed.
    pub async fn claim_batch(
        &self,
        coupon_name: &str,
        user_ids: &[&str],
    ) -> Result<Vec<Outcome>, Error> {
        // As text, so that no connection has to look up the enum, and in one row, which is less to send and
        // to read.
        let sql = "select string_agg(outcome::text, ',' order by ordinal)
                   from honcho_claim_batch($1, $2)";
        let rows = self.0.write(sql, &[&coupon_name, &user_ids]).await?;
        let row = rows
            .first()
            .ok_or_else(|| Error::Internal(anyhow!("the result has no row")))?;
        let outcomes: Option<&str> = row.try_get(0)?;
        outcomes
            .into_iter()
            .flat_map(|outcomes| outcomes.split(','))
            .map(|label| {
                Outcome::from_label(label)
                    .ok_or_else(|| Error::Internal(anyhow!("unknown honcho_outcome {label:?}")))
            })
            .collect()
    }

    /// `honcho_get_coupon` and `honcho_list_claims`: returns a coupon, its first claimants, and the rest of them,
    /// to be read page by page, if there are more; none if there is no such coupon. All are of one moment.
    ///
    /// # Errors
    /// [`Error::TooManyLists`] if the list is long and too many such lists are being read; errors of the
    /// database.
    pub async fn read_coupon(
        &self,
        name: &str,
    ) -> Result<Option<(CouponStock, Vec<String>, Option<Claimants>)>, Error> {
        claimants::begin(&self.0, name).await
    }

    /// `honcho_list_coupons`: returns at most `max` coupons with ids above `after`, in the order of creation.
    pub async fn list_coupons(&self, after: i64, max: i32) -> Result<Vec<Coupon>, Error> {
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
                Ok(Coupon {
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

    /// `honcho_list_claims`: returns at most `max` of the coupon's claims with ids above `after`, in claim order;
    /// none if there is no such coupon.
    pub async fn list_claims(
        &self,
        coupon_name: &str,
        after: i64,
        max: i32,
    ) -> Result<Option<Vec<Claim>>, Error> {
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
        claims_of(&rows)
    }

    /// `honcho_get_claim`: returns the user's claim on the coupon as a list of one claim or an empty one; none if
    /// there is no such coupon.
    pub async fn get_claim(
        &self,
        user_id: &str,
        coupon_name: &str,
    ) -> Result<Option<Vec<Claim>>, Error> {
        let sql = concat!(
            "select claim.id, user_id, coupon_name, ",
            utc!("claimed_at"),
            " from honcho_get_coupon($2) left join honcho_get_claim($1, $2) as claim on true"
        );
        let user_id = Box::new(user_id.to_owned());
        let arguments: Vec<Argument> = vec![user_id, Box::new(coupon_name.to_owned())];
        let rows = self.0.read(sql, arguments).await?;
        claims_of(&rows)
    }
}

/// Reads the claims of a left join from their coupon: it has no row without a coupon, and one row of nulls
/// without a claim.
fn claims_of(rows: &[Row]) -> Result<Option<Vec<Claim>>, Error> {
    if rows.is_empty() {
        return Ok(None);
    }
    let mut claims = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(id) = row.try_get(0)? {
            claims.push(Claim {
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
        for source in [
            include_str!("database.rs"),
            include_str!("database/claimants.rs"),
            include_str!("database/events.rs"),
        ] {
            for (position, _) in source.match_indices("honcho_") {
                let rest = &source[position..];
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
