//! The service on a database that has the SQL of the release before: what that has works, and the rest is refused.

use anyhow::{Context, Result};
use honcho_tests::{Database, eventually};
use reqwest::Method;
use serde_json::json;

use crate::fixtures::{
    api::{Api, answer},
    long_list::{check_list, create_claimed},
    readiness::soon,
    sql::releases,
};

#[tokio::test]
async fn service_serves_what_the_release_before_has() -> Result<()> {
    let release = releases().await?.pop().context("no release")?;
    let database = Database::create_released(crate::cluster(), &release).await?;
    let api = Api::start(database.caller_url()).await?;
    let check = async || -> Result<()> {
        for (method, path, body) in [
            (Method::GET, "PROMO/stock", json!({})),
            (Method::PATCH, "PROMO", json!({ "paused": true })),
            (Method::POST, "PROMO/restock", json!({ "delta": 1 })),
            (Method::DELETE, "PROMO", json!({})),
            (Method::DELETE, "PROMO/claims/ann", json!({})),
            (Method::POST, "PROMO/holds", json!({ "user_id": "carl" })),
            (Method::GET, "PROMO/holds", json!({})),
            (Method::GET, "PROMO/holds/ann", json!({})),
            (Method::POST, "PROMO/holds/ann/confirm", json!({})),
            (Method::DELETE, "PROMO/holds/ann", json!({})),
        ] {
            let refused = api.send_json(method.clone(), path, &body).await?;
            assert_eq!(refused.shown(), "501 extension_outdated", "{method} {path}");
            let detail = refused.body["detail"].as_str().unwrap_or_default();
            assert!(detail.contains("alter extension honcho update"), "{detail}");
        }
        let keyed = api.claim_request("carl", "PROMO");
        let keyed = answer(keyed.header("idempotency-key", "key")).await?;
        assert_eq!(keyed.shown(), "501 extension_outdated");
        let claims = answer(api.request(Method::GET, "/api/users/ann/claims")).await?;
        assert_eq!(claims.shown(), "501 extension_outdated");
        Ok(())
    };
    assert_eq!(api.create("PROMO", 5).await?.status, 201);
    assert_eq!(api.claim("ann", "PROMO").await?.shown(), "200");
    // Before the first check of the database, and after it.
    check().await?;
    api.until_ready().await?;
    api.service
        .logged(&format!(
            "the extension is {release}, older than the service"
        ))
        .await?;
    check().await?;
    assert_eq!(
        api.claim("ann", "PROMO").await?.shown(),
        "409 already_claimed"
    );
    let users = json!({ "user_ids": ["bob"] });
    let batch = api.send_json(Method::POST, "PROMO/claims", &users).await?;
    assert_eq!(batch.body["outcomes"][0]["outcome"], "claimed");
    let shown = api.show("PROMO").await?.body;
    assert_eq!(shown["claimed_by"], json!(["ann", "bob"]));
    assert_eq!(api.show("PROMO/claims/ann").await?.status, 200);
    create_claimed(&database, "LONG", 2_500).await?;
    check_list(&api.show("LONG").await?.body, 2_500);

    let client = database.connect().await?;
    client
        .batch_execute(&format!(
            "begin;
             alter extension honcho update;
             grant execute on all functions in schema public to {}_caller;
             commit",
            database.name()
        ))
        .await?;
    eventually("the service to find the update", async || {
        let stock = api.show("PROMO/stock").await?;
        Ok((stock.status == 200).then_some(()))
    })
    .await?;
    assert_eq!(api.reserve("carl", "PROMO", 60).await?.status, 201);
    assert_eq!(api.stock("PROMO").await?, "open 2 1");
    check_list(&api.show("LONG").await?.body, 2_500);
    soon("readiness", api.until_ready()).await?;
    api.service.logged("everything is served").await?;
    database.books().await
}
