//! Loss of power during a sale: no answer that a client got is undone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use honcho_tests::{Database, books, eventually};
use tokio::{task::JoinSet, time::Instant};

use crate::fixtures::{
    api::Api,
    lives::{Lives, Way},
    machine::Machine,
    sql::claim,
};

/// The answers that clients got before the loss of power.
#[derive(Default)]
struct Answered {
    claimed: Vec<String>,
    sold_out: bool,
}

/// Parameters of a sale that ends with a loss of power.
struct Sale {
    settings: &'static str,
    stock: i32,
    claims_per_user: usize,
    flush: Duration,
}

/// Runs a sale until the power goes, and returns the number of answers that are lost.
async fn lost_after_a_sale(sale: Sale) -> Result<usize> {
    let Sale {
        settings,
        stock,
        claims_per_user,
        flush,
    } = sale;
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", stock).await?;
    let answered = Arc::new(Mutex::new(Answered::default()));
    let mut clients = JoinSet::new();
    for n in 0..24 {
        let client = database.connect().await?;
        client.batch_execute(settings).await?;
        let answered = Arc::clone(&answered);
        clients.spawn(async move {
            // Until the connection breaks.
            for i in 0.. {
                let user_id = format!("user {n} {}", i / claims_per_user);
                let Ok(outcome) = claim(&client, &user_id).await else {
                    return;
                };
                let mut answered = answered.lock().unwrap();
                match outcome.as_str() {
                    "claimed" | "already_claimed" => answered.claimed.push(user_id),
                    "sold_out" => answered.sold_out = true,
                    other => panic!("{other}"),
                }
            }
        });
    }
    machine.delay_flushes(flush)?;
    let start = Instant::now();
    eventually("enough answers", async || {
        let answered = answered.lock().unwrap();
        let enough = answered.claimed.len() >= 300 || answered.sold_out;
        Ok((enough && start.elapsed() > Duration::from_millis(300)).then_some(()))
    })
    .await?;
    machine.lose_power()?;
    clients.join_all().await;

    let client = database.connect().await?;
    books(&client).await?;
    let answered = std::mem::take(&mut *answered.lock().unwrap());
    let kept: HashMap<String, ()> = client
        .query("select user_id::text from claims", &[])
        .await?
        .iter()
        .map(|row| (row.get(0), ()))
        .collect();
    let left: i32 = client
        .query_one("select remaining_amount from coupons", &[])
        .await?
        .get(0);
    let lost = answered
        .claimed
        .iter()
        .filter(|user_id| !kept.contains_key(*user_id))
        .count();
    ensure!(!answered.claimed.is_empty(), "no claim was answered");
    Ok(lost + usize::from(answered.sold_out && left > 0))
}

/// Lets users reserve, confirm, cancel, claim, repeat and release, in sessions of their own or through the service,
/// until the power goes, and returns the number of those whose rows are not what they were told, or who heard afterwards
/// from the service that it is not so.
async fn lost_of_lives(
    over_http: bool,
    setting: &str,
    flush: Duration,
    answers: usize,
) -> Result<usize> {
    const USERS: usize = 6;
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", 1_000_000).await?;
    let client = database.connect().await?;
    for role in ["postgres".to_owned(), format!("{}_caller", database.name())] {
        let set = format!("alter role {role} set {setting}");
        client.batch_execute(&set).await?;
    }
    let api = Arc::new(Api::start(database.caller_url()).await?);
    api.until_ready().await?;
    let lives = Arc::new(Lives::default());
    let mut sessions = JoinSet::new();
    for _ in 0..24 {
        let way = if over_http {
            Way::Service(Arc::clone(&api))
        } else {
            Way::Session(database.connect().await?)
        };
        let first = lives.add(USERS);
        sessions.spawn(Arc::clone(&lives).live(way, first, USERS, Rng::new()));
    }
    machine.delay_flushes(flush)?;
    let start = Instant::now();
    eventually("enough answers", async || {
        let enough = lives.answers() >= answers && start.elapsed() > Duration::from_millis(300);
        Ok(enough.then_some(()))
    })
    .await?;
    machine.lose_power()?;
    lives.end();
    while let Some(session) = sessions.join_next().await {
        session??;
    }
    let client = database.connect().await?;
    books(&client).await?;
    lives.lost(&client).await
}

#[tokio::test]
async fn power_loss_loses_no_hold_release_or_replay() -> Result<()> {
    for over_http in [false, true] {
        for setting in [
            "honcho.early_lock_release = on",
            "honcho.early_lock_release = off",
        ] {
            let lost = lost_of_lives(over_http, setting, Duration::from_millis(5), 500).await?;
            assert_eq!(lost, 0, "{setting}, over HTTP: {over_http}");
        }
        // The same shows answers that were given too early.
        // A refusal waits for the flush, and in a lane others wait with it, for no longer than a statement may take.
        let (seconds, answers) = if over_http { (2, 50) } else { (5, 500) };
        let (setting, flush) = ("synchronous_commit = off", Duration::from_secs(seconds));
        let lost = lost_of_lives(over_http, setting, flush, answers).await?;
        assert!(lost > 0, "over HTTP: {over_http}");
    }
    Ok(())
}

#[tokio::test]
async fn power_loss_loses_no_told_outcome() -> Result<()> {
    for stock in [1_000_000, 150, 40] {
        let lost = lost_after_a_sale(Sale {
            settings: "set honcho.early_lock_release = on",
            stock,
            claims_per_user: 2,
            flush: Duration::from_millis(5),
        })
        .await?;
        assert_eq!(lost, 0, "of a stock of {stock}");
    }
    Ok(())
}

/// Shows that the test above can fail: answers given before the flush are lost.
#[tokio::test]
async fn power_loss_finds_answers_given_before_the_flush() -> Result<()> {
    let lost = lost_after_a_sale(Sale {
        settings: "set synchronous_commit = off",
        stock: 1_000_000,
        // A second claim of the same user would be a refusal, which waits for the flush.
        claims_per_user: 1,
        // No flush completes before the power goes.
        flush: Duration::from_secs(5),
    })
    .await
    .context("the sale without flushes")?;
    assert!(lost > 0);
    Ok(())
}
