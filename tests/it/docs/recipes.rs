//! The functions of the recipes, among concurrent claims.

use anyhow::Result;
use honcho_tests::{ClusterOptions, Database, books, connect};
use tokio_postgres::Client;

use super::{
    blocks::run_sql,
    pages::{Part, parts, read},
};

/// Runs the recipes' functions in the middle of claims and restocks: no deadlock, and right books.
#[tokio::test]
async fn recipes_hold_in_a_crowd() -> Result<()> {
    const USERS: usize = 12;
    const ROUNDS: usize = 25;
    // Its own, for the recipes make a role.
    let cluster = ClusterOptions::default().setting("fsync", "off").start()?;
    let database = Database::create_empty(&cluster).await?;
    let client = database.connect().await?;
    for (_, part) in parts(&read("docs/recipes.md")?)? {
        if let Part::Block { language, text, .. } = part
            && language == "sql"
        {
            run_sql(&client, &text).await?;
        }
    }
    client
        .batch_execute(
            "select honcho_create_coupon('ORDERED', 4), honcho_create_coupon('GIVEN', 4)",
        )
        .await?;
    // Two sessions for each user, so that they also meet themselves.
    let sessions = (0..2 * USERS).map(|session| {
        let url = database.superuser_url().to_owned();
        tokio::spawn(async move {
            let mut client = connect(&url).await?;
            let user = format!("user {}", session % USERS);
            for round in 0..ROUNDS {
                order(&mut client, &user, round).await?;
                // From one user to another: a claim first, then what changes the coupon.
                let other = format!("user {}", (session + round) % USERS);
                let transaction = client.transaction().await?;
                let claim = "select honcho_claim($1, 'GIVEN')::text";
                transaction.query_one(claim, &[&user]).await?;
                let give_back = "select shop.give_back($1, 'GIVEN')";
                transaction.query_one(give_back, &[&other]).await?;
                transaction.commit().await?;
                client.query_one(give_back, &[&other]).await?;
                if session == 0 && round % 5 == 0 {
                    let restock = "update coupons set amount = amount + 1,
                                                      remaining_amount = remaining_amount + 1
                                    where name = 'ORDERED'";
                    client.batch_execute(restock).await?;
                    client.batch_execute("call shop.expire()").await?;
                }
            }
            anyhow::Ok(())
        })
    });
    for session in sessions.collect::<Vec<_>>() {
        session.await??;
    }
    let differ = "select count(*) from
                      (select user_id from shop.orders
                        where coupon_name = 'ORDERED' and state <> 'cancelled') o
                      full join (select user_id from claims where coupon_name = 'ORDERED') c
                      on o.user_id = c.user_id
                  where o.user_id is null or c.user_id is null";
    let differ: i64 = client.query_one(differ, &[]).await?.get(0);
    assert_eq!(
        differ, 0,
        "orders without a claim, or claims without an order"
    );
    books(&client).await
}

/// Orders and claims in one transaction, then pays or cancels.
async fn order(client: &mut Client, user: &str, round: usize) -> Result<()> {
    let transaction = client.transaction().await?;
    let insert = "insert into shop.orders (user_id, coupon_name, pay_until)
                  values ($1, 'ORDERED', clock_timestamp() + $2 * interval '1 ms')
                  on conflict do nothing returning id";
    let Some(order) = transaction
        .query_opt(insert, &[&user, &f64::from(u8::try_from(round)?)])
        .await?
    else {
        return Ok(transaction.rollback().await?);
    };
    let order: i64 = order.get(0);
    let outcome = "select honcho_claim($1, 'ORDERED')::text";
    let outcome: String = transaction.query_one(outcome, &[&user]).await?.get(0);
    if outcome != "claimed" {
        return Ok(transaction.rollback().await?);
    }
    transaction.commit().await?;
    if round == 20 {
        let pay = "update shop.orders set state = 'paid' where id = $1 and state = 'pending'";
        client.execute(pay, &[&order]).await?;
    } else if !round.is_multiple_of(4) {
        client
            .query_one("select shop.cancel($1)", &[&order])
            .await?;
    }
    Ok(())
}
