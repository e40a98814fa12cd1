//! Holds: made, confirmed, cancelled, expired, listed.

use std::sync::Arc;

use anyhow::{Context, Result};
use honcho_tests::{Database, counts, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::fixtures::{
    api::{Answer, Api, answer},
    held_coupon::{LONG_TIMEOUTS, hold, until_queued},
    scrape::Scrape,
};

/// Lets every hold of the coupon expire now, in the order in which they would have.
async fn expire(database: &Database, coupon: &str) -> Result<()> {
    let day = "interval '1 day'";
    let sql = format!(
        "update holds set expires_at = expires_at - {day} where coupon_name = '{coupon}';
         update coupons set next_expiry = next_expiry - {day} where name = '{coupon}'"
    );
    Ok(database.connect().await?.batch_execute(&sql).await?)
}

fn text<'a>(answer: &'a Answer, field: &str) -> &'a str {
    answer.body[field].as_str().unwrap_or_default()
}

/// The time from the hold's beginning to its end, in whole seconds, as the database has it.
async fn ttl(database: &Database, user: &str) -> Result<i32> {
    let sql = "select round(extract(epoch from expires_at - created_at))::integer
                 from holds where user_id = $1";
    Ok(database
        .connect()
        .await?
        .query_one(sql, &[&user])
        .await?
        .get(0))
}

#[tokio::test]
async fn hold_is_made_shown_and_confirmed() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("50% off", 2).await?;
    let api = Api::start(database.caller_url()).await?;
    let path = "50%25%20off";
    let held = api.reserve("a/b ?", path, 600).await?;
    assert_eq!(held.status, 201);
    let expires_at = text(&held, "expires_at").to_owned();
    assert_eq!(
        held.body,
        json!({ "message": "coupon held", "user_id": "a/b ?", "coupon_name": "50% off",
                "expires_at": expires_at })
    );
    assert_eq!(ttl(&database, "a/b ?").await?, 600);
    assert_eq!(api.stock(path).await?, "open 1 1");

    let location = held.header("location");
    assert_eq!(location, "/api/coupons/50%25%20off/holds/a%2Fb%20%3F");
    let shown = answer(api.request(Method::GET, location)).await?;
    assert_eq!(
        (shown.status, shown.header("cache-control")),
        (200, "no-store")
    );
    let created_at = text(&shown, "created_at").to_owned();
    assert_eq!(
        shown.body,
        json!({ "user_id": "a/b ?", "coupon_name": "50% off", "expires_at": expires_at,
                "created_at": created_at })
    );
    assert!(created_at < expires_at, "{created_at}");

    // A second reservation is the same hold, with its end unchanged.
    let again = api.reserve("a/b ?", path, 86_400).await?;
    assert_eq!(
        (again.status, text(&again, "expires_at")),
        (201, &*expires_at)
    );

    let confirm = format!("{location}/confirm");
    for _ in 0..3 {
        let confirmed = answer(api.request(Method::POST, &confirm)).await?;
        assert_eq!(confirmed.status, 200);
        assert_eq!(
            confirmed.body,
            json!({ "message": "coupon claimed", "user_id": "a/b ?", "coupon_name": "50% off" })
        );
    }
    assert_eq!(api.stock(path).await?, "open 1 0");
    assert_eq!(
        answer(api.request(Method::GET, location)).await?.shown(),
        "404 hold_not_found"
    );
    let refused = answer(api.request(Method::DELETE, location)).await?;
    assert_eq!(refused.shown(), "409 not_held");
    assert_eq!(
        api.reserve("a/b ?", path, 1).await?.shown(),
        "409 already_claimed"
    );
    assert_eq!(api.show(path).await?.body["claimed_by"], json!(["a/b ?"]));
    database.books().await
}

#[tokio::test]
async fn cancelled_hold_is_stock_again() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let api = Api::start(database.caller_url()).await?;
    assert_eq!(api.reserve("ann", "PROMO", 600).await?.status, 201);
    assert_eq!(
        api.reserve("bob", "PROMO", 600).await?.shown(),
        "409 all_held"
    );
    let cancelled = api.cancel("ann", "PROMO").await?;
    assert_eq!(cancelled.status, 200);
    assert_eq!(
        cancelled.body,
        json!({ "message": "hold cancelled", "user_id": "ann", "coupon_name": "PROMO" })
    );
    assert_eq!(api.cancel("ann", "PROMO").await?.shown(), "409 not_held");
    assert_eq!(api.confirm("ann", "PROMO").await?.shown(), "409 not_held");
    assert_eq!(api.claim("bob", "PROMO").await?.shown(), "200");
    assert_eq!(api.stock("PROMO").await?, "sold_out 0 0");
    database.books().await
}

#[tokio::test]
async fn each_refusal_of_a_reservation_has_its_status_and_code() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "select honcho_create_coupon('taken', 5);
             select honcho_claim('user', 'taken');
             select honcho_create_coupon('empty', 1);
             select honcho_claim('other', 'empty');
             select honcho_create_coupon('held', 1);
             select honcho_reserve('other', 'held', '1 hour');
             select honcho_create_coupon('later', 5, now() + interval '1 day');
             select honcho_create_coupon('over', 5, null, now() - interval '1 day');
             select honcho_create_coupon('paused', 5);
             select honcho_update_coupon('paused', paused => true);",
        )
        .await?;
    let api = Api::start(database.caller_url()).await?;
    for (coupon, expected) in [
        ("taken", "409 already_claimed"),
        ("empty", "409 sold_out"),
        ("held", "409 all_held"),
        ("later", "409 not_started"),
        ("over", "409 ended"),
        ("paused", "409 paused"),
        ("none", "404 coupon_not_found"),
        ("%00", "404 coupon_not_found"),
        ("%FF", "404 coupon_not_found"),
    ] {
        let refused = api.reserve("user", coupon, 60).await?;
        assert_eq!(refused.shown(), expected, "{coupon}");
    }
    for path in ["none/holds/user", "%FF/holds/user", "%00/holds/%00"] {
        for (method, path) in [
            (Method::GET, path.to_owned()),
            (Method::DELETE, path.to_owned()),
            (Method::POST, format!("{path}/confirm")),
        ] {
            let refused = api.send(method.clone(), &path).await?;
            assert_eq!(refused.shown(), "404 coupon_not_found", "{method} {path}");
        }
    }
    for user in ["nobody", "%00", &"x".repeat(256)] {
        for (method, end, expected) in [
            (Method::GET, "", "404 hold_not_found"),
            (Method::DELETE, "", "409 not_held"),
            (Method::POST, "/confirm", "409 not_held"),
        ] {
            let path = format!("held/holds/{user}{end}");
            let refused = api.send(method.clone(), &path).await?;
            assert_eq!(refused.shown(), expected, "{method} {path}");
        }
    }
    database.books().await
}

#[tokio::test]
async fn wrong_reservations_are_named_and_hold_nothing() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let api = Api::start(database.caller_url()).await?;
    for (body, detail) in [
        (r#"{"ttl":60}"#, "user_id is required"),
        (r#"{"user_id":""}"#, "user_id must not be empty"),
        (
            r#"{"user_id":"u","ttl":0}"#,
            "ttl must be a whole number from 1 to 86400",
        ),
        (r#"{"user_id":"u","ttl":86401}"#, "ttl must be"),
        (r#"{"user_id":"u","ttl":-1}"#, "ttl must be"),
        (r#"{"user_id":"u","ttl":1.5}"#, "ttl must be"),
        (r#"{"user_id":"u","ttl":"60"}"#, "ttl must be"),
        (r#"{"user_id":"u","ttl":"5m"}"#, "ttl must be"),
        (r#"{"user_id":"u","coupon_name":"PROMO"}"#, "`coupon_name`"),
        (r#"{"user_id":"u","TTL":60}"#, "`TTL`"),
        ("[]", "JSON object"),
    ] {
        let request = api.request(Method::POST, "/api/coupons/PROMO/holds");
        let refused = answer(request.body(body)).await?;
        assert_eq!(refused.shown(), "400 invalid_request", "{body}");
        assert!(
            text(&refused, "detail").contains(detail),
            "{body}: {refused:?}"
        );
    }
    // What has no fields takes an empty object, and nothing else.
    for (method, path) in [
        (Method::POST, "/api/coupons/PROMO/holds/u/confirm"),
        (Method::DELETE, "/api/coupons/PROMO/holds/u"),
        (Method::DELETE, "/api/coupons/PROMO/claims/u"),
    ] {
        for (body, expected) in [
            ("{}", "4"),
            (r#"{"ttl":60}"#, "400 invalid_request"),
            ("[]", "400 invalid_request"),
            ("x", "400 invalid_request"),
        ] {
            let request = api.request(method.clone(), path).body(body);
            let refused = answer(request).await?;
            let shown = refused.shown();
            assert!(
                shown.starts_with(expected),
                "{method} {path} {body}: {shown}"
            );
            assert_eq!(body == "{}", shown != "400 invalid_request", "{shown}");
        }
    }
    assert_eq!(api.stock("PROMO").await?, "open 5 0");
    database.books().await
}

#[tokio::test]
async fn time_of_a_hold_is_a_setting_unless_it_is_given() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let api = Api::start(database.caller_url()).await?;
    let reserve = async |api: &Api, body: Value| -> Result<()> {
        let held = api.send_json(Method::POST, "PROMO/holds", &body).await?;
        assert_eq!(held.status, 201, "{body}");
        Ok(())
    };
    reserve(&api, json!({ "user_id": "ann" })).await?;
    reserve(&api, json!({ "user_id": "bob", "ttl": null })).await?;
    reserve(&api, json!({ "user_id": "carl", "ttl": 86_400 })).await?;
    assert_eq!(ttl(&database, "ann").await?, 300);
    assert_eq!(ttl(&database, "bob").await?, 300);
    assert_eq!(ttl(&database, "carl").await?, 86_400);
    let environment = [("HOLD_TTL", "1500ms")];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    reserve(&api, json!({ "user_id": "dora" })).await?;
    let exact = "select (expires_at - created_at)::text from holds where user_id = 'dora'";
    let exact: String = database
        .connect()
        .await?
        .query_one(exact, &[])
        .await?
        .get(0);
    assert_eq!(exact, "00:00:01.5");
    database.books().await
}

/// The seconds in `Retry-After` of an answer `all_held`.
fn wait(refused: &Answer) -> Result<u64> {
    assert_eq!(refused.shown(), "409 all_held");
    refused
        .header("retry-after")
        .parse()
        .context("no whole seconds")
}

#[tokio::test]
async fn all_held_says_when_the_first_hold_expires() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    for (coupon, ttls) in [("ONE", &[60][..]), ("TWO", &[600, 60])] {
        database.create_coupon(coupon, ttls.len() as i32).await?;
        for (n, ttl) in ttls.iter().enumerate() {
            let held = api.reserve(&format!("holder {n}"), coupon, *ttl).await?;
            assert_eq!(held.status, 201);
        }
        // A plain claim, one with a key, and a reservation.
        let keyed = api
            .claim_request("user", coupon)
            .header("idempotency-key", "key");
        for refused in [
            api.claim("user", coupon).await?,
            answer(keyed).await?,
            api.reserve("user", coupon, 60).await?,
        ] {
            let wait = wait(&refused)?;
            assert!((50..=60).contains(&wait), "{coupon}: {wait}");
        }
        assert!(api.stock(coupon).await?.starts_with("all_held 0 "));
    }
    // A moment before its end, the wait is still a second: a client that waits for it gets the piece.
    database.create_coupon("SHORT", 1).await?;
    assert_eq!(api.reserve("holder", "SHORT", 1).await?.status, 201);
    let client = database.connect().await?;
    loop {
        let claimed = api.claim("user", "SHORT").await?;
        if claimed.status == 200 {
            break;
        }
        assert_eq!(wait(&claimed)?, 1);
        client.batch_execute("select pg_sleep(0.05)").await?;
    }
    assert_eq!(
        api.confirm("holder", "SHORT").await?.shown(),
        "409 not_held"
    );
    database.books().await
}

#[tokio::test]
async fn crowd_that_finds_all_held_costs_few_reads() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    assert_eq!(api.reserve("holder", "PROMO", 60).await?.status, 201);
    let mut crowd = JoinSet::new();
    for n in 0..500 {
        let api = Arc::clone(&api);
        crowd.spawn(async move { wait(&api.claim(&format!("user {n}"), "PROMO").await?) });
    }
    while let Some(wait) = crowd.join_next().await {
        let wait = wait??;
        assert!((30..=60).contains(&wait), "{wait}");
    }
    let scrape = Scrape::of(&api.service).await?;
    let outcome = |outcome: &str| format!("honcho_claims_total{{outcome=\"{outcome}\"}}");
    assert_eq!(scrape.value(&outcome("all_held")), 500.0);
    // One connection for each batch, and at most one more for its first expiry.
    let batches = scrape.value("honcho_lane_batch_duration_seconds_count");
    let calls = scrape.value("honcho_pool_wait_seconds_count");
    assert!(
        calls <= 2.0 * batches,
        "{calls} calls for {batches} batches"
    );
    database.books().await
}

#[tokio::test]
async fn expired_hold_is_stock_and_cannot_be_confirmed() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 2).await?;
    let api = Api::start(database.caller_url()).await?;
    for user in ["ann", "bob"] {
        assert_eq!(api.reserve(user, "PROMO", 60).await?.status, 201);
    }
    expire(&database, "PROMO").await?;
    assert_eq!(api.stock("PROMO").await?, "open 0 2");
    assert_eq!(api.show("PROMO/holds").await?.body, json!({ "holds": [] }));
    // Whether another user has taken the piece already, or not.
    assert_eq!(api.confirm("ann", "PROMO").await?.shown(), "409 not_held");
    assert_eq!(api.claim("carl", "PROMO").await?.shown(), "200");
    assert_eq!(api.confirm("bob", "PROMO").await?.shown(), "409 not_held");
    assert_eq!(api.cancel("bob", "PROMO").await?.shown(), "409 not_held");
    assert_eq!(api.reserve("bob", "PROMO", 60).await?.shown(), "201");
    assert_eq!(api.claim("dora", "PROMO").await?.shown(), "409 all_held");
    database.books().await
}

#[tokio::test]
async fn hold_is_confirmed_after_a_pause_and_an_end() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let api = Api::start(database.caller_url()).await?;
    for user in ["ann", "bob"] {
        assert_eq!(api.reserve(user, "PROMO", 60).await?.status, 201);
    }
    let patch = json!({ "paused": true, "ends_at": "2020-01-01T00:00:00Z" });
    let patched = api.send_json(Method::PATCH, "PROMO", &patch).await?;
    assert_eq!(patched.status, 200, "{patched:?}");
    assert_eq!(api.claim("carl", "PROMO").await?.shown(), "409 ended");
    assert_eq!(api.confirm("ann", "PROMO").await?.shown(), "200");
    // The holder's own claim comes out of the hold, too.
    assert_eq!(api.claim("bob", "PROMO").await?.shown(), "200");
    assert_eq!(api.stock("PROMO").await?, "ended 3 0");
    database.books().await
}

#[tokio::test]
async fn holds_are_listed_page_by_page() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("a/b", 100).await?;
    let api = Api::start(database.caller_url()).await?;
    // In the order of their bytes, with what an address must escape.
    let users = ["%", "&+ =", "Z", "a", "a b", "ä", "🎟"];
    for user in users.iter().rev() {
        assert_eq!(api.reserve(user, "a%2Fb", 60).await?.status, 201);
    }
    let mut path = Some("/api/coupons/a%2Fb/holds?limit=2".to_owned());
    let mut found = Vec::new();
    let mut pages = 0;
    while let Some(at) = path {
        let page = answer(api.request(Method::GET, &at)).await?;
        assert_eq!(
            (page.status, page.header("cache-control")),
            (200, "no-store")
        );
        for hold in page.body["holds"].as_array().context("no list")? {
            assert_eq!(hold["coupon_name"], "a/b");
            found.push(hold["user_id"].as_str().context("no user")?.to_owned());
        }
        pages += 1;
        path = page
            .header("link")
            .strip_suffix(">; rel=\"next\"")
            .and_then(|link| link.strip_prefix('<'))
            .map(ToOwned::to_owned);
    }
    assert_eq!((found, pages), (users.map(ToOwned::to_owned).to_vec(), 4));
    for (query, detail) in [
        ("after=%00", "after must not contain NUL"),
        ("limit=0", "limit must be"),
        ("user_id=a", "\"user_id\""),
    ] {
        let refused = api.show(&format!("a%2Fb/holds?{query}")).await?;
        assert_eq!(refused.shown(), "400 invalid_request", "{query}");
        assert!(text(&refused, "detail").contains(detail), "{refused:?}");
    }
    assert_eq!(
        api.show("none/holds").await?.shown(),
        "404 coupon_not_found"
    );
    database.books().await
}

#[tokio::test]
async fn operations_of_all_kinds_share_a_batch_in_order() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let api = Arc::new(Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?);
    for user in ["confirms", "cancels", "claims"] {
        assert_eq!(api.reserve(user, "PROMO", 600).await?.status, 201);
    }
    assert_eq!(api.claim("releases", "PROMO").await?.status, 200);
    let client = database.connect().await?;
    let holder = hold(&database, "PROMO").await?;
    let mut waiting = Vec::new();
    let start = |method: Method, path: &str, body: &str| {
        let request = api.request(method, path).body(body.to_owned());
        tokio::spawn(async move { anyhow::Ok(answer(request).await?.shown()) })
    };
    let first = r#"{"user_id":"first","coupon_name":"PROMO"}"#;
    waiting.push(("200", start(Method::POST, "/api/coupons/claim", first)));
    until_queued(&client, 1).await?;
    // One after the other, so that they are in the lane in this order.
    let claim = "/api/coupons/claim";
    let coupon = "/api/coupons/PROMO";
    for (expected, method, path, body) in [
        (
            "200",
            Method::POST,
            format!("{coupon}/holds/confirms/confirm"),
            "",
        ),
        (
            "409 not_held",
            Method::DELETE,
            format!("{coupon}/holds/confirms"),
            "",
        ),
        ("200", Method::DELETE, format!("{coupon}/holds/cancels"), ""),
        (
            "409 not_held",
            Method::POST,
            format!("{coupon}/holds/cancels/confirm"),
            "",
        ),
        (
            "200",
            Method::DELETE,
            format!("{coupon}/claims/releases"),
            "",
        ),
        (
            "404 claim_not_found",
            Method::DELETE,
            format!("{coupon}/claims/releases"),
            "",
        ),
        (
            "200",
            Method::POST,
            claim.to_owned(),
            r#"{"user_id":"claims","coupon_name":"PROMO"}"#,
        ),
        (
            "201",
            Method::POST,
            format!("{coupon}/holds"),
            r#"{"user_id":"releases"}"#,
        ),
        (
            "200",
            Method::POST,
            claim.to_owned(),
            r#"{"user_id":"plain","coupon_name":"PROMO"}"#,
        ),
    ] {
        let count = waiting.len();
        waiting.push((expected, start(method, &path, body)));
        eventually("the operation to wait in its lane", async || {
            let scrape = Scrape::of(&api.service).await?;
            let deep = scrape.value("honcho_lane_waiting_claims");
            Ok((deep == count as f64).then_some(()))
        })
        .await?;
    }
    holder.batch_execute("rollback").await?;
    for (expected, operation) in waiting {
        assert_eq!(operation.await??, expected);
    }
    let batches = "select count(distinct xmin::text) from
                       (select xmin from claims where user_id in ('confirms', 'claims', 'plain')
                        union all select xmin from holds where user_id = 'releases') as written";
    let batches: i64 = client.query_one(batches, &[]).await?.get(0);
    assert_eq!(batches, 1);
    assert_eq!(api.stock("PROMO").await?, "open 5 1");
    let scrape = Scrape::of(&api.service).await?;
    let counted = |operation: &str, outcome: &str| {
        scrape.value(&format!(
            "honcho_operations_total{{operation=\"{operation}\",outcome=\"{outcome}\"}}"
        ))
    };
    assert_eq!(counted("reserve", "held"), 4.0);
    assert_eq!(counted("confirm", "claimed"), 1.0);
    assert_eq!(counted("confirm", "not_held"), 1.0);
    assert_eq!(counted("cancel", "cancelled"), 1.0);
    assert_eq!(counted("cancel", "not_held"), 1.0);
    assert_eq!(counted("release", "released"), 1.0);
    assert_eq!(counted("release", "not_claimed"), 1.0);
    database.books().await
}

#[tokio::test]
async fn failing_operation_spoils_no_other_in_its_batch() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    database
        .connect()
        .await?
        .batch_execute(
            "create function refuse() returns trigger language plpgsql
                 as $$ begin raise 'not this one'; end $$;
             create trigger refuse before insert on holds
                 for each row when (new.user_id = 'user 7') execute function refuse();",
        )
        .await?;
    let api = Arc::new(Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?);
    let client = database.connect().await?;
    let holder = hold(&database, "PROMO").await?;
    let mut waiting = JoinSet::new();
    let first = Arc::clone(&api);
    waiting.spawn(async move { Ok(first.claim("first", "PROMO").await?.shown()) });
    until_queued(&client, 1).await?;
    for n in 0..20 {
        let api = Arc::clone(&api);
        waiting.spawn(async move {
            let user = format!("user {n}");
            // Every second one is a plain claim.
            let answer = match n % 2 {
                1 => api.reserve(&user, "PROMO", 60).await?,
                _ => api.claim(&user, "PROMO").await?,
            };
            anyhow::Ok(answer.shown())
        });
    }
    eventually("the crowd to wait in its lane", async || {
        let scrape = Scrape::of(&api.service).await?;
        Ok((scrape.value("honcho_lane_waiting_claims") == 20.0).then_some(()))
    })
    .await?;
    holder.batch_execute("rollback").await?;
    let mut answered = std::collections::BTreeMap::new();
    while let Some(operation) = waiting.join_next().await {
        *answered.entry(operation??).or_default() += 1;
    }
    assert_eq!(
        answered,
        counts(&[("200", 11), ("201", 9), ("500 internal", 1)])
    );
    database.books().await
}

#[tokio::test]
async fn confirmations_at_once_make_one_claim() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    assert_eq!(api.reserve("ann", "PROMO", 60).await?.status, 201);
    let mut confirmations = JoinSet::new();
    for _ in 0..20 {
        let api = Arc::clone(&api);
        confirmations.spawn(async move { api.confirm("ann", "PROMO").await });
    }
    while let Some(confirmed) = confirmations.join_next().await {
        assert_eq!(confirmed??.shown(), "200");
    }
    assert_eq!(api.show("PROMO").await?.body["claimed_by"], json!(["ann"]));
    database.books().await
}
