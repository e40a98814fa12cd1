//! The database: one method per function of the extension. All SQL of requests is here and in the parts below.
//!
//! The functions are found through the search path of the service's role, because the extension may be in any
//! schema.

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

/// SQL that labels the events of its transaction with `$1`. The function that writes them takes an argument that is
/// computed from `label`, so it cannot be called before.
macro_rules! with_actor {
    () => {
        "with actor as materialized (select set_config('honcho.actor', $1, true) as label)"
    };
}

mod apply;
mod claimants;
mod connections;
mod events;
mod extension;
mod holds;
mod ids;
mod lists;
mod options;
mod permits;
mod pool;
pub mod server;
pub(crate) mod settings;
pub(crate) mod sqlstate;
mod stock;
mod symptoms;

use std::{sync::Arc, time::Instant};

use anyhow::anyhow;
use deadpool_postgres::Status as PoolStatus;
use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::{Row, types::ToSql};
use utoipa::ToSchema;

pub(crate) use self::connections::{Connection, Patience};
pub use self::{
    apply::{Applied, UserOperation},
    claimants::{Claimants, CouponStock},
    events::CouponEvent,
    holds::Hold,
    options::{DatabaseOptions, Sessions},
    stock::{Bound, CouponChange, Stock},
};
use self::{
    connections::{Argument, Connections},
    extension::Extension,
    symptoms::Symptoms,
};
use crate::{error::Error, outcome::Outcome, shards::ShardNumber};

/// The functions that the service calls and that the release before this version has, too, with their argument types:
/// the service is ready only if its role can execute them all.
pub(crate) const FUNCTIONS: [&str; 6] = [
    "honcho_create_coupon(text, integer, timestamp with time zone, timestamp with time zone)",
    "honcho_claim_batch(text, text[])",
    "honcho_get_coupon(text)",
    "honcho_list_coupons(bigint, integer)",
    "honcho_get_claim(text, text)",
    "honcho_list_claims(text, bigint, integer)",
];

/// The functions that the service calls and that this version has added. Until `alter extension honcho update` has run,
/// their routes are answered `extension_outdated`; after that, the service's role must be able to execute them, too.
pub(crate) const NEWER_FUNCTIONS: [&str; 10] = [
    "honcho_claim_many(text[], text[], boolean)",
    "honcho_apply(text, text[], text[], interval[], text[], text[])",
    "honcho_get_stock(text)",
    "honcho_update_coupon(text, integer, timestamp with time zone, timestamp with time zone, boolean)",
    "honcho_restock(text, integer)",
    "honcho_delete_coupon(text, boolean)",
    "honcho_get_hold(text, text)",
    "honcho_list_holds(text, text, integer)",
    "honcho_list_user_claims(text, bigint, integer)",
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

/// A claim in the list of one user's claims.
#[derive(Debug, Serialize, ToSchema)]
pub struct UserClaim {
    /// Id of the coupon: the order of the list.
    #[schema(example = 17)]
    pub coupon_id: i64,
    /// Name of the coupon.
    #[schema(example = "PROMO_SUPER")]
    pub coupon_name: String,
    /// Time of the claim, taken in its turn.
    #[schema(format = DateTime, example = "2026-01-31T12:00:00.123456Z")]
    pub claimed_at: String,
}

/// Wait of a call for a coupon that another session holds.
#[derive(Debug)]
pub(crate) enum Wait {
    /// A moment, then [`Error::Locked`].
    Short,
    /// As long as the settings allow.
    Long,
    /// `LOCK_TIMEOUT` on this connection, in line and at its head.
    On(Box<Connection>),
}

/// One database. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Database(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    shard: ShardNumber,
    connections: Arc<Connections>,
    extension: Extension,
}

impl Database {
    /// Prepares the pools of connections. Does not connect yet, so the database may be down.
    pub fn new(options: &DatabaseOptions) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Parts {
            shard: options.shard,
            connections: Arc::new(Connections::new(options)?),
            extension: Extension::default(),
        })))
    }

    /// Number of the shard.
    pub fn shard(&self) -> ShardNumber {
        self.0.shard
    }

    /// Symptoms that calls have met.
    pub(crate) fn symptoms(&self) -> &Symptoms {
        self.connections().symptoms()
    }

    fn connections(&self) -> &Arc<Connections> {
        &self.0.connections
    }

    /// Carries out a call of one of [`NEWER_FUNCTIONS`].
    async fn newer<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.0.extension.newer(call).await
    }

    /// Records if [`NEWER_FUNCTIONS`] are missing.
    pub(crate) fn set_outdated(&self, is_outdated: bool) {
        self.0.extension.set_outdated(is_outdated);
    }

    /// Returns true if there is no connection, in use or idle.
    pub(crate) fn is_without_connections(&self) -> bool {
        self.connections().are_none()
    }

    /// Drops idle connections: they lead to a server that is gone.
    pub(crate) fn forget_idle_connections(&self) {
        self.connections().forget_idle();
    }

    /// Gives up the calls on connections from before `when`.
    pub(crate) fn give_up_before(&self, when: Instant) {
        self.connections().give_up_before(when);
    }

    /// Closes all connections, those in use at the end of their calls.
    pub fn close(&self) {
        self.connections().close();
    }

    /// Status of the two pools, with their names.
    pub fn pools(&self) -> [(&'static str, PoolStatus); 2] {
        self.connections().status()
    }

    /// `honcho_create_coupon`: returns false if the name is taken. Without `starts_at` the coupon can be claimed
    /// from its creation on, without `ends_at` it has no end.
    ///
    /// # Arguments
    /// `actor`: label of the caller in events; empty for none.
    pub async fn create_coupon(
        &self,
        name: &str,
        amount: i32,
        starts_at: Option<OffsetDateTime>,
        ends_at: Option<OffsetDateTime>,
        actor: &str,
    ) -> Result<bool, Error> {
        let sql = concat!(
            with_actor!(),
            " select honcho_create_coupon($2::text || left(label, 0), $3, $4, $5) from actor"
        );
        let rows = self
            .connections()
            .create(
                sql,
                vec![
                    Box::new(actor.to_owned()),
                    Box::new(name.to_owned()),
                    Box::new(amount),
                    Box::new(starts_at),
                    Box::new(ends_at),
                ],
            )
            .await?;
        Ok(only(&rows)?.try_get(0)?)
    }

    /// `honcho_claim_batch`: returns an outcome for each of `user_ids`, in their order, after the batch has
    /// committed. For lanes.
    pub(crate) async fn claim_batch(
        &self,
        coupon_name: &str,
        user_ids: &[&str],
        wait: Wait,
    ) -> Result<Vec<Outcome>, Error> {
        let connections = self.connections();
        let arguments: [&(dyn ToSql + Sync); 2] = [&coupon_name, &user_ids];
        let rows = match wait {
            Wait::Short => connections.write_fast(CLAIM_BATCH, &arguments).await,
            Wait::Long => connections.write(CLAIM_BATCH, &arguments).await,
            Wait::On(connection) => {
                let call = connections.write_waiting(*connection, CLAIM_BATCH, &arguments);
                call.await
            }
        };
        outcomes(&rows?)
    }

    /// A connection for [`Wait::On`]; none if all are in use.
    ///
    /// # Errors
    /// Those of connecting.
    pub(crate) async fn waiting_connection(&self) -> Result<Option<Box<Connection>>, Error> {
        let connection = self.connections().waiting_connection().await?;
        Ok(connection.map(Box::new))
    }

    /// The time for which a call that begins now is tried again if another session holds the coupon.
    pub(crate) fn patience(&self) -> Patience {
        self.connections().patience()
    }

    /// Returns true if [`NEWER_FUNCTIONS`] are missing, as far as is known.
    pub(crate) fn is_outdated(&self) -> bool {
        self.0.extension.is_outdated()
    }

    /// Waits for a connection for [`Self::claim_many`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] and the others of connecting.
    pub(crate) async fn connection(&self) -> Result<Connection, Error> {
        self.connections().next_connection().await
    }

    /// `honcho_claim_many` without a wait for other sessions: returns an outcome for each of `user_ids` with the coupon
    /// at the same place, after all have committed; none for a claim on a coupon that another session is changing. For
    /// lanes.
    ///
    /// # Arguments
    /// `connection`: one that is free; without it, the call waits for one.
    pub(crate) async fn claim_many(
        &self,
        user_ids: &[&str],
        coupon_names: &[&str],
        connection: Option<Connection>,
    ) -> Result<Vec<Option<Outcome>>, Error> {
        // In the order of the function, as in `CLAIM_BATCH`.
        let sql = "select string_agg(coalesce(outcome::text, ''), ',')
                     from honcho_claim_many($1, $2, false)";
        let connections = self.connections();
        let call = async {
            let connection = match connection {
                Some(connection) => connection,
                None => connections.next_connection().await?,
            };
            connections
                .write_on(connection, sql, &[&user_ids, &coupon_names])
                .await
        };
        let rows = self.newer(call).await?;
        let outcomes: Option<&str> = only(&rows)?.try_get(0)?;
        let outcomes = outcomes.into_iter().flat_map(|it| it.split(','));
        outcomes
            .map(|label| (!label.is_empty()).then(|| outcome(label)).transpose())
            .collect()
    }

    /// `honcho_claim_batch` for a batch that a client has made itself.
    pub async fn claim_client_batch(
        &self,
        coupon_name: &str,
        user_ids: Vec<String>,
    ) -> Result<Vec<Outcome>, Error> {
        let coupon_name = Box::new(coupon_name.to_owned());
        let rows = self
            .connections()
            .claim_batch(CLAIM_BATCH, vec![coupon_name, Box::new(user_ids)])
            .await?;
        outcomes(&rows)
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
        claimants::begin(self.connections(), &self.0.extension, name).await
    }

    /// `honcho_list_coupons`: returns at most `max` coupons with ids above `after`, in the order of creation.
    async fn list_coupons(&self, after: i64, max: i32) -> Result<Vec<Coupon>, Error> {
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
            .connections()
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
        let rows = self.connections().read(sql, arguments).await?;
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
        let rows = self.connections().read(sql, arguments).await?;
        claims_of(&rows)
    }

    /// `honcho_list_user_claims`: returns at most `max` of the user's claims on coupons with ids above `after`, in
    /// the order of these ids.
    async fn list_user_claims(
        &self,
        user_id: &str,
        after: i64,
        max: i32,
    ) -> Result<Vec<UserClaim>, Error> {
        let sql = concat!(
            "select coupon_id, coupon_name, ",
            utc!("claimed_at"),
            " from honcho_list_user_claims($1, $2, $3) order by coupon_id"
        );
        let user_id = Box::new(user_id.to_owned());
        let arguments: Vec<Argument> = vec![user_id, Box::new(after), Box::new(max)];
        let rows = self.newer(self.connections().read(sql, arguments)).await?;
        rows.iter()
            .map(|row| {
                Ok(UserClaim {
                    coupon_id: row.try_get(0)?,
                    coupon_name: row.try_get(1)?,
                    claimed_at: row.try_get(2)?,
                })
            })
            .collect()
    }
}

/// As text, so that no connection has to look up the enum, and in one row, which is less to send and to read. It needs no
/// `order by`, which sorts: an aggregate takes the rows as they come, and a function's rows come in its order.
const CLAIM_BATCH: &str = "select string_agg(outcome::text, ',') from honcho_claim_batch($1, $2)";

/// Reads the outcomes of [`CLAIM_BATCH`].
fn outcomes(rows: &[Row]) -> Result<Vec<Outcome>, Error> {
    let outcomes: Option<&str> = only(rows)?.try_get(0)?;
    outcomes
        .into_iter()
        .flat_map(|outcomes| outcomes.split(','))
        .map(outcome)
        .collect()
}

/// Reads an outcome's label.
fn outcome(label: &str) -> Result<Outcome, Error> {
    Outcome::from_label(label)
        .ok_or_else(|| Error::Internal(anyhow!("unknown honcho_outcome {label:?}")))
}

/// The row of a result that has one.
fn only(rows: &[Row]) -> Result<&Row, Error> {
    rows.first()
        .ok_or_else(|| Error::Internal(anyhow!("the result has no row")))
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

    use super::{FUNCTIONS, NEWER_FUNCTIONS};

    #[test]
    fn readiness_asks_for_every_function_that_is_called() {
        let name = |text: &'static str| text.split('(').next().unwrap_or_default();
        let listed = FUNCTIONS.into_iter().chain(NEWER_FUNCTIONS);
        let listed: BTreeSet<&str> = listed.map(name).collect();
        let mut called = BTreeSet::new();
        for source in [
            include_str!("database.rs"),
            include_str!("database/apply.rs"),
            include_str!("database/claimants.rs"),
            include_str!("database/events.rs"),
            include_str!("database/holds.rs"),
            include_str!("database/stock.rs"),
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
