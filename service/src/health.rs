//! Whether requests can be served at present. It is asked of the database in the background, on a
//! connection of its own, so that whoever wants to know is told at once, however busy the pool is.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_postgres::{Client, Statement, error::SqlState, types::Type};
use tracing::{info, warn};

use crate::{
    config::Sessions,
    crowd::take_left_out,
    db::{Database, FUNCTIONS},
    error::{self, Error},
    session::{Unfit, dropped_settings},
    symptoms,
    target::{Opened, Target},
    telemetry::metrics::metrics,
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

/// How often the watcher writes while all is well, to see whether the disk takes it: often enough to tell
/// before a sale begins, seldom enough to cost nothing.
const WRITE_INTERVAL: Duration = Duration::from_secs(10);

/// How long a fault of a call counts, if the watcher itself does not meet it.
const SYMPTOM_AGE: Duration = Duration::from_secs(3);

/// The extension's version, the functions that are not found and those that may not be called, whether
/// transactions are read-only, whether that is because this is a standby, and the server's version.
const QUESTION: &str = "
    select (select extversion from pg_catalog.pg_extension where extname = 'honcho'),
           array(select f from pg_catalog.unnest($1::text[]) as f
                  where pg_catalog.to_regprocedure(f) is null),
           array(select f from pg_catalog.unnest($1::text[]) as f
                  where not pg_catalog.has_function_privilege(
                      pg_catalog.to_regprocedure(f), 'execute')),
           pg_catalog.current_setting('transaction_read_only') = 'on',
           pg_catalog.pg_is_in_recovery(),
           pg_catalog.current_setting('server_version')";

/// Writes about a megabyte into a temporary file of the database's own tablespace, and removes it. This asks
/// for new blocks each time, which a full disk refuses, and needs no right, no table and no WAL.
const WRITE: &str = "
    begin;
    set local work_mem = '64kB';
    set local temp_tablespaces = '';
    select pg_catalog.count(*) from pg_catalog.generate_series(1, 50000);
    commit";

/// Whether requests can be served. Clones show the same.
#[derive(Clone, Debug)]
pub struct Health(Arc<watch::Sender<State>>);

/// The state of the service as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The database has not been asked yet.
    Starting,
    /// Requests are served.
    Ready,
    /// They would be refused.
    NotReady(Reason),
    /// The service was told to stop.
    Stopping,
}

/// Why requests would be refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    cause: Cause,
    /// What to tell anybody.
    detail: Cow<'static, str>,
}

/// The kind of a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// No server takes connections.
    Unreachable,
    /// A server does not want ours.
    Refused,
    /// A server does not answer.
    Silent,
    /// Transactions are read-only: only standbys answer, or a setting has it so.
    ReadOnly,
    /// The extension is not in the database.
    NoExtension,
    /// The extension is of another version.
    OtherVersion,
    /// A function is not in the role's search path, or the role may not call it.
    NoFunctions,
    /// The pool has no connection and gets none.
    EmptyPool,
    /// A pooler drops the session's settings or its prepared statements.
    Pooler,
    /// The disk is full.
    DiskFull,
}

impl Cause {
    /// Its name in metrics.
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

    /// What to tell anybody, if nothing more is known.
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

impl State {
    fn turn_into(&mut self, new: Self) {
        let is_ready = new == Self::Ready;
        metrics().ready(self.reason(), new.reason(), is_ready);
        *self = new;
    }

    /// The reason's name in metrics: `none` while requests are served.
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
        let state = State::Starting;
        metrics().ready(state.reason(), state.reason(), false);
        Self(Arc::new(watch::Sender::new(state)))
    }
}

impl Health {
    /// The state at present.
    pub fn state(&self) -> State {
        self.0.borrow().clone()
    }

    /// From now on the service is stopping.
    pub fn stop(&self) {
        self.0.send_modify(|known| known.turn_into(State::Stopping));
    }

    /// Tells of a change, unless that is none or comes too late; returns whether it was told.
    fn set(&self, state: State) -> bool {
        self.0.send_if_modified(|known| {
            let changes = *known != state && *known != State::Stopping;
            if changes {
                known.turn_into(state);
            }
            changes
        })
    }

    /// An error unless requests are served.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.state() {
            State::Ready => Ok(()),
            State::Starting => Err(Error::NotReady("the service is starting".into())),
            State::Stopping => Err(Error::NotReady("the service is stopping".into())),
            State::NotReady(reason) => Err(Error::NotReady(reason.detail)),
        }
    }

    /// Asks the database again and again, until the service stops.
    ///
    /// # Arguments
    /// `sessions`: the kinds of sessions that calls have.
    pub async fn keep(self, database: Database, sessions: Sessions) {
        let mut stopping = self.0.subscribe();
        let mut watcher = Watcher {
            target: sessions.brisk.named("health"),
            pool_target: sessions.brisk,
            patient_target: sessions.patient.named("check"),
            database,
            session: None,
            server: None,
            written: None,
            since: Instant::now(),
        };
        tokio::select! {
            () = watcher.watch(&self) => {}
            // An error means that nobody is left to tell.
            _ = stopping.wait_for(|state| *state == State::Stopping) => {}
        }
    }
}

/// The versions that the database told when all was well.
struct Versions {
    extension: String,
    server: String,
}

/// A reason, and the words that only the log may have.
struct Trouble {
    reason: Reason,
    log: anyhow::Error,
}

impl Trouble {
    /// Trouble of a kind that says all.
    fn new(cause: Cause, log: anyhow::Error) -> Self {
        let detail = Cow::Borrowed(cause.detail());
        let reason = Reason { cause, detail };
        Self { reason, log }
    }

    /// Trouble that has more to tell than its kind.
    fn telling(cause: Cause, detail: String, log: anyhow::Error) -> Self {
        let detail = Cow::Owned(detail);
        let reason = Reason { cause, detail };
        Self { reason, log }
    }
}

struct Watcher {
    /// Of the watcher's session.
    target: Target,
    pool_target: Target,
    /// Of the session that is opened beside the watcher's, to look at both.
    patient_target: Target,
    database: Database,
    session: Option<Session>,
    /// The server that last took the session.
    server: Option<usize>,
    /// When a write last succeeded.
    written: Option<Instant>,
    /// Since when the state is what it is.
    since: Instant,
}

/// A connection that ends with its client, and the question that is prepared on it.
struct Session {
    opened: Opened,
    question: Option<Statement>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.opened.task.abort();
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
                self.written = None;
                sleep(pause).await;
                pause = INTERVAL.min(pause * 2);
            }
        }
    }

    /// Sets the state, and logs it where it has changed.
    fn tell(&mut self, health: &Health, found: &Result<Versions, Trouble>) {
        let state = match found {
            Ok(_) => State::Ready,
            Err(Trouble { reason, .. }) => State::NotReady(reason.clone()),
        };
        let before = health.state();
        if !health.set(state.clone()) {
            return;
        }
        match found {
            Ok(Versions { extension, server }) => match before {
                State::NotReady(_) => {
                    let left_out = take_left_out();
                    info!(
                        not_logged = (left_out > 0).then_some(left_out),
                        "ready after {:.1} s: honcho {extension} in PostgreSQL {server}",
                        self.since.elapsed().as_secs_f32()
                    );
                }
                _ => info!("ready: honcho {extension} in PostgreSQL {server}"),
            },
            Err(Trouble { reason, log }) => {
                warn!(
                    error = format!("{log:#}"),
                    "not ready, trying on: {}", reason.detail
                );
                if matches!(reason.cause, Cause::Unreachable | Cause::Silent) {
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
            Some(session) if !session.opened.client.is_closed() => session,
            _ => open(&self.target).await?,
        };
        let session = self.session.insert(session);
        let server = session.opened.server;
        let before = self.server;
        let (versions, is_new) = match &session.question {
            Some(question) => (ask(&session.opened.client, question).await?, false),
            None => {
                let (question, versions) = begin(&session.opened.client, &self.target).await?;
                session.question = Some(question);
                (versions, true)
            }
        };
        self.server = Some(server);
        if before.is_some_and(|before| before != server) {
            self.database.has_moved(self.since);
        }
        // The pool's trouble is ours only where it lives from hand to mouth.
        if self.pool_target.is_failing() && self.database.is_without_connections() {
            open(&self.pool_target)
                .await
                .map_err(|trouble| Trouble::new(Cause::EmptyPool, trouble.log))?;
        }
        if is_new {
            self.look_for_a_pooler().await?;
        }
        if symptoms::STATEMENT_LOST.is_recent(SYMPTOM_AGE) {
            return Err(Trouble::new(
                Cause::Pooler,
                anyhow!("a call's session did not know its prepared statement"),
            ));
        }
        self.write().await?;
        Ok(versions)
    }

    /// Opens a second session, of the kind that waits for coupons, and looks at what a pooler would do to both:
    /// drop the settings of the second one, or, while that keeps a connection of the pooler's to itself, lead
    /// the first one to a connection that does not know the first one's prepared statement.
    async fn look_for_a_pooler(&self) -> Result<(), Trouble> {
        let Some(Session {
            opened,
            question: Some(question),
        }) = &self.session
        else {
            return Ok(());
        };
        // Whether there are connections for two is not the question here.
        let Ok(other) = open(&self.patient_target).await else {
            return Ok(());
        };
        let client = &other.opened.client;
        check(client, &self.patient_target).await?;
        in_time(client.batch_execute("begin")).await?;
        ask(&opened.client, question).await?;
        Ok(())
    }

    /// Writes now and then, and at every look after a write has failed.
    async fn write(&mut self) -> Result<(), Trouble> {
        let Some(Session { opened, .. }) = &self.session else {
            return Ok(());
        };
        let call_failed = symptoms::DISK_FULL.is_recent(SYMPTOM_AGE);
        let is_due = self
            .written
            .is_none_or(|written| written.elapsed() >= WRITE_INTERVAL);
        if is_due || call_failed {
            let written = write(&opened.client).await;
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

/// Writes, to see whether the disk takes it. A limit of the role's own, temp_file_limit, says nothing of the disk.
async fn write(client: &Client) -> Result<(), Trouble> {
    let written = async {
        match client.batch_execute(WRITE).await {
            Err(error) if error.code() == Some(&SqlState::CONFIGURATION_LIMIT_EXCEEDED) => {
                client.batch_execute("rollback").await
            }
            written => written,
        }
    };
    in_time(written).await
}

async fn open(target: &Target) -> Result<Session, Trouble> {
    match timeout(target.patience(), target.open()).await {
        Ok(Ok(opened)) => Ok(Session {
            opened,
            question: None,
        }),
        Ok(Err(error)) => {
            let cause = match error.code() {
                Some(_) => Cause::Refused,
                None => Cause::Unreachable,
            };
            Err(Trouble::new(cause, error::described(error)))
        }
        Err(late) => Err(Trouble::new(Cause::Silent, late.into())),
    }
}

/// Looks at a new session's settings, and asks the question on it, which stays prepared.
async fn begin(client: &Client, target: &Target) -> Result<(Statement, Versions), Trouble> {
    check(client, target).await?;
    let types = [Type::TEXT_ARRAY];
    let question = in_time(client.prepare_typed(QUESTION, &types)).await?;
    let versions = ask(client, &question).await?;
    Ok((question, versions))
}

async fn check(client: &Client, target: &Target) -> Result<(), Trouble> {
    match timeout(ANSWER_WAIT, target.check(client)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Unfit::Unlimited(limits))) => Err(Trouble::telling(
            Cause::Pooler,
            dropped_settings(&limits),
            anyhow!("the session was asked for them when it began"),
        )),
        Ok(Err(Unfit::Broken(error))) => Err(broken(error)),
        Err(late) => Err(Trouble::new(Cause::Silent, late.into())),
    }
}

/// Asks whether calls would be served, and what they would be served by.
async fn ask(client: &Client, question: &Statement) -> Result<Versions, Trouble> {
    let functions: &[&str] = &FUNCTIONS;
    let row = in_time(client.query_one(question, &[&functions])).await?;
    let odd = |error: tokio_postgres::Error| Trouble::new(Cause::Silent, error.into());
    let extension: Option<String> = row.try_get(0).map_err(odd)?;
    let missing: Vec<String> = row.try_get(1).map_err(odd)?;
    let forbidden: Vec<String> = row.try_get(2).map_err(odd)?;
    let read_only: bool = row.try_get(3).map_err(odd)?;
    let is_standby: bool = row.try_get(4).map_err(odd)?;
    let server: String = row.try_get(5).map_err(odd)?;
    let Some(extension) = extension else {
        let log = anyhow!("create extension honcho; makes it");
        return Err(Trouble::new(Cause::NoExtension, log));
    };
    if !are_compatible(&extension, VERSION) {
        let log = anyhow!("the extension is {extension}, the service {VERSION}");
        return Err(Trouble::new(Cause::OtherVersion, log));
    }
    if !missing.is_empty() {
        let detail = format!(
            "the service's role does not find {}: its search_path needs the extension's schema, \
             and the role usage on that",
            missing.join(", ")
        );
        let log = anyhow!("the extension is {extension}");
        return Err(Trouble::telling(Cause::NoFunctions, detail, log));
    }
    if !forbidden.is_empty() {
        let functions = forbidden.join(", ");
        let detail = format!("the service's role lacks execute on {functions}");
        let log = anyhow!("run database.sql again, or grant execute on function {functions}");
        return Err(Trouble::telling(Cause::NoFunctions, detail, log));
    }
    if read_only && is_standby {
        let log = anyhow!("pg_is_in_recovery() is true");
        return Err(Trouble::new(Cause::ReadOnly, log));
    }
    if read_only {
        let detail = "transactions are read-only (default_transaction_read_only)".to_owned();
        let log = anyhow!("set it to off for the service's role, its database or the server");
        return Err(Trouble::telling(Cause::ReadOnly, detail, log));
    }
    Ok(Versions { extension, server })
}

async fn in_time<T>(
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Trouble> {
    match timeout(ANSWER_WAIT, answer).await {
        Ok(answer) => answer.map_err(broken),
        Err(late) => Err(Trouble::new(Cause::Silent, late.into())),
    }
}

/// The trouble behind an error of a session that was open.
fn broken(error: tokio_postgres::Error) -> Trouble {
    let cause = match error.code() {
        Some(&SqlState::DISK_FULL) => Cause::DiskFull,
        Some(&SqlState::INVALID_SQL_STATEMENT_NAME | &SqlState::DUPLICATE_PSTATEMENT) => {
            Cause::Pooler
        }
        _ => Cause::Unreachable,
    };
    Trouble::new(cause, error::described(error))
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
    use super::{Cause, Health, Reason, State, are_compatible};

    #[test]
    fn nothing_comes_after_stopping() {
        let health = Health::default();
        assert!(health.check().is_err());
        assert!(health.set(State::Ready));
        assert!(!health.set(State::Ready), "no change");
        assert!(health.check().is_ok());
        let reason = Reason {
            cause: Cause::Silent,
            detail: Cause::Silent.detail().into(),
        };
        assert!(health.set(State::NotReady(reason)));
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
