//! Lost power in the middle of a sale: nothing that a client was told is undone by it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use honcho_tests::{Database, books, eventually};
use tokio::{task::JoinSet, time::Instant};

use crate::fixtures::{machine::Machine, sql::claim};

/// What clients were told, and what is left of it after the power went.
#[derive(Default)]
struct Told {
    claimed: Vec<String>,
    sold_out: bool,
}

/// How clients claim until the power goes.
struct Sale {
    settings: &'static str,
    stock: i32,
    claims_per_user: usize,
    flush: Duration,
}

/// Lets clients claim until the power goes, and returns how many claims were told and then lost.
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
    let told = Arc::new(Mutex::new(Told::default()));
    let mut clients = JoinSet::new();
    for n in 0..24 {
        let client = database.connect().await?;
        client.batch_execute(settings).await?;
        let told = Arc::clone(&told);
        clients.spawn(async move {
            // Until the connection is gone.
            for i in 0.. {
                let user_id = format!("user {n} {}", i / claims_per_user);
                let Ok(outcome) = claim(&client, &user_id).await else {
                    return;
                };
                let mut told = told.lock().unwrap();
                match outcome.as_str() {
                    "claimed" | "already_claimed" => told.claimed.push(user_id),
                    "sold_out" => told.sold_out = true,
                    other => panic!("{other}"),
                }
            }
        });
    }
    machine.delay_flushes(flush)?;
    let start = Instant::now();
    eventually("a sale to be under way", async || {
        let told = told.lock().unwrap();
        let enough = told.claimed.len() >= 300 || told.sold_out;
        Ok((enough && start.elapsed() > Duration::from_millis(300)).then_some(()))
    })
    .await?;
    machine.lose_power()?;
    clients.join_all().await;

    let client = database.connect().await?;
    books(&client).await?;
    let told = std::mem::take(&mut *told.lock().unwrap());
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
    let lost = told
        .claimed
        .iter()
        .filter(|user_id| !kept.contains_key(*user_id))
        .count();
    ensure!(!told.claimed.is_empty(), "nobody was told anything");
    Ok(lost + usize::from(told.sold_out && left > 0))
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

/// The test above can fail: answers that are given before the flush are lost.
#[tokio::test]
async fn power_loss_finds_answers_given_before_the_flush() -> Result<()> {
    let lost = lost_after_a_sale(Sale {
        settings: "set synchronous_commit = off",
        stock: 1_000_000,
        // A second claim would be refused, and wait for the flush as a refusal does.
        claims_per_user: 1,
        // No flush ends before the power does.
        flush: Duration::from_secs(5),
    })
    .await
    .context("the sale without flushes")?;
    assert!(lost > 0);
    Ok(())
}
