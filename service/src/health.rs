//! Health: if requests can be served, and the reason if they cannot.
//!
//! A watcher checks the database in the background on a connection of its own, so that a question about health is
//! answered immediately, however busy the pool is.

mod checks;
mod watcher;

use std::{borrow::Cow, sync::Arc};

use tokio::sync::watch;

use self::watcher::Watcher;
use crate::{
    database::{Database, Sessions},
    error::Error,
    telemetry::metrics::metrics,
};

/// Health of the service. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<watch::Sender<Readiness>>);

/// State of the service as a whole.
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
        }
    }
}

impl Readiness {
    fn change_to(&mut self, new: Self) {
        let is_ready = new == Self::Ready;
        metrics().ready(self.reason(), new.reason(), is_ready);
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

impl Default for Health {
    fn default() -> Self {
        let state = Readiness::Starting;
        metrics().ready(state.reason(), state.reason(), false);
        Self(Arc::new(watch::Sender::new(state)))
    }
}

impl Health {
    /// Current state.
    pub fn readiness(&self) -> Readiness {
        self.0.borrow().clone()
    }

    /// Sets the final state: the service is shutting down.
    pub fn stop(&self) {
        self.0
            .send_modify(|known| known.change_to(Readiness::Stopping));
    }

    /// Sets the state, unless the service is shutting down. Returns true if that is a change.
    fn set(&self, state: Readiness) -> bool {
        self.0.send_if_modified(|known| {
            let changes = *known != state && *known != Readiness::Stopping;
            if changes {
                known.change_to(state);
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
        let mut stopping = self.0.subscribe();
        let mut watcher = Watcher::new(database, sessions);
        tokio::select! {
            () = watcher.run(&self) => {}
            // No error: the sender is in `self`.
            _ = stopping.wait_for(|state| *state == Readiness::Stopping) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cause, Health, Readiness, Reason};

    #[test]
    fn stopping_is_final() {
        let health = Health::default();
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
