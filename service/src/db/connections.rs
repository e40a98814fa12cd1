//! The connections to the database: how a call gets one, how long it waits, and what becomes of
//! both when there is no answer.

use std::{sync::Arc, time::Duration};

use anyhow::anyhow;
use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
    Status as PoolStatus, Timeouts,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_postgres::{Row, error::SqlState, types::ToSql};

use super::places::Places;
use crate::{
    config::{self, Sessions},
    error::Error,
    session::{Unfit, dropped_settings},
    target::Target,
    telemetry::metrics::metrics,
};

/// How long a request waits for a connection, if connecting may not take longer.
const CONNECTION_WAIT: Duration = Duration::from_secs(5);

/// How much longer than the session's own `statement_timeout` an answer may take before it is given
/// up, and the connection with it: this is only reached when the server or the way to it hangs.
const ANSWER_SLACK: Duration = Duration::from_secs(1);

/// The most long lists that are read at a time. Each holds some pages in memory for as long as its client
/// takes to receive them.
const LONG_LISTS: usize = 100;

/// An argument of a call that may outlive its caller.
pub(super) type Argument = Box<dyn ToSql + Send + Sync>;

/// How long the attempt may take to have the server break off a statement whose answer is late.
const CANCEL_WAIT: Duration = Duration::from_secs(2);

/// All connections for calls.
#[derive(Debug)]
pub(super) struct Connections {
    pool: Pool,
    /// Where a call goes on that has met a coupon which somebody holds, so that it takes no connection
    /// from the others: half as many more, whose sessions wait for as long as they may.
    patient: Pool,
    /// Half of the connections: what reads leaves the rest to claims.
    readers: Places,
    /// Half of those again: the pages of long lists leave the rest to short reads.
    lists: Places,
    /// The long lists that may be read at a time.
    long_lists: Arc<Semaphore>,
    /// A quarter of the connections: a name that an open transaction has taken holds up what creates it.
    creators: Places,
    waits: Waits,
    /// When the database was last found on another server than before: older connections lead to one
    /// that has nothing to say any more.
    moved: watch::Sender<std::time::Instant>,
    pub target: Target,
}

/// How long a call of the database may take, its one repetition included: the sum of these.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// For a place, and for a connection.
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

impl Connections {
    /// Prepares the pools. Connects to nothing yet.
    pub fn new(config: &config::Database) -> anyhow::Result<Self> {
        let Sessions { brisk, patient } = &config.sessions;
        Ok(Self {
            pool: pool(brisk, config.pool_size)?,
            patient: pool(patient, config.pool_size.div_ceil(2))?,
            readers: Places::new("read", config.pool_size.div_ceil(2)),
            lists: Places::new("list", config.pool_size.div_ceil(4)),
            long_lists: Arc::new(Semaphore::new(LONG_LISTS)),
            creators: Places::new("create", config.pool_size.div_ceil(4)),
            waits: Waits {
                connection: CONNECTION_WAIT.max(brisk.patience()),
                answer: config.statement_timeout + ANSWER_SLACK,
            },
            moved: watch::Sender::new(std::time::Instant::now()),
            target: brisk.clone(),
        })
    }

    /// Whether there is none at all, in use or idle.
    pub fn are_none(&self) -> bool {
        self.pool.status().size == 0
    }

    /// Drops those that nobody uses.
    pub fn forget_idle(&self) {
        self.pool.retain(|_, _| false);
        self.patient.retain(|_, _| false);
    }

    /// Gives up whatever is still asked on those from before `when`.
    pub fn give_up(&self, when: std::time::Instant) {
        self.forget_idle();
        self.moved.send_replace(when);
    }

    /// Gives up all, those in use when they are done.
    pub fn close(&self) {
        self.pool.close();
        self.patient.close();
    }

    /// How the two pools stand, by their names.
    pub fn status(&self) -> [(&'static str, PoolStatus); 2] {
        [
            ("brisk", self.pool.status()),
            ("patient", self.patient.status()),
        ]
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

    /// Calls a function that reads, in a place of its own, to the end even if the caller is dropped.
    pub async fn read(
        self: &Arc<Self>,
        sql: &'static str,
        arguments: Vec<Argument>,
    ) -> Result<Vec<Row>, Error> {
        let deadline = self.waits.deadline();
        let place = self.readers.take(deadline - self.waits.answer).await?;
        let connections = Arc::clone(self);
        let call = async move { connections.query(sql, &arguments, deadline).await };
        place.keep_for(call).await
    }

    /// The same for a page of a long list: such pages wait for each other, and other reads wait for few
    /// of them.
    pub async fn read_page(
        self: &Arc<Self>,
        sql: &'static str,
        arguments: Vec<Argument>,
    ) -> Result<Vec<Row>, Error> {
        let deadline = self.waits.deadline();
        let by = deadline - self.waits.answer;
        let among_lists = self.lists.take(by).await?;
        let place = self.readers.take(by).await?;
        let connections = Arc::clone(self);
        let call = async move {
            let answer = connections.query(sql, &arguments, deadline).await;
            drop(among_lists);
            answer
        };
        place.keep_for(call).await
    }

    /// A place among the long lists.
    ///
    /// # Errors
    /// [`Error::TooManyLists`] if there is none.
    pub fn long_list(&self) -> Result<OwnedSemaphorePermit, Error> {
        let place = Arc::clone(&self.long_lists).try_acquire_owned();
        place.map_err(|_| Error::TooManyLists)
    }

    /// Calls a function that creates something, in a place of its own, to the end even if the caller is
    /// dropped.
    pub async fn create(
        self: &Arc<Self>,
        sql: &'static str,
        arguments: Vec<Argument>,
    ) -> Result<Vec<Row>, Error> {
        let deadline = self.waits.deadline();
        let place = self.creators.take(deadline - self.waits.answer).await?;
        let connections = Arc::clone(self);
        let call = async move {
            let arguments = borrowed(&arguments);
            connections.write_by(deadline, sql, &arguments).await
        };
        place.keep_for(call).await
    }

    async fn query(
        &self,
        sql: &str,
        arguments: &[Argument],
        deadline: Instant,
    ) -> Result<Vec<Row>, Error> {
        let arguments = borrowed(arguments);
        let answer = self.query_once(&self.pool, sql, &arguments, deadline).await;
        match self.second_attempt(&answer) {
            Some(pool) => self.query_once(pool, sql, &arguments, deadline).await,
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
        let client = self.connection(pool, deadline).await?;
        let by = deadline.min(Instant::now() + self.waits.answer);
        let answer = async {
            let statement = client.prepare_cached(sql).await?;
            client.query(&statement, arguments).await
        };
        match timeout_at(by, answer).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => {
                if is_spoilt(&error) {
                    discard(client);
                }
                Err(error.into())
            }
            Err(late) => {
                metrics().answer_lost();
                abandon(client, &self.target);
                Err(Error::Timeout(late.into()))
            }
        }
    }

    /// Calls a function that writes. What surely changed nothing is repeated once where that
    /// may help; what may have been carried out never is.
    ///
    /// The caller must not be dropped before the answer: its connection would go to others while the
    /// database is still busy on it. Lanes wait for it in tasks of their own.
    pub async fn write(
        &self,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        self.write_by(self.waits.deadline(), sql, arguments).await
    }

    async fn write_by(
        &self,
        deadline: Instant,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
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
            Ok(Ok(statement)) => statement,
            Ok(Err(error)) => {
                if is_spoilt(&error) {
                    discard(client);
                }
                return Err(error.into());
            }
            Err(_) => {
                metrics().answer_lost();
                abandon(client, &self.target);
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
                abandon(client, &self.target);
                return Err(Error::OutcomeUnknown(anyhow!("no answer to a call")));
            }
            // The sender is ours, so this is no error.
            _ = moved.wait_for(|when| *when > connected) => {
                discard(client);
                return Err(Error::OutcomeUnknown(anyhow!("the database has moved")));
            }
        };
        answer.map_err(|error| {
            let is_spoilt = is_spoilt(&error);
            let error = Error::from(error).after_sending();
            if is_spoilt || matches!(error, Error::OutcomeUnknown(_)) {
                discard(client);
            }
            error
        })
    }
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
    let checked = target.clone();
    let pool = Pool::builder(manager)
        .max_size(size)
        .post_create(Hook::async_fn(move |client, _| {
            let checked = checked.clone();
            Box::pin(async move {
                checked.check(client).await.map_err(|unfit| match unfit {
                    Unfit::Unlimited(limits) => HookError::message(dropped_settings(&limits)),
                    Unfit::Broken(error) => HookError::Backend(error),
                })
            })
        }))
        .runtime(Runtime::Tokio1)
        .timeouts(timeouts)
        .build()?;
    Ok(pool)
}

fn borrowed(arguments: &[Argument]) -> Vec<&(dyn ToSql + Sync)> {
    arguments
        .iter()
        .map(|argument| &**argument as &(dyn ToSql + Sync))
        .collect()
}

/// Whether an error shows that its connection is of no more use: it leads to a standby, which may be a
/// primary at the same address by now, or it has lost the statements that were prepared on it.
fn is_spoilt(error: &tokio_postgres::Error) -> bool {
    matches!(
        error.code(),
        Some(
            &SqlState::READ_ONLY_SQL_TRANSACTION
                | &SqlState::INVALID_SQL_STATEMENT_NAME
                | &SqlState::DUPLICATE_PSTATEMENT
        )
    )
}

/// Drops a connection whose answer is late, and has the server break off what was asked: repeated requests
/// would leave a stuck backend each.
fn abandon(client: Object, target: &Target) {
    let token = client.cancel_token();
    discard(client);
    tokio::spawn(target.clone().cancel(token, CANCEL_WAIT));
}

/// Drops a connection that is of no more use, instead of giving it to the next request.
fn discard(client: Object) {
    drop(Object::take(client));
}
