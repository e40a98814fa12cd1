//! Batches of claims that a client makes itself.

use std::sync::Arc;

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::fixtures::{
    api::{Answer, Api, answer},
    scrape::Scrape,
};

async fn batch(api: &Api, coupon: &str, users: &Value) -> Result<Answer> {
    let body = json!({ "user_ids": users });
    api.send_json(Method::POST, &format!("{coupon}/claims"), &body)
        .await
}

#[tokio::test]
async fn batch_has_an_outcome_for_each_user_in_order() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 3).await?;
    let api = Api::start(database.caller_url()).await?;
    assert_eq!(api.reserve("holder", "PROMO", 60).await?.status, 201);
    let answered = batch(
        &api,
        "PROMO",
        &json!(["ann", "ann", "bob", "carl", "holder"]),
    )
    .await?;
    assert_eq!(answered.status, 200);
    assert_eq!(
        answered.body,
        json!({ "outcomes": [
            { "user_id": "ann", "outcome": "claimed" },
            { "user_id": "ann", "outcome": "already_claimed" },
            { "user_id": "bob", "outcome": "claimed" },
            { "user_id": "carl", "outcome": "all_held" },
            { "user_id": "holder", "outcome": "claimed" },
        ] })
    );
    assert_eq!(
        api.show("PROMO").await?.body["claimed_by"],
        json!(["ann", "bob", "holder"])
    );
    let scrape = Scrape::of(&api.service).await?;
    let counted = |outcome| scrape.value(&format!("honcho_claims_total{{outcome=\"{outcome}\"}}"));
    assert_eq!(
        (
            counted("claimed"),
            counted("already_claimed"),
            counted("all_held")
        ),
        (3.0, 1.0, 1.0)
    );
    for name in ["none", "%00", "%FF"] {
        let missing = batch(&api, name, &json!(["ann"])).await?;
        assert_eq!(missing.shown(), "404 coupon_not_found", "{name}");
    }
    database.books().await
}

#[tokio::test]
async fn wrong_batches_are_named_and_claim_nothing() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 50_000).await?;
    let api = Api::start(database.caller_url()).await?;
    let users = |count: usize| -> Vec<Value> { (0..count).map(|n| json!(n.to_string())).collect() };
    let mut wrong = users(9_999);
    wrong.push(json!("x".repeat(256)));
    let too_many = "user_ids must be a list of 1 to 10000 strings";
    for (body, detail) in [
        (json!({}), "user_ids is required"),
        (json!({ "user_ids": null }), "user_ids is required"),
        (json!({ "user_ids": "ann" }), too_many),
        (json!({ "user_ids": [] }), too_many),
        (json!({ "user_ids": users(10_001) }), too_many),
        (
            json!({ "user_ids": ["ann", 5] }),
            "user_ids[1] must be a string",
        ),
        (
            json!({ "user_ids": [null] }),
            "user_ids[0] must be a string",
        ),
        (
            json!({ "user_ids": ["ann", "bob", ""] }),
            "user_ids[2] must not be empty",
        ),
        (
            json!({ "user_ids": ["ann", "b\u{0}"] }),
            "user_ids[1] must not contain NUL",
        ),
        (
            json!({ "user_ids": wrong }),
            "user_ids[9999] must have at most 255",
        ),
        (
            json!({ "user_ids": ["ann"], "user_id": "ann" }),
            "`user_id`",
        ),
    ] {
        let refused = api.send_json(Method::POST, "PROMO/claims", &body).await?;
        assert_eq!(refused.shown(), "400 invalid_request", "{detail}");
        let said = refused.body["detail"].as_str().unwrap_or_default();
        assert!(said.contains(detail), "{said}, not {detail}");
    }
    let large = format!(r#"{{"user_ids":["ann"]}}{}"#, " ".repeat(1024 * 1024));
    let request = api.request(Method::POST, "/api/coupons/PROMO/claims");
    let refused = answer(request.body(large)).await?;
    assert_eq!(refused.shown(), "413 payload_too_large");
    assert_eq!(api.stock("PROMO").await?, "open 50000 0");
    database.books().await
}

#[tokio::test]
async fn largest_batches_run_beside_single_claims() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 25_000).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    let mut batches = JoinSet::new();
    for n in 0..3 {
        let api = Arc::clone(&api);
        batches.spawn(async move {
            // About 400 kB: many times what other requests may have.
            let users = (0..10_000).map(|user| json!(format!("{n} {user:>034}")));
            let answered = batch(&api, "PROMO", &users.collect()).await?;
            assert_eq!(answered.status, 200, "{answered:?}");
            let outcomes = answered.body["outcomes"].as_array().cloned();
            let outcomes = outcomes.unwrap_or_default();
            assert_eq!(outcomes.len(), 10_000);
            let claimed = |outcome: &&Value| outcome["outcome"] == "claimed";
            anyhow::Ok(outcomes.iter().filter(claimed).count())
        });
    }
    let mut claimed = 0;
    for n in 0..200 {
        claimed += usize::from(api.claim(&format!("single {n}"), "PROMO").await?.status == 200);
    }
    while let Some(batch) = batches.join_next().await {
        claimed += batch??;
    }
    assert_eq!(claimed, 25_000);
    assert_eq!(api.stock("PROMO").await?, "sold_out 0 0");
    database.books().await
}
