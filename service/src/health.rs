//! Whether requests can be served at present. It is asked of the database in the background, on a
//! connection of its own, so that whoever wants to know is told at once, however busy the pool is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    crowd::take_left_out,
    db::Database,
    error::Error,
    target::{Opened, Target},
};

/// How often the database is asked while all is well, and the longest pause while it is not.
const INTERVAL: Duration = Duration::from_secs(1);

/// The pause after the first failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// How long the database may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// The version of the service, and so of the extension that it speaks to: equal in the first two
/// numbers.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The extension's version, whether its functions are found and may be called, whether this is a
/// standby, and the server's version.
const QUESTION: &str = "
    select (select extversion from pg_catalog.pg_extension where extname = 'honcho'),
           coalesce(pg_catalog.has_function_privilege(
               pg_catalog.to_regprocedure('honcho_claim_batch(text, text[])'), 'execute'), false),
           pg_catalog.current_setting('transaction_read_only') = 'on',
           pg_catalog.current_setting('server_version')";

/// Whether requests can be served. Clones show the same.
#[derive(Clone, Debug)]
pub struct Health(Arc<watch::Sender<State>>);

/// The state of the service as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The database has not been asked yet.
    Starting,
    /// Requests are served.
    Ready,
    /// They would be refused.
    NotReady(Cause),
    /// The service was told to stop.
    Stopping,
}

/// Why requests would be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No server takes connections.
    Unreachable,
    /// A server does not want ours.
    Refused,
    /// A server does not answer.
    Silent,
    /// Only standbys answer.
    ReadOnly,
    /// The extension is not in the database.
    NoExtension,
    /// The extension is of another version.
    OtherVersion,
    /// The functions are not in the role's search path, or it may not call them.
    NoFunctions,
    /// The pool has no connection and gets none.
    EmptyPool,
}

impl Cause {
    /// What to tell anybody.
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
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::Starting)))
    }
}

impl Health {
    /// The state at present.
    pub fn state(&self) -> State {
        *self.0.borrow()
    }

    /// From now on the service is stopping.
    pub fn stop(&self) {
        self.0.send_replace(State::Stopping);
    }

    /// Tells of a change, unless that is none or comes too late; returns whether it was told.
    fn set(&self, state: State) -> bool {
        self.0.send_if_modified(|known| {
            let changes = *known != state && *known != State::Stopping;
            if changes {
                *known = state;
            }
            changes
        })
    }

    /// An error unless requests are served.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.state() {
            State::Ready => Ok(()),
            State::Starting => Err(Error::NotReady("the service is starting")),
            State::Stopping => Err(Error::NotReady("the service is stopping")),
            State::NotReady(cause) => Err(Error::NotReady(cause.detail())),
        }
    }

    /// Asks the database again and again, until the service stops.
    pub async fn keep(self, database: Database, target: Target) {
        let mut stopping = self.0.subscribe();
        let mut watcher = Watcher {
            target: target.named("health"),
            pool_target: target,
            database,
            session: None,
            server: None,
            since: Instant::now(),
        };
        tokio::select! {
            () = watcher.watch(&self) => {}
            // An error means that nobody is left to tell.
            _ = stopping.wait_for(|state| *state == State::Stopping) => {}
        }
    }
}

/// What the database said when all was well.
struct Versions {
    extension: String,
    server: String,
}

/// A cause, and what only the log may say about it.
struct Trouble(Cause, anyhow::Error);

struct Watcher {
    target: Target,
    pool_target: Target,
    database: Database,
    session: Option<Session>,
    /// The server that last took the session.
    server: Option<usize>,
    /// Since when the state is what it is.
    since: Instant,
}

/// A connection that ends with its client.
struct Session(Opened);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.task.abort();
    }
}

impl Watcher {
    async fn watch(&mut self, health: &Health) {
        let mut pause = FIRST_PAUSE;
        loop {
            let found = self.look().await;
            self.tell(health, &found);
            if found.is_ok() {
                pause = FIRST_PAUSE;
                sleep(INTERVAL).await;
            } else {
                self.session = None;
                sleep(pause).await;
                pause = INTERVAL.min(pause * 2);
            }
        }
    }

    /// Sets the state, and logs it where it has changed.
    fn tell(&mut self, health: &Health, found: &Result<Versions, Trouble>) {
        let state = match found {
            Ok(_) => State::Ready,
            Err(Trouble(cause, _)) => State::NotReady(*cause),
        };
        let before = health.state();
        if !health.set(state) {
            return;
        }
        match found {
            Ok(Versions { extension, server }) => match before {
                State::NotReady(_) => info!(
                    not_logged = take_left_out(),
                    "ready after {:.1} s: honcho {extension} in PostgreSQL {server}",
                    self.since.elapsed().as_secs_f32()
                ),
                _ => info!("ready: honcho {extension} in PostgreSQL {server}"),
            },
            Err(Trouble(cause, reason)) => {
                warn!("not ready, trying on: {}: {reason:#}", cause.detail());
                if matches!(cause, Cause::Unreachable | Cause::Silent) {
                    self.database.forget_idle_connections();
                    if let Some(server) = self.server {
                        self.target.pass_over(server);
                    }
                }
            }
        }
        // Of an outage that changes its face, the whole counts.
        if !matches!((before, state), (State::NotReady(_), State::NotReady(_))) {
            self.since = Instant::now();
        }
    }

    async fn look(&mut self) -> Result<Versions, Trouble> {
        let session = match self.session.take() {
            Some(session) if !session.0.client.is_closed() => session,
            _ => open(&self.target).await?,
        };
        let Session(Opened { client, server, .. }) = &*self.session.insert(session);
        let server = *server;
        let row = match timeout(ANSWER_WAIT, client.query_typed(QUESTION, &[])).await {
            Ok(Ok(rows)) => rows.into_iter().next(),
            Ok(Err(error)) => return Err(Trouble(Cause::Unreachable, error.into())),
            Err(late) => return Err(Trouble(Cause::Silent, late.into())),
        };
        let row = row.ok_or_else(|| Trouble(Cause::Silent, anyhow!("no row")))?;
        let before = self.server.replace(server);
        if before.is_some_and(|before| before != server) {
            self.database.has_moved(self.since);
        }
        let odd = |error: tokio_postgres::Error| Trouble(Cause::Silent, error.into());
        let extension: Option<String> = row.try_get(0).map_err(odd)?;
        let callable: bool = row.try_get(1).map_err(odd)?;
        let read_only: bool = row.try_get(2).map_err(odd)?;
        let version: String = row.try_get(3).map_err(odd)?;
        let Some(extension) = extension else {
            let reason = anyhow!("create extension honcho; makes it");
            return Err(Trouble(Cause::NoExtension, reason));
        };
        if !are_compatible(&extension, VERSION) {
            let reason = anyhow!("the extension is {extension}, the service {VERSION}");
            return Err(Trouble(Cause::OtherVersion, reason));
        }
        if !callable {
            let reason = anyhow!("it needs execute on them and their schema in its search_path");
            return Err(Trouble(Cause::NoFunctions, reason));
        }
        if read_only {
            return Err(Trouble(
                Cause::ReadOnly,
                anyhow!("transactions are read-only"),
            ));
        }
        // The pool's trouble is ours only where it lives from hand to mouth.
        if self.pool_target.is_failing() && self.database.is_without_connections() {
            open(&self.pool_target)
                .await
                .map_err(|Trouble(_, reason)| Trouble(Cause::EmptyPool, reason))?;
        }
        Ok(Versions {
            extension,
            server: version,
        })
    }
}

async fn open(target: &Target) -> Result<Session, Trouble> {
    match timeout(target.patience(), target.open()).await {
        Ok(Ok(opened)) => Ok(Session(opened)),
        Ok(Err(error)) if error.code().is_some() => Err(Trouble(Cause::Refused, error.into())),
        Ok(Err(error)) => Err(Trouble(Cause::Unreachable, error.into())),
        Err(late) => Err(Trouble(Cause::Silent, late.into())),
    }
}

/// Whether two versions are equal in their first two numbers: within those, upgrades of either side
/// may come first.
fn are_compatible(one: &str, other: &str) -> bool {
    let first_two = |version: &str| {
        let mut numbers = version.split('.').map(str::to_owned);
        (numbers.next(), numbers.next())
    };
    first_two(one) == first_two(other)
}

#[cfg(test)]
mod tests {
    use super::{Cause, Health, State, are_compatible};

    #[test]
    fn nothing_comes_after_stopping() {
        let health = Health::default();
        assert!(health.check().is_err());
        assert!(health.set(State::Ready));
        assert!(!health.set(State::Ready), "no change");
        assert!(health.check().is_ok());
        assert!(health.set(State::NotReady(Cause::Silent)));
        assert!(health.check().is_err());
        health.stop();
        // What the database said meanwhile.
        assert!(!health.set(State::Ready));
        assert_eq!(health.state(), State::Stopping);
        assert!(health.check().is_err());
    }

    #[test]
    fn versions_agree_in_two_numbers() {
        for (one, other, agree) in [
            ("0.2.0", "0.2.0", true),
            ("0.2.0", "0.2.17", true),
            ("0.2.0", "0.3.0", false),
            ("0.2.0", "1.2.0", false),
            ("0.2.0", "0.20.0", false),
            ("0.2", "0.2.1", true),
        ] {
            assert_eq!(are_compatible(one, other), agree, "{one} {other}");
        }
    }
}
