//! Claims in transactions: a claim commits and rolls back with its caller's transaction.

use anyhow::Result;
use honcho_tests::Database;
use tokio_postgres::{Client, GenericClient, error::SqlState};

use crate::fixtures::sql::claim;

/// A coupon with a stock of two, and a table of orders.
async fn shop() -> Result<(Database, Client)> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 2).await?;
    let owner = database.connect().await?;
    owner
        .batch_execute(
            "create table orders (user_id text primary key);
             grant select, insert on orders to public;",
        )
        .await?;
    let caller = database.connect_as_caller().await?;
    Ok((database, caller))
}

async fn order(client: &impl GenericClient, user: &str) -> Result<u64> {
    Ok(client
        .execute("insert into orders values ($1)", &[&user])
        .await?)
}

/// The stock, the users with claims and the users with orders, as other sessions see them.
async fn state(database: &Database) -> Result<(i32, Vec<String>, Vec<String>)> {
    let state = "select (select remaining_amount from coupons),
                        array(select user_id::text from claims order by id),
                        array(select user_id from orders order by user_id)";
    let row = database.connect().await?.query_one(state, &[]).await?;
    Ok((row.get(0), row.get(1), row.get(2)))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[tokio::test]
async fn claim_and_order_commit_together() -> Result<()> {
    let (database, mut caller) = shop().await?;
    let transaction = caller.transaction().await?;
    assert_eq!(claim(&transaction, "anna").await?, "claimed");
    order(&transaction, "anna").await?;
    assert_eq!(
        state(&database).await?,
        (2, names(&[]), names(&[])),
        "before the commit"
    );
    transaction.commit().await?;
    assert_eq!(
        state(&database).await?,
        (1, names(&["anna"]), names(&["anna"]))
    );
    database.books().await
}

#[tokio::test]
async fn rollback_gives_the_coupon_back() -> Result<()> {
    let (database, mut caller) = shop().await?;
    let transaction = caller.transaction().await?;
    assert_eq!(claim(&transaction, "anna").await?, "claimed");
    order(&transaction, "anna").await?;
    transaction.rollback().await?;
    assert_eq!(state(&database).await?, (2, names(&[]), names(&[])));
    assert_eq!(claim(&caller, "anna").await?, "claimed");
    database.books().await
}

#[tokio::test]
async fn callers_error_gives_the_coupon_back() -> Result<()> {
    let (database, mut caller) = shop().await?;
    order(&caller, "anna").await?;
    let transaction = caller.transaction().await?;
    assert_eq!(claim(&transaction, "anna").await?, "claimed");
    assert!(order(&transaction, "anna").await.is_err(), "ordered twice");
    assert!(transaction.commit().await.is_err() || state(&database).await?.0 == 2);
    assert_eq!(state(&database).await?, (2, names(&[]), names(&["anna"])));
    database.books().await
}

#[tokio::test]
async fn refusal_does_not_abort_the_transaction() -> Result<()> {
    let (database, mut caller) = shop().await?;
    assert_eq!(claim(&caller, "anna").await?, "claimed");
    let transaction = caller.transaction().await?;
    assert_eq!(claim(&transaction, "anna").await?, "already_claimed");
    assert_eq!(claim(&transaction, "bert").await?, "claimed");
    assert_eq!(claim(&transaction, "carl").await?, "sold_out");
    let nothing = "select honcho_claim('carl', 'NOTHING')::text";
    let nothing: String = transaction.query_one(nothing, &[]).await?.get(0);
    assert_eq!(nothing, "not_found");
    order(&transaction, "carl").await?;
    transaction.commit().await?;
    assert_eq!(
        state(&database).await?,
        (0, names(&["anna", "bert"]), names(&["carl"]))
    );
    database.books().await
}

#[tokio::test]
async fn raised_refusal_aborts_the_transaction() -> Result<()> {
    let (database, mut caller) = shop().await?;
    let raise = "select honcho_claim_or_raise($1, $2)";
    let transaction = caller.transaction().await?;
    let id: i64 = transaction
        .query_one(raise, &[&"anna", &"PROMO"])
        .await?
        .get(0);
    let row = transaction
        .query_one("select id from honcho_get_claim('anna', 'PROMO')", &[])
        .await?;
    assert_eq!(row.get::<_, i64>(0), id);
    transaction.commit().await?;

    let transaction = caller.transaction().await?;
    order(&transaction, "anna").await?;
    let again = transaction
        .query_one(raise, &[&"anna", &"PROMO"])
        .await
        .unwrap_err();
    assert_eq!(again.code(), Some(&SqlState::UNIQUE_VIOLATION));
    let aborted = order(&transaction, "bert").await.unwrap_err();
    let aborted = aborted.downcast::<tokio_postgres::Error>()?;
    assert_eq!(aborted.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    drop(transaction);
    assert_eq!(state(&database).await?, (1, names(&["anna"]), names(&[])));
    database.books().await
}

#[tokio::test]
async fn rolled_back_savepoint_undoes_its_claims() -> Result<()> {
    let (database, mut caller) = shop().await?;
    let mut transaction = caller.transaction().await?;
    assert_eq!(claim(&transaction, "anna").await?, "claimed");
    let savepoint = transaction.savepoint("attempt").await?;
    assert_eq!(claim(&savepoint, "bert").await?, "claimed");
    assert_eq!(claim(&savepoint, "carl").await?, "sold_out");
    savepoint.rollback().await?;
    assert_eq!(claim(&transaction, "carl").await?, "claimed");
    let savepoint = transaction.savepoint("attempt").await?;
    order(&savepoint, "carl").await?;
    savepoint.commit().await?;
    transaction.commit().await?;
    assert_eq!(
        state(&database).await?,
        (0, names(&["anna", "carl"]), names(&["carl"]))
    );
    database.books().await
}

#[tokio::test]
async fn transaction_sees_its_own_claim() -> Result<()> {
    let (database, mut caller) = shop().await?;
    let transaction = caller.transaction().await?;
    assert_eq!(claim(&transaction, "anna").await?, "claimed");
    assert_eq!(claim(&transaction, "anna").await?, "already_claimed");
    let row = transaction
        .query_one(
            "select remaining_amount from honcho_get_coupon('PROMO')",
            &[],
        )
        .await?;
    assert_eq!(row.get::<_, i32>(0), 1);
    transaction.commit().await?;
    database.books().await
}
