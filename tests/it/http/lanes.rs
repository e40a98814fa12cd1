//! Lanes: one batch per coupon is in flight, and later claims wait for the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::Result;
use honcho_tests::{Service, concurrently, counts, eventually};
use serde_json::json;
use tokio::task::JoinSet;

use crate::fixtures::{
    api::Api,
    held_coupon::{
        BusyLane, Claim, LONG_TIMEOUTS, claim, hold, queued, signal_waiter, until_queued,
    },
    raw_client::{RawClient, post, problem_code},
    scrape::{Scrape, until_in_flight},
    sql::claimed,
};

#[tokio::test]
async fn sale_on_1000_connections_sells_the_stock_exactly() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let service = Service::start(database.caller_url()).await?;
    let answered = claim_concurrently(&service, (0..1_000).map(|n| format!("user_{n}"))).await?;
    assert_eq!(answered, counts(&[("200", 100), ("409 sold_out", 900)]));
    database.books().await
}

#[tokio::test]
async fn one_user_on_1000_connections_claims_once() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let service = Service::start(database.caller_url()).await?;
    let answered = claim_concurrently(&service, (0..1_000).map(|_| "user".to_owned())).await?;
    assert_eq!(
        answered,
        counts(&[("200", 1), ("409 already_claimed", 999)])
    );
    database.books().await
}

#[tokio::test]
async fn batch_limit_bounds_batches() -> Result<()> {
    for limit in ["1", "7", "20"] {
        let database = crate::database().await?;
        database.create_coupon("PROMO", 31).await?;
        let mut lane = BusyLane::new(&database, 20, &[("BATCH_LIMIT", limit)]).await?;
        lane.release().await?;
        assert_eq!(lane.first.await??, "200");
        for claim in lane.crowd.drain(..) {
            assert_eq!(claim.await??, "200");
        }
        let largest = "select max(claims)::text
                         from (select count(*) as claims from claims group by xmin) as batches";
        let largest: String = lane.client.query_one(largest, &[]).await?.get(0);
        assert_eq!(largest, limit);
        // Ten coupons are left. The lane has twenty places; a claim that finds none is repeated.
        let mut late = JoinSet::new();
        for n in 0..60 {
            let api = Arc::clone(&lane.api);
            late.spawn(async move {
                loop {
                    let answered = api.claim(&format!("late {n}"), "PROMO").await?.shown();
                    if answered != "503 overloaded" {
                        return anyhow::Ok(answered);
                    }
                }
            });
        }
        assert_eq!(
            tally(late).await?,
            counts(&[("200", 10), ("409 sold_out", 50)])
        );
        database.books().await?;
    }
    Ok(())
}

#[tokio::test]
async fn held_coupons_block_no_other() -> Result<()> {
    let held = ["HELD 1", "HELD 2", "HELD 3"];
    let database = crate::database().await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "select honcho_create_coupon('HELD ' || n, 20) from generate_series(1, 3) as n;
             select honcho_create_coupon('FREE ' || n, 5) from generate_series(0, 19) as n;",
        )
        .await?;
    let api = Arc::new(Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?);
    let mut holders = Vec::new();
    let mut waiting: Vec<Vec<Claim>> = Vec::new();
    for coupon in held {
        holders.push(hold(&database, coupon).await?);
        let claims = (0..10).map(|n| claim(&api, &format!("user {n}"), coupon));
        waiting.push(claims.collect());
    }
    until_queued(&client, 3).await?;

    let mut passing = JoinSet::new();
    for coupon in 0..20 {
        for user in 0..5 {
            let claim = claim(&api, &format!("user {user}"), &format!("FREE {coupon}"));
            passing.spawn(async move { claim.await? });
        }
    }
    assert_eq!(tally(passing).await?, counts(&[("200", 100)]));
    // They were answered while the claims on held coupons waited, some perhaps between a fast session and a
    // waiting one.
    until_queued(&client, 3).await?;
    assert!(waiting.iter().flatten().all(|claim| !claim.is_finished()));

    // The holders' transactions end one after the other, and only then are the claims behind them answered.
    for (holder, end) in holders.iter().zip(["commit", "rollback", "commit"]) {
        holder.batch_execute(end).await?;
        for claim in waiting.remove(0) {
            assert_eq!(claim.await??, "200");
        }
        assert!(waiting.iter().flatten().all(|claim| !claim.is_finished()));
    }
    database.books().await
}

#[tokio::test]
async fn more_held_coupons_than_connections_block_no_other() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "select honcho_create_coupon('HELD ' || n, 20) from generate_series(1, 5) as n;
             select honcho_create_coupon('FREE', 20);",
        )
        .await?;
    // Without waiting sessions, no claim would get a connection before its timeout.
    let settings = [
        ("DATABASE_POOL_SIZE", "2"),
        ("LOCK_TIMEOUT", "60s"),
        ("STATEMENT_TIMEOUT", "120s"),
    ];
    let api = Arc::new(Api::start_with(database.caller_url(), &settings).await?);
    let mut holders = Vec::new();
    let mut waiting = Vec::new();
    for n in 1..=5 {
        let coupon = format!("HELD {n}");
        holders.push(hold(&database, &coupon).await?);
        waiting.push(claim(&api, "user", &coupon));
    }
    for n in 0..20 {
        let answered = api.claim(&format!("user {n}"), "FREE").await?.shown();
        assert_eq!(answered, "200", "{n}");
    }
    // One claim waits on the single waiting connection, and succeeds when its holder ends.
    until_queued(&client, 1).await?;
    for holder in &holders {
        holder.batch_execute("rollback").await?;
    }
    for claim in waiting {
        let answered = claim.await??;
        assert!(
            ["200", "503 unavailable"].contains(&answered.as_str()),
            "{answered}"
        );
    }
    database.books().await
}

#[tokio::test]
async fn claims_on_held_coupons_have_certain_answers() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    let coupons: Vec<String> = (0..150).map(|n| format!("HELD {n}")).collect();
    for coupon in &coupons {
        database.create_coupon(coupon, 20).await?;
    }
    // One waiting connection for all: most claims get it late or never.
    let settings = [
        ("DATABASE_POOL_SIZE", "2"),
        ("LOCK_TIMEOUT", "1s"),
        ("STATEMENT_TIMEOUT", "2s"),
    ];
    let api = Arc::new(Api::start_with(database.caller_url(), &settings).await?);
    client
        .batch_execute("begin; select honcho_claim('holder', name) from coupons")
        .await?;
    let claims: Vec<Claim> = coupons.iter().map(|it| claim(&api, "user", it)).collect();
    for claim in claims {
        assert_eq!(claim.await??, "503 unavailable");
    }
    client.batch_execute("rollback").await?;
    database.books().await
}

#[tokio::test]
async fn full_lane_refuses_immediately() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    database.create_coupon("FREE", 100).await?;
    let client = database.connect().await?;
    let api = Api::start_with(
        database.caller_url(),
        &[LONG_TIMEOUTS[0], LONG_TIMEOUTS[1], ("LANE_LIMIT", "4")],
    )
    .await?;
    let api = Arc::new(api);
    // Several rounds, because a claim must free its place in the lane.
    for round in 0..3 {
        let holder = hold(&database, "PROMO").await?;
        let first = claim(&api, &format!("first {round}"), "PROMO");
        until_queued(&client, 1).await?;
        let mut claims = JoinSet::new();
        for n in 0..10 {
            let claim = claim(&api, &format!("user {round} {n}"), "PROMO");
            claims.spawn(async move { claim.await? });
        }
        for _ in 0..6 {
            assert_eq!(claims.join_next().await.unwrap()??, "503 overloaded");
        }
        let free = api.claim(&format!("user {round}"), "FREE").await?;
        assert_eq!(free.shown(), "200");
        until_queued(&client, 1).await?;
        holder.batch_execute("rollback").await?;
        assert_eq!(first.await??, "200");
        assert_eq!(tally(claims).await?, counts(&[("200", 4)]));
    }
    database.books().await
}

#[tokio::test]
async fn abandoned_claims_leave_their_places_in_the_lane() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    database.create_coupon("FREE", 100).await?;
    let mut lane = BusyLane::new(&database, 4, &[]).await?;
    lane.crowd.drain(..).for_each(|claim| claim.abort());
    // The batch ahead of them is still in flight.
    eventually("a free place", async || {
        let answered = lane.api.claim("user", "FREE").await?.shown();
        Ok((answered != "503 overloaded").then_some(()))
    })
    .await?;
    until_queued(&lane.client, 1).await?;
    lane.release().await?;
    assert_eq!((&mut lane.first).await??, "200");
    assert_eq!(claimed(&lane.client).await?, ["user", "first"]);
    database.books().await
}

#[tokio::test]
async fn waiting_limit_refuses_in_all_lanes() -> Result<()> {
    let database = crate::database().await?;
    for coupon in ["A", "B", "FREE"] {
        database.create_coupon(coupon, 100).await?;
    }
    let client = database.connect().await?;
    let api = Api::start_with(
        database.caller_url(),
        &[LONG_TIMEOUTS[0], LONG_TIMEOUTS[1], ("WAITING_LIMIT", "4")],
    )
    .await?;
    let api = Arc::new(api);
    // The places must be free after every way in which the wait can end.
    for end in ["the holders go", "the clients go", "the batches fail"] {
        let holders = [hold(&database, "A").await?, hold(&database, "B").await?];
        let firsts = ["A", "B"].map(|coupon| claim(&api, &format!("first, {end}"), coupon));
        until_queued(&client, 2).await?;
        let mut claims = JoinSet::new();
        for n in 0..10 {
            let claim = claim(&api, &format!("user {n}, {end}"), ["A", "B"][n % 2]);
            claims.spawn(async move { claim.await? });
        }
        for _ in 0..6 {
            assert_eq!(claims.join_next().await.unwrap()??, "503 overloaded");
        }
        let free = format!("user, {end}");
        assert_eq!(api.claim(&free, "FREE").await?.shown(), "503 overloaded");
        until_queued(&client, 2).await?;
        let expected = match end {
            "the holders go" => "200",
            "the clients go" => {
                claims.shutdown().await;
                "200"
            }
            _ => {
                let terminate = "select pg_terminate_backend(pid) from pg_stat_activity
                                  where datname = current_database()
                                    and application_name = 'honcho-service'";
                // One batch after the other fails, until no claim waits.
                let mut failed = 0;
                eventually("every batch to fail", async || {
                    client.execute(terminate, &[]).await?;
                    while let Some(answered) = claims.try_join_next() {
                        let answered = answered??;
                        // The second is the answer if the connection ended before the call was sent.
                        let failures = ["503 outcome_unknown", "503 unavailable"];
                        assert!(failures.contains(&answered.as_str()), "{answered}");
                        failed += 1;
                    }
                    Ok(
                        (failed == 4 && firsts.iter().all(|first| first.is_finished()))
                            .then_some(()),
                    )
                })
                .await?;
                "503 outcome_unknown"
            }
        };
        for holder in &holders {
            holder.batch_execute("rollback").await?;
        }
        for first in firsts {
            assert_eq!(first.await??, expected, "{end}");
        }
        while let Some(answered) = claims.join_next().await {
            assert_eq!(answered??, expected, "{end}");
        }
        eventually("a free place", async || {
            Ok((api.claim(&free, "FREE").await?.shown() == "200").then_some(()))
        })
        .await?;
    }
    database.books().await
}

#[tokio::test]
async fn abandoned_claims_are_not_made() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let mut lane = BusyLane::new(&database, 20, &[]).await?;
    let (go, stay): (Vec<_>, Vec<_>) = lane
        .crowd
        .drain(..)
        .enumerate()
        .partition(|(n, _)| n % 2 == 0);
    for (_, claim) in &go {
        claim.abort();
    }
    eventually("the service to count the abandoned claims", async || {
        let scrape = Scrape::of(&lane.api.service).await?;
        let gone = scrape.value("honcho_http_requests_abandoned_total");
        Ok((gone == go.len() as f64).then_some(()))
    })
    .await?;

    lane.release().await?;
    assert_eq!(lane.first.await??, "200");
    let mut expected = BTreeSet::from(["first".to_owned()]);
    for (n, claim) in stay {
        assert_eq!(claim.await??, "200");
        expected.insert(format!("crowd {n}"));
    }
    let made = claimed(&lane.client).await?;
    assert_eq!(made.into_iter().collect::<BTreeSet<_>>(), expected);
    database.books().await
}

#[tokio::test]
async fn lock_timeout_is_503_for_the_whole_batch() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let mut lane = BusyLane::new(&database, 20, &[("LOCK_TIMEOUT", "1s")]).await?;
    assert_eq!((&mut lane.first).await??, "503 unavailable");
    lane.expect_crowd("503 unavailable").await?;
    nothing_was_changed(&lane).await?;
    database.books().await
}

#[tokio::test]
async fn cancelled_batch_is_504_for_all_its_claims() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let mut lane = BusyLane::new(&database, 20, &[]).await?;
    signal_waiter(&lane.client, "pg_cancel_backend").await?;
    assert_eq!((&mut lane.first).await??, "504 timeout");
    until_queued(&lane.client, 1).await?;
    signal_waiter(&lane.client, "pg_cancel_backend").await?;
    lane.expect_crowd("504 timeout").await?;
    nothing_was_changed(&lane).await?;
    database.books().await
}

#[tokio::test]
async fn batch_with_a_lost_session_is_outcome_unknown() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let mut lane = BusyLane::new(&database, 20, &[]).await?;
    signal_waiter(&lane.client, "pg_terminate_backend").await?;
    assert_eq!((&mut lane.first).await??, "503 outcome_unknown");
    // The next batch may use a lost session that the service has not detected yet.
    eventually("the next batch to fail", async || {
        if queued(&lane.client).await? > 0 {
            signal_waiter(&lane.client, "pg_terminate_backend").await?;
        }
        Ok(lane
            .crowd
            .iter()
            .all(|claim| claim.is_finished())
            .then_some(()))
    })
    .await?;
    lane.expect_crowd("503 outcome_unknown").await?;
    nothing_was_changed(&lane).await?;
    database.books().await
}

/// Fails unless no claim was made and every user still can claim.
async fn nothing_was_changed(lane: &BusyLane) -> Result<()> {
    lane.release().await?;
    assert!(claimed(&lane.client).await?.is_empty());
    lane.claim_for_all(20).await
}

#[tokio::test]
async fn failing_claim_spoils_no_other_in_its_batch() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    database
        .connect()
        .await?
        .batch_execute(
            "create function refuse() returns trigger language plpgsql
                 as $$ begin raise 'not this one'; end $$;
             create trigger refuse before insert on claims
                 for each row when (new.user_id = 'crowd 7') execute function refuse();",
        )
        .await?;
    let mut lane = BusyLane::new(&database, 20, &[]).await?;
    lane.release().await?;
    assert_eq!(lane.first.await??, "200");
    let mut expected = BTreeSet::from(["first".to_owned()]);
    for (n, claim) in lane.crowd.drain(..).enumerate() {
        if n == 7 {
            assert_eq!(claim.await??, "500 internal");
        } else {
            assert_eq!(claim.await??, "200", "crowd {n}");
            expected.insert(format!("crowd {n}"));
        }
    }
    let made = claimed(&lane.client).await?;
    assert_eq!(made.into_iter().collect::<BTreeSet<_>>(), expected);
    database.books().await
}

#[tokio::test]
async fn failing_claim_costs_its_batch_few_calls() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    database
        .connect()
        .await?
        .batch_execute(
            "create function refuse() returns trigger language plpgsql
                 as $$ begin raise 'not this one'; end $$;
             create trigger refuse before insert on claims
                 for each row when (new.user_id = 'crowd 40') execute function refuse();",
        )
        .await?;
    let mut lane = BusyLane::new(&database, 64, &[]).await?;
    let calls = async || -> Result<f64> {
        let scrape = Scrape::of(&lane.api.service).await?;
        Ok(scrape.value("honcho_lane_batch_duration_seconds_count"))
    };
    let before = calls().await?;
    lane.release().await?;
    assert_eq!((&mut lane.first).await??, "200");
    for (n, claim) in lane.crowd.drain(..).enumerate() {
        let expected = if n == 40 { "500 internal" } else { "200" };
        assert_eq!(claim.await??, expected, "crowd {n}");
    }
    // One call for the first claim, one for the crowd, and two for each halving: 64, 32, ... 2.
    assert_eq!(calls().await? - before, 1.0 + 1.0 + 2.0 * 6.0);
    database.books().await
}

#[tokio::test]
async fn client_whose_claim_has_failed_takes_no_batch_apart() -> Result<()> {
    const CROWD: usize = 30;
    let database = crate::database().await?;
    for coupon in ["PROMO", "OTHER"] {
        database.create_coupon(coupon, 100).await?;
    }
    let client = database.connect().await?;
    client
        .batch_execute(
            "create function refuse() returns trigger language plpgsql
                 as $$ begin raise 'not this one'; end $$;
             create trigger refuse before insert on claims
                 for each row when (new.user_id like 'mallory%') execute function refuse();",
        )
        .await?;
    let api = Arc::new(Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?);
    let mut mallory = RawClient::connect(api.service.address()).await?;
    let request = |user: &str, coupon: &str| {
        let body = json!({ "user_id": user, "coupon_name": coupon }).to_string();
        post("/api/coupons/claim", "", &body)
    };
    let calls = async || -> Result<f64> {
        let scrape = Scrape::of(&api.service).await?;
        Ok(scrape.value("honcho_lane_batch_duration_seconds_count"))
    };
    // Once by itself, and once more after a claim that succeeds.
    for (round, users) in [["mallory 1", "mallory 2"], ["mallory 3", "mallory 4"]]
        .iter()
        .enumerate()
    {
        let answer = mallory.exchange(&request(users[0], "OTHER")).await?;
        assert_eq!(problem_code(&answer)?, "internal");
        let holder = hold(&database, "PROMO").await?;
        let first = claim(&api, &format!("first {round}"), "PROMO");
        until_queued(&client, 1).await?;
        let crowd: Vec<Claim> = (0..CROWD)
            .map(|n| claim(&api, &format!("crowd {round} {n}"), "PROMO"))
            .collect();
        mallory.send(&request(users[1], "PROMO")).await?;
        until_in_flight(&api.service, 2.0 + CROWD as f64).await?;
        let before = calls().await?;
        holder.batch_execute("rollback").await?;
        assert_eq!(first.await??, "200");
        for claim in crowd {
            assert_eq!(claim.await??, "200");
        }
        let answer = mallory.read_until("}").await?;
        assert_eq!(problem_code(&answer)?, "internal");
        // One call for the first claim, one for the crowd, and one for hers.
        assert_eq!(calls().await? - before, 3.0);
        let made = mallory
            .exchange(&request(&format!("honest {round}"), "OTHER"))
            .await?;
        assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    }
    // After a claim that has succeeded, her next one travels with the others, and takes their batch apart.
    let holder = hold(&database, "PROMO").await?;
    let first = claim(&api, "first", "PROMO");
    until_queued(&client, 1).await?;
    let crowd: Vec<Claim> = (0..3)
        .map(|n| claim(&api, &format!("crowd {n}"), "PROMO"))
        .collect();
    mallory.send(&request("mallory 5", "PROMO")).await?;
    until_in_flight(&api.service, 5.0).await?;
    let before = calls().await?;
    holder.batch_execute("rollback").await?;
    assert_eq!(first.await??, "200");
    for claim in crowd {
        assert_eq!(claim.await??, "200");
    }
    mallory.read_until("}").await?;
    assert_eq!(calls().await? - before, 1.0 + 1.0 + 2.0 * 2.0);
    database.books().await
}

/// Claims for each user on a separate connection, all open before the first claim is sent, and counts the
/// answers.
async fn claim_concurrently(
    service: &Service,
    users: impl Iterator<Item = String>,
) -> Result<BTreeMap<String, usize>> {
    let address = service.address();
    concurrently(users.collect(), |user| async move {
        let client = RawClient::connect(address).await?;
        Ok(async move { client.claim(&user, "PROMO").await })
    })
    .await
}

async fn tally(mut claims: JoinSet<Result<String>>) -> Result<BTreeMap<String, usize>> {
    let mut answered = BTreeMap::new();
    while let Some(claim) = claims.join_next().await {
        *answered.entry(claim??).or_default() += 1;
    }
    Ok(answered)
}
