//! The queue: order and turns of claims on one coupon.

use std::time::Duration;

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::Client;

use crate::fixtures::{
    held_coupon::{hold, until_queued},
    sql::claim,
};

/// A claim in progress. It returns the session and the outcome.
type Claim = JoinHandle<Result<(Client, String)>>;

fn start_claim(client: Client, user_id: &'static str) -> Claim {
    tokio::spawn(async move {
        let outcome = claim(&client, user_id).await?;
        Ok((client, outcome))
    })
}

#[tokio::test]
async fn waiter_that_wakes_slowly_blocks_no_other_claim() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let watcher = database.connect().await?;
    let holder = hold(&database, "PROMO").await?;
    let (ann, bob, eve) = (
        database.connect().await?,
        database.connect().await?,
        database.connect().await?,
    );
    ann.batch_execute("begin").await?;
    let ann = start_claim(ann, "ann");
    until_queued(&watcher, 1).await?;
    let session = bob.query_one("select pg_backend_pid()", &[]).await?.get(0);
    let session = Pid::from_raw(session).unwrap();
    let bob = start_claim(bob, "bob");
    until_queued(&watcher, 2).await?;

    holder.batch_execute("commit").await?;
    let (ann, outcome) = ann.await??;
    assert_eq!(outcome, "claimed");
    kill_process(session, Signal::STOP)?;
    let eve = timeout(Duration::from_secs(10), async {
        ann.batch_execute("commit").await?;
        start_claim(eve, "eve").await?
    })
    .await;
    kill_process(session, Signal::CONT)?;
    assert_eq!(eve??.1, "claimed");
    assert_eq!(bob.await??.1, "claimed");
    database.books().await
}
