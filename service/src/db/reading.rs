//! A coupon with its claimants, read while the caller takes them.

use std::time::Duration;

use anyhow::anyhow;
use deadpool_postgres::{Object, Pool};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_postgres::IsolationLevel;

use super::connections::{Connections, abandon};
use crate::{error::Error, telemetry::metrics::metrics};

/// How long a reader of a long list may take in nothing before it is cut off: it holds a
/// connection and a snapshot.
const READER_PATIENCE: Duration = Duration::from_secs(10);

/// Claims read at a time: what a list holds in memory, however long it is.
const PAGE: i32 = 1000;

/// A coupon as it stands.
#[derive(Debug)]
pub struct Coupon {
    /// Its name.
    pub name: String,
    /// How many there are in all.
    pub amount: i32,
    /// How many are left.
    pub remaining_amount: i32,
}

/// A coupon and its claimants, both as of one moment.
#[derive(Debug)]
pub struct Reading {
    /// The coupon.
    pub coupon: Coupon,
    parts: mpsc::Receiver<Result<Part, Error>>,
    complete: bool,
}

impl Reading {
    /// Whether the last page was taken.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The next claimants, in the order of their claims; none after the last.
    pub async fn next_page(&mut self) -> Result<Option<Vec<String>>, Error> {
        if self.complete {
            return Ok(None);
        }
        match self.parts.recv().await {
            Some(Ok(Part::Claimants { users, last })) => {
                self.complete = last;
                Ok(Some(users))
            }
            Some(Err(error)) => Err(error),
            Some(Ok(Part::Coupon(_))) | None => Err(Error::Unavailable(anyhow!(
                "the list was read too slowly and cut off"
            ))),
        }
    }
}

/// What the task behind a [`Reading`] sends: the coupon, then pages.
#[derive(Debug)]
enum Part {
    Coupon(Option<Coupon>),
    Claimants { users: Vec<String>, last: bool },
}

/// Begins to read the coupon called `name`; none when there is no such coupon.
pub(super) async fn begin(connections: &Connections, name: &str) -> Result<Option<Reading>, Error> {
    let deadline = connections.waits.deadline();
    let reading = begin_once(connections, &connections.pool, name, deadline).await;
    match connections.second_attempt(&reading) {
        Some(pool) => begin_once(connections, pool, name, deadline).await,
        None => reading,
    }
}

async fn begin_once(
    connections: &Connections,
    pool: &Pool,
    name: &str,
    deadline: Instant,
) -> Result<Option<Reading>, Error> {
    let by = deadline.min(Instant::now() + connections.waits.connection);
    let place = connections.reader(by).await?;
    let mut client = connections.connection(pool, by).await?;
    let (sender, mut parts) = mpsc::channel(1);
    let (name, answer_wait) = (name.to_owned(), connections.waits.answer);
    let target = connections.target.clone();
    tokio::spawn(async move {
        let outcome = read(&mut client, &name, &sender, answer_wait).await;
        match &outcome {
            Err(Error::Timeout(_)) => abandon(client, &target),
            _ => drop(client),
        }
        drop(place);
        if let Err(error) = outcome {
            // Whoever asked may have gone away.
            let _ = sender.send_timeout(Err(error), READER_PATIENCE).await;
        }
    });
    let begun = timeout_at(deadline, parts.recv());
    let begun = begun.await.map_err(|late| {
        metrics().answer_lost();
        Error::Timeout(late.into())
    })?;
    match begun {
        Some(Ok(Part::Coupon(coupon))) => Ok(coupon.map(|coupon| Reading {
            coupon,
            parts,
            complete: false,
        })),
        Some(Err(error)) => Err(error),
        Some(Ok(Part::Claimants { .. })) | None => Err(Error::Internal(anyhow!(
            "a reading did not begin with its coupon"
        ))),
    }
}

/// Reads a coupon and its claims in one snapshot into `parts`, until the receiver is dropped or
/// takes too long to make room.
async fn read(
    client: &mut Object,
    name: &str,
    parts: &mpsc::Sender<Result<Part, Error>>,
    answer_wait: Duration,
) -> Result<(), Error> {
    let snapshot = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start();
    let snapshot = in_time(answer_wait, snapshot).await?;
    let get_coupon = "select name, amount, remaining_amount from honcho_get_coupon($1)";
    let get_coupon = in_time(answer_wait, snapshot.prepare_cached(get_coupon)).await?;
    let coupon = match in_time(answer_wait, snapshot.query_opt(&get_coupon, &[&name])).await? {
        Some(row) => Some(Coupon {
            name: row.try_get(0)?,
            amount: row.try_get(1)?,
            remaining_amount: row.try_get(2)?,
        }),
        None => None,
    };
    let mut last = coupon.is_none();
    if parts
        .send_timeout(Ok(Part::Coupon(coupon)), READER_PATIENCE)
        .await
        .is_err()
    {
        return Ok(());
    }
    let list_claims = "select id, user_id from honcho_list_claims($1, $2, $3)";
    let list_claims = in_time(answer_wait, snapshot.prepare_cached(list_claims)).await?;
    let mut after = 0_i64;
    while !last {
        let rows = in_time(
            answer_wait,
            snapshot.query(&list_claims, &[&name, &after, &PAGE]),
        )
        .await?;
        let mut users = Vec::with_capacity(rows.len());
        for row in &rows {
            after = row.try_get(0)?;
            users.push(row.try_get(1)?);
        }
        last = rows.len() < PAGE as usize;
        let page = Part::Claimants { users, last };
        if parts.send_timeout(Ok(page), READER_PATIENCE).await.is_err() {
            return Ok(());
        }
    }
    in_time(answer_wait, snapshot.commit()).await
}

async fn in_time<T>(
    wait: Duration,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Error> {
    match timeout(wait, answer).await {
        Ok(answer) => Ok(answer?),
        Err(late) => {
            metrics().answer_lost();
            Err(Error::Timeout(late.into()))
        }
    }
}
