//! Health: if requests can be served, and the reason if they cannot.
//!
//! A watcher checks each shard's database in the background on a connection of its own, so that a question about health
//! is answered immediately, however busy the pool is.

mod checks;
mod watcher;

use std::{borrow::Cow, sync::Arc};

use tokio::sync::watch;

use self::watcher::Watcher;
use crate::{
    database::{Database, Sessions},
    error::Error,
    shards::{ShardNumber, Shards},
    telemetry::metrics::metrics,
};

/// Health of one shard. Clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    shard: ShardNumber,
    state: Arc<watch::Sender<Readiness>>,
}

/// State of the requests to one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The database has not been checked yet.
    Starting,
    /// Requests are served.
    Ready,
    /// Requests would fail.
    NotReady(Reason),
    /// The service is shutting down.
    Stopping,
}

/// Reason why requests would fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    cause: Cause,
    /// Explanation for clients.
    detail: Cow<'static, str>,
}

/// Kind of a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// No server accepts connections.
    Unreachable,
    /// A server refuses our connections.
    Refused,
    /// A server does not answer.
    Silent,
    /// Transactions are read-only: only standbys answer, or a setting requires it.
    ReadOnly,
    /// The extension is not in the database.
    NoExtension,
    /// The extension is of another version.
    OtherVersion,
    /// The role does not find a function in its search path, or may not execute it.
    NoFunctions,
    /// The pool has no connection and cannot make one.
    EmptyPool,
    /// A pooler drops the session's settings or its prepared statements.
    Pooler,
    /// The disk is full.
    DiskFull,
    /// It is the database of another shard.
    OtherShard,
}

impl Cause {
    /// Name in metrics.
    fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Silent => "silent",
            Self::ReadOnly => "read_only",
            Self::NoExtension => "no_extension",
            Self::OtherVersion => "other_version",
            Self::NoFunctions => "no_functions",
            Self::EmptyPool => "empty_pool",
            Self::Pooler => "pooler",
            Self::DiskFull => "disk_full",
            Self::OtherShard => "other_shard",
        }
    }

    /// Explanation for clients, unless a more precise one is known.
    fn detail(self) -> &'static str {
        match self {
            Self::Unreachable => "the database cannot be reached",
            Self::Refused => "the database refuses the service's connections",
            Self::Silent => "the database does not answer",
            Self::ReadOnly => "the database is a standby, which takes no claims",
            Self::NoExtension => "the extension honcho is not in the database",
            Self::OtherVersion => "the extension's version is not one that this service speaks",
            Self::NoFunctions => "the service's role cannot call the extension's functions",
            Self::EmptyPool => "the database has no connections left for requests",
            Self::Pooler => {
                "a pooler between the service and PostgreSQL loses prepared statements: connect \
                 directly, or let it pool sessions"
            }
            Self::DiskFull => "the database's disk is full",
            Self::OtherShard => "the database is that of another shard",
        }
    }
}

impl Readiness {
    fn change_to(&mut self, new: Self, shard: ShardNumber) {
        let is_ready = new == Self::Ready;
        metrics().ready(shard, self.reason(), new.reason(), is_ready);
        *self = new;
    }

    /// Name of the reason in metrics: `none` if requests are served.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "none",
            Self::NotReady(reason) => reason.cause.name(),
            Self::Stopping => "stopping",
        }
    }
}

impl Health {
    /// Health of a shard that has not been checked yet.
    pub fn new(shard: ShardNumber) -> Self {
        let state = Readiness::Starting;
        metrics().ready(shard, state.reason(), state.reason(), false);
        Self {
            shard,
            state: Arc::new(watch::Sender::new(state)),
        }
    }

    /// Current state.
    pub fn readiness(&self) -> Readiness {
        self.state.borrow().clone()
    }

    /// Sets the final state: the service is shutting down.
    pub fn stop(&self) {
        self.state
            .send_modify(|known| known.change_to(Readiness::Stopping, self.shard));
    }

    /// Sets the state, unless the service is shutting down. Returns true if that is a change.
    fn set(&self, state: Readiness) -> bool {
        self.state.send_if_modified(|known| {
            let changes = *known != state && *known != Readiness::Stopping;
            if changes {
                known.change_to(state, self.shard);
            }
            changes
        })
    }

    /// Checks that requests are served.
    ///
    /// # Errors
    /// [`Error::NotReady`] with the reason.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.readiness() {
            Readiness::Ready => Ok(()),
            Readiness::Starting => Err(Error::NotReady("the service is starting".into())),
            Readiness::Stopping => Err(Error::NotReady("the service is stopping".into())),
            Readiness::NotReady(reason) => Err(Error::NotReady(reason.detail)),
        }
    }

    /// Watches the database until the service shuts down.
    ///
    /// # Arguments
    /// `sessions`: the kinds of sessions that calls have.
    pub async fn watch(self, database: Database, sessions: Sessions) {
        let mut stopping = self.state.subscribe();
        let mut watcher = Watcher::new(database, sessions);
        tokio::select! {
            () = watcher.run(&self) => {}
            // No error: the sender is in `self`.
            _ = stopping.wait_for(|state| *state == Readiness::Stopping) => {}
        }
    }
}

impl Shards<Health> {
    /// Checks that requests are served, at least those to one shard: a service that is taken out of a load balancer
    /// could not serve the coupons of the others.
    ///
    /// # Errors
    /// [`Error::NotReady`] with the reason, that of the first shard if there are several.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let mut found = Ok(());
        for check in self.iter().map(Health::check).rev() {
            if check.is_ok() {
                return check;
            }
            found = check;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::{Cause, Health, Readiness, Reason};
    use crate::shards::Shards;

    #[test]
    fn service_is_ready_while_one_shard_is() {
        let all = vec![Health::new(Some(0)), Health::new(Some(1))];
        let Ok(shards) = Shards::new(all.clone()) else {
            panic!("two shards were refused");
        };
        assert!(shards.check().is_err());
        for ready in &all {
            assert!(ready.set(Readiness::Ready));
            assert!(shards.check().is_ok());
            ready.set(Readiness::Starting);
            assert!(shards.check().is_err());
        }
    }

    #[test]
    fn stopping_is_final() {
        let health = Health::new(None);
        assert!(health.check().is_err());
        assert!(health.set(Readiness::Ready));
        assert!(!health.set(Readiness::Ready), "no change");
        assert!(health.check().is_ok());
        let reason = Reason {
            cause: Cause::Silent,
            detail: Cause::Silent.detail().into(),
        };
        assert!(health.set(Readiness::NotReady(reason)));
        assert!(health.check().is_err());
        health.stop();
        // What the database said meanwhile.
        assert!(!health.set(Readiness::Ready));
        assert_eq!(health.readiness(), Readiness::Stopping);
        assert!(health.check().is_err());
    }
}
