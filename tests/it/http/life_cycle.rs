//! The life of a coupon: its stock, changes, restocks, releases, deletion, and a user's claims.

use std::sync::Arc;

use anyhow::{Context, Result};
use honcho_tests::{Database, counts};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::fixtures::{
    api::{Answer, Api, answer},
    scrape::Scrape,
    signer::{Signer, claims},
};

async fn patch(api: &Api, coupon: &str, body: &Value) -> Result<Answer> {
    api.send_json(Method::PATCH, coupon, body).await
}

async fn restock(api: &Api, coupon: &str, delta: i64) -> Result<Answer> {
    let body = json!({ "delta": delta });
    api.send_json(Method::POST, &format!("{coupon}/restock"), &body)
        .await
}

/// The kinds and actors of the coupon's events, in their order, without the name of the role.
async fn events(database: &Database, coupon: &str) -> Result<Vec<String>> {
    let sql = "select kind || ' ' || regexp_replace(actor, '^[a-z0-9_]+', '')
                 from coupon_events where coupon_name = $1 order by id";
    let rows = database.connect().await?.query(sql, &[&coupon]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[tokio::test]
async fn stock_has_its_figures_and_its_state() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "select honcho_create_coupon('open', 5, '2020-01-31 12:00:00.5+00', '2999-02-01 00:00+02');
             select honcho_claim('ann', 'open');
             select honcho_reserve('bob', 'open', '1 hour');
             select honcho_create_coupon('not_started', 5, 'infinity');
             select honcho_create_coupon('ended', 5, null, now() - interval '1 day');
             select honcho_create_coupon('paused', 5);
             select honcho_update_coupon('paused', paused => true);
             select honcho_create_coupon('sold_out', 1);
             select honcho_claim('ann', 'sold_out');
             select honcho_create_coupon('all_held', 1);
             select honcho_reserve('ann', 'all_held', '1 hour');",
        )
        .await?;
    let shown = api.show("open/stock").await?;
    assert_eq!(
        (shown.status, shown.header("cache-control")),
        (200, "no-store")
    );
    assert_eq!(
        shown.body,
        json!({
            "name": "open", "amount": 5, "remaining_amount": 3, "held_amount": 1,
            "starts_at": "2020-01-31T12:00:00.500000Z", "ends_at": "2999-01-31T22:00:00.000000Z",
            "paused": false, "state": "open",
        })
    );
    for state in ["not_started", "ended", "paused", "sold_out", "all_held"] {
        let stock = api.show(&format!("{state}/stock")).await?.body;
        assert_eq!(stock["state"], state);
        assert_eq!(stock["paused"], state == "paused");
        // A claim by a new user meets just that.
        let claimed = api.claim("new", state).await?;
        assert_eq!(claimed.shown(), format!("409 {state}"));
    }
    for name in ["none", "%00", "%FF"] {
        let missing = api.show(&format!("{name}/stock")).await?;
        assert_eq!(missing.shown(), "404 coupon_not_found", "{name}");
    }
    database.books().await
}

#[tokio::test]
async fn patch_changes_what_it_names_and_null_removes_a_bound() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let api = Api::start(database.caller_url()).await?;
    assert_eq!(api.claim("ann", "PROMO").await?.status, 200);
    let mut expected = json!({
        "name": "PROMO", "amount": 5, "remaining_amount": 4, "held_amount": 0,
        "starts_at": null, "ends_at": null, "paused": false, "state": "open",
    });
    for (body, changes) in [
        (json!({}), json!({})),
        (
            json!({ "paused": true }),
            json!({ "paused": true, "state": "paused" }),
        ),
        (
            json!({ "starts_at": "2999-11-27T13:00:00+01:00", "paused": false }),
            json!({ "starts_at": "2999-11-27T12:00:00.000000Z", "paused": false,
                    "state": "not_started" }),
        ),
        (
            json!({ "starts_at": null, "ends_at": "2020-01-01T00:00:00.1234567Z" }),
            json!({ "starts_at": null, "ends_at": "2020-01-01T00:00:00.123456Z", "state": "ended" }),
        ),
        (json!({ "starts_at": null }), json!({})),
        (
            json!({ "ends_at": null }),
            json!({ "ends_at": null, "state": "open" }),
        ),
        (
            json!({ "amount": 7 }),
            json!({ "amount": 7, "remaining_amount": 6 }),
        ),
        (
            json!({ "amount": 1 }),
            json!({ "amount": 1, "remaining_amount": 0, "state": "sold_out" }),
        ),
        (
            json!({ "amount": 2_147_483_647 }),
            json!({ "amount": 2_147_483_647, "remaining_amount": 2_147_483_646, "state": "open" }),
        ),
    ] {
        for (field, value) in changes.as_object().context("no object")? {
            expected[field] = value.clone();
        }
        let patched = patch(&api, "PROMO", &body).await?;
        assert_eq!((patched.status, &patched.body), (200, &expected), "{body}");
        assert_eq!(api.show("PROMO/stock").await?.body, expected, "{body}");
    }
    let below = patch(&api, "PROMO", &json!({ "amount": 0 })).await?;
    assert_eq!(below.shown(), "409 below_given");
    assert_eq!(api.show("PROMO/stock").await?.body, expected);
    let missing = patch(&api, "none", &json!({ "paused": true })).await?;
    assert_eq!(missing.shown(), "404 coupon_not_found");
    // Both media types, as any other.
    for content_type in [
        "application/merge-patch+json",
        "application/json",
        "text/plain",
    ] {
        let request = api
            .request(Method::PATCH, "/api/coupons/PROMO")
            .header("content-type", content_type)
            .body(r#"{"amount":3}"#);
        assert_eq!(answer(request).await?.status, 200, "{content_type}");
    }
    database.books().await
}

#[tokio::test]
async fn wrong_changes_are_named_and_change_nothing() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let created = json!({ "name": "PROMO", "amount": 5, "starts_at": "2020-01-01T00:00:00Z",
                          "ends_at": "2999-01-01T00:00:00Z" });
    let create = api.request(Method::POST, "/api/coupons").json(&created);
    assert_eq!(answer(create).await?.status, 201);
    let before = api.show("PROMO/stock").await?.body;
    let mut cases = Vec::new();
    for (body, detail) in [
        (r#"{"amount":null}"#, "amount must be a whole number from 0"),
        (r#"{"amount":-1}"#, "amount must be"),
        (r#"{"amount":2147483648}"#, "amount must be"),
        (r#"{"amount":1.5}"#, "amount must be"),
        (r#"{"amount":"5"}"#, "amount must be"),
        (r#"{"paused":null}"#, "paused must be true or false"),
        (r#"{"paused":"true"}"#, "paused must be"),
        (r#"{"paused":1}"#, "paused must be"),
        (r#"{"end_at":null}"#, "`end_at`"),
        (r#"{"name":"OTHER"}"#, "`name`"),
        (r#"{"remaining_amount":5}"#, "`remaining_amount`"),
        (r#"{"paused":true,"paused":true}"#, "`paused`"),
        (
            r#"{"starts_at":"2030-01-01T00:00:00Z","ends_at":"2030-01-01T01:00:00+01:00"}"#,
            "ends_at must be after starts_at",
        ),
        // The other bound is the coupon's own.
        (
            r#"{"starts_at":"2999-01-01T00:00:00Z"}"#,
            "ends_at must be after starts_at",
        ),
        (
            r#"{"ends_at":"2019-01-01T00:00:00Z"}"#,
            "ends_at must be after starts_at",
        ),
        ("[]", "JSON object"),
        ("", "JSON object"),
    ] {
        cases.push((Method::PATCH, "PROMO", body.to_owned(), detail));
    }
    for moment in [
        "2030-01-01",
        "2030-01-01T12:00:00",
        "2030-01-01 12:00:00Z",
        "2030-01-01T12:00:60Z",
        "infinity",
        "-infinity",
        "tomorrow",
        "",
    ] {
        for (field, detail) in [
            ("starts_at", "starts_at must be a moment"),
            ("ends_at", "ends_at must be a moment"),
        ] {
            let body = format!(r#"{{"{field}":"{moment}"}}"#);
            cases.push((Method::PATCH, "PROMO", body, detail));
        }
    }
    for (body, detail) in [
        ("{}", "delta is required"),
        (r#"{"delta":null}"#, "delta is required"),
        (
            r#"{"delta":"1"}"#,
            "delta must be a whole number from -2147483647 to 2147483647",
        ),
        (r#"{"delta":-2147483648}"#, "delta must be"),
        (
            r#"{"delta":2147483643}"#,
            "delta would make the amount larger than 2147483647",
        ),
        (r#"{"delta":1,"amount":1}"#, "`amount`"),
    ] {
        cases.push((Method::POST, "PROMO/restock", body.to_owned(), detail));
    }
    for (query, detail) in [
        ("claims=yes", "claims must be true or false"),
        ("claims", "claims must be true or false"),
        ("claims=true&claims=true", "claims is given twice"),
        ("claim=true", "\"claim\""),
    ] {
        let path = format!("PROMO?{query}");
        cases.push((Method::DELETE, path.leak(), String::new(), detail));
    }
    for (method, path, body, detail) in cases {
        let request = api.request(method.clone(), &format!("/api/coupons/{path}"));
        let refused = answer(request.body(body.clone())).await?;
        assert_eq!(
            refused.shown(),
            "400 invalid_request",
            "{method} {path} {body}"
        );
        let said = refused.body["detail"].as_str().unwrap_or_default();
        assert!(said.contains(detail), "{method} {path} {body}: {said}");
        assert_eq!(api.show("PROMO/stock").await?.body, before, "{body}");
    }
    let refused = restock(&api, "PROMO", -6).await?;
    assert_eq!(refused.shown(), "409 below_given");
    assert_eq!(
        restock(&api, "none", 1).await?.shown(),
        "404 coupon_not_found"
    );
    assert_eq!(api.show("PROMO/stock").await?.body, before);
    database.books().await
}

#[tokio::test]
async fn no_claim_is_made_at_the_end_or_later() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1_000_000).await?;
    let api = Api::start(database.caller_url()).await?;
    let client = database.connect().await?;
    let soon = r#"select to_char((clock_timestamp() + interval '0.3 s') at time zone 'UTC',
                                 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;
    let soon: String = client.query_one(soon, &[]).await?.get(0);
    let patched = patch(&api, "PROMO", &json!({ "ends_at": soon })).await?;
    assert_eq!(patched.body["ends_at"], soon);
    for user in 0.. {
        let claimed = api.claim(&user.to_string(), "PROMO").await?.shown();
        if claimed == "409 ended" {
            break;
        }
        assert_eq!(claimed, "200");
    }
    let claims =
        "select count(*), count(*) filter (where claimed_at >= $1::text::timestamptz) from claims";
    let row = client.query_one(claims, &[&soon]).await?;
    let (claims, late): (i64, i64) = (row.get(0), row.get(1));
    assert!(claims > 0 && late == 0, "{late} of {claims}");
    // A pause holds from its answer on.
    let pause = json!({ "paused": true, "ends_at": null });
    assert_eq!(patch(&api, "PROMO", &pause).await?.body["state"], "paused");
    assert_eq!(api.claim("late", "PROMO").await?.shown(), "409 paused");
    database.books().await
}

#[tokio::test]
async fn restocks_at_once_add_up() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    let mut changes = JoinSet::new();
    for n in 0..20 {
        let api = Arc::clone(&api);
        changes.spawn(async move {
            let delta = if n % 2 == 0 { 3 } else { -2 };
            let claimed = api.claim(&format!("user {n}"), "PROMO").await?;
            let restocked = restock(&api, "PROMO", delta).await?;
            anyhow::Ok((claimed.status, restocked.status))
        });
    }
    while let Some(statuses) = changes.join_next().await {
        assert_eq!(statuses??, (200, 200));
    }
    let stock = api.show("PROMO/stock").await?.body;
    assert_eq!(
        (&stock["amount"], &stock["remaining_amount"]),
        (&json!(110), &json!(90))
    );
    database.books().await
}

#[tokio::test]
async fn released_claim_is_stock_once() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    for _ in 0..3 {
        assert_eq!(api.claim("ann", "PROMO").await?.shown(), "200");
        assert_eq!(api.claim("bob", "PROMO").await?.shown(), "409 sold_out");
        let mut releases = JoinSet::new();
        for _ in 0..20 {
            let api = Arc::clone(&api);
            releases.spawn(async move { anyhow::Ok(api.release("ann", "PROMO").await?.shown()) });
        }
        let mut answered = std::collections::BTreeMap::new();
        while let Some(release) = releases.join_next().await {
            *answered.entry(release??).or_default() += 1;
        }
        assert_eq!(answered, counts(&[("200", 1), ("404 claim_not_found", 19)]));
        assert_eq!(api.stock("PROMO").await?, "open 1 0");
    }
    assert_eq!(api.claim("bob", "PROMO").await?.shown(), "200");
    let released = api.release("bob", "PROMO").await?;
    assert_eq!(
        released.body,
        json!({ "message": "claim released", "user_id": "bob", "coupon_name": "PROMO" })
    );
    for (user, coupon, expected) in [
        ("ann", "none", "404 coupon_not_found"),
        ("ann", "%00", "404 coupon_not_found"),
        ("%00", "PROMO", "404 claim_not_found"),
        ("%FF", "PROMO", "404 coupon_not_found"),
    ] {
        let refused = api.release(user, coupon).await?;
        assert_eq!(refused.shown(), expected, "{user} {coupon}");
    }
    database.books().await
}

#[tokio::test]
async fn deleted_coupon_is_gone_and_its_name_is_free() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    // One name has routes of its own.
    for name in ["PROMO", "claim"] {
        database.create_coupon(name, 5).await?;
        assert_eq!(api.claim("ann", name).await?.status, 200);
        for query in ["", "?claims=false"] {
            let refused = api.send(Method::DELETE, &format!("{name}{query}")).await?;
            assert_eq!(refused.shown(), "409 in_use", "{name}{query}");
        }
        assert_eq!(api.release("ann", name).await?.status, 200);
        assert_eq!(api.reserve("ann", name, 60).await?.status, 201);
        let refused = api.send(Method::DELETE, name).await?;
        assert_eq!(refused.shown(), "409 in_use", "{name}");
        assert_eq!(api.claim("bob", name).await?.status, 200);
        let deleted = api
            .send(Method::DELETE, &format!("{name}?claims=true"))
            .await?;
        assert_eq!((deleted.status, deleted.body), (204, Value::Null));
        for path in [
            name.to_owned(),
            format!("{name}/stock"),
            format!("{name}/holds"),
        ] {
            let missing = api.show(&path).await?;
            assert_eq!(missing.shown(), "404 coupon_not_found", "{path}");
        }
        assert_eq!(
            api.claim("ann", name).await?.shown(),
            "404 coupon_not_found"
        );
        let again = api.send(Method::DELETE, name).await?;
        assert_eq!(again.shown(), "404 coupon_not_found");
        // Without claims and holds, no more is asked for.
        assert_eq!(api.create(name, 7).await?.status, 201);
        assert_eq!(api.stock(name).await?, "open 7 0");
        assert_eq!(api.send(Method::DELETE, name).await?.status, 204);
    }
    database.books().await
}

#[tokio::test]
async fn coupon_named_claim_is_changed_like_any_other() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    assert_eq!(api.create("claim", 2).await?.status, 201);
    let patched = patch(&api, "claim", &json!({ "amount": 3 })).await?;
    assert_eq!((patched.status, &patched.body["amount"]), (200, &json!(3)));
    assert_eq!(restock(&api, "claim", 1).await?.body["amount"], 4);
    assert_eq!(api.reserve("ann", "claim", 60).await?.status, 201);
    assert_eq!(api.confirm("ann", "claim").await?.status, 200);
    assert_eq!(api.release("ann", "claim").await?.status, 200);
    assert_eq!(api.stock("claim").await?, "open 4 0");
    database.books().await
}

#[tokio::test]
async fn events_name_the_token_by_a_label() -> Result<()> {
    const SECRET: &str = "a secret of at least thirty-two bytes";
    let database = crate::database().await?;
    let environment = [
        ("JWT_SECRET", SECRET),
        ("API_TOKENS", "0123456789abcdef:claim,read,admin"),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let signer = Signer::Hs256(SECRET.into());
    let subject = "ops\n\u{0}team";
    let jwt = json!({ "aud": null, "scope": "claim admin", "sub": subject });
    let jwt = signer.token(None, &claims(&jwt)?)?;
    for (coupon, token, label) in [
        // The beginning of the token's SHA-256 digest.
        ("BY TOKEN", "0123456789abcdef", "/token-9f9f5111"),
        ("BY SUBJECT", &*jwt, "/sub:opsteam"),
    ] {
        let send = async |method: Method, path: &str, body: Value| {
            let request = api.request(method, &format!("/api/coupons{path}"));
            let request = request.header("authorization", format!("Bearer {token}"));
            answer(request.json(&body)).await
        };
        let path = format!("/{}", coupon.replace(' ', "%20"));
        let create = json!({ "name": coupon, "amount": 2 });
        assert_eq!(send(Method::POST, "", create).await?.status, 201);
        for body in [json!({ "paused": true }), json!({ "paused": false })] {
            assert_eq!(send(Method::PATCH, &path, body).await?.status, 200);
        }
        let delta = json!({ "delta": 1 });
        let restocked = send(Method::POST, &format!("{path}/restock"), delta).await?;
        assert_eq!(restocked.status, 200);
        if coupon == "BY TOKEN" {
            // No session keeps the label: the claim is by nobody in particular, and so is what it causes.
            for user in ["a", "b", "c"] {
                let claim = json!({ "user_id": user, "coupon_name": coupon });
                assert_eq!(send(Method::POST, "/claim", claim).await?.status, 200);
            }
            let release = format!("{path}/claims/a");
            let released = send(Method::DELETE, &release, json!({})).await?;
            assert_eq!(released.status, 200);
        }
        let delete = format!("{path}?claims=true");
        // No body: the answer has none either.
        let request = api.request(Method::DELETE, &format!("/api/coupons{delete}"));
        let request = request.header("authorization", format!("Bearer {token}"));
        assert_eq!(answer(request).await?.status, 204);
        let mut expected = ["created", "paused", "resumed", "restocked"]
            .map(|kind| format!("{kind} {label}"))
            .to_vec();
        if coupon == "BY TOKEN" {
            expected.push("sold_out ".to_owned());
            expected.push(format!("released {label}"));
            expected.push("available_again ".to_owned());
        }
        expected.push(format!("deleted {label}"));
        assert_eq!(events(&database, coupon).await?, expected, "{coupon}");
    }
    let secrets = "select count(*) from coupon_events e where e::text like '%0123456789abcdef%'";
    let secrets: i64 = database
        .connect()
        .await?
        .query_one(secrets, &[])
        .await?
        .get(0);
    assert_eq!(secrets, 0);
    database.books().await
}

#[tokio::test]
async fn claims_of_a_user_are_listed_page_by_page() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let client = database.connect().await?;
    client
        .batch_execute("select honcho_create_coupon('C' || n, 5) from generate_series(1, 9) as n")
        .await?;
    for n in [8, 2, 4, 1, 6] {
        assert_eq!(api.claim("a/b", &format!("C{n}")).await?.status, 200);
        assert_eq!(api.claim("other", &format!("C{n}")).await?.status, 200);
    }
    let get = async |path: &str| answer(api.request(Method::GET, path)).await;
    let mut path = Some("/api/users/a%2Fb/claims?limit=2".to_owned());
    let mut found = Vec::new();
    let mut pages = 0;
    while let Some(at) = path {
        let page = get(&at).await?;
        assert_eq!(
            (page.status, page.header("cache-control")),
            (200, "no-store")
        );
        for claim in page.body["claims"].as_array().context("no list")? {
            let at = claim["claimed_at"].as_str().context("no time")?;
            assert!(at.len() == 27 && at.ends_with('Z'), "{at}");
            found.push((claim["coupon_id"].as_i64(), claim["coupon_name"].clone()));
        }
        pages += 1;
        path = page
            .header("link")
            .strip_suffix(">; rel=\"next\"")
            .and_then(|link| link.strip_prefix('<'))
            .map(ToOwned::to_owned);
    }
    let expected = [1, 2, 4, 6, 8].map(|n| (Some(n), json!(format!("C{n}"))));
    assert_eq!((&found[..], pages), (&expected[..], 3));
    for nobody in ["nobody", "%00", &"x".repeat(256)] {
        let none = get(&format!("/api/users/{nobody}/claims")).await?;
        assert_eq!(
            (none.status, none.body),
            (200, json!({ "claims": [] })),
            "{nobody}"
        );
    }
    let refused = get("/api/users/nobody/claims?coupon=C1").await?;
    assert_eq!(refused.shown(), "400 invalid_request");
    database.books().await
}

#[tokio::test]
async fn every_operation_is_counted_by_its_outcome() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let scrape = Scrape::of(&api.service).await?;
    // All of them from the start, and no more: a rate does not see a series that starts at one.
    let series = |scrape: &Scrape| -> Vec<String> {
        let series = scrape.series().into_iter();
        let operations = series.filter(|series| series.starts_with("honcho_operations_total{"));
        operations.map(ToOwned::to_owned).collect()
    };
    let before = series(&scrape);
    assert_eq!(before.len(), 10 + 3 * 5 + 3 * 4, "{before:?}");
    api.create("PROMO", 1).await?;
    patch(&api, "PROMO", &json!({ "amount": 2 })).await?;
    patch(&api, "none", &json!({ "amount": 2 })).await?;
    restock(&api, "PROMO", -9).await?;
    api.claim("ann", "PROMO").await?;
    api.send(Method::DELETE, "PROMO").await?;
    api.send(Method::DELETE, "PROMO?claims=true").await?;
    let scrape = Scrape::of(&api.service).await?;
    for (operation, outcome) in [
        ("update", "updated"),
        ("update", "not_found"),
        ("restock", "below_given"),
        ("delete", "in_use"),
        ("delete", "deleted"),
    ] {
        let name =
            format!("honcho_operations_total{{operation=\"{operation}\",outcome=\"{outcome}\"}}");
        assert_eq!(scrape.value(&name), 1.0, "{name}");
    }
    assert_eq!(series(&scrape), before);
    database.books().await
}
