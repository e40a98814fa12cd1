//! The recipes, among concurrent claims.

use anyhow::Result;
use honcho_tests::{ClusterOptions, Database, books, connect};
use tokio_postgres::Client;

use super::{
    blocks::run_sql,
    pages::{Part, parts, read},
};

/// Orders as the recipes do, in the middle of claims, releases and restocks: no deadlock, and right books.
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
                // From one user to another, in one transaction.
                let other = format!("user {}", (session + round) % USERS);
                let transaction = client.transaction().await?;
                let claim = "select honcho_claim($1, 'GIVEN')::text";
                transaction.query_one(claim, &[&user]).await?;
                let release = "select honcho_release($1, 'GIVEN')::text";
                transaction.query_one(release, &[&other]).await?;
                transaction.commit().await?;
                client.query_one(release, &[&other]).await?;
                if session == 0 && round % 5 == 0 {
                    let restock = "select honcho_restock('ORDERED', 1)";
                    client.query_one(restock, &[]).await?;
                    client.query_one("select honcho_expire()", &[]).await?;
                }
            }
            anyhow::Ok(())
        })
    });
    for session in sessions.collect::<Vec<_>>() {
        session.await??;
    }
    let differ = "select count(*) from
                      (select user_id from shop.orders where coupon_name = 'ORDERED') o
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

/// Holds and pays: cancels, lets the hold be, or confirms it with an order in one transaction; later gives both back.
async fn order(client: &mut Client, user: &str, round: usize) -> Result<()> {
    let reserve = "select outcome::text from honcho_reserve($1, 'ORDERED', '1 second')";
    let outcome: String = client.query_one(reserve, &[&user]).await?.get(0);
    match (&*outcome, round % 4) {
        ("held", 0) => {
            let cancel = "select honcho_cancel($1, 'ORDERED')::text";
            client.query_one(cancel, &[&user]).await?;
        }
        ("held", 1..) => {
            let transaction = client.transaction().await?;
            let insert =
                "insert into shop.orders values ($1, 'ORDERED') on conflict do nothing returning 1";
            let is_new = transaction.query_opt(insert, &[&user]).await?.is_some();
            let confirm = "select honcho_confirm($1, 'ORDERED')::text";
            let outcome: String = transaction.query_one(confirm, &[&user]).await?.get(0);
            if is_new && outcome == "claimed" {
                transaction.commit().await?;
            } else {
                transaction.rollback().await?;
            }
        }
        ("already_claimed", 2) => {
            let transaction = client.transaction().await?;
            let release = "select honcho_release($1, 'ORDERED')::text";
            transaction.query_one(release, &[&user]).await?;
            let delete = "delete from shop.orders where user_id = $1 and coupon_name = 'ORDERED'";
            transaction.execute(delete, &[&user]).await?;
            transaction.commit().await?;
        }
        _ => {}
    }
    Ok(())
}
