//! Early lock release: other sessions see a claim before it is durable, and its client gets the answer after.

use std::time::Duration;

use anyhow::Result;
use honcho_tests::{Database, eventually};
use tokio::time::Instant;

use crate::fixtures::{
    held_coupon::{hold, until_queued},
    machine::{Machine, SLOW},
    sql::{claim, claimed, is_claimed},
};

#[tokio::test]
async fn claim_is_visible_before_and_answered_after_its_flush() -> Result<()> {
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", 1).await?;

    let answered = machine.claim_with_slow_flush(&database).await?;
    assert!(
        !answered.is_finished(),
        "the claim was answered before its flush"
    );
    machine.lose_power()?;
    // The claim was never answered, and is lost.
    assert!(answered.await?.is_err());
    assert!(!is_claimed(&database.connect().await?, "ann").await?);
    database.books().await?;

    let answered = machine.claim_with_slow_flush(&database).await?;
    assert_eq!(answered.await??, "claimed");
    machine.lose_power()?;
    assert!(is_claimed(&database.connect().await?, "ann").await?);
    database.books().await
}

#[tokio::test]
async fn claim_is_visible_only_after_its_flush_without_early_lock_release() -> Result<()> {
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", 1).await?;
    let claimer = database.connect().await?;
    claimer
        .batch_execute("set honcho.early_lock_release = off")
        .await?;
    let watcher = database.connect().await?;
    machine.delay_flushes(SLOW)?;
    let answered = tokio::spawn(async move { claim(&claimer, "ann").await });
    eventually("the claim to be seen", async || {
        Ok(is_claimed(&watcher, "ann").await?.then_some(()))
    })
    .await?;
    machine.lose_power()?;
    let _ = answered.await?;
    assert!(is_claimed(&database.connect().await?, "ann").await?);
    database.books().await
}

#[tokio::test]
async fn batch_releases_its_locks_early_only_for_waiters() -> Result<()> {
    let machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", 100).await?;
    let watcher = database.connect().await?;
    for (awaited, stood_in_line) in [(true, true), (false, true), (true, false)] {
        machine.delay_flushes(Duration::ZERO)?;
        let user = format!("of a batch, awaited: {awaited}, stood in line: {stood_in_line}");
        let mut users = [user.clone(), format!("{user}, too")];
        // The batch waits for its turn, or has the turn and is stopped between two claims.
        let holder;
        let go;
        if stood_in_line {
            holder = hold(&database, "PROMO").await?;
            go = "rollback";
        } else {
            holder = database.connect().await?;
            holder
                .batch_execute(
                    "create function stop() returns trigger language plpgsql
                         as $$ begin perform pg_advisory_xact_lock(1); return new; end $$;
                     create trigger stop before insert on claims
                         for each row when (new.user_id like '%, stopped') execute function stop();
                     select pg_advisory_lock(1);",
                )
                .await?;
            users[1] += ", stopped";
            go = "select pg_advisory_unlock(1)";
        }
        let client = database.connect().await?;
        let batch = tokio::spawn(async move {
            let sql = "select count(*) from honcho_claim_batch('PROMO', $1)";
            client.execute(sql, &[&users.as_slice()]).await
        });
        eventually("the batch to wait", async || {
            let waiting = "select count(*) from pg_locks
                            where not granted and locktype in ('object', 'advisory')";
            let waiting: i64 = watcher.query_one(waiting, &[]).await?.get(0);
            Ok((waiting == 1).then_some(()))
        })
        .await?;
        let mut next = None;
        if awaited {
            let client = database.connect().await?;
            let user = format!("after {user}");
            next = Some(tokio::spawn(async move { claim(&client, &user).await }));
            until_queued(&watcher, 1 + i64::from(stood_in_line)).await?;
        }
        let delay = 4 * SLOW;
        machine.delay_flushes(delay)?;
        let start = Instant::now();
        holder.batch_execute(go).await?;
        eventually("the batch to be seen", async || {
            Ok(claimed(&watcher).await?.contains(&user).then_some(()))
        })
        .await?;
        // A batch that holds its locks during the flush is visible only after it.
        assert_eq!(start.elapsed() < delay, awaited);
        batch.await??;
        if let Some(next) = next {
            assert_eq!(next.await??, "claimed");
        }
    }
    machine.delay_flushes(Duration::ZERO)?;
    database.books().await
}

#[tokio::test]
async fn second_batch_of_a_transaction_sees_new_waiters() -> Result<()> {
    let machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", 100).await?;
    let watcher = database.connect().await?;
    let holder = hold(&database, "PROMO").await?;
    let client = database.connect().await?;
    let lined_up = tokio::spawn(async move {
        let sql = "begin; select from honcho_claim_batch('PROMO', '{ann, bob}')";
        client.batch_execute(sql).await.map(|()| client)
    });
    until_queued(&watcher, 1).await?;
    holder.batch_execute("rollback").await?;
    let client = lined_up.await??;
    let next = database.connect().await?;
    let next = tokio::spawn(async move { claim(&next, "the next").await });
    until_queued(&watcher, 1).await?;

    let delay = 4 * SLOW;
    machine.delay_flushes(delay)?;
    let start = Instant::now();
    let batch = tokio::spawn(async move {
        let sql = "select from honcho_claim_batch('PROMO', '{carl, dora}'); commit";
        client.batch_execute(sql).await
    });
    eventually("the batch to be seen", async || {
        let claimed = claimed(&watcher).await?;
        Ok(claimed.iter().any(|user| user == "dora").then_some(()))
    })
    .await?;
    assert!(start.elapsed() < delay, "seen after the flush");
    batch.await??;
    assert_eq!(next.await??, "claimed");
    machine.delay_flushes(Duration::ZERO)?;
    database.books().await
}
