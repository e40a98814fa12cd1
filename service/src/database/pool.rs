//! A pool of connections that goes on with those that it has if the database accepts no more.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
    Status, TimeoutType, Timeouts,
};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, sleep},
};
use tokio_postgres::error::SqlState;
use tracing::warn;

use super::{
    server::Servers,
    settings::{Unfit, dropped_settings},
    sqlstate::describe,
};
use crate::{
    shards::ShardNumber,
    telemetry::{
        metrics::metrics,
        throttle::{Admitted, Throttle},
    },
};

/// Time between two attempts to open a further connection while the database accepts no more.
const GROWTH_PAUSE: Duration = Duration::from_secs(1);

/// Time between two looks for a free connection while no further one can be opened.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// A pool of connections.
#[derive(Debug)]
pub(super) struct CallPool {
    pool: Pool,
    shard: ShardNumber,
    /// True from the time when the database has refused a further connection, because there are too many, until it accepts
    /// one or the pool has none left.
    is_refused: AtomicBool,
    /// The line of the calls that wait in this time.
    line: AsyncMutex<()>,
    /// Time before which no further connection is opened, because the last one was refused.
    next_attempt: Mutex<Instant>,
    /// Number of calls in line.
    in_line: AtomicUsize,
    refusals: Throttle,
}

impl CallPool {
    /// Prepares a pool of at most `size` connections.
    ///
    /// # Arguments
    /// `wait`: longest wait for a connection.
    pub fn new(
        servers: &Servers,
        shard: ShardNumber,
        size: usize,
        wait: Duration,
    ) -> anyhow::Result<Self> {
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        // `servers` has the configuration.
        let manager =
            Manager::from_connect(tokio_postgres::Config::new(), servers.clone(), recycling);
        let timeouts = Timeouts {
            wait: Some(wait),
            create: Some(servers.connect_timeout()),
            recycle: None,
        };
        let checked = servers.clone();
        let pool = Pool::builder(manager)
            .max_size(size)
            .post_create(Hook::async_fn(move |client, _| {
                let checked = checked.clone();
                Box::pin(async move {
                    checked.check(client).await.map_err(|unfit| match unfit {
                        Unfit::Unlimited(limits) => HookError::message(dropped_settings(&limits)),
                        Unfit::OtherShard(why) => HookError::message(why),
                        Unfit::Broken(error) => HookError::Backend(error),
                    })
                })
            }))
            .runtime(Runtime::Tokio1)
            .timeouts(timeouts)
            .build()?;
        Ok(Self {
            pool,
            shard,
            is_refused: AtomicBool::new(false),
            line: AsyncMutex::new(()),
            next_attempt: Mutex::new(Instant::now()),
            in_line: AtomicUsize::new(0),
            refusals: Throttle::new(),
        })
    }

    /// Waits for a connection. The caller bounds the wait.
    ///
    /// # Errors
    /// Those of connecting. A refusal because there are too many connections is none as long as the pool has one.
    pub async fn get(&self) -> Result<Object, PoolError> {
        loop {
            if !self.is_refused.load(Ordering::Relaxed) {
                match self.pool.get().await {
                    Err(PoolError::Backend(error)) if self.has_one_despite(&error) => {
                        self.note_refusal(error);
                    }
                    taken => return taken.inspect(|client| self.note_taken(client)),
                }
            }
            if let Some(taken) = self.get_in_line().await {
                return taken;
            }
        }
    }

    /// Waits in line, first come, first served, for one of the connections that are there. The first in line tries to open
    /// a further one from time to time. Returns nothing if there is no reason for the line any more.
    async fn get_in_line(&self) -> Option<Result<Object, PoolError>> {
        let _place = Place::new(&self.in_line);
        let _first = self.line.lock().await;
        while self.is_refused.load(Ordering::Relaxed) {
            let Status {
                size,
                available,
                max_size,
                ..
            } = self.pool.status();
            if size == 0 || size >= max_size {
                self.is_refused.store(false, Ordering::Relaxed);
                break;
            }
            if available == 0 && !self.may_grow() {
                sleep(LOOK_PAUSE).await;
                continue;
            }
            match self.pool.get().await {
                Err(PoolError::Backend(error)) if self.has_one_despite(&error) => {
                    self.note_refusal(error);
                }
                taken => return Some(taken.inspect(|client| self.note_taken(client))),
            }
        }
        None
    }

    /// Takes a connection that is free, or opens one if there may be more.
    ///
    /// # Errors
    /// Those of connecting, other than a refusal because there are too many connections.
    pub async fn try_get(&self) -> Result<Option<Object>, PoolError> {
        if self.pool.status().available == 0 && !self.may_grow() {
            return Ok(None);
        }
        let timeouts = Timeouts {
            wait: Some(Duration::ZERO),
            ..self.pool.timeouts()
        };
        match self.pool.timeout_get(&timeouts).await {
            Ok(client) => {
                self.note_taken(&client);
                Ok(Some(client))
            }
            Err(PoolError::Backend(error)) if is_refusal(&error) => {
                self.note_refusal(error);
                Ok(None)
            }
            Err(PoolError::Timeout(TimeoutType::Wait)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ends the refusal if this is a new connection.
    fn note_taken(&self, client: &Object) {
        if self.is_refused.load(Ordering::Relaxed) && Object::metrics(client).recycle_count == 0 {
            self.is_refused.store(false, Ordering::Relaxed);
        }
    }

    /// Returns true if the database has refused a connection because there are too many, and the pool has one.
    fn has_one_despite(&self, error: &tokio_postgres::Error) -> bool {
        is_refusal(error) && self.pool.status().size > 0
    }

    /// Returns true if the last connection was not refused a moment ago.
    fn may_grow(&self) -> bool {
        let next_attempt = self.next_attempt.lock();
        Instant::now() >= *next_attempt.unwrap_or_else(PoisonError::into_inner)
    }

    fn note_refusal(&self, error: tokio_postgres::Error) {
        metrics().database_error(SqlState::TOO_MANY_CONNECTIONS.code());
        let next_attempt = self.next_attempt.lock();
        *next_attempt.unwrap_or_else(PoisonError::into_inner) = Instant::now() + GROWTH_PAUSE;
        if self.pool.status().size == 0 {
            return;
        }
        let was_refused = self.is_refused.swap(true, Ordering::Relaxed);
        if !was_refused && let Some(Admitted { left_out }) = self.refusals.admit() {
            warn!(
                shard = self.shard,
                error = format!("{:#}", describe(error)),
                left_out,
                "the database refuses further connections, so calls share those that are there"
            );
        }
    }

    /// Drops idle connections.
    pub fn forget_idle(&self) {
        self.pool.retain(|_, _| false);
    }

    /// Closes all, those in use at the end of their calls.
    pub fn close(&self) {
        self.pool.close();
    }

    /// Numbers of connections and of calls that wait.
    pub fn status(&self) -> Status {
        let mut status = self.pool.status();
        status.waiting += self.in_line.load(Ordering::Relaxed);
        status
    }
}

/// Returns true if the database has refused a connection because there are too many.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS)
}

/// A place in line.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn new(in_line: &'a AtomicUsize) -> Self {
        in_line.fetch_add(1, Ordering::Relaxed);
        Self(in_line)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
