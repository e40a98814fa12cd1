//! `/metrics`: counters, gauges and their labels.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use honcho_tests::eventually;
use reqwest::Method;

use crate::fixtures::{
    api::Api,
    held_coupon::{BusyLane, LONG_TIMEOUTS, claim, hold, signal_waiter, until_queued},
    raw_client::RawClient,
    scrape::Scrape,
};

fn requests(route: &str, method: &str, status: u16) -> String {
    format!(
        "honcho_http_requests_total{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}}"
    )
}

fn claims(outcome: &str) -> String {
    format!("honcho_claims_total{{outcome=\"{outcome}\"}}")
}

#[tokio::test]
async fn requests_and_claims_are_counted() -> Result<()> {
    const CLAIM: &str = "/api/coupons/claim";
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    api.create("PROMO", 2).await?;
    for (user, coupon, answered) in [
        ("user 1", "PROMO", "200"),
        ("user 1", "PROMO", "409 already_claimed"),
        ("user 2", "PROMO", "200"),
        ("user 3", "PROMO", "409 sold_out"),
        ("user 4", "NOTHING", "404 coupon_not_found"),
        ("", "PROMO", "400 invalid_request"),
    ] {
        assert_eq!(api.claim(user, coupon).await?.shown(), answered);
    }
    assert_eq!(api.show("PROMO").await?.status, 200);
    assert_eq!(api.show("NOTHING").await?.status, 404);

    let scrape = Scrape::of(&api.service).await?;
    for (series, value) in [
        (requests("/api/coupons", "POST", 201), 1.0),
        (requests(CLAIM, "POST", 200), 2.0),
        (requests(CLAIM, "POST", 409), 2.0),
        (requests(CLAIM, "POST", 404), 1.0),
        (requests(CLAIM, "POST", 400), 1.0),
        (requests("/api/coupons/{name}", "GET", 200), 1.0),
        (requests("/api/coupons/{name}", "GET", 404), 1.0),
        (claims("claimed"), 2.0),
        (claims("already_claimed"), 1.0),
        (claims("sold_out"), 1.0),
        (claims("not_found"), 1.0),
        (claims("error"), 0.0),
        ("honcho_lane_batch_claims_count".to_owned(), 5.0),
        ("honcho_lane_batch_claims_sum".to_owned(), 5.0),
        ("honcho_lane_batch_duration_seconds_count".to_owned(), 5.0),
        ("honcho_lane_wait_seconds_count".to_owned(), 5.0),
        // Those five, the creation and the two reads.
        ("honcho_pool_wait_seconds_count".to_owned(), 8.0),
        ("honcho_database_retries_total".to_owned(), 0.0),
        ("honcho_log_lines_dropped_total".to_owned(), 0.0),
        // The scrape itself.
        ("honcho_http_requests_in_flight".to_owned(), 1.0),
        ("honcho_lanes".to_owned(), 0.0),
    ] {
        assert_eq!(scrape.value(&series), value, "{series}\n{}", scrape.0);
    }
    let durations = format!("_seconds_count{{route=\"{CLAIM}\",method=\"POST\"}}");
    let durations = format!("honcho_http_request_duration{durations}");
    assert_eq!(scrape.value(&durations), 6.0);
    let build = format!(
        "honcho_build_info{{version=\"{}\",",
        env!("CARGO_PKG_VERSION")
    );
    assert!(scrape.0.contains(&build), "{}", scrape.0);
    for positive in [
        "honcho_pool_connections{pool=\"fast\"}",
        "honcho_pool_max_connections{pool=\"fast\"}",
        "honcho_pool_max_connections{pool=\"waiting\"}",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_open_fds",
        "process_max_fds",
        "process_threads",
    ] {
        assert!(scrape.value(positive) > 0.0, "{positive}\n{}", scrape.0);
    }
    // The last answer may be sent before its connection returns to the pool.
    eventually("an idle connection", async || {
        let scrape = Scrape::of(&api.service).await?;
        let idle = scrape.value("honcho_pool_idle_connections{pool=\"fast\"}");
        Ok((idle > 0.0).then_some(()))
    })
    .await?;
    database.books().await
}

/// `rate` misses the first increment of a new series, and alerts must work without traffic.
#[tokio::test]
async fn counters_of_failures_start_at_zero() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let scrape = Scrape::of(&api.service).await?;
    let there = scrape.series();
    for (route, method, status) in [
        ("/api/coupons/claim", "POST", 200),
        ("/api/coupons/claim", "POST", 409),
        ("/api/coupons/claim", "POST", 500),
        ("/api/coupons/claim", "POST", 503),
        ("/api/coupons/claim", "POST", 504),
        ("/api/coupons", "POST", 201),
        ("/api/coupons/{name}", "GET", 503),
        ("/api/coupons/{name}/claims/{user_id}", "GET", 404),
    ] {
        let series = requests(route, method, status);
        assert!(there.contains(series.as_str()), "{series}\n{}", scrape.0);
    }
    let duration = "honcho_http_request_duration_seconds_count\
                    {route=\"/api/coupons/claim\",method=\"POST\"}";
    assert!(there.contains(duration), "{}", scrape.0);
    for class in [
        "08",
        "28",
        "3D",
        "42",
        "53",
        "55",
        "57",
        "58",
        "XX",
        "connection",
        "timeout",
    ] {
        let series = format!("honcho_database_errors_total{{class=\"{class}\"}}");
        assert!(there.contains(series.as_str()), "{series}\n{}", scrape.0);
    }
    Ok(())
}

#[tokio::test]
async fn ready_metric_names_the_reason_before_the_first_request() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    client.batch_execute("drop extension honcho").await?;
    let mut api = Api::start(database.caller_url()).await?;
    let ready = |scrape: &Scrape| -> Vec<String> {
        let lines = scrape.0.lines();
        lines
            .filter(|line| line.starts_with("honcho_ready{"))
            .map(str::to_owned)
            .collect()
    };
    for (change, series) in [
        ("", "honcho_ready{reason=\"no_extension\"} 0"),
        (
            "create extension honcho",
            "honcho_ready{reason=\"no_functions\"} 0",
        ),
        ("grant", "honcho_ready{reason=\"none\"} 1"),
    ] {
        let grant = format!(
            "grant execute on all functions in schema public to {}_caller",
            database.name()
        );
        let change = if change == "grant" { &grant } else { change };
        client.batch_execute(change).await?;
        eventually(series, async || {
            let found = ready(&Scrape::of(&api.service).await?);
            // One reason at a time.
            ensure!(found.len() == 1, "{found:?}");
            Ok((found[0] == series).then_some(()))
        })
        .await?;
    }
    api.service.terminate()?;
    api.service.exit().await?;
    Ok(())
}

#[tokio::test]
async fn client_input_never_becomes_a_label() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    // The reason for being unready is a label, and must not change during the test.
    api.until_ready().await?;
    let round = async |tag: &str| -> Result<()> {
        api.create(&format!("SECRET{tag}"), 1).await?;
        api.claim(&format!("somebody{tag}"), &format!("SECRET{tag}"))
            .await?;
        api.show(&format!("SECRET{tag}")).await?;
        let paths = [format!("/{tag}"), format!("/api/coupons/claim/{tag}/{tag}")];
        for path in &paths {
            for method in ["GET", "POST", "BREW", tag] {
                let method = Method::from_bytes(method.as_bytes())?;
                api.request(method, path).send().await?;
            }
        }
        api.request(Method::from_bytes(tag.as_bytes())?, "/api/coupons")
            .send()
            .await?;
        Ok(())
    };
    round("ONE").await?;
    // The first scrape counts itself only after it.
    Scrape::of(&api.service).await?;
    let before = Scrape::of(&api.service).await?;
    for n in 0..20 {
        round(&format!("MORE{n}")).await?;
    }
    let after = Scrape::of(&api.service).await?;
    assert_eq!(before.series(), after.series());
    for sent in ["SECRET", "somebody", "ONE", "MORE", "BREW"] {
        assert!(!after.0.contains(sent), "{sent}: {}", after.0);
    }
    assert_eq!(after.value(&requests("unmatched", "GET", 404)), 42.0);
    assert_eq!(after.value(&requests("unmatched", "OTHER", 404)), 84.0);
    assert_eq!(after.value(&requests("/api/coupons", "OTHER", 405)), 21.0);
    Ok(())
}

#[tokio::test]
async fn gauges_show_lanes_and_requests_in_flight() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let mut lane = BusyLane::new(&database, 20, &[]).await?;
    // The scrape is answered while claims wait, and changes nothing.
    let scrape = Scrape::of(&lane.api.service).await?;
    for (series, value) in [
        ("honcho_lanes", 1.0),
        ("honcho_lane_waiting_claims", 20.0),
        ("honcho_lane_deepest_claims", 20.0),
        ("honcho_http_requests_in_flight", 22.0),
    ] {
        assert_eq!(scrape.value(series), value, "{series}\n{}", scrape.0);
    }
    assert!(scrape.value(&claims("overloaded")) >= 1.0);
    lane.release().await?;
    assert_eq!(lane.first.await??, "200");
    for claim in lane.crowd.drain(..) {
        assert_eq!(claim.await??, "200");
    }
    // The lane closes shortly after its last answers.
    let scrape = eventually("the lane to close", async || {
        let scrape = Scrape::of(&lane.api.service).await?;
        Ok((scrape.value("honcho_lanes") == 0.0).then_some(scrape))
    })
    .await?;
    assert_eq!(scrape.value("honcho_lane_waiting_claims"), 0.0);
    assert_eq!(scrape.value("honcho_http_requests_in_flight"), 1.0);
    // One batch has the crowd's twenty claims. Besides the first claim, there may be claims of the probe.
    let up_to = |claims: &str| {
        scrape.value(&format!(
            "honcho_lane_batch_claims_bucket{{le=\"{claims}\"}}"
        ))
    };
    assert_eq!(up_to("20.0") - up_to("10.0"), 1.0, "{}", scrape.0);
    let carried = scrape.value("honcho_lane_batch_claims_sum");
    assert!(carried >= 21.0, "{}", scrape.0);
    assert_eq!(scrape.value("honcho_lane_wait_seconds_count"), carried);
    database.books().await
}

#[tokio::test]
async fn abandoned_requests_are_counted() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let api = Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?;
    let client = database.connect().await?;
    let holder = hold(&database, "PROMO").await?;
    let leaver = RawClient::connect(api.service.address()).await?;
    let leaver = tokio::spawn(leaver.claim("leaver", "PROMO"));
    until_queued(&client, 1).await?;
    leaver.abort();
    eventually("the abandoned request to be counted", async || {
        let scrape = Scrape::of(&api.service).await?;
        let left = scrape.value("honcho_http_requests_abandoned_total") == 1.0
            && scrape.value("honcho_http_requests_in_flight") == 1.0;
        Ok(left.then_some(()))
    })
    .await?;
    holder.batch_execute("rollback").await?;
    Ok(())
}

#[tokio::test]
async fn database_errors_and_retries_are_counted() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let client = database.connect().await?;
    let errors = |class: &str| format!("honcho_database_errors_total{{class=\"{class}\"}}");

    let api = Api::start_with(database.caller_url(), &[("LOCK_TIMEOUT", "50ms")]).await?;
    let holder = hold(&database, "PROMO").await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
    holder.batch_execute("rollback").await?;
    let scrape = Scrape::of(&api.service).await?;
    // A fast session gives up first, then a waiting one: the call is counted once.
    assert_eq!(scrape.value(&errors("55")), 1.0, "{}", scrape.0);
    assert_eq!(scrape.value("honcho_database_retries_total"), 1.0);
    assert_eq!(scrape.value(&claims("error")), 1.0, "{}", scrape.0);

    let api = Arc::new(Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?);
    let holder = hold(&database, "PROMO").await?;
    let waiting = claim(&api, "user", "PROMO");
    until_queued(&client, 1).await?;
    signal_waiter(&client, "pg_terminate_backend").await?;
    assert_eq!(waiting.await??, "503 outcome_unknown");
    holder.batch_execute("rollback").await?;
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(scrape.value(&errors("57")), 1.0, "{}", scrape.0);

    database.books().await
}

#[tokio::test]
async fn metrics_listen_serves_only_metrics() -> Result<()> {
    let database = crate::database().await?;
    let environment = [("METRICS_LISTEN", "127.0.0.1:0")];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let log = api.service.log();
    let (_, url) = log.split_once("metrics at ").context("no address")?;
    let url = url.split_whitespace().next().context("no address")?;
    let status = async |url: &str| anyhow::Ok(reqwest::get(url).await?.status().as_u16());
    assert_eq!(status(&api.service.url("/metrics")).await?, 404);
    assert_eq!(status(&url.replace("/metrics", "/health/live")).await?, 404);
    let scrape = Scrape::at(url).await?;
    assert_eq!(scrape.value(&requests("unmatched", "GET", 404)), 2.0);
    Ok(())
}

/// A dashboard or an alert on a missing metric would stay silent.
#[tokio::test]
async fn dashboard_and_alerts_use_only_existing_metrics() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    api.create("PROMO", 1).await?;
    let there = Scrape::of(&api.service).await?.names();
    let docker = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker");
    for file in [
        "grafana/dashboards/honcho.json",
        "prometheus/alerts.yml",
        "prometheus/alerts_test.yml",
    ] {
        let text = fs::read_to_string(docker.join(file)).context(file)?;
        let asked: BTreeSet<&str> = text
            .split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
            .filter(|word| word.starts_with("honcho_") || word.starts_with("process_"))
            .collect();
        assert!(asked.len() > 3, "{file} asks for {asked:?}");
        for name in asked {
            assert!(there.contains(name), "{file} asks for {name}");
        }
    }
    Ok(())
}
