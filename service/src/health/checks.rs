//! The checks of the database, each on a session of the watcher.

use std::{borrow::Cow, time::Duration};

use anyhow::anyhow;
use tokio::time::timeout;
use tokio_postgres::{Client, Statement, error::SqlState, types::Type};

use super::{Cause, Reason};
use crate::database::{
    FUNCTIONS, NEWER_FUNCTIONS,
    server::{OpenConnection, Servers, takes_no_writes},
    settings::{Unfit, dropped_settings},
    sqlstate::describe,
};

/// Longest wait for an answer of the database.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Version of the service.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Version of the extension's oldest SQL that this service speaks: that of the release before, so that the service can
/// be upgraded before the database.
const OLDEST: &str = "0.2.0";

/// SQL that reads the extension's version, the functions that are not found and those that may not be executed,
/// if transactions are read-only, if the server is a standby, and the server's version.
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

/// SQL that writes about a megabyte into a temporary file in the database's own tablespace and removes it. This
/// takes new blocks each time, which a full disk refuses, and needs no privilege, no table and no WAL.
const WRITE: &str = "
    begin;
    set local work_mem = '64kB';
    set local temp_tablespaces = '';
    select pg_catalog.count(*) from pg_catalog.generate_series(1, 50000);
    commit";

/// Versions of the extension and the server.
pub(super) struct Versions {
    pub extension: String,
    pub server: String,
    /// True if the extension lacks the functions that this version of the service has added.
    pub is_outdated: bool,
}

/// A failed check: the reason, and an explanation for the log only.
pub(super) struct Trouble {
    pub reason: Reason,
    pub log: anyhow::Error,
}

impl Trouble {
    /// A failure that its kind explains.
    pub fn new(cause: Cause, log: anyhow::Error) -> Self {
        let detail = Cow::Borrowed(cause.detail());
        let reason = Reason { cause, detail };
        Self { reason, log }
    }

    /// A failure with an explanation of its own.
    fn explained(cause: Cause, detail: String, log: anyhow::Error) -> Self {
        let detail = Cow::Owned(detail);
        let reason = Reason { cause, detail };
        Self { reason, log }
    }
}

/// A connection that ends when this is dropped, and the question that is prepared on it.
pub(super) struct Session {
    pub connection: OpenConnection,
    pub question: Option<Statement>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.task.abort();
    }
}

/// Checks that the disk has room. A limit of the role, temp_file_limit, does not count as a full disk.
pub(super) async fn test_write(client: &Client) -> Result<(), Trouble> {
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

/// Opens a session.
pub(super) async fn open(servers: &Servers) -> Result<Session, Trouble> {
    match timeout(servers.connect_timeout(), servers.open()).await {
        Ok(Ok(connection)) => Ok(Session {
            connection,
            question: None,
        }),
        Ok(Err(error)) if takes_no_writes(&error) => {
            let detail = "no server that answers takes writes".to_owned();
            Err(Trouble::explained(Cause::ReadOnly, detail, describe(error)))
        }
        Ok(Err(error)) => {
            let cause = match error.code() {
                Some(_) if !servers.is_missing() => Cause::Refused,
                _ => Cause::Unreachable,
            };
            Err(Trouble::new(cause, describe(error)))
        }
        Err(late) => Err(Trouble::new(Cause::Silent, late.into())),
    }
}

/// Checks the settings of a new session, and prepares and asks the question on it.
pub(super) async fn begin(
    client: &Client,
    servers: &Servers,
) -> Result<(Statement, Versions), Trouble> {
    check_settings(client, servers).await?;
    let types = [Type::TEXT_ARRAY];
    let question = in_time(client.prepare_typed(QUESTION, &types)).await?;
    let versions = ask(client, &question).await?;
    Ok((question, versions))
}

/// Checks that a session has the requested settings.
pub(super) async fn check_settings(client: &Client, servers: &Servers) -> Result<(), Trouble> {
    match timeout(ANSWER_WAIT, servers.check(client)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Unfit::Unlimited(limits))) => Err(Trouble::explained(
            Cause::Pooler,
            dropped_settings(&limits),
            anyhow!("the session was asked for them when it began"),
        )),
        Ok(Err(Unfit::OtherShard(why))) => Err(Trouble::explained(
            Cause::OtherShard,
            why,
            anyhow!(
                "DATABASE_SHARDS has another order, or the ids of this shard have not been set"
            ),
        )),
        Ok(Err(Unfit::Broken(error))) => Err(trouble(error)),
        Err(late) => Err(Trouble::new(Cause::Silent, late.into())),
    }
}

/// Checks that calls would be served.
pub(super) async fn ask(client: &Client, question: &Statement) -> Result<Versions, Trouble> {
    let functions = [&FUNCTIONS[..], &NEWER_FUNCTIONS].concat();
    let row = in_time(client.query_one(question, &[&functions])).await?;
    let odd = |error: tokio_postgres::Error| Trouble::new(Cause::Silent, error.into());
    let extension: Option<String> = row.try_get(0).map_err(odd)?;
    let missing: Vec<String> = row.try_get(1).map_err(odd)?;
    let forbidden: Vec<String> = row.try_get(2).map_err(odd)?;
    let read_only: bool = row.try_get(3).map_err(odd)?;
    let is_standby: bool = row.try_get(4).map_err(odd)?;
    let server: String = row.try_get(5).map_err(odd)?;
    let Some(extension) = extension else {
        let log = anyhow!("run create extension honcho there");
        return Err(Trouble::new(Cause::NoExtension, log));
    };
    if !speaks(&extension) {
        let log = anyhow!("the extension is {extension}, the service {VERSION}");
        return Err(Trouble::new(Cause::OtherVersion, log));
    }
    let is_outdated = first_two(&extension) < first_two(VERSION);
    let missing: Vec<String> = missing
        .into_iter()
        .filter(|function| !is_outdated || FUNCTIONS.contains(&&**function))
        .collect();
    if !missing.is_empty() {
        let detail = format!(
            "the service's role does not find {}: its search_path needs the extension's schema, \
             and the role usage on that",
            missing.join(", ")
        );
        let log = anyhow!("the extension is {extension}");
        return Err(Trouble::explained(Cause::NoFunctions, detail, log));
    }
    if !forbidden.is_empty() {
        let functions = forbidden.join(", ");
        let detail = format!("the service's role lacks execute on {functions}");
        let log = anyhow!("run database.sql again, or grant execute on function {functions}");
        return Err(Trouble::explained(Cause::NoFunctions, detail, log));
    }
    if read_only && is_standby {
        let log = anyhow!("pg_is_in_recovery() is true");
        return Err(Trouble::new(Cause::ReadOnly, log));
    }
    if read_only {
        let detail = "transactions are read-only (default_transaction_read_only)".to_owned();
        let log = anyhow!("set it to off for the service's role, its database or the server");
        return Err(Trouble::explained(Cause::ReadOnly, detail, log));
    }
    Ok(Versions {
        extension,
        server,
        is_outdated,
    })
}

/// Waits for an answer for a limited time.
pub(super) async fn in_time<T>(
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Trouble> {
    match timeout(ANSWER_WAIT, answer).await {
        Ok(answer) => answer.map_err(trouble),
        Err(late) => Err(Trouble::new(Cause::Silent, late.into())),
    }
}

/// Classifies an error of an open session.
fn trouble(error: tokio_postgres::Error) -> Trouble {
    let cause = match error.code() {
        Some(&SqlState::DISK_FULL) => Cause::DiskFull,
        Some(&SqlState::INVALID_SQL_STATEMENT_NAME | &SqlState::DUPLICATE_PSTATEMENT) => {
            Cause::Pooler
        }
        _ => Cause::Unreachable,
    };
    Trouble::new(cause, describe(error))
}

/// Returns true if this service speaks the SQL of this version of the extension. The last number does not matter.
fn speaks(extension: &str) -> bool {
    let extension = first_two(extension);
    extension.is_some() && (first_two(OLDEST)..=first_two(VERSION)).contains(&extension)
}

/// The first two numbers of a version; none if it does not begin with two numbers.
fn first_two(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::{OLDEST, VERSION, first_two, speaks};

    #[test]
    fn extension_may_be_one_release_older_and_not_newer() {
        for (extension, expected) in [
            (VERSION, true),
            (OLDEST, true),
            ("0.2.17", true),
            ("0.2", true),
            ("0.3.1", true),
            ("0.1.0", false),
            ("0.20.0", false),
            ("0.30.0", false),
            ("1.2.0", false),
            ("1", false),
            ("", false),
            ("0.next", false),
        ] {
            assert_eq!(speaks(extension), expected, "{extension}");
        }
        // The next version speaks this one and no older one.
        assert_eq!(first_two(VERSION), Some((0, 3)));
    }
}
