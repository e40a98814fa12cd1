//! Reads: lists in pages, single claims, HEAD, OPTIONS and caches.

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixtures::api::{Answer, Api, answer};

/// The path and query of the next page, if there is one.
fn next(page: &Answer) -> Option<String> {
    let link = page.header("link").strip_suffix(">; rel=\"next\"")?;
    Some(link.strip_prefix('<')?.to_owned())
}

async fn get(api: &Api, path: &str) -> Result<Answer> {
    answer(api.request(Method::GET, path)).await
}

/// Collects `field` of each entry on all pages from `path` on, and counts the pages.
async fn walk(api: &Api, path: &str, list: &str, field: &str) -> Result<(Vec<Value>, usize)> {
    let mut found = Vec::new();
    let mut pages = 0;
    let mut path = Some(path.to_owned());
    while let Some(at) = path {
        let page = get(api, &at).await?;
        assert_eq!(page.status, 200, "{page:?}");
        assert_eq!(page.header("cache-control"), "no-store");
        let entries = page.body[list].as_array().context("no list")?;
        found.extend(entries.iter().map(|entry| entry[field].clone()));
        pages += 1;
        path = next(&page);
    }
    Ok((found, pages))
}

#[tokio::test]
async fn coupons_are_listed_page_by_page() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    assert_eq!(
        get(&api, "/api/coupons").await?.body,
        json!({ "coupons": [] })
    );
    let names: Vec<String> = (0..7).rev().map(|n| format!("PROMO_{n}")).collect();
    for name in &names {
        database.create_coupon(name, 3).await?;
    }
    for (limit, pages) in [(1, 7), (2, 4), (6, 2), (7, 1), (1000, 1)] {
        let path = format!("/api/coupons?limit={limit}");
        let (found, taken) = walk(&api, &path, "coupons", "name").await?;
        assert_eq!(json!(found), json!(names), "by {limit}");
        assert_eq!(taken, pages, "by {limit}");
    }
    let (all, _) = walk(&api, "/api/coupons", "coupons", "name").await?;
    assert_eq!(json!(all), json!(names));
    Ok(())
}

#[tokio::test]
async fn listed_coupon_has_all_its_columns() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "set timezone = 'Asia/Kolkata';
             select honcho_create_coupon('plain', 5);
             select honcho_create_coupon('window', 5, '2030-01-31 12:00:00.5+00', '2030-02-01 00:00+02');
             select honcho_create_coupon('never', 5, 'infinity');
             update coupons set paused = true where name = 'never';
             update coupons set created_at = '2026-01-02 03:04:05.000006+00';
             select honcho_claim('user', 'plain');",
        )
        .await?;
    let list = get(&api, "/api/coupons").await?;
    let coupon = |id: i64, name: &str, remaining: i32, window: [Value; 2], paused: bool| {
        let [starts_at, ends_at] = window;
        json!({
            "id": id, "name": name, "amount": 5, "remaining_amount": remaining,
            "created_at": "2026-01-02T03:04:05.000006Z",
            "starts_at": starts_at, "ends_at": ends_at, "paused": paused,
        })
    };
    let window = ["2030-01-31T12:00:00.500000Z", "2030-01-31T22:00:00.000000Z"].map(Value::from);
    assert_eq!(
        list.body["coupons"],
        json!([
            coupon(1, "plain", 4, [Value::Null, Value::Null], false),
            coupon(2, "window", 5, window, false),
            coupon(
                3,
                "never",
                5,
                ["9999-12-31T23:59:59.999999Z".into(), Value::Null],
                true
            ),
        ])
    );
    database.books().await
}

#[tokio::test]
async fn claims_are_listed_page_by_page() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    // One name is a word of the path itself, the other needs escaping.
    for name in ["claim", "50% off/now?"] {
        database.create_coupon(name, 100).await?;
        let users: Vec<String> = (0..25).map(|n| format!("user {}", 25 - n)).collect();
        for user in &users {
            assert_eq!(api.claim(user, name).await?.status, 200);
        }
        let escaped = name
            .replace('%', "%25")
            .replace(' ', "%20")
            .replace('/', "%2F")
            .replace('?', "%3F");
        let path = format!("/api/coupons/{escaped}/claims?limit=10");
        let (found, pages) = walk(&api, &path, "claims", "user_id").await?;
        assert_eq!(json!(found), json!(users));
        assert_eq!(pages, 3);
    }
    database.create_coupon("untouched", 1).await?;
    let none = get(&api, "/api/coupons/untouched/claims").await?;
    assert_eq!((none.status, none.body), (200, json!({ "claims": [] })));
    let nowhere = get(&api, "/api/coupons/nowhere/claims").await?;
    assert_eq!(nowhere.shown(), "404 coupon_not_found");
    database.books().await
}

#[tokio::test]
async fn single_claim_is_shown() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    database.create_coupon("claim", 2).await?;
    assert_eq!(api.claim("a/b ?", "claim").await?.status, 200);
    let shown = get(&api, "/api/coupons/claim/claims/a%2Fb%20%3F").await?;
    assert_eq!(shown.status, 200);
    assert_eq!(shown.header("cache-control"), "no-store");
    let claimed_at: String = database
        .connect()
        .await?
        .query_one(
            r#"select to_char(claimed_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') from claims"#,
            &[],
        )
        .await?
        .get(0);
    assert_eq!(
        shown.body,
        json!({ "id": 1, "user_id": "a/b ?", "coupon_name": "claim", "claimed_at": claimed_at })
    );
    for (path, expected) in [
        ("claim/claims/nobody", "404 claim_not_found"),
        ("nowhere/claims/nobody", "404 coupon_not_found"),
    ] {
        let answer = get(&api, &format!("/api/coupons/{path}")).await?;
        assert_eq!(answer.shown(), expected, "{path}");
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    Ok(())
}

#[tokio::test]
async fn head_matches_get_and_options_lists_methods() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    database.create_coupon("PROMO", 2).await?;
    assert_eq!(api.claim("user", "PROMO").await?.status, 200);
    assert_eq!(api.reserve("holder", "PROMO", 600).await?.status, 201);
    for (path, allowed) in [
        ("/api/coupons", "POST,GET,HEAD"),
        ("/api/coupons/claim", "POST,GET,HEAD,PATCH,DELETE"),
        ("/api/coupons/PROMO", "GET,HEAD,PATCH,DELETE"),
        ("/api/coupons/PROMO/stock", "GET,HEAD"),
        ("/api/coupons/PROMO/claims", "GET,HEAD,POST"),
        ("/api/coupons/PROMO/claims/user", "GET,HEAD,DELETE"),
        ("/api/coupons/PROMO/holds", "GET,HEAD,POST"),
        ("/api/coupons/PROMO/holds/holder", "GET,HEAD,DELETE"),
        ("/api/users/user/claims", "GET,HEAD"),
        ("/openapi.json", "GET,HEAD"),
    ] {
        let options = api.request(Method::OPTIONS, path).send().await?;
        assert_eq!(options.status(), 204, "{path}");
        assert_eq!(options.headers()["allow"], allowed, "{path}");
        assert!(options.bytes().await?.is_empty());
        if path == "/api/coupons/claim" {
            continue;
        }
        let get = api.request(Method::GET, path).send().await?;
        let head = api.request(Method::HEAD, path).send().await?;
        assert_eq!(
            (get.status(), head.status()),
            (200.try_into()?, 200.try_into()?),
            "{path}"
        );
        for header in ["content-type", "content-length", "cache-control", "etag"] {
            assert_eq!(
                head.headers().get(header),
                get.headers().get(header),
                "{path}: {header}"
            );
        }
        assert!(head.bytes().await?.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn documentation_is_304_for_a_known_etag() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    for path in ["/openapi.json", "/docs/", "/docs/swagger-ui-bundle.js"] {
        let sent = api.request(Method::GET, path).send().await?;
        assert_eq!(sent.status(), 200);
        assert_eq!(sent.headers()["cache-control"], "no-cache");
        let tag = sent.headers()["etag"].clone();
        assert!(!sent.bytes().await?.is_empty());
        for (known, status) in [(tag.to_str()?, 304), ("\"other\"", 200)] {
            let request = api
                .request(Method::GET, path)
                .header("if-none-match", known);
            assert_eq!(request.send().await?.status(), status, "{path}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn gzip_is_sent_only_to_clients_that_take_it() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let path = "/docs/swagger-ui.css";
    let plain = api.request(Method::GET, path).send().await?;
    assert!(plain.headers().get("content-encoding").is_none());
    assert_eq!(plain.headers()["vary"], "accept-encoding");
    let plain_tag = plain.headers()["etag"].clone();
    assert!(plain.text().await?.contains(".swagger-ui"));

    let request = api.request(Method::GET, path);
    let gzipped = request.header("accept-encoding", "br, gzip").send().await?;
    assert_eq!(gzipped.headers()["content-encoding"], "gzip");
    assert_eq!(gzipped.headers()["vary"], "accept-encoding");
    assert_ne!(gzipped.headers()["etag"], plain_tag);
    assert_eq!(gzipped.bytes().await?[..2], [0x1f, 0x8b]);
    Ok(())
}

#[tokio::test]
async fn sessions_run_with_jit_off() -> Result<()> {
    let database = crate::database().await?;
    database
        .connect()
        .await?
        .batch_execute(&format!(
            "create schema before;
             create function before.honcho_list_coupons(bigint, integer)
                 returns table (id bigint, name text, amount integer, remaining_amount integer,
                                created_at timestamptz, starts_at timestamptz, ends_at timestamptz,
                                paused boolean)
                 language sql as $$
                 select 1::bigint, current_setting('jit'), 1, 1, now(), null::timestamptz,
                        null::timestamptz, false $$;
             grant usage on schema before to public;
             alter role {}_caller set search_path = before, public",
            database.name()
        ))
        .await?;
    let api = Api::start(database.caller_url()).await?;
    let list = answer(api.request(Method::GET, "/api/coupons")).await?;
    assert_eq!(list.body["coupons"][0]["name"], "off");
    Ok(())
}
