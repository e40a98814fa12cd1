//! A client that claims with SQL and knows both servers.

use std::time::Duration;

use honcho_tests::{Patroni, connect};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, error::SqlState};

use crate::fixtures::{shards::Caller, sql::claim_coupon};

/// Longest attempt to connect to one server. As with libpq's `connect_timeout`, a frozen server is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait for an answer: a frozen server gives none.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);

/// Pause of a client whom no server serves.
const PAUSE: Duration = Duration::from_millis(50);

/// A client with one session, which it replaces when it breaks.
pub struct SqlCaller {
    /// The servers, in the order in which they are tried.
    urls: Vec<String>,
    session: Option<Client>,
}

impl SqlCaller {
    /// A client of the server that takes writes. It has not connected yet.
    pub fn new(patroni: &Patroni, user: &str, database: &str) -> Self {
        let url = |node| {
            let url = patroni.url_of(node, user, database);
            format!("{url}?target_session_attrs=read-write")
        };
        Self {
            urls: [0, 1].map(url).into(),
            session: None,
        }
    }

    async fn connect(&self) -> Option<Client> {
        for url in &self.urls {
            if let Ok(Ok(session)) = timeout(CONNECT_TIMEOUT, connect(url)).await {
                return Some(session);
            }
        }
        None
    }
}

impl Caller for SqlCaller {
    async fn claim_shown(&mut self, user_id: &str, coupon_name: &str) -> String {
        let session = match self.session.take() {
            Some(session) => session,
            None => match self.connect().await {
                Some(session) => session,
                None => {
                    sleep(PAUSE).await;
                    return "503 unavailable".to_owned();
                }
            },
        };
        match timeout(ANSWER_TIMEOUT, claim_coupon(&session, user_id, coupon_name)).await {
            Ok(Ok(outcome)) => {
                self.session = Some(session);
                match &*outcome {
                    "claimed" => "200".to_owned(),
                    other => other.to_owned(),
                }
            }
            Ok(Err(error)) => match error.code() {
                // The server has become a standby, or is about to.
                Some(&SqlState::READ_ONLY_SQL_TRANSACTION | &SqlState::CANNOT_CONNECT_NOW) => {
                    "503 unavailable".to_owned()
                }
                None | Some(&SqlState::ADMIN_SHUTDOWN | &SqlState::CRASH_SHUTDOWN) => {
                    "503 outcome_unknown".to_owned()
                }
                Some(other) => format!("{}: {error}", other.code()),
            },
            Err(_) => "503 outcome_unknown".to_owned(),
        }
    }
}
