//! Calls on coupons that other sessions hold: where they wait, and for how long.

use std::time::Duration;

use anyhow::anyhow;
use tokio::time::{Instant, error::Elapsed, sleep, timeout};
use tokio_postgres::{Row, error::SqlState, types::ToSql};

use super::{Connection, Connections};
use crate::{error::Error, telemetry::metrics::metrics};

/// Pauses between attempts of a call.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The time for which a call is tried again.
#[derive(Debug)]
pub(crate) struct Patience {
    end: Instant,
    pause: Duration,
}

impl Patience {
    /// Waits before the next attempt, each time longer.
    ///
    /// # Errors
    /// [`Error::Locked`] immediately if there is no time left.
    pub async fn pause(&mut self) -> Result<(), Error> {
        if Instant::now() >= self.end {
            return counted(Err(held_too_long()));
        }
        sleep(self.pause).await;
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        Ok(())
    }
}

impl Connections {
    /// Calls a function that writes, for a lane. A call that certainly changed nothing is repeated once if that may help; a
    /// call that may have been carried out is not. If another session holds the coupon, the call waits for it: see
    /// [`Self::waiting_connection`].
    ///
    /// The caller must not be dropped before the answer: its connection would go to another call while the
    /// database is still busy with this one. Lanes wait for it in tasks of their own.
    pub async fn write(
        &self,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let mut answer = self.write_fast(sql, arguments).await;
        let mut patience = self.patience();
        let deadline = patience.end + self.waits.answer;
        while is_locked(&answer) {
            if let Some(connection) = self.waiting_connection().await? {
                return self.write_waiting(connection, sql, arguments).await;
            }
            patience.pause().await?;
            let Ok(_permit) = self.again.acquire(patience.end).await else {
                return counted(Err(held_too_long()));
            };
            let again = self.write_fast_by(deadline, sql, arguments).await;
            if got_no_connection(&again) {
                return counted(Err(held_too_long()));
            }
            answer = again;
        }
        answer
    }

    /// The same, but it waits only a moment if another session holds the coupon.
    ///
    /// # Errors
    /// [`Error::Locked`] if it still does.
    pub async fn write_fast(
        &self,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let deadline = self.waits.deadline();
        self.write_fast_by(deadline, sql, arguments).await
    }

    async fn write_fast_by(
        &self,
        deadline: Instant,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let answer = self.write_once(&self.fast, sql, arguments, deadline).await;
        match &answer {
            Err(error) if error.may_be_repeated() && self.has_time(deadline) => {
                metrics().retried();
                self.write_once(&self.fast, sql, arguments, deadline).await
            }
            _ => answer,
        }
    }

    /// The same on a [waiting connection](Self::waiting_connection), once.
    pub async fn write_waiting(
        &self,
        connection: Connection,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        counted(self.write_on(connection, sql, arguments).await)
    }

    /// A connection for a call that waits for a coupon which another session holds, and that takes no connection from other
    /// calls meanwhile; none if all are in use. The call is then to be tried again after a [pause](Patience::pause).
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn waiting_connection(&self) -> Result<Option<Connection>, Error> {
        let taken = timeout(self.waits.connection, self.waiting.try_get()).await;
        let taken = taken.map_err(|late| Error::Unavailable(late.into()))?;
        Ok(taken?.map(|client| {
            metrics().retried();
            let deadline = self.waits.deadline();
            Connection { client, deadline }
        }))
    }

    /// The time for which a call that begins now is tried again.
    pub fn patience(&self) -> Patience {
        Patience {
            end: Instant::now() + self.waits.connection,
            pause: SHORTEST_PAUSE,
        }
    }
}

/// Returns true if another session's lock has ended the call.
pub(super) fn is_locked<T>(answer: &Result<T, Error>) -> bool {
    matches!(answer, Err(Error::Locked(_)))
}

/// Returns true if all connections were in use for the whole time.
fn got_no_connection<T>(answer: &Result<T, Error>) -> bool {
    matches!(answer, Err(Error::Unavailable(late)) if late.is::<Elapsed>())
}

/// The answer with which a call is given up or has succeeded: counts it if another session's lock is the reason.
pub(super) fn counted<T>(answer: Result<T, Error>) -> Result<T, Error> {
    if is_locked(&answer) {
        metrics().database_error(SqlState::LOCK_NOT_AVAILABLE.code());
    }
    answer
}

/// The same for the answer to a second attempt. If another session's lock has ended the first one, no connection on which to
/// wait is the same reason.
pub(super) fn last<T>(first: &Result<T, Error>, second: Result<T, Error>) -> Result<T, Error> {
    counted(if is_locked(first) && got_no_connection(&second) {
        Err(held_too_long())
    } else {
        second
    })
}

fn held_too_long() -> Error {
    Error::Locked(anyhow!("another session has held the coupon for too long"))
}
