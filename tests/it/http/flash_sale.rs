//! Flash sales: many users claim at the same time, and exactly the stock is sold, once per user.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Result;
use honcho_tests::{Database, concurrently, connect, counts};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

use crate::fixtures::api::Api;

#[tokio::test]
async fn over_http_50_users_claim_5_coupons() -> Result<()> {
    sale_over_http(50, 5).await
}

#[tokio::test]
async fn over_http_500_users_claim_50_coupons() -> Result<()> {
    let _alone = alone().await;
    sale_over_http(500, 50).await
}

#[tokio::test]
async fn over_sql_50_users_claim_5_coupons() -> Result<()> {
    sale_over_sql(50, 5).await
}

#[tokio::test]
async fn over_sql_500_users_claim_50_coupons() -> Result<()> {
    let _alone = alone().await;
    sale_over_sql(500, 50).await
}

#[tokio::test]
async fn over_http_one_user_claims_once_in_15_tries() -> Result<()> {
    let database = crate::database().await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    assert_eq!(api.create("PROMO", 10).await?.status, 201);
    let outcomes = claim_over_http(&api, vec!["user".to_owned(); 15]).await?;
    assert_eq!(outcomes, counts(&[("200", 1), ("409 already_claimed", 14)]));
    check_shown(&api, 9, &["user".to_owned()]).await?;
    database.books().await
}

#[tokio::test]
async fn over_sql_one_user_claims_once_in_15_tries() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let outcomes = claim_over_sql(&database, vec!["user".to_owned(); 15]).await?;
    assert_eq!(outcomes, counts(&[("claimed", 1), ("already_claimed", 14)]));
    check_rows(&database, 9, 1).await?;
    database.books().await
}

async fn sale_over_http(users: usize, stock: i32) -> Result<()> {
    let database = crate::database().await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    assert_eq!(api.create("PROMO", stock).await?.status, 201);
    let outcomes = claim_over_http(&api, (0..users).map(|n| format!("user_{n}")).collect()).await?;
    let claimed = stock as usize;
    assert_eq!(
        outcomes,
        counts(&[("200", claimed), ("409 sold_out", users - claimed)])
    );

    let client = database.connect().await?;
    let rows = client
        .query("select user_id from honcho_list_claims('PROMO')", &[])
        .await?;
    let claimants: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(claimants.len(), claimed);
    check_shown(&api, 0, &claimants).await?;
    database.books().await
}

async fn sale_over_sql(users: usize, stock: i32) -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", stock).await?;
    let users: Vec<String> = (0..users).map(|n| format!("user_{n}")).collect();
    let refused = users.len() - stock as usize;
    let outcomes = claim_over_sql(&database, users).await?;
    assert_eq!(
        outcomes,
        counts(&[("claimed", stock as usize), ("sold_out", refused)])
    );
    check_rows(&database, 0, stock.into()).await?;
    database.books().await
}

async fn claim_over_http(api: &Arc<Api>, users: Vec<String>) -> Result<BTreeMap<String, usize>> {
    concurrently(users, |user| {
        let api = Arc::clone(api);
        async { Ok(async move { Ok(api.claim(&user, "PROMO").await?.shown()) }) }
    })
    .await
}

async fn claim_over_sql(
    database: &Database,
    users: Vec<String>,
) -> Result<BTreeMap<String, usize>> {
    concurrently(users, |user| {
        let url = database.caller_url().to_owned();
        async move {
            let client = connect(&url).await?;
            Ok(async move {
                let claim = "select honcho_claim($1, 'PROMO')::text";
                Ok(client.query_one(claim, &[&user]).await?.get(0))
            })
        }
    })
    .await
}

async fn check_shown(api: &Api, remaining: i32, claimants: &[String]) -> Result<()> {
    let shown = api.show("PROMO").await?;
    assert_eq!(shown.status, 200);
    assert_eq!(shown.body["remaining_amount"], remaining);
    assert_eq!(shown.body["claimed_by"], json!(claimants));
    Ok(())
}

async fn check_rows(database: &Database, remaining: i32, claims: i64) -> Result<()> {
    let row = database
        .connect()
        .await?
        .query_one(
            "select remaining_amount, (select count(*) from claims) from coupons",
            &[],
        )
        .await?;
    assert_eq!(
        (row.get::<_, i32>(0), row.get::<_, i64>(1)),
        (remaining, claims)
    );
    Ok(())
}

/// Only one large sale at a time: two need more connections than the cluster has.
async fn alone() -> MutexGuard<'static, ()> {
    static CROWD: Mutex<()> = Mutex::const_new(());
    CROWD.lock().await
}
