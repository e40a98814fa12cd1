//! The queue: order and turns of claims on one coupon.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Error, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};
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

#[tokio::test]
async fn claims_and_writes_that_bypass_the_queue_see_each_other() -> Result<()> {
    const CLAIMERS: i32 = 3;
    const CLAIMS: i32 = 1000;
    let database = crate::database().await?;
    database.create_coupon("PROMO", CLAIMERS).await?;
    let writer = database.connect().await?;
    let restock = writer
        .prepare("update coupons set amount = amount + 1, remaining_amount = remaining_amount + 1")
        .await?;
    let mut claimers = JoinSet::new();
    for claimer in 0..CLAIMERS {
        let client = database.connect().await?;
        claimers.spawn(async move {
            let mut claimed = 0;
            for user in 0..CLAIMS {
                let outcome = claim(&client, &format!("{claimer}_{user}")).await?;
                claimed += i32::from(outcome == "claimed");
            }
            Ok::<_, Error>(claimed)
        });
    }
    let mut restocked = CLAIMERS;
    let mut claimed = 0;
    let mut ended = 0;
    while ended < CLAIMERS {
        writer.execute(&restock, &[]).await?;
        restocked += 1;
        while let Some(claimer) = claimers.try_join_next() {
            claimed += claimer??;
            ended += 1;
        }
    }
    let (amount, remaining): (i32, i32) = {
        let row = writer
            .query_one("select amount, remaining_amount from coupons", &[])
            .await?;
        (row.get(0), row.get(1))
    };
    assert_eq!((amount, remaining), (restocked, restocked - claimed));
    assert!(claimed > 0, "every claim came too early");
    database.books().await
}

#[tokio::test]
async fn refused_change_shows_the_coupon_that_it_was_refused_for() -> Result<()> {
    const TAKERS: usize = 2;
    const CHANGES: usize = 1000;
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let giver = database.connect().await?;
    let give = giver
        .prepare("select from honcho_restock('PROMO', 1)")
        .await?;
    let given = Arc::new(AtomicBool::new(false));
    let mut takers = JoinSet::new();
    for _ in 0..TAKERS {
        let client = database.connect().await?;
        let take = client
            .prepare("select outcome::text, remaining_amount from honcho_restock('PROMO', -1)")
            .await?;
        let given = given.clone();
        takers.spawn(async move {
            let mut refused = 0;
            while !given.load(Ordering::Relaxed) {
                let row = client.query_one(&take, &[]).await?;
                let (outcome, remaining): (String, i32) = (row.get(0), row.get(1));
                if outcome == "below_given" {
                    assert_eq!(remaining, 0, "a piece could be taken away");
                    refused += 1;
                }
            }
            Ok::<_, Error>(refused)
        });
    }
    for _ in 0..CHANGES {
        giver.execute(&give, &[]).await?;
    }
    given.store(true, Ordering::Relaxed);
    let mut refused = 0;
    while let Some(taker) = takers.join_next().await {
        refused += taker??;
    }
    assert!(refused > 0, "each piece was there in time");
    database.books().await
}
