//! Calls on coupons that other sessions hold: where they wait, and for how long.

use std::time::Duration;

use anyhow::anyhow;
use deadpool_postgres::{PoolError, TimeoutType};
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
    /// call that may have been carried out is not. If another session holds the coupon, the call waits: see
    /// [`Self::waiting_connection`].
    ///
    /// The caller must not be dropped before the answer: its connection would go to another call while the
    /// database is still busy with this one. Lanes have tasks of their own for this wait.
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
            answer = match self.write_fast_by(deadline, sql, arguments).await {
                Err(error) if got_no_connection(&error) => {
                    return counted(Err(still_held(error)));
                }
                answer => answer,
            };
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

    /// Calls a function that writes, once, on a [waiting connection](Self::waiting_connection).
    ///
    /// The caller must not be dropped before the answer, as with [`Self::write`].
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

/// Returns true if a call has not begun, because it had no connection in time.
fn got_no_connection(error: &Error) -> bool {
    let Error::Unavailable(cause) = error else {
        return false;
    };
    // The call's own wait, or that of the pool.
    cause.is::<Elapsed>()
        || matches!(
            cause.downcast_ref(),
            Some(PoolError::Timeout(TimeoutType::Wait))
        )
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
    counted(match second {
        Err(error) if is_locked(first) && got_no_connection(&error) => Err(still_held(error)),
        second => second,
    })
}

const HELD: &str = "another session has held the coupon for too long";

fn held_too_long() -> Error {
    Error::Locked(anyhow!(HELD))
}

/// The same, with the error that has ended the last attempt for the log.
fn still_held(last: Error) -> Error {
    match last {
        Error::Unavailable(cause) => Error::Locked(cause.context(HELD)),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::pending;

    use super::*;

    fn timeout_of(kind: TimeoutType) -> Result<(), Error> {
        Err(Error::from(PoolError::Timeout(kind)))
    }

    #[tokio::test]
    async fn lock_is_the_reason_if_no_connection_is_free_for_the_second_attempt() {
        let locked = || Err(held_too_long());
        let late = timeout(Duration::ZERO, pending::<()>()).await;
        let late = Err(Error::Unavailable(late.unwrap_err().into()));
        assert!(is_locked(&last(&locked(), late)));
        assert!(is_locked(&last(&locked(), timeout_of(TimeoutType::Wait))));
        // Connecting is something else, and so is a first attempt that met no lock.
        assert!(!is_locked(&last(
            &locked(),
            timeout_of(TimeoutType::Create)
        )));
        assert!(!is_locked(&last(&Ok(()), timeout_of(TimeoutType::Wait))));
        assert!(!is_locked(&last(&locked(), Ok(()))));
    }

    #[test]
    fn log_has_the_cause_of_the_last_attempt() {
        let answer = last(&Err(held_too_long()), timeout_of(TimeoutType::Wait));
        let Err(Error::Locked(cause)) = answer else {
            panic!("{answer:?}");
        };
        let cause = format!("{cause:#}");
        assert!(cause.starts_with(HELD) && cause.contains("slot"), "{cause}");
    }
}
