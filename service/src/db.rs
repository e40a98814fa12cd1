//! The database: every SQL string of the service, one method per function of the extension.
//!
//! The functions are found through the search path of the role we connect as, because the
//! extension may live in any schema.

use std::{str::FromStr, sync::Arc, time::Duration};

use anyhow::anyhow;
use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
    Status as PoolStatus, Timeouts,
};
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_postgres::{IsolationLevel, Row, error::SqlState, types::ToSql};
use utoipa::ToSchema;

use crate::{
    config::{self, Sessions},
    error::Error,
    target::Target,
    telemetry::metrics::metrics,
};

/// How long a request waits for a connection, if connecting may not take longer.
const CONNECTION_WAIT: Duration = Duration::from_secs(5);

/// How much longer than the session's own `statement_timeout` an answer may take before it is given
/// up, and the connection with it: this is only reached when the server or the way to it hangs.
const ANSWER_SLACK: Duration = Duration::from_secs(1);

/// How long a reader of a long list may take in nothing before it is cut off: it holds a
/// connection and a snapshot.
const READER_PATIENCE: Duration = Duration::from_secs(10);

/// Claims read at a time: what a list holds in memory, however long it is.
const PAGE: i32 = 1000;

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

/// A coupon as it stands.
#[derive(Debug)]
pub struct Coupon {
    /// Its name.
    pub name: String,
    /// How many there are in all.
    pub amount: i32,
    /// How many are left.
    pub remaining_amount: i32,
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

/// A coupon and its claimants, both as of one moment.
#[derive(Debug)]
pub struct Reading {
    /// The coupon.
    pub coupon: Coupon,
    parts: mpsc::Receiver<Result<Part, Error>>,
    complete: bool,
}

impl Reading {
    /// Whether the last page was taken.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The next claimants, in the order of their claims; none after the last.
    pub async fn next_page(&mut self) -> Result<Option<Vec<String>>, Error> {
        if self.complete {
            return Ok(None);
        }
        match self.parts.recv().await {
            Some(Ok(Part::Claimants { users, last })) => {
                self.complete = last;
                Ok(Some(users))
            }
            Some(Err(error)) => Err(error),
            Some(Ok(Part::Coupon(_))) | None => Err(Error::Unavailable(anyhow!(
                "the list was read too slowly and cut off"
            ))),
        }
    }
}

/// What the task behind a [`Reading`] sends: the coupon, then pages.
#[derive(Debug)]
enum Part {
    Coupon(Option<Coupon>),
    Claimants { users: Vec<String>, last: bool },
}

/// The database behind the service. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Database {
    pool: Pool,
    /// Where a call goes on that has met a coupon which somebody holds, so that it takes no connection
    /// from the others: half as many more, whose sessions wait for as long as they may.
    patient: Pool,
    /// Half of the connections: lists, which may be read slowly, leave the rest to claims.
    readers: Arc<Semaphore>,
    waits: Waits,
    /// When the database was last found on another server than before: older connections lead to one
    /// that has nothing to say any more.
    moved: Arc<watch::Sender<std::time::Instant>>,
}

/// How long a call of the database may take, its one repetition included: the sum of these.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// For a connection.
    connection: Duration,
    /// For the answer on it.
    answer: Duration,
}

impl Waits {
    /// When a call that begins now is given up.
    fn deadline(self) -> Instant {
        Instant::now() + self.connection + self.answer
    }
}

impl Database {
    /// Prepares a pool of connections. Connects to nothing yet, so it does not matter whether the
    /// database is up.
    pub fn new(config: &config::Database) -> anyhow::Result<Self> {
        let Sessions { brisk, patient } = &config.sessions;
        Ok(Self {
            pool: pool(brisk, config.pool_size)?,
            patient: pool(patient, config.pool_size.div_ceil(2))?,
            readers: Arc::new(Semaphore::new(config.pool_size.div_ceil(2))),
            waits: Waits {
                connection: CONNECTION_WAIT.max(brisk.patience()),
                answer: config.statement_timeout + ANSWER_SLACK,
            },
            moved: Arc::new(watch::Sender::new(std::time::Instant::now())),
        })
    }

    /// Whether there is no connection at all, in use or idle.
    pub(crate) fn is_without_connections(&self) -> bool {
        self.pool.status().size == 0
    }

    /// Drops the connections that nobody uses: they lead to a server that is gone.
    pub(crate) fn forget_idle_connections(&self) {
        self.pool.retain(|_, _| false);
        self.patient.retain(|_, _| false);
    }

    /// Gives up whatever is still asked on connections from before `when`.
    pub(crate) fn has_moved(&self, when: std::time::Instant) {
        self.forget_idle_connections();
        self.moved.send_replace(when);
    }

    /// Gives up all connections, those in use when they are done.
    pub fn close(&self) {
        self.pool.close();
        self.patient.close();
    }

    /// A connection of this pool, by this time.
    async fn connection(&self, pool: &Pool, by: Instant) -> Result<Object, Error> {
        let asked = Instant::now();
        let by = by.min(asked + self.waits.connection);
        let got = timeout_at(by, pool.get()).await;
        let in_vain = matches!(got, Err(_) | Ok(Err(PoolError::Timeout(_))));
        metrics().pool_wait(asked.elapsed(), in_vain);
        match got {
            Ok(client) => Ok(client?),
            Err(late) => Err(Error::Unavailable(late.into())),
        }
    }

    /// How the two pools of connections stand, by their names.
    pub fn pools(&self) -> [(&'static str, PoolStatus); 2] {
        [
            ("brisk", self.pool.status()),
            ("patient", self.patient.status()),
        ]
    }

    /// `honcho_create_coupon`: false when the name is taken.
    pub async fn create_coupon(&self, name: &str, amount: i32) -> Result<bool, Error> {
        let rows = self
            .write("select honcho_create_coupon($1, $2)", &[&name, &amount])
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
        // As text, which spares every connection the look-up of the enum.
        let sql = "select outcome::text from honcho_claim_batch($1, $2) order by ordinal";
        let rows = self.write(sql, &[&coupon_name, &user_ids]).await?;
        rows.iter()
            .map(|row| row.try_get::<_, &str>(0)?.parse())
            .collect()
    }

    /// `honcho_get_coupon` and `honcho_list_claims` in one snapshot; none when there is no such
    /// coupon. The list is read while the caller takes it, in constant memory; the connection is
    /// given back at its end or when the caller drops it.
    pub async fn read_coupon(&self, name: &str) -> Result<Option<Reading>, Error> {
        let deadline = self.waits.deadline();
        let reading = self.begin_reading(&self.pool, name, deadline).await;
        match self.second_attempt(&reading) {
            Some(pool) => self.begin_reading(pool, name, deadline).await,
            None => reading,
        }
    }

    async fn begin_reading(
        &self,
        pool: &Pool,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<Reading>, Error> {
        let by = deadline.min(Instant::now() + self.waits.connection);
        let place = self.reader(by).await?;
        let mut client = self.connection(pool, by).await?;
        let (sender, mut parts) = mpsc::channel(1);
        let (name, answer_wait) = (name.to_owned(), self.waits.answer);
        tokio::spawn(async move {
            let outcome = read(&mut client, &name, &sender, answer_wait).await;
            match &outcome {
                Err(Error::Timeout(_)) => discard(client),
                _ => drop(client),
            }
            drop(place);
            if let Err(error) = outcome {
                // Whoever asked may have gone away.
                let _ = sender.send_timeout(Err(error), READER_PATIENCE).await;
            }
        });
        let begun = timeout_at(deadline, parts.recv());
        let begun = begun.await.map_err(|late| {
            metrics().answer_lost();
            Error::Timeout(late.into())
        })?;
        match begun {
            Some(Ok(Part::Coupon(coupon))) => Ok(coupon.map(|coupon| Reading {
                coupon,
                parts,
                complete: false,
            })),
            Some(Err(error)) => Err(error),
            Some(Ok(Part::Claimants { .. })) | None => Err(Error::Internal(anyhow!(
                "a reading did not begin with its coupon"
            ))),
        }
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
        let rows = self.query(sql, &[&after, &max]).await?;
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
        let rows = self.query(sql, &[&coupon_name, &after, &max]).await?;
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
        let rows = self.query(sql, &[&user_id, &coupon_name]).await?;
        of_a_coupon(&rows)
    }

    /// Calls a function that reads.
    async fn query(&self, sql: &str, arguments: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let deadline = self.waits.deadline();
        let answer = self.query_once(&self.pool, sql, arguments, deadline).await;
        match self.second_attempt(&answer) {
            Some(pool) => self.query_once(pool, sql, arguments, deadline).await,
            None => answer,
        }
    }

    async fn query_once(
        &self,
        pool: &Pool,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
        deadline: Instant,
    ) -> Result<Vec<Row>, Error> {
        let by = deadline.min(Instant::now() + self.waits.connection);
        let _place = self.reader(by).await?;
        let client = self.connection(pool, by).await?;
        let by = deadline.min(Instant::now() + self.waits.answer);
        let answer = async {
            let statement = client.prepare_cached(sql).await?;
            client.query(&statement, arguments).await
        };
        match timeout_at(by, answer).await {
            Ok(rows) => Ok(rows?),
            Err(late) => {
                metrics().answer_lost();
                discard(client);
                Err(Error::Timeout(late.into()))
            }
        }
    }

    /// A reader's place among the connections, by this time.
    async fn reader(&self, by: Instant) -> Result<OwnedSemaphorePermit, Error> {
        timeout_at(by, Arc::clone(&self.readers).acquire_owned())
            .await
            .map_err(|_| Error::Unavailable(anyhow!("too many lists are being read")))?
            .map_err(|closed| Error::Internal(closed.into()))
    }

    /// Calls a function that writes. What surely changed nothing is repeated once where that
    /// may help; what may have been carried out never is.
    async fn write(&self, sql: &str, arguments: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let deadline = self.waits.deadline();
        let answer = self.write_once(&self.pool, sql, arguments, deadline).await;
        match self.second_attempt(&answer) {
            Some(pool) => self.write_once(pool, sql, arguments, deadline).await,
            None => answer,
        }
    }

    /// Where to repeat what surely changed nothing, if that may help.
    fn second_attempt<T>(&self, first: &Result<T, Error>) -> Option<&Pool> {
        let pool = match first {
            Err(Error::Locked(_)) => &self.patient,
            Err(error) if error.may_be_repeated() => &self.pool,
            _ => return None,
        };
        metrics().retried();
        Some(pool)
    }

    async fn write_once(
        &self,
        pool: &Pool,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
        deadline: Instant,
    ) -> Result<Vec<Row>, Error> {
        let client = self.connection(pool, deadline).await?;
        let by = deadline.min(Instant::now() + self.waits.answer);
        let statement = match timeout_at(by, client.prepare_cached(sql)).await {
            Ok(statement) => statement?,
            Err(_) => {
                metrics().answer_lost();
                discard(client);
                return Err(Error::Unavailable(anyhow!("no answer to a prepare")));
            }
        };
        let connected = Object::metrics(&client).created;
        let mut moved = self.moved.subscribe();
        let answer = tokio::select! {
            biased;
            answer = client.query(&statement, arguments) => answer,
            () = sleep_until(by) => {
                metrics().answer_lost();
                discard(client);
                return Err(Error::OutcomeUnknown(anyhow!("no answer to a call")));
            }
            // The sender is ours, so this is no error.
            _ = moved.wait_for(|when| *when > connected) => {
                discard(client);
                return Err(Error::OutcomeUnknown(anyhow!("the database has moved")));
            }
        };
        answer.map_err(|error| {
            // The address may lead to a primary by now, this connection never will.
            let on_standby = error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION);
            let error = Error::from(error).after_sending();
            if on_standby || matches!(error, Error::OutcomeUnknown(_)) {
                discard(client);
            }
            error
        })
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

/// A pool of at most `size` connections.
fn pool(target: &Target, size: usize) -> anyhow::Result<Pool> {
    let recycling = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    // The configuration is the target's.
    let manager = Manager::from_connect(tokio_postgres::Config::new(), target.clone(), recycling);
    let timeouts = Timeouts {
        wait: Some(CONNECTION_WAIT),
        create: Some(target.patience()),
        recycle: None,
    };
    let pool = Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .timeouts(timeouts)
        .build()?;
    Ok(pool)
}

/// Drops a connection that is stuck in a question, instead of giving it to the next request.
fn discard(client: Object) {
    drop(Object::take(client));
}

/// Reads a coupon and its claims in one snapshot into `parts`, until the receiver is dropped or
/// takes too long to make room.
async fn read(
    client: &mut Object,
    name: &str,
    parts: &mpsc::Sender<Result<Part, Error>>,
    answer_wait: Duration,
) -> Result<(), Error> {
    let snapshot = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start();
    let snapshot = in_time(answer_wait, snapshot).await?;
    let get_coupon = "select name, amount, remaining_amount from honcho_get_coupon($1)";
    let get_coupon = in_time(answer_wait, snapshot.prepare_cached(get_coupon)).await?;
    let coupon = match in_time(answer_wait, snapshot.query_opt(&get_coupon, &[&name])).await? {
        Some(row) => Some(Coupon {
            name: row.try_get(0)?,
            amount: row.try_get(1)?,
            remaining_amount: row.try_get(2)?,
        }),
        None => None,
    };
    let mut last = coupon.is_none();
    if parts
        .send_timeout(Ok(Part::Coupon(coupon)), READER_PATIENCE)
        .await
        .is_err()
    {
        return Ok(());
    }
    let list_claims = "select id, user_id from honcho_list_claims($1, $2, $3)";
    let list_claims = in_time(answer_wait, snapshot.prepare_cached(list_claims)).await?;
    let mut after = 0_i64;
    while !last {
        let rows = in_time(
            answer_wait,
            snapshot.query(&list_claims, &[&name, &after, &PAGE]),
        )
        .await?;
        let mut users = Vec::with_capacity(rows.len());
        for row in &rows {
            after = row.try_get(0)?;
            users.push(row.try_get(1)?);
        }
        last = rows.len() < PAGE as usize;
        let page = Part::Claimants { users, last };
        if parts.send_timeout(Ok(page), READER_PATIENCE).await.is_err() {
            return Ok(());
        }
    }
    in_time(answer_wait, snapshot.commit()).await
}

async fn in_time<T>(
    wait: Duration,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Error> {
    match timeout(wait, answer).await {
        Ok(answer) => Ok(answer?),
        Err(late) => {
            metrics().answer_lost();
            Err(Error::Timeout(late.into()))
        }
    }
}
