//! The watcher: checks the database again and again, and sets the state.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    Cause, Health, Readiness,
    checks::{self, Session, Trouble, Versions},
};
use crate::{
    database::{Database, Sessions, server::Servers},
    telemetry::throttle::take_left_out,
};

/// Pause between two checks while the service is ready, and the longest pause while it is not.
const INTERVAL: Duration = Duration::from_secs(1);

/// Pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Pause between two test writes while the service is ready: short enough to find a full disk before a sale
/// begins, long enough to cost nothing.
const WRITE_INTERVAL: Duration = Duration::from_secs(10);

/// Time for which an error of a call counts, if the watcher does not meet it itself.
const SYMPTOM_AGE: Duration = Duration::from_secs(3);

/// Checks the database and sets the state.
pub(super) struct Watcher {
    /// Servers for the watcher's session.
    own: Servers,
    /// Servers of the fast pool.
    pool: Servers,
    /// Servers for the second session, which is opened to detect a pooler.
    second: Servers,
    database: Database,
    session: Option<Session>,
    /// Index of the server of the last session.
    server: Option<usize>,
    /// True if the extension was outdated at the last check.
    is_outdated: bool,
    /// Time of the last successful test write.
    written: Option<Instant>,
    /// Time of the last change between ready and not ready.
    since: Instant,
}

impl Watcher {
    /// Makes a watcher, which is not connected yet.
    pub(super) fn new(database: Database, sessions: Sessions) -> Self {
        Self {
            own: sessions.fast.named("health"),
            pool: sessions.fast,
            second: sessions.waiting.named("check"),
            database,
            session: None,
            server: None,
            is_outdated: false,
            written: None,
            since: Instant::now(),
        }
    }

    /// Checks the database for ever.
    pub(super) async fn run(&mut self, health: &Health) {
        let mut pause = FIRST_PAUSE;
        loop {
            let found = self.check().await;
            self.report(health, &found);
            if found.is_ok() {
                pause = FIRST_PAUSE;
                sleep(INTERVAL).await;
            } else {
                self.session = None;
                self.written = None;
                sleep(pause).await;
                pause = INTERVAL.min(pause * 2);
            }
        }
    }

    /// Passes on if the extension is outdated, and logs a change.
    fn note_version(&mut self, versions: &Versions) {
        let Versions {
            extension,
            is_outdated,
            ..
        } = versions;
        self.database.set_outdated(*is_outdated);
        let shard = self.database.shard();
        match (self.is_outdated, is_outdated) {
            (false, true) => warn!(
                shard,
                "the extension is {extension}, older than the service: only what it has is served, until \
                 alter extension honcho update"
            ),
            (true, false) => info!(
                shard,
                "the extension is {extension} now: everything is served"
            ),
            _ => {}
        }
        self.is_outdated = *is_outdated;
    }

    /// Sets the state, and logs a change.
    fn report(&mut self, health: &Health, found: &Result<Versions, Trouble>) {
        if let Ok(versions) = found {
            self.note_version(versions);
        }
        let state = match found {
            Ok(_) => Readiness::Ready,
            Err(Trouble { reason, .. }) => Readiness::NotReady(reason.clone()),
        };
        let before = health.readiness();
        if !health.set(state.clone()) {
            return;
        }
        let shard = self.database.shard();
        match found {
            Ok(Versions {
                extension, server, ..
            }) => match before {
                Readiness::NotReady(_) => {
                    let left_out = take_left_out();
                    info!(
                        shard,
                        not_logged = (left_out > 0).then_some(left_out),
                        "ready after {:.1} s: honcho {extension} in PostgreSQL {server}",
                        self.since.elapsed().as_secs_f32()
                    );
                }
                _ => info!(shard, "ready: honcho {extension} in PostgreSQL {server}"),
            },
            Err(Trouble { reason, log }) => {
                warn!(
                    shard,
                    error = format!("{log:#}"),
                    "not ready, retrying: {}",
                    reason.detail
                );
                if matches!(
                    reason.cause,
                    Cause::Unreachable | Cause::Silent | Cause::ReadOnly
                ) {
                    self.database.forget_idle_connections();
                    if let Some(server) = self.server {
                        self.own.demote(server);
                    }
                }
            }
        }
        // An outage counts as a whole, also if its reason changes.
        if !matches!(
            (before, state),
            (Readiness::NotReady(_), Readiness::NotReady(_))
        ) {
            self.since = Instant::now();
        }
    }

    async fn check(&mut self) -> Result<Versions, Trouble> {
        let session = match self.session.take() {
            Some(session) if !session.connection.client.is_closed() => session,
            _ => checks::open(&self.own).await?,
        };
        let session = self.session.insert(session);
        let server = session.connection.server;
        let before = self.server;
        let (versions, is_new) = match &session.question {
            Some(question) => (
                checks::ask(&session.connection.client, question).await?,
                false,
            ),
            None => {
                let (question, versions) =
                    checks::begin(&session.connection.client, &self.own).await?;
                session.question = Some(question);
                (versions, true)
            }
        };
        self.server = Some(server);
        if before.is_some_and(|before| before != server) {
            self.database.give_up_before(self.since);
        }
        // A failing pool matters only if it has no connection left.
        if self.pool.is_failing() && self.database.is_without_connections() {
            checks::open(&self.pool)
                .await
                .map_err(|trouble| Trouble::new(Cause::EmptyPool, trouble.log))?;
        }
        if is_new {
            self.detect_pooler().await?;
        }
        if self
            .database
            .symptoms()
            .statement_lost
            .is_recent(SYMPTOM_AGE)
        {
            return Err(Trouble::new(
                Cause::Pooler,
                anyhow!("a call's session did not know its prepared statement"),
            ));
        }
        self.test_write().await?;
        Ok(versions)
    }

    /// Opens a second session, of the kind that waits for coupons, and detects the effects of a pooler on both: it
    /// drops the settings of the second session, or, while that occupies a connection of the pooler, leads the first
    /// session to a connection that does not know its prepared statement.
    async fn detect_pooler(&self) -> Result<(), Trouble> {
        let Some(Session {
            connection,
            question: Some(question),
        }) = &self.session
        else {
            return Ok(());
        };
        // It does not matter here if there is a connection for a second session.
        let Ok(second) = checks::open(&self.second).await else {
            return Ok(());
        };
        let client = &second.connection.client;
        checks::check_settings(client, &self.second).await?;
        checks::in_time(client.batch_execute("begin")).await?;
        checks::ask(&connection.client, question).await?;
        Ok(())
    }

    /// Writes from time to time, and at every check after a write has failed.
    async fn test_write(&mut self) -> Result<(), Trouble> {
        let Some(Session { connection, .. }) = &self.session else {
            return Ok(());
        };
        let call_failed = self.database.symptoms().disk_full.is_recent(SYMPTOM_AGE);
        let is_due = self
            .written
            .is_none_or(|written| written.elapsed() >= WRITE_INTERVAL);
        if is_due || call_failed {
            let written = checks::test_write(&connection.client).await;
            self.written = written.as_ref().ok().map(|()| Instant::now());
            written?;
        }
        // The tables may be on another disk than temporary files.
        if call_failed {
            let log = anyhow!("a call could not write");
            return Err(Trouble::new(Cause::DiskFull, log));
        }
        Ok(())
    }
}
