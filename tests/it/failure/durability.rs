//! Durability of transactions that claim: interrupted, prepared, or with other work, they survive a loss of
//! power once they are answered.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use honcho_tests::{Database, connect, eventually};
use tokio::{
    task::{JoinSet, yield_now},
    time::Instant,
};
use tokio_postgres::{Client, error::SqlState};

use crate::fixtures::{
    machine::{Machine, SLOW},
    sql::{claim, claimed, show},
};

#[tokio::test]
async fn interrupted_claim_still_waits_for_its_flush() -> Result<()> {
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", 100).await?;
    for interruption in [
        "pg_cancel_backend",
        "statement_timeout",
        "pg_terminate_backend",
    ] {
        let client = database.connect().await?;
        let watcher = database.connect().await?;
        client
            .batch_execute("set synchronous_commit = local")
            .await?;
        if interruption == "statement_timeout" {
            client.batch_execute("set statement_timeout = 300").await?;
        }
        let session: i32 = client
            .query_one("select pg_backend_pid()", &[])
            .await?
            .get(0);
        machine.delay_flushes(SLOW)?;
        let start = Instant::now();
        let answered = tokio::spawn(async move {
            let answered = claim(&client, interruption).await;
            (client, answered)
        });
        eventually("the flush to be in progress", async || {
            let claimed = claimed(&watcher).await?;
            Ok(claimed
                .iter()
                .any(|user| user == interruption)
                .then_some(()))
        })
        .await?;
        if interruption != "statement_timeout" {
            let sql = format!("select {interruption}($1)");
            watcher.execute(&sql, &[&session]).await?;
        }
        let (client, answered) = answered.await?;
        let waited = start.elapsed();
        if interruption == "pg_terminate_backend" {
            // The answer may have been sent before the session ended.
            assert!(answered.is_err() || answered? == "claimed");
        } else {
            assert_eq!(answered?, "claimed", "{interruption}");
            assert_eq!(show(&client, "synchronous_commit").await?, "local");
        }
        assert!(waited >= SLOW, "{interruption} cut the flush short");
        machine.lose_power()?;
        let claimed = claimed(&database.connect().await?).await?;
        assert!(claimed.iter().any(|user| user == interruption));
    }
    database.books().await
}

#[tokio::test]
async fn sessions_interrupted_at_any_point_lose_no_told_outcome() -> Result<()> {
    for stock in [1_000_000, 120] {
        let mut machine = Machine::start().await?;
        let database = Arc::new(Database::create(&machine.cluster).await?);
        database.create_coupon("PROMO", stock).await?;
        let answered = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let mut sessions = JoinSet::new();
        for n in 0..16 {
            let (database, answered, over) = (
                Arc::clone(&database),
                Arc::clone(&answered),
                Arc::clone(&over),
            );
            sessions.spawn(async move {
                let mut user = 0;
                let level = ["on", "local", "remote_write", "remote_apply"][n % 4];
                let timeout = if n < 4 { 20 } else { 0 };
                let url = format!(
                    "{}&application_name=interrupted&options=-c%20synchronous_commit%3D{level}\
                     %20-c%20statement_timeout%3D{timeout}",
                    database.superuser_url()
                );
                while !over.load(Ordering::Relaxed) {
                    // A session that was interrupted while it connected tries again.
                    match connect(&url).await {
                        Ok(client) => session(&client, n, level, &mut user, &answered).await?,
                        Err(_) => yield_now().await,
                    }
                }
                anyhow::Ok(())
            });
        }
        machine.delay_flushes(Duration::from_millis(5))?;
        let client = database.connect().await?;
        let interrupt = "select case when random() < 0.3 then pg_terminate_backend(pid)
                                     else pg_cancel_backend(pid) end
                           from pg_stat_activity
                          where application_name = 'interrupted' and random() < 0.2";
        let mut interrupted = 0;
        eventually("enough answers", async || {
            interrupted += client.query(interrupt, &[]).await?.len();
            let enough = answered.lock().unwrap().len() >= 300;
            Ok((enough && interrupted >= 100).then_some(()))
        })
        .await?;
        machine.lose_power()?;
        over.store(true, Ordering::Relaxed);
        while let Some(session) = sessions.join_next().await {
            session??;
        }

        let client = database.connect().await?;
        let kept: BTreeSet<String> = claimed(&client).await?.into_iter().collect();
        for (user, outcome) in answered.lock().unwrap().iter() {
            match outcome.as_str() {
                "claimed" | "already_claimed" => assert!(kept.contains(user), "{user}: {outcome}"),
                "sold_out" => assert_eq!(kept.len(), stock as usize),
                other => panic!("{user}: {other}"),
            }
        }
        database.books().await?;
    }
    Ok(())
}

/// Claims twice for each user until the session ends.
async fn session(
    client: &Client,
    n: usize,
    level: &str,
    user: &mut usize,
    answered: &Mutex<Vec<(String, String)>>,
) -> Result<()> {
    loop {
        let user_id = format!("user {n} {}", *user / 2);
        *user += 1;
        match claim(client, &user_id).await {
            Ok(outcome) => answered.lock().unwrap().push((user_id, outcome)),
            Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {}
            Err(error) if error.code() == Some(&SqlState::ADMIN_SHUTDOWN) => return Ok(()),
            Err(_) if client.is_closed() => return Ok(()),
            Err(error) => return Err(error).context("while claiming"),
        }
        if let Ok(shown) = show(client, "synchronous_commit").await {
            ensure!(shown == level, "synchronous_commit is {shown}");
        }
    }
}

/// Transactions that claim or nearly do, each sent as one message, with their expected effects: the coupons
/// of the user, and if there is an order.
const TRANSACTIONS: &[(&str, &str, &[&str], bool)] = &[
    (
        "with other work",
        "begin; insert into orders values ('$u'); select honcho_claim('$u', 'A'); commit",
        &["A"],
        true,
    ),
    (
        "several coupons, in every way",
        "begin;
         select honcho_claim('$u', 'A');
         select honcho_claim_or_raise('$u', 'B');
         select honcho_claim_batch('C', array['$u', '$u']);
         commit",
        &["A", "B", "C"],
        false,
    ),
    (
        "a savepoint that is rolled back",
        "begin;
         insert into orders values ('$u');
         savepoint s;
         select honcho_claim('$u', 'A');
         rollback to s;
         commit",
        &[],
        true,
    ),
    (
        "a savepoint that is rolled back, then a claim",
        "begin;
         savepoint s;
         select honcho_claim('$u', 'A');
         rollback to s;
         select honcho_claim('$u', 'B');
         insert into orders values ('$u');
         commit",
        &["B"],
        true,
    ),
    (
        "a claim, then a savepoint that is rolled back",
        "begin;
         select honcho_claim('$u', 'A');
         savepoint s;
         select honcho_claim('$u', 'B');
         insert into orders values ('$u');
         rollback to s;
         commit",
        &["A"],
        false,
    ),
    (
        "a savepoint that is kept",
        "begin;
         savepoint s;
         select honcho_claim('$u', 'A');
         release s;
         insert into orders values ('$u');
         commit",
        &["A"],
        true,
    ),
    (
        "an exception that is caught",
        "do $$ begin
             perform honcho_claim('$u', 'A');
             begin
                 perform honcho_claim('$u', 'B');
                 raise 'undo';
             exception when raise_exception then
                 insert into orders values ('$u');
             end;
         end $$",
        &["A"],
        true,
    ),
    (
        "a transaction after one that was rolled back",
        "begin; select honcho_claim('$u', 'A'); rollback;
         begin; select honcho_claim('$u', 'B'); commit",
        &["B"],
        false,
    ),
    (
        "a transaction chained to a claim",
        "begin; select honcho_claim('$u', 'A'); commit and chain;
         insert into orders values ('$u'); commit",
        &["A"],
        true,
    ),
    (
        "a transaction that is only refused",
        "begin;
         select honcho_claim('$u', 'NOTHING');
         insert into orders values ('$u');
         commit",
        &[],
        true,
    ),
    (
        "a table made and one dropped",
        "begin;
         create table made_first ();
         drop table made_first;
         create table made_and_kept ();
         select honcho_claim('$u', 'A');
         commit",
        &["A"],
        false,
    ),
    (
        "a procedure that commits",
        "call claim_commit_claim('$u')",
        &["A", "B"],
        true,
    ),
    (
        "a function with settings of its own",
        "select claim_with_settings('$u')",
        &["A"],
        false,
    ),
    (
        "a trigger that claims as the transaction commits",
        "insert into late_orders values ('$u')",
        &["A"],
        false,
    ),
    (
        "a cursor that is read as the transaction commits",
        "begin;
         declare claims cursor with hold for select honcho_claim('$u', 'A');
         commit",
        &["A"],
        false,
    ),
    (
        "early lock release turned off on the way",
        "begin;
         select honcho_claim('$u', 'A');
         set local honcho.early_lock_release = off;
         select honcho_claim('$u', 'B');
         commit",
        &["A", "B"],
        false,
    ),
];

#[tokio::test]
async fn transactions_with_claims_and_other_work_survive_power_loss() -> Result<()> {
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    for coupon in ["A", "B", "C"] {
        database.create_coupon(coupon, 100).await?;
    }
    database
        .connect()
        .await?
        .batch_execute(
            "create table orders (user_id text primary key);
             create table late_orders (user_id text primary key);
             create procedure claim_commit_claim(user_id text) language plpgsql as $$ begin
                 perform honcho_claim(user_id, 'A');
                 commit;
                 perform honcho_claim(user_id, 'B');
                 insert into orders values (user_id);
             end $$;
             create function claim_with_settings(user_id text) returns honcho_outcome
                 language sql set synchronous_commit = off
                 as $$ select honcho_claim(user_id, 'A') $$;
             create function claim_late() returns trigger language plpgsql as $$ begin
                 perform honcho_claim(new.user_id, 'A');
                 return null;
             end $$;
             create constraint trigger claim_late after insert on late_orders
                 deferrable initially deferred for each row execute function claim_late();",
        )
        .await?;
    for (user, transaction, coupons, has_order) in TRANSACTIONS {
        let client = database.connect().await?;
        client
            .batch_execute(&transaction.replace("$u", user))
            .await
            .with_context(|| (*user).to_owned())?;
        assert_eq!(show(&client, "synchronous_commit").await?, "on", "{user}");
        machine.lose_power()?;
        let left = "select array(select coupon_name::text from claims
                                  where user_id = $1 order by coupon_name),
                           exists (select from orders where user_id = $1)";
        let left = database.connect().await?.query_one(left, &[user]).await?;
        let left: (Vec<String>, bool) = (left.get(0), left.get(1));
        let coupons: Vec<String> = coupons.iter().map(|&coupon| coupon.to_owned()).collect();
        assert_eq!(left, (coupons, *has_order), "{user}");
    }
    database.books().await
}

#[tokio::test]
async fn prepared_claim_keeps_its_turn_and_survives_power_loss() -> Result<()> {
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", 1).await?;
    let late = Some(SqlState::LOCK_NOT_AVAILABLE);
    for (user, end) in [("ann", "rollback prepared"), ("bob", "commit prepared")] {
        let client = database.connect().await?;
        client
            .batch_execute(&format!(
                "begin; select honcho_claim('{user}', 'PROMO'); prepare transaction 'p'"
            ))
            .await?;
        assert_eq!(show(&client, "synchronous_commit").await?, "on");
        machine.lose_power()?;
        // The prepared transaction survives the loss of power, and keeps its turn.
        let client = database.connect().await?;
        client.batch_execute("set lock_timeout = 100").await?;
        let other = claim(&client, "carl").await.unwrap_err();
        assert_eq!(other.code(), late.as_ref());
        client.batch_execute(&format!("{end} 'p'")).await?;
        machine.lose_power()?;
    }
    let client = database.connect().await?;
    assert_eq!(claimed(&client).await?, ["bob"]);
    assert_eq!(claim(&client, "carl").await?, "sold_out");
    database.books().await
}
