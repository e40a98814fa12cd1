//! Errors of the database: the one place where a SQLSTATE becomes an [`Error`].

use std::{fmt::Write as _, io};

use anyhow::anyhow;
use deadpool_postgres::{HookError, PoolError};
use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::{error::Error, telemetry::metrics::metrics};

/// Classifies an error by its SQLSTATE.
fn classify(state: &SqlState, cause: anyhow::Error) -> Error {
    match state.code() {
        // The last two: the session does not know the statement that was prepared on it, because a pooler or
        // `discard all` came between.
        "40001" | "40P01" | "26000" | "42P05" => Error::Conflict(cause),
        // The last two: a standby, which will be followed by a primary, and does not list events before.
        "57P03" | "25006" | "55000" => Error::Unavailable(cause),
        "55P03" => Error::Locked(cause),
        "57014" => Error::Timeout(cause),
        "57P01" | "57P02" | "57P05" => Error::Disconnected(cause),
        code => match &code[..2] {
            "08" => Error::Disconnected(cause),
            "22" => Error::Argument(cause),
            "53" => Error::Unavailable(cause),
            _ => Error::Rejected(cause),
        },
    }
}

/// The same for a call that may have been carried out before it failed.
///
/// An error that ends the session may come after the commit: if its flush fails, the server ends with a PANIC that has
/// the SQLSTATE of the file's error, and its recovery finds the commit.
fn classify_sent(severity: Option<Severity>, state: &SqlState, cause: anyhow::Error) -> Error {
    match severity {
        Some(Severity::Fatal | Severity::Panic) => Error::OutcomeUnknown(cause),
        _ => unknown_if_disconnected(classify(state, cause)),
    }
}

fn unknown_if_disconnected(error: Error) -> Error {
    match error {
        Error::Disconnected(cause) => Error::OutcomeUnknown(cause),
        other => other,
    }
}

/// Describes an error of the database in one line: the server's message and its SQLSTATE, or the client's error.
pub(crate) fn describe(error: tokio_postgres::Error) -> anyhow::Error {
    let Some(report) = error.as_db_error() else {
        return error.into();
    };
    let mut text = format!(
        "{}: {} (SQLSTATE {})",
        report.severity(),
        report.message(),
        report.code().code()
    );
    for (name, more) in [("detail", report.detail()), ("context", report.where_())] {
        if let Some(more) = more {
            // Writing to a string cannot fail.
            let _ = write!(text, "; {name}: {more}");
        }
    }
    anyhow!(text)
}

/// Counts an error. That a lock was not free in time is counted when the call is given up: after a short wait, it continues
/// on another connection.
fn count(state: &SqlState) {
    if *state != SqlState::LOCK_NOT_AVAILABLE {
        metrics().database_error(state.code());
    }
}

/// Classifies and counts an error of a call that may have been carried out before it failed.
pub(super) fn after_sending(error: tokio_postgres::Error) -> Error {
    let Some(state) = error.code().cloned() else {
        return unknown_if_disconnected(error.into());
    };
    count(&state);
    let severity = error.as_db_error().and_then(DbError::parsed_severity);
    classify_sent(severity, &state, describe(error))
}

impl From<tokio_postgres::Error> for Error {
    /// Classifies and counts an error of a call. Each passes here once.
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(state) = error.code().cloned() {
            count(&state);
            return classify(&state, describe(error));
        }
        let is_broken = error.is_closed()
            || std::error::Error::source(&error).is_some_and(|source| source.is::<io::Error>());
        if is_broken {
            metrics().connection_lost();
            Self::Disconnected(error.into())
        } else {
            Self::Internal(error.into())
        }
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => error.into(),
            PoolError::Timeout(_) | PoolError::Closed => Self::Unavailable(error.into()),
            PoolError::PostCreateHook(HookError::Backend(error)) => error.into(),
            PoolError::PostCreateHook(HookError::Message(why)) => Self::Unavailable(anyhow!(why)),
            PoolError::NoRuntimeSpecified => Self::Internal(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_are_classified() {
        // SQLSTATE; error of a read, or before anything was sent; error after sending; may be repeated if not sent
        let rows = [
            ("22001", "Argument", "Argument", false),
            ("22003", "Argument", "Argument", false),
            ("22004", "Argument", "Argument", false),
            ("22021", "Argument", "Argument", false),
            ("22023", "Argument", "Argument", false),
            ("40001", "Conflict", "Conflict", true),
            ("40P01", "Conflict", "Conflict", true),
            ("26000", "Conflict", "Conflict", true),
            ("42P05", "Conflict", "Conflict", true),
            ("55P03", "Locked", "Locked", false),
            ("53000", "Unavailable", "Unavailable", false),
            ("53100", "Unavailable", "Unavailable", false),
            ("53200", "Unavailable", "Unavailable", false),
            ("53300", "Unavailable", "Unavailable", false),
            ("57P03", "Unavailable", "Unavailable", false),
            ("25006", "Unavailable", "Unavailable", false),
            ("55000", "Unavailable", "Unavailable", false),
            ("08000", "Disconnected", "OutcomeUnknown", true),
            ("08006", "Disconnected", "OutcomeUnknown", true),
            ("57P01", "Disconnected", "OutcomeUnknown", true),
            ("57P02", "Disconnected", "OutcomeUnknown", true),
            ("57P05", "Disconnected", "OutcomeUnknown", true),
            ("57014", "Timeout", "Timeout", false),
            ("42501", "Rejected", "Rejected", false),
            ("42883", "Rejected", "Rejected", false),
            ("42P01", "Rejected", "Rejected", false),
            ("23505", "Rejected", "Rejected", false),
            ("23514", "Rejected", "Rejected", false),
            ("28P01", "Rejected", "Rejected", false),
            ("3D000", "Rejected", "Rejected", false),
            ("XX000", "Rejected", "Rejected", false),
            ("XX001", "Rejected", "Rejected", false),
        ];
        for (code, before, after, repeated) in rows {
            let state = SqlState::from_code(code);
            let error = classify(&state, anyhow!("cause"));
            assert_eq!(variant(&error), before, "{code}");
            assert_eq!(error.may_be_repeated(), repeated, "{code} repeated");
            let sent = |severity| variant(&classify_sent(severity, &state, anyhow!("cause")));
            assert_eq!(sent(Some(Severity::Error)), after, "{code} after sending");
            for severity in [Severity::Fatal, Severity::Panic] {
                assert_eq!(
                    sent(Some(severity)),
                    "OutcomeUnknown",
                    "{code} {severity:?}"
                );
            }
        }
    }

    fn variant(error: &Error) -> String {
        let shown = format!("{error:?}");
        shown.split('(').next().unwrap_or_default().to_owned()
    }
}
