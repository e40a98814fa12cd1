//! Durability of refusals: a refusal waits until the commits on which it rests are durable.

use anyhow::{Result, ensure};
use honcho_tests::{Database, PATIENCE, eventually};
use tokio::task::JoinSet;

use crate::fixtures::{
    machine::Machine,
    sql::{claim, claimed, is_claimed},
};

#[tokio::test]
async fn refusal_waits_for_the_flush_of_the_commit_it_rests_on() -> Result<()> {
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", 1).await?;
    for (user_id, refusal) in [("bob", "sold_out"), ("ann", "already_claimed")] {
        let buyer = database.connect().await?;
        let answered = machine.claim_with_slow_flush(&database).await?;
        assert!(!answered.is_finished(), "the flush is over already");
        let outcome = claim(&buyer, user_id).await?;
        machine.lose_power()?;
        assert_eq!(outcome, refusal);
        let client = database.connect().await?;
        assert!(
            is_claimed(&client, "ann").await?,
            "{refusal} rests on a claim that is lost"
        );
        // Resets the coupon for the next round.
        client
            .batch_execute("delete from claims; update coupons set remaining_amount = 1")
            .await?;
    }
    database.books().await
}

/// Freezing a row does not make its writer's commit durable, so a refusal that rests on it still waits for
/// the flush.
#[tokio::test]
async fn refusal_by_a_frozen_row_waits_for_the_flush() -> Result<()> {
    for freeze in [
        "vacuum freeze coupons, claims",
        // Since PostgreSQL 16, a plain vacuum freezes a page if that freezes all of it and costs a full-page
        // image anyway.
        "vacuum coupons, claims",
    ] {
        let mut machine = Machine::start().await?;
        let database = Database::create(&machine.cluster).await?;
        database.create_coupon("PROMO", 1).await?;
        let watcher = database.connect().await?;
        watcher
            .batch_execute("checkpoint; set synchronous_commit = off")
            .await?;
        let client = database.connect().await?;
        machine.delay_flushes(PATIENCE)?;
        let ann = tokio::spawn(async move { claim(&client, "ann").await });
        eventually("the claim to be seen", async || {
            Ok((claimed(&watcher).await? == ["ann"]).then_some(()))
        })
        .await?;
        watcher.batch_execute(freeze).await?;
        // Both wait for a flush that does not complete before the power goes.
        let mut answered = JoinSet::new();
        for user in ["ann", "bob"] {
            let client = database.connect().await?;
            answered.spawn(async move { (user, claim(&client, user).await.ok()) });
        }
        eventually(
            "both claims to wait for the flush, or an answer",
            async || {
                let waiting = "select count(*) from pg_stat_activity
                            where backend_type = 'client backend' and query like '%honcho_claim%'
                              and wait_event in ('WALWrite', 'WALSync', 'WalSync')
                              and pid <> pg_backend_pid()";
                let waiting: i64 = watcher.query_one(waiting, &[]).await?.get(0);
                // Ann's claim is the third that waits.
                Ok((waiting == 3 || answered.try_join_next().is_some()).then_some(waiting))
            },
        )
        .await
        .and_then(|waiting| {
            ensure!(waiting == 3, "{freeze}: answered before it was durable");
            Ok(())
        })?;
        machine.lose_power()?;
        assert!(ann.await?.is_err());
        while let Some(answered) = answered.join_next().await {
            assert_eq!(answered?.1, None);
        }
        assert!(claimed(&database.connect().await?).await?.is_empty());
        database.books().await?;
    }
    Ok(())
}

/// A transaction that creates a coupon and claims it is visible before its flush.
#[tokio::test]
async fn coupon_exists_is_answered_only_once_the_coupon_is_durable() -> Result<()> {
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    let watcher = database.connect().await?;
    let creator = database.connect().await?;
    machine.delay_flushes(PATIENCE)?;
    let created = tokio::spawn(async move {
        let sql = "select honcho_create_coupon('PROMO', 5), honcho_claim('ann', 'PROMO')";
        creator.query(sql, &[]).await
    });
    eventually("the coupon to be seen", async || {
        Ok(watcher.query_opt("select from coupons", &[]).await?)
    })
    .await?;
    let other = database.connect().await?;
    let other = tokio::spawn(async move {
        other
            .query_one("select honcho_create_coupon('PROMO', 9)", &[])
            .await
    });
    eventually(
        "the other creation to wait for the flush, or an answer",
        async || {
            let waiting = "select count(*) from pg_stat_activity
                        where backend_type = 'client backend' and query like '%create_coupon%'
                          and wait_event in ('WALWrite', 'WALSync', 'WalSync')
                          and pid <> pg_backend_pid()";
            let waiting: i64 = watcher.query_one(waiting, &[]).await?.get(0);
            Ok((waiting == 2 || other.is_finished()).then_some(()))
        },
    )
    .await?;
    assert!(!other.is_finished(), "answered before it was durable");
    machine.lose_power()?;
    assert!(created.await?.is_err() && other.await?.is_err());
    let coupons = database
        .connect()
        .await?
        .query("select from coupons", &[])
        .await?;
    assert!(coupons.is_empty());
    Ok(())
}
