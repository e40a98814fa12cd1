//! `honcho_claim_batch` concurrent with other claims on the same coupon: all outcomes are true.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use honcho_tests::Database;
use tokio::task::JoinSet;
use tokio_postgres::{Client, GenericClient};

use crate::fixtures::sql::claim;

/// A user and the outcome of the claim.
type Answered = (String, String);

#[tokio::test]
async fn batches_and_single_claims_together_never_oversell() -> Result<()> {
    // Users and stock: less than demand, equal to it, and more.
    for (users, stock) in [(300, 200), (150, 150), (150, 1_000), (40, 3)] {
        let seed = fastrand::u64(..);
        sale(seed, users, stock)
            .await
            .with_context(|| format!("{users} users on {stock}, seed {seed}"))?;
    }
    Ok(())
}

/// Claims in batches and singly, by the same set of users, with some transactions rolled back.
async fn sale(seed: u64, users: usize, stock: i32) -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", stock).await?;
    let mut sessions = JoinSet::new();
    for n in 0..16 {
        let client = database.connect_as_caller().await?;
        let rng = Rng::with_seed(seed.wrapping_add(n));
        sessions.spawn(session(client, rng, n % 2 == 0, users));
    }
    let mut answered = Vec::new();
    while let Some(session) = sessions.join_next().await {
        answered.extend(session??);
    }
    // Users without a claim so far, or with one that was undone.
    let client = database.connect_as_caller().await?;
    let all: Vec<String> = (0..users).map(user).collect();
    answered.extend(batch(&client, &all).await?);
    check(&database, &answered, users.min(stock as usize)).await
}

/// Returns the outcomes of one session's committed transactions.
async fn session(
    mut client: Client,
    mut rng: Rng,
    batches: bool,
    users: usize,
) -> Result<Vec<Answered>> {
    let mut answered = Vec::new();
    for _ in 0..if batches { 12 } else { 60 } {
        let size = if batches { rng.usize(1..40) } else { 1 };
        let user_ids: Vec<String> = (0..size).map(|_| user(rng.usize(..users))).collect();
        let transaction = client.transaction().await?;
        let outcomes = if batches {
            batch(&transaction, &user_ids).await?
        } else {
            vec![(
                user_ids[0].clone(),
                claim(&transaction, &user_ids[0]).await?,
            )]
        };
        if rng.u8(..8) == 0 {
            transaction.rollback().await?;
        } else {
            transaction.commit().await?;
            answered.extend(outcomes);
        }
    }
    Ok(answered)
}

fn user(n: usize) -> String {
    format!("user {n}")
}

async fn batch(client: &impl GenericClient, user_ids: &[String]) -> Result<Vec<Answered>> {
    let sql = "select ordinal, outcome::text from honcho_claim_batch('PROMO', $1)";
    let rows = client.query(sql, &[&user_ids]).await?;
    ensure!(rows.len() == user_ids.len());
    let answered = user_ids.iter().zip(&rows).zip(1..);
    answered
        .map(|((user_id, row), ordinal)| {
            ensure!(row.get::<_, i32>(0) == ordinal, "out of order");
            Ok((user_id.clone(), row.get(1)))
        })
        .collect()
}

/// Fails unless all outcomes agree with the table and as many users have claimed as possible.
async fn check(database: &Database, answered: &[Answered], expected: usize) -> Result<()> {
    let client = database.connect().await?;
    let rows = client
        .query("select user_id::text from claims", &[])
        .await?;
    let claimants: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    let left: i32 = client
        .query_one("select remaining_amount from coupons", &[])
        .await?
        .get(0);
    ensure!(claimants.len() == expected, "{} claimed", claimants.len());
    let mut successes: BTreeMap<&str, u32> = BTreeMap::new();
    for (user_id, outcome) in answered {
        match outcome.as_str() {
            "claimed" => *successes.entry(user_id).or_default() += 1,
            "already_claimed" => ensure!(claimants.contains(user_id), "{user_id} has no claim"),
            "sold_out" => ensure!(
                left == 0 && !claimants.contains(user_id),
                "{user_id} got sold_out, {left} are left"
            ),
            other => anyhow::bail!("{user_id}: {other}"),
        }
    }
    let once = claimants.iter().map(|user_id| (user_id.as_str(), 1));
    ensure!(
        successes == once.collect(),
        "not every user with a claim got one success"
    );
    database.books().await
}
