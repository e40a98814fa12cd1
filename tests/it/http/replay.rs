//! Repeated requests: `Idempotency-Key`.

use std::sync::Arc;

use anyhow::Result;
use honcho_tests::{Service, eventually};
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use tokio::task::JoinSet;

use crate::fixtures::{
    api::{Answer, Api, answer},
    held_coupon::{LONG_TIMEOUTS, hold, until_queued},
    scrape::Scrape,
};

fn with_key(request: RequestBuilder, key: &str) -> RequestBuilder {
    request.header("idempotency-key", key)
}

async fn claim(api: &Api, user: &str, coupon: &str, key: &str) -> Result<Answer> {
    answer(with_key(api.claim_request(user, coupon), key)).await
}

/// The status, and if it is a replay.
fn shown(answer: &Answer) -> String {
    match answer.header("idempotency-replayed") {
        "" => answer.shown(),
        value => format!("{} {value}", answer.shown()),
    }
}

#[tokio::test]
async fn claim_with_the_same_key_is_answered_again() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    database.create_coupon("OTHER", 10).await?;
    let api = Api::start(database.caller_url()).await?;
    for (user, coupon, key, expected) in [
        ("ann", "PROMO", "key", "200"),
        ("ann", "PROMO", "key", "200 true"),
        ("ann", "PROMO", "key", "200 true"),
        ("ann", "PROMO", "Key", "409 already_claimed"),
        // The keys of one user, on one coupon, mean nothing for another.
        ("bob", "PROMO", "key", "200"),
        ("ann", "OTHER", "key", "200"),
    ] {
        let answered = claim(&api, user, coupon, key).await?;
        assert_eq!(shown(&answered), expected, "{user} {coupon} {key}");
        if answered.status == 200 {
            assert_eq!(
                answered.body,
                json!({ "message": "coupon claimed", "user_id": user, "coupon_name": coupon })
            );
        }
    }
    let plain = api.claim("ann", "PROMO").await?;
    assert_eq!(shown(&plain), "409 already_claimed");
    // A claim without a key is not replayed by one with a key.
    assert_eq!(api.claim("carl", "PROMO").await?.shown(), "200");
    let keyed = claim(&api, "carl", "PROMO", "key").await?;
    assert_eq!(shown(&keyed), "409 already_claimed");
    let scrape = Scrape::of(&api.service).await?;
    let counted = |outcome| scrape.value(&format!("honcho_claims_total{{outcome=\"{outcome}\"}}"));
    assert_eq!(counted("claimed"), 4.0);
    assert_eq!(counted("replayed"), 2.0);
    assert_eq!(counted("already_claimed"), 3.0);
    database.books().await
}

#[tokio::test]
async fn twenty_at_once_with_one_key_make_one_claim() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    let mut claims = JoinSet::new();
    for _ in 0..20 {
        let api = Arc::clone(&api);
        claims.spawn(async move { claim(&api, "ann", "PROMO", "key").await });
    }
    let mut replays = 0;
    while let Some(answered) = claims.join_next().await {
        let answered = answered??;
        assert_eq!(answered.status, 200);
        let body = json!({ "message": "coupon claimed", "user_id": "ann", "coupon_name": "PROMO" });
        assert_eq!(answered.body, body);
        replays += usize::from(answered.header("idempotency-replayed") == "true");
    }
    assert_eq!(replays, 19);
    assert_eq!(api.stock("PROMO").await?, "open 9 0");
    database.books().await
}

#[tokio::test]
async fn keys_hold_within_a_batch_of_other_claims() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 8).await?;
    let api = Arc::new(Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?);
    let client = database.connect().await?;
    let holder = hold(&database, "PROMO").await?;
    let mut claims = JoinSet::new();
    let first = Arc::clone(&api);
    claims.spawn(async move { Ok(first.claim("first", "PROMO").await?.shown()) });
    until_queued(&client, 1).await?;
    for n in 0..30 {
        let api = Arc::clone(&api);
        claims.spawn(async move {
            let user = format!("user {}", n % 10);
            let answered = match n / 10 {
                0 => api.claim(&user, "PROMO").await?,
                _ => claim(&api, &user, "PROMO", "key").await?,
            };
            anyhow::Ok(answered.shown())
        });
    }
    eventually("the crowd to wait in its lane", async || {
        let scrape = Scrape::of(&api.service).await?;
        Ok((scrape.value("honcho_lane_waiting_claims") == 30.0).then_some(()))
    })
    .await?;
    holder.batch_execute("rollback").await?;
    let mut answered = std::collections::BTreeMap::<String, usize>::new();
    while let Some(claim) = claims.join_next().await {
        *answered.entry(claim??).or_default() += 1;
    }
    // Seven of the ten users get one: by their plain claim, and then those with keys are refused; or by the first
    // with a key, and then the second is a replay and the plain one is refused.
    assert_eq!(answered.values().sum::<usize>(), 31);
    assert_eq!(answered.get("409 sold_out"), Some(&9), "{answered:?}");
    let claims: i64 = client
        .query_one("select count(*) from claims", &[])
        .await?
        .get(0);
    assert_eq!(claims, 8);
    database.books().await
}

#[tokio::test]
async fn refusals_are_not_remembered_and_keys_go_with_their_claim() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let api = Api::start(database.caller_url()).await?;
    assert_eq!(claim(&api, "ann", "PROMO", "a").await?.shown(), "200");
    assert_eq!(
        claim(&api, "bob", "PROMO", "b").await?.shown(),
        "409 sold_out"
    );
    let delta = json!({ "delta": 1 });
    let restocked = api.send_json(Method::POST, "PROMO/restock", &delta).await?;
    assert_eq!(restocked.status, 200);
    assert_eq!(shown(&claim(&api, "bob", "PROMO", "b").await?), "200");
    assert_eq!(api.release("ann", "PROMO").await?.shown(), "200");
    // A new claim, and no replay.
    assert_eq!(shown(&claim(&api, "ann", "PROMO", "a").await?), "200");
    assert_eq!(shown(&claim(&api, "ann", "PROMO", "a").await?), "200 true");
    database.books().await
}

#[tokio::test]
async fn key_of_a_hold_becomes_the_key_of_its_claim() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let api = Api::start(database.caller_url()).await?;
    let reserve = || {
        let request = api.request(Method::POST, "/api/coupons/PROMO/holds");
        with_key(request.json(&json!({ "user_id": "ann" })), "key")
    };
    let held = answer(reserve()).await?;
    let again = answer(reserve()).await?;
    assert_eq!((held.status, again.status), (201, 201));
    assert_eq!(held.body, again.body);
    assert_eq!(api.confirm("ann", "PROMO").await?.shown(), "200");
    assert_eq!(
        shown(&claim(&api, "ann", "PROMO", "key").await?),
        "200 true"
    );
    assert_eq!(
        shown(&claim(&api, "ann", "PROMO", "other").await?),
        "409 already_claimed"
    );
    database.books().await
}

#[tokio::test]
async fn wrong_keys_are_named() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let api = Api::start(database.caller_url()).await?;
    let requests = || {
        let hold = api.request(Method::POST, "/api/coupons/PROMO/holds");
        [
            api.claim_request("ann", "PROMO"),
            hold.json(&json!({ "user_id": "ann" })),
        ]
    };
    for key in ["", " ", "a b", "schl\u{fc}ssel", &"k".repeat(256)] {
        for request in requests() {
            let refused = answer(with_key(request, key)).await?;
            assert_eq!(refused.shown(), "400 invalid_request", "{key:?}");
            let detail = refused.body["detail"].as_str().unwrap_or_default();
            assert!(detail.contains("Idempotency-Key must have"), "{detail}");
        }
    }
    for request in requests() {
        let refused = answer(with_key(with_key(request, "a"), "a")).await?;
        assert_eq!(refused.shown(), "400 invalid_request");
        let detail = refused.body["detail"].as_str().unwrap_or_default();
        assert!(
            detail.contains("Idempotency-Key must be there once"),
            "{detail}"
        );
    }
    assert_eq!(api.stock("PROMO").await?, "open 5 0");
    // The longest, and every character that may be in one.
    let longest = "k".repeat(255);
    let all: String = ('!'..='~').collect();
    for (user, key) in [("bob", &longest), ("carl", &all)] {
        for expected in ["200", "200 true"] {
            assert_eq!(shown(&claim(&api, user, "PROMO", key).await?), expected);
        }
    }
    database.books().await
}

#[tokio::test]
async fn pages_of_listed_origins_may_send_keys_and_see_replays() -> Result<()> {
    let database = crate::database().await?;
    let environment = [("CORS_ORIGINS", "https://shop.example")];
    let service = Service::start_with(database.caller_url(), &environment).await?;
    let http = reqwest::Client::new();
    let preflight = http
        .request(Method::OPTIONS, service.url("/api/coupons/claim"))
        .header("origin", "https://shop.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "idempotency-key")
        .send()
        .await?;
    let header = |response: &reqwest::Response, name: &str| {
        let value = response.headers().get(name);
        value.map(|value| value.to_str().unwrap_or_default().to_lowercase())
    };
    let allowed = header(&preflight, "access-control-allow-headers").unwrap_or_default();
    assert!(allowed.contains("idempotency-key"), "{allowed}");
    let methods = header(&preflight, "access-control-allow-methods").unwrap_or_default();
    assert!(
        methods.contains("patch") && methods.contains("delete"),
        "{methods}"
    );
    let shown = http
        .get(service.url("/api/coupons"))
        .header("origin", "https://shop.example")
        .send()
        .await?;
    let exposed = header(&shown, "access-control-expose-headers").unwrap_or_default();
    assert!(exposed.contains("idempotency-replayed"), "{exposed}");
    assert!(exposed.contains("retry-after"), "{exposed}");
    // A page of another origin may neither change nor delete.
    for method in [Method::PATCH, Method::DELETE] {
        let refused = http
            .request(method.clone(), service.url("/api/coupons/PROMO"))
            .header("origin", "https://evil.example")
            .body("{}")
            .send()
            .await?;
        assert_eq!(refused.status(), 403, "{method}");
    }
    Ok(())
}
