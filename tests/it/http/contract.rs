//! The contract of each route: answers to valid requests, and refusals.

use anyhow::Result;
use reqwest::Method;
use serde_json::json;

use crate::fixtures::api::{Api, answer};

#[tokio::test]
async fn coupon_is_created_claimed_and_shown() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;

    let created = api.create("PROMO", 2).await?;
    assert_eq!(created.status, 201);
    assert_eq!(created.header("location"), "/api/coupons/PROMO");
    assert_eq!(
        created.body,
        json!({ "message": "coupon created", "name": "PROMO" })
    );

    let shown = api.show("PROMO").await?;
    assert_eq!(shown.status, 200);
    assert_eq!(shown.header("content-type"), "application/json");
    assert_eq!(
        shown.body,
        json!({ "name": "PROMO", "amount": 2, "remaining_amount": 2, "claimed_by": [] })
    );

    let claimed = api.claim("second by name", "PROMO").await?;
    assert_eq!(claimed.status, 200);
    assert_eq!(
        claimed.body,
        json!({ "message": "coupon claimed", "user_id": "second by name", "coupon_name": "PROMO" })
    );
    assert_eq!(api.claim("first by name", "PROMO").await?.status, 200);
    assert_eq!(
        api.show("PROMO").await?.body,
        json!({
            "name": "PROMO", "amount": 2, "remaining_amount": 0,
            "claimed_by": ["second by name", "first by name"],
        })
    );
    database.books().await
}

#[tokio::test]
async fn coupon_is_claimable_only_within_its_window() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    for (body, outcome, window) in [
        (
            json!({ "name": "later", "amount": 1, "starts_at": "2999-11-27T12:00:00+01:00" }),
            "409 not_started",
            (json!("2999-11-27T11:00:00.000000Z"), json!(null)),
        ),
        (
            json!({ "name": "over", "amount": 1, "ends_at": "2020-02-29T23:59:59.5Z" }),
            "409 ended",
            (json!(null), json!("2020-02-29T23:59:59.500000Z")),
        ),
        (
            json!({ "name": "now", "amount": 1, "starts_at": "2020-01-01T00:00:00Z",
                    "ends_at": "2999-01-01T00:00:00-05:00" }),
            "200",
            (
                json!("2020-01-01T00:00:00.000000Z"),
                json!("2999-01-01T05:00:00.000000Z"),
            ),
        ),
        (
            json!({ "name": "always", "amount": 1, "starts_at": null, "ends_at": null }),
            "200",
            (json!(null), json!(null)),
        ),
    ] {
        let created = answer(api.request(Method::POST, "/api/coupons").json(&body)).await?;
        assert_eq!(created.shown(), "201", "{body}");
        let name = body["name"].as_str().unwrap();
        assert_eq!(api.claim("user", name).await?.shown(), outcome, "{body}");
        let list = answer(api.request(Method::GET, "/api/coupons")).await?;
        let coupons = list.body["coupons"].as_array().unwrap();
        let listed = coupons
            .iter()
            .find(|coupon| coupon["name"] == name)
            .unwrap();
        assert_eq!(
            (&listed["starts_at"], &listed["ends_at"]),
            (&window.0, &window.1)
        );
    }
    database.books().await
}

#[tokio::test]
async fn each_refusal_has_its_status_and_code() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "select honcho_create_coupon('open', 5);
             select honcho_create_coupon('empty', 1);
             select honcho_claim('somebody', 'empty');
             select honcho_create_coupon('later', 5, now() + interval '1 day');
             select honcho_create_coupon('over', 5, null, now() - interval '1 day');
             select honcho_create_coupon('paused', 5);
             update coupons set paused = true where name = 'paused';",
        )
        .await?;
    assert_eq!(api.claim("user", "open").await?.shown(), "200");
    for (coupon, expected) in [
        ("open", "409 already_claimed"),
        ("empty", "409 sold_out"),
        ("later", "409 not_started"),
        ("over", "409 ended"),
        ("paused", "409 paused"),
        ("none", "404 coupon_not_found"),
    ] {
        assert_eq!(
            api.claim("user", coupon).await?.shown(),
            expected,
            "{coupon}"
        );
    }
    assert_eq!(api.create("open", 7).await?.shown(), "409 coupon_exists");
    assert_eq!(api.show("open").await?.body["amount"], 5);
    assert_eq!(api.show("none").await?.shown(), "404 coupon_not_found");
    database.books().await
}

#[tokio::test]
async fn unusual_names_round_trip() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let names = [
        "claim".to_owned(),
        "with space".to_owned(),
        "a/b?c#d%e&f+g".to_owned(),
        r#"quote " and ' and \ "#.to_owned(),
        "'; drop table claims; --".to_owned(),
        "line\nbreak\ttab\u{1}".to_owned(),
        "gutschein für 2 €".to_owned(),
        "null".to_owned(),
        "x".repeat(255),
        "🎟".repeat(255),
    ];
    for name in names {
        let created = api.create(&name, 1).await?;
        assert_eq!(created.status, 201, "{name}");
        assert_eq!(created.body["name"], name);
        // The user has the same name, so that both fields are tested.
        assert_eq!(api.claim(&name, &name).await?.status, 200, "{name}");
        let location = created.header("location");
        let shown = answer(api.request(Method::GET, location)).await?;
        assert_eq!(shown.status, 200, "{name} at {location}");
        assert_eq!(
            shown.body,
            json!({ "name": name, "amount": 1, "remaining_amount": 0, "claimed_by": [name] })
        );
    }
    database.books().await
}

#[tokio::test]
async fn largest_amount_is_accepted() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    assert_eq!(api.create("PROMO", i32::MAX).await?.status, 201);
    assert_eq!(api.claim("user", "PROMO").await?.status, 200);
    assert_eq!(
        api.show("PROMO").await?.body["remaining_amount"],
        i32::MAX - 1
    );
    database.books().await
}

#[tokio::test]
async fn content_type_is_ignored() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let create = |content_type: Option<&str>, body: &'static str| {
        let mut request = api.request(Method::POST, "/api/coupons").body(body);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        answer(request)
    };
    assert_eq!(
        create(None, r#"{"name":"a","amount":1}"#).await?.status,
        201
    );
    assert_eq!(
        create(Some("text/plain"), r#"{"name":"b","amount":1}"#)
            .await?
            .status,
        201
    );
    let form = Some("application/x-www-form-urlencoded");
    assert_eq!(
        create(form, r#" { "amount" : 1, "name" : "c" } "#)
            .await?
            .status,
        201
    );
    // Unknown fields are refused, because one may be a known field with a typing error.
    let more = r#"{"name":"d","amount":1,"more":{"amount":[[[{}]]]},"id":null}"#;
    let refused = create(Some("application/json"), more).await?;
    assert_eq!(refused.shown(), "400 invalid_request");
    for name in ["a", "b", "c"] {
        assert_eq!(api.show(name).await?.body["amount"], 1, "{name}");
    }
    database.books().await
}

#[tokio::test]
async fn request_keeps_its_id() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let with_id = |id: &str| answer(api.show_request("none").header("x-request-id", id));
    let kept = with_id("my-request:1").await?;
    assert_eq!(kept.body["request_id"], "my-request:1");
    let replaced = with_id("not so \"sane\"").await?;
    assert!(!replaced.header("x-request-id").contains("sane"));
    let (one, other) = (api.show("none").await?, api.show("none").await?);
    assert_ne!(one.header("x-request-id"), other.header("x-request-id"));
    Ok(())
}

#[tokio::test]
async fn head_answers_without_a_body() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    database.create_coupon("PROMO", 1).await?;
    for (path, status) in [("PROMO", 200), ("none", 404)] {
        let head = api
            .request(Method::HEAD, &format!("/api/coupons/{path}"))
            .send()
            .await?;
        assert_eq!(head.status(), status);
        assert!(head.bytes().await?.is_empty());
    }
    Ok(())
}
