//! Connections to the database: how a call gets one, how long it waits, and what happens to both if there is no
//! answer.

mod held;

use std::{sync::Arc, time::Duration};

use anyhow::anyhow;
use deadpool_postgres::{Object, PoolError, Status as PoolStatus};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_postgres::{Row, error::SqlState, types::ToSql};

pub(crate) use self::held::Patience;
use self::held::{counted, is_locked, last};
use super::{
    options::{DatabaseOptions, Sessions},
    permits::{CallPermits, to_its_end},
    pool::CallPool,
    server::Servers,
    sqlstate::after_sending,
    symptoms::Symptoms,
};
use crate::{error::Error, telemetry::metrics::metrics};

/// Longest wait for a connection, unless connecting may take longer.
const CONNECTION_WAIT: Duration = Duration::from_secs(5);

/// Time beyond the session's `statement_timeout` after which an answer is given up, and the connection with it.
/// It is only reached if the server or the network hangs.
const ANSWER_SLACK: Duration = Duration::from_secs(1);

/// The most long lists that are read at a time. Each holds some pages in memory until its client has received
/// them.
const LONG_LISTS: usize = 100;

/// An argument of a call that may outlive its caller.
pub(super) type Argument = Box<dyn ToSql + Send + Sync>;

/// Longest attempt to cancel a statement whose answer is late.
const CANCEL_WAIT: Duration = Duration::from_secs(2);

/// The connections for calls.
#[derive(Debug)]
pub(super) struct Connections {
    fast: CallPool,
    /// Half as many connections more, whose sessions wait for the whole `lock_timeout`: a call on a coupon that
    /// another session holds continues here and takes no connection from other calls.
    waiting: CallPool,
    /// Half of the connections: reads leave the rest to claims.
    reads: CallPermits,
    /// A quarter of the connections: pages of long lists leave the rest of the reads' to short reads.
    list_pages: CallPermits,
    /// Permits of long lists.
    long_lists: Arc<Semaphore>,
    /// A quarter of the connections: a creation waits while an open transaction holds the name.
    creations: CallPermits,
    /// A quarter of the connections: changes of coupons.
    changes: CallPermits,
    /// A quarter of the connections: batches of clients leave the changes' to a pause.
    batches: CallPermits,
    /// Half of the waiting connections: creations, changes and clients' batches that another session's lock holds up
    /// leave the rest to lanes, and their own permits to calls on other coupons.
    locked: CallPermits,
    /// Half of the connections: calls of lanes that are tried again, because another session still holds the coupon, leave
    /// the rest to others.
    again: CallPermits,
    waits: Waits,
    /// Time of the last failover: older connections lead to a server that is no longer the primary.
    moved: watch::Sender<std::time::Instant>,
    symptoms: Symptoms,
    servers: Servers,
}

/// A connection for one call, which must be answered by the deadline.
#[derive(Debug)]
pub(crate) struct Connection {
    client: Object,
    deadline: Instant,
}

/// The longest call, its one repetition included, is the sum of these; of a lane, one wait more if
/// another session holds the coupon.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// Wait for a permit and a connection.
    connection: Duration,
    /// Wait for the answer.
    answer: Duration,
}

impl Waits {
    /// Time at which a call that begins now is given up.
    fn deadline(self) -> Instant {
        Instant::now() + self.connection + self.answer
    }
}

/// The reason why there is no answer on a connection.
#[derive(Clone, Copy, Debug)]
enum Lost {
    /// The time for it is over.
    Late,
    /// The database has moved, and the connection leads to its old server.
    Moved,
}

/// Cause of an error in the log.
const MOVED: &str = "the database has moved";

impl Connections {
    /// Prepares the pools. Does not connect yet.
    pub fn new(options: &DatabaseOptions) -> anyhow::Result<Self> {
        let Sessions { fast, waiting } = &options.sessions;
        let size = options.pool_size;
        let permits =
            |kind, part: usize| CallPermits::new(options.shard, kind, size.div_ceil(part));
        let pool = |servers, size| CallPool::new(servers, options.shard, size, CONNECTION_WAIT);
        Ok(Self {
            fast: pool(fast, size)?,
            waiting: pool(waiting, size.div_ceil(2))?,
            reads: permits("read", 2),
            list_pages: permits("list", 4),
            long_lists: Arc::new(Semaphore::new(LONG_LISTS)),
            creations: permits("create", 4),
            changes: permits("change", 4),
            batches: permits("batch", 4),
            locked: permits("locked", 4),
            again: permits("again", 2),
            waits: Waits {
                connection: CONNECTION_WAIT.max(fast.connect_timeout()),
                answer: options.statement_timeout + ANSWER_SLACK,
            },
            moved: watch::Sender::new(std::time::Instant::now()),
            symptoms: Symptoms::default(),
            servers: fast.clone(),
        })
    }

    /// Returns true if there is none, in use or idle.
    pub fn are_none(&self) -> bool {
        self.fast.status().size == 0
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if none is free in time, and those of connecting.
    pub async fn next_connection(&self) -> Result<Connection, Error> {
        let deadline = self.waits.deadline();
        let client = self.connection(&self.fast, deadline).await?;
        Ok(Connection { client, deadline })
    }

    /// Drops idle connections.
    pub fn forget_idle(&self) {
        self.fast.forget_idle();
        self.waiting.forget_idle();
    }

    /// Gives up the calls on connections from before `when`.
    pub fn give_up_before(&self, when: std::time::Instant) {
        self.forget_idle();
        self.moved.send_replace(when);
    }

    /// Symptoms that calls have met.
    pub fn symptoms(&self) -> &Symptoms {
        &self.symptoms
    }

    /// Closes all, those in use at the end of their calls.
    pub fn close(&self) {
        self.fast.close();
        self.waiting.close();
    }

    /// Status of the two pools, with their names in metrics.
    pub fn status(&self) -> [(&'static str, PoolStatus); 2] {
        [
            ("fast", self.fast.status()),
            ("waiting", self.waiting.status()),
        ]
    }

    /// Takes a connection of this pool for a call with this deadline, in time for the longest answer.
    async fn connection(&self, pool: &CallPool, deadline: Instant) -> Result<Object, Error> {
        let begun = Instant::now();
        let by = deadline - self.waits.answer;
        let taken = timeout_at(by, pool.get()).await;
        let timed_out = matches!(taken, Err(_) | Ok(Err(PoolError::Timeout(_))));
        metrics().pool_wait(begun.elapsed(), timed_out);
        match taken {
            Ok(client) => client.map_err(|error| match error.into() {
                Error::Rejected(cause) if self.servers.is_missing() => Error::Unavailable(cause),
                other => other,
            }),
            Err(late) => Err(Error::Unavailable(late.into())),
        }
    }

    /// Calls a function that reads, under a permit, to the end even if the caller is dropped.
    pub async fn read(
        self: &Arc<Self>,
        sql: &'static str,
        arguments: Vec<Argument>,
    ) -> Result<Vec<Row>, Error> {
        let deadline = self.waits.deadline();
        let permit = self.reads.acquire(deadline - self.waits.answer).await?;
        let connections = Arc::clone(self);
        to_its_end(async move {
            let _permit = permit;
            connections.query(sql, &arguments, deadline).await
        })
        .await
    }

    /// Reads a page of a long list: such pages wait for each other, so that other reads wait for few of them.
    pub async fn read_page(
        self: &Arc<Self>,
        sql: &'static str,
        arguments: Vec<Argument>,
    ) -> Result<Vec<Row>, Error> {
        let deadline = self.waits.deadline();
        let by = deadline - self.waits.answer;
        let page_permit = self.list_pages.acquire(by).await?;
        let permit = self.reads.acquire(by).await?;
        let connections = Arc::clone(self);
        to_its_end(async move {
            let _permits = (page_permit, permit);
            connections.query(sql, &arguments, deadline).await
        })
        .await
    }

    /// Takes a permit for a long list.
    ///
    /// # Errors
    /// [`Error::TooManyLists`] if there is none.
    pub fn permit_long_list(&self) -> Result<OwnedSemaphorePermit, Error> {
        let permit = Arc::clone(&self.long_lists).try_acquire_owned();
        permit.map_err(|_| Error::TooManyLists)
    }

    /// Reads for a lane, without a permit: a lane must not wait behind other reads, and has one call at a time.
    ///
    /// The caller must not be dropped before the answer, as with [`Self::write`].
    pub async fn read_for_lane(
        &self,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let deadline = self.waits.deadline();
        self.query_once(&self.fast, sql, arguments, deadline).await
    }

    /// Calls a function that creates something, under a permit, to the end even if the caller is dropped.
    pub async fn create(
        self: &Arc<Self>,
        sql: &'static str,
        arguments: Vec<Argument>,
    ) -> Result<Vec<Row>, Error> {
        self.write_under(&self.creations, sql, arguments).await
    }

    /// Calls a function that changes a coupon, under a permit, to the end even if the caller is dropped.
    pub async fn change(
        self: &Arc<Self>,
        sql: &'static str,
        arguments: Vec<Argument>,
    ) -> Result<Vec<Row>, Error> {
        self.write_under(&self.changes, sql, arguments).await
    }

    /// Claims for a client's batch, under a permit, to the end even if the caller is dropped.
    pub async fn claim_batch(
        self: &Arc<Self>,
        sql: &'static str,
        arguments: Vec<Argument>,
    ) -> Result<Vec<Row>, Error> {
        self.write_under(&self.batches, sql, arguments).await
    }

    async fn write_under(
        self: &Arc<Self>,
        permits: &CallPermits,
        sql: &'static str,
        arguments: Vec<Argument>,
    ) -> Result<Vec<Row>, Error> {
        let deadline = self.waits.deadline();
        let by = deadline - self.waits.answer;
        let permit = permits.acquire(by).await?;
        let connections = Arc::clone(self);
        to_its_end(async move {
            let arguments = borrowed(&arguments);
            let fast = &connections.fast;
            let answer = connections.write_once(fast, sql, &arguments, deadline);
            let answer = answer.await;
            let Some(pool) = connections.second_attempt(&answer, deadline) else {
                return counted(answer);
            };
            let mut _permit = permit;
            if is_locked(&answer) {
                // First the old permit is returned, so that calls on other coupons do not wait for the new one.
                drop(_permit);
                match connections.locked.acquire(by).await {
                    Ok(locked) => _permit = locked,
                    Err(_) => return counted(answer),
                }
            }
            let second = connections.write_once(pool, sql, &arguments, deadline);
            last(&answer, second.await)
        })
        .await
    }

    async fn query(
        &self,
        sql: &str,
        arguments: &[Argument],
        deadline: Instant,
    ) -> Result<Vec<Row>, Error> {
        let arguments = borrowed(arguments);
        let answer = self.query_once(&self.fast, sql, &arguments, deadline).await;
        let Some(pool) = self.second_attempt(&answer, deadline) else {
            return counted(answer);
        };
        let second = self.query_once(pool, sql, &arguments, deadline).await;
        last(&answer, second)
    }

    async fn query_once(
        &self,
        pool: &CallPool,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
        deadline: Instant,
    ) -> Result<Vec<Row>, Error> {
        let client = self.connection(pool, deadline).await?;
        let by = deadline.min(Instant::now() + self.waits.answer);
        let answer = async {
            let statement = client.prepare_cached(sql).await;
            let statement = statement.map_err(|error| (error, true))?;
            let rows = client.query(&statement, arguments).await;
            rows.map_err(|error| (error, false))
        };
        match self.answered(&client, by, answer).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err((error, is_of_prepare))) => {
                self.symptoms.note(&error);
                if makes_unusable(&error) {
                    discard(client);
                }
                Err(if is_of_prepare {
                    not_prepared(error)
                } else {
                    error.into()
                })
            }
            Err(Lost::Late) => {
                abandon(client, &self.servers);
                Err(Error::Timeout(anyhow!("no answer to a call")))
            }
            Err(Lost::Moved) => {
                discard(client);
                Err(Error::Disconnected(anyhow!(MOVED)))
            }
        }
    }

    /// The pool on which to repeat a call that certainly changed nothing, if that may help and there is still time for the
    /// longest answer: otherwise it might be given up without a known outcome.
    fn second_attempt<T>(&self, first: &Result<T, Error>, deadline: Instant) -> Option<&CallPool> {
        if !self.has_time(deadline) {
            return None;
        }
        let pool = match first {
            Err(Error::Locked(_)) => &self.waiting,
            Err(error) if error.may_be_repeated() => &self.fast,
            _ => return None,
        };
        metrics().retried();
        Some(pool)
    }

    /// Waits for an answer on this connection.
    async fn answered<T>(
        &self,
        client: &Object,
        by: Instant,
        answer: impl Future<Output = T>,
    ) -> Result<T, Lost> {
        let connected = Object::metrics(client).created;
        let mut moved = self.moved.subscribe();
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            () = sleep_until(by) => {
                metrics().answer_lost();
                Err(Lost::Late)
            }
            // No error: the sender is in this struct.
            _ = moved.wait_for(|when| *when > connected) => Err(Lost::Moved),
        }
    }

    /// Returns true if there is still time for the longest answer.
    fn has_time(&self, deadline: Instant) -> bool {
        Instant::now() + self.waits.answer <= deadline
    }

    async fn write_once(
        &self,
        pool: &CallPool,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
        deadline: Instant,
    ) -> Result<Vec<Row>, Error> {
        let client = self.connection(pool, deadline).await?;
        let connection = Connection { client, deadline };
        self.write_on(connection, sql, arguments).await
    }

    /// Calls a function that writes, once, on this connection.
    ///
    /// The caller must not be dropped before the answer, as with [`Self::write`].
    pub async fn write_on(
        &self,
        connection: Connection,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let Connection { client, deadline } = connection;
        let by = deadline.min(Instant::now() + self.waits.answer);
        let prepared = self.answered(&client, by, client.prepare_cached(sql));
        let statement = match prepared.await {
            Ok(Ok(statement)) => statement,
            Ok(Err(error)) => {
                self.symptoms.note(&error);
                if makes_unusable(&error) {
                    discard(client);
                }
                return Err(not_prepared(error));
            }
            Err(Lost::Late) => {
                abandon(client, &self.servers);
                return Err(Error::Unavailable(anyhow!("no answer to a prepare")));
            }
            Err(Lost::Moved) => {
                discard(client);
                return Err(Error::Disconnected(anyhow!(MOVED)));
            }
        };
        let called = self.answered(&client, by, client.query(&statement, arguments));
        let answer = match called.await {
            Ok(answer) => answer,
            Err(Lost::Late) => {
                abandon(client, &self.servers);
                return Err(Error::OutcomeUnknown(anyhow!("no answer to a call")));
            }
            Err(Lost::Moved) => {
                discard(client);
                return Err(Error::OutcomeUnknown(anyhow!(MOVED)));
            }
        };
        answer.map_err(|error| {
            self.symptoms.note(&error);
            let is_unusable = makes_unusable(&error);
            let error = after_sending(error);
            if is_unusable || matches!(error, Error::OutcomeUnknown(_)) {
                discard(client);
            }
            error
        })
    }
}

fn borrowed(arguments: &[Argument]) -> Vec<&(dyn ToSql + Sync)> {
    arguments
        .iter()
        .map(|argument| &**argument as &(dyn ToSql + Sync))
        .collect()
}

/// Classifies the error of a `prepare`. There, a function that is not found is the one that is called; later, it would be
/// one that a trigger calls.
fn not_prepared(error: tokio_postgres::Error) -> Error {
    let is_not_found = error.code() == Some(&SqlState::UNDEFINED_FUNCTION);
    match error.into() {
        Error::Rejected(cause) if is_not_found => Error::FunctionNotFound(cause),
        other => other,
    }
}

/// Returns true if an error shows that its connection is unusable: it leads to a standby, while the primary may
/// be at the same address by now, or it has lost its prepared statements.
fn makes_unusable(error: &tokio_postgres::Error) -> bool {
    matches!(
        error.code(),
        Some(
            &SqlState::READ_ONLY_SQL_TRANSACTION
                | &SqlState::INVALID_SQL_STATEMENT_NAME
                | &SqlState::DUPLICATE_PSTATEMENT
        )
    )
}

/// Drops a connection whose answer is late, and cancels its statement: otherwise each repeated request would
/// leave a stuck backend.
fn abandon(client: Object, servers: &Servers) {
    let token = client.cancel_token();
    discard(client);
    tokio::spawn(servers.clone().cancel(token, CANCEL_WAIT));
}

/// Drops a connection instead of returning it to its pool.
fn discard(client: Object) {
    drop(Object::take(client));
}
