//! The log: one line for each request, nothing secret, and no request waits for it.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use honcho_tests::{Cluster, Database, Service, Stop, eventually};
use serde_json::Value;

use crate::fixtures::{api::Api, held_coupon::hold};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Waits for the line of the request with this id.
async fn line_of(service: &Service, request_id: &str) -> Result<String> {
    eventually("the line of a request", async || {
        let log = service.log();
        let line = log
            .lines()
            .find(|line| line.contains(request_id) && line.contains("request_id"));
        Ok(line.map(str::to_owned))
    })
    .await
}

#[tokio::test]
async fn request_is_logged_in_one_line() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    api.create("SECRET", 1).await?;
    let claim = api
        .claim_request("somebody", "SECRET")
        .header("x-request-id", "the-claim")
        .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"))
        .send()
        .await?;
    assert_eq!(claim.headers()["x-request-id"], "the-claim");
    let bytes = claim.bytes().await?.len();
    let line = line_of(&api.service, "the-claim").await?;
    let (time, rest) = line.split_once("  INFO ").context("no level")?;
    assert_eq!(time.len(), "2026-11-22T12:00:00.000000Z".len(), "{line}");
    let fields: Vec<&str> = rest.split(' ').collect();
    assert_eq!(
        fields[..4],
        [
            "request",
            "method=POST",
            "route=/api/coupons/claim",
            "status=200"
        ]
    );
    let duration: u64 = fields[4].strip_prefix("duration_us=").unwrap().parse()?;
    assert!(duration > 0, "{line}");
    assert_eq!(
        fields[5..],
        [
            &format!("bytes={bytes}"),
            "request_id=the-claim",
            &format!("trace_id={TRACE}"),
            "client=127.0.0.1",
        ]
    );

    // An invalid trace is ignored, and an id that could corrupt the log is replaced.
    for (id, parent) in [
        ("zero", format!("00-{}-b7ad6b7169203331-01", "0".repeat(32))),
        ("version", format!("ff-{TRACE}-b7ad6b7169203331-01")),
        ("short", format!("00-{TRACE}-01")),
        ("words", "once upon a time".to_owned()),
    ] {
        let request = api.show_request("SECRET").header("x-request-id", id);
        request.header("traceparent", parent).send().await?;
        let line = line_of(&api.service, id).await?;
        assert!(!line.contains("trace_id"), "{line}");
        assert!(line.contains(" route=/api/coupons/{name} "), "{line}");
    }
    let odd = "a \"b\" c=d";
    let request = api.show_request("SECRET").header("x-request-id", odd);
    let given = request.send().await?.headers()["x-request-id"].clone();
    let line = line_of(&api.service, given.to_str()?).await?;
    assert!(line.contains("status=200"), "{line}");

    // Scrapes are frequent and are not logged.
    api.request(reqwest::Method::GET, "/metrics")
        .header("x-request-id", "scrape")
        .send()
        .await?;
    api.show_request("SECRET")
        .header("x-request-id", "after-the-scrape")
        .send()
        .await?;
    line_of(&api.service, "after-the-scrape").await?;
    let log = api.service.log();
    for unwanted in ["SECRET", "somebody", odd, "request_id=scrape"] {
        assert!(!log.contains(unwanted), "{unwanted}: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn log_lines_can_be_json() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let environment = [("LOG_FORMAT", "json"), ("LOCK_TIMEOUT", "50ms")];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let _holder = hold(&database, "PROMO").await?;
    let claim = api
        .claim_request("somebody", "PROMO")
        .header("x-request-id", "the-claim")
        .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"));
    assert_eq!(claim.send().await?.status(), 503);
    let lines = eventually("both lines of the claim", async || {
        let log = api.service.log();
        let lines: Vec<Value> = log
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .context(log)?;
        let ours: Vec<Value> = lines
            .into_iter()
            .filter(|line| line["request_id"] == "the-claim")
            .collect();
        Ok((ours.len() == 2).then_some(ours))
    })
    .await?;
    let (problem, request) = (&lines[0], &lines[1]);
    assert_eq!(problem["level"], "WARN");
    assert_eq!(problem["trace_id"], TRACE);
    assert_eq!(problem["message"], "locked");
    let error = problem["error"].as_str().unwrap();
    let expected = "ERROR: canceling statement due to lock timeout (SQLSTATE 55P03)";
    assert!(error.starts_with(expected), "{error}");
    assert_eq!(request["level"], "INFO");
    assert_eq!(request["target"], "http");
    assert_eq!(request["message"], "request");
    assert_eq!(request["method"], "POST");
    assert_eq!(request["route"], "/api/coupons/claim");
    assert_eq!(request["status"], 503);
    assert!(request["duration_us"].as_u64().unwrap() >= 50_000);
    assert!(request["bytes"].as_u64().unwrap() > 0);
    assert_eq!(request["trace_id"], TRACE);
    assert_eq!(request["client"], "127.0.0.1");
    assert!(request["timestamp"].as_str().unwrap().ends_with('Z'));
    Ok(())
}

/// A trigger whose message contains the user's id writes arbitrary text to the log.
#[tokio::test]
async fn database_messages_in_the_log_are_quoted_and_throttled() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    database
        .connect()
        .await?
        .batch_execute(
            "create function refuse() returns trigger language plpgsql as $$
               begin raise exception 'blocked: %', new.user_id; end $$;
             create trigger refuse before insert on claims for each row
               when (new.user_id like 'EVIL%') execute function refuse();",
        )
        .await?;
    let mut api = Api::start(database.caller_url()).await?;
    let evil = "EVIL request_id=forged \u{202e}desrever\u{9b}31m \"\n2026-11-22T12:00:00.000000Z  INFO forged";
    for _ in 0..50 {
        assert_eq!(api.claim(evil, "PROMO").await?.shown(), "500 internal");
    }
    api.service.terminate()?;
    api.service.exit().await?;
    let log = api.service.log();
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" ERROR "))
        .collect();
    // Further lines are suppressed for ten seconds.
    assert_eq!(errors.len(), 5, "{log}");
    let (before, quoted) = errors[0].split_once(" error=\"").context("not quoted")?;
    assert!(before.ends_with(" ERROR refused"), "{before}");
    let quoted_evil =
        r#"ERROR: blocked: EVIL request_id=forged \u{202e}desrever\u{9b}31m \"\n2026-11-22T"#;
    assert!(quoted.starts_with(quoted_evil), "{quoted}");
    assert!(
        !log.contains('\u{202e}') && !log.contains('\u{9b}'),
        "{log}"
    );
    assert!(!log.contains("db error"), "{log}");
    assert!(
        !log.lines().any(|line| line.ends_with("INFO forged")),
        "{log}"
    );
    database.books().await
}

#[tokio::test]
async fn log_throttles_repeated_refusals_of_a_value() -> Result<()> {
    let database = crate::database().await?;
    database
        .connect()
        .await?
        .batch_execute(
            "create function honcho_refuse() returns trigger language plpgsql as $$
               begin raise exception 'no' using errcode = '22023'; end $$;
             create trigger refuse before insert on claims for each row
               execute function honcho_refuse();
             select honcho_create_coupon('PROMO', 100);",
        )
        .await?;
    let mut api = Api::start(database.caller_url()).await?;
    for _ in 0..50 {
        let answered = api.claim("user", "PROMO").await?.shown();
        assert!(
            ["400 invalid_request", "500 internal"].contains(&answered.as_str()),
            "{answered}"
        );
    }
    api.service.terminate()?;
    api.service.exit().await?;
    let log = api.service.log();
    let answered = log.lines().filter(|line| line.contains(" error=")).count();
    assert_eq!(answered, 5, "{log}");
    database.books().await
}

#[tokio::test]
async fn log_throttle_of_a_held_coupon_does_not_hide_an_outage() -> Result<()> {
    let mut cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    let names = ["ONE", "TWO", "THREE"];
    let mut holders = Vec::new();
    for name in names {
        database.create_coupon(name, 10).await?;
        holders.push(hold(&database, name).await?);
    }
    let environment = [("LOCK_TIMEOUT", "50ms")];
    let mut api = Api::start_with(database.caller_url(), &environment).await?;
    api.until_ready().await?;
    for name in names {
        let answered = api.claim("user", name).await?.shown();
        assert_eq!(answered, "503 unavailable", "{name}");
    }
    cluster.stop(Stop::Immediate)?;
    for name in names {
        let answered = api.claim("user", name).await?.shown();
        assert_eq!(answered, "503 unavailable", "{name}");
    }
    api.service.terminate()?;
    api.service.exit().await?;
    let log = api.service.log();
    for kind in [" WARN locked ", " WARN disconnected "] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(kind)).collect();
        assert!(!lines.is_empty(), "{kind}: {log}");
        assert!(!lines[0].contains("left_out"), "{kind}: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn logged_client_is_the_one_behind_trusted_proxies() -> Result<()> {
    let database = crate::database().await?;
    for (proxies, client) in [("127.0.0.0/8", "198.51.100.7"), ("10.0.0.0/8", "127.0.0.1")] {
        let environment = [("TRUSTED_PROXIES", proxies)];
        let api = Api::start_with(database.caller_url(), &environment).await?;
        let request = api
            .show_request("NOTHING")
            .header("x-request-id", "behind-a-proxy")
            .header("x-forwarded-for", "192.0.2.1, 198.51.100.7");
        request.send().await?;
        let line = line_of(&api.service, "behind-a-proxy").await?;
        assert!(line.ends_with(&format!(" client={client}")), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn start_logs_the_address_of_the_documentation() -> Result<()> {
    let database = crate::database().await?;
    let mut api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    let docs = api.service.url("/docs");
    let log = api.service.log();
    assert!(log.contains(&docs), "{log}");
    assert!(reqwest::get(&docs).await?.status().is_success());
    api.service.terminate()?;
    api.service.exit().await?;
    assert!(!api.service.log().contains("not_logged="), "{log}");
    Ok(())
}

#[tokio::test]
async fn log_level_filters_lines() -> Result<()> {
    let database = crate::database().await?;
    for (level, shown) in [("info", true), ("info,http=off", false), ("error", false)] {
        // The line "listening" is at info, and the start waits for it.
        let level_with_start = format!("{level},honcho_service=info");
        let api =
            Api::start_with(database.caller_url(), &[("LOG_LEVEL", &level_with_start)]).await?;
        api.create(level, 1).await?;
        // Remaining lines are written before the exit.
        let mut service = api.service;
        service.terminate()?;
        assert!(service.exit().await?.success());
        let log = service.log();
        assert_eq!(log.contains("route=/api/coupons"), shown, "{level}: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn log_is_written_to_its_end_at_shutdown() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    for n in 0..300 {
        api.show_request("NOTHING")
            .header("x-request-id", format!("request-{n}"))
            .send()
            .await?;
    }
    let mut service = api.service;
    service.terminate()?;
    assert!(service.exit().await?.success());
    let log = service.log();
    for n in 0..300 {
        assert!(
            log.contains(&format!("request_id=request-{n} ")),
            "{n}: {log}"
        );
    }
    assert!(log.trim_end().ends_with("stopped"), "{log}");
    Ok(())
}

/// Such as a terminal stopped with Ctrl+S, a full pipe, or a log shipper that hangs.
#[tokio::test]
async fn blocked_log_delays_no_request() -> Result<()> {
    let database = crate::database().await?;
    let mut child = Command::new(env::var_os("HONCHO_SERVICE").context("no service")?)
        .env("DATABASE_URL", database.caller_url())
        .env("HOST", "127.0.0.1")
        .env("PORT", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut log = BufReader::new(child.stderr.take().context("no standard error")?);
    let mut line = String::new();
    let url = loop {
        line.clear();
        anyhow::ensure!(log.read_line(&mut line)? > 0, "no address");
        if let Some((_, url)) = line.split_once("listening on ") {
            break url.split_whitespace().next().context("no URL")?.to_owned();
        }
    };
    // From here on, the log is not read. The pipe takes some hundred lines, and the service buffers 2 MiB
    // more.
    let http = reqwest::Client::new();
    let dropped = eventually("lines to be dropped", async || {
        for _ in 0..1_000 {
            let response = http.get(format!("{url}/api/nothing")).send().await?;
            assert_eq!(response.status(), 404);
        }
        let scrape = http.get(format!("{url}/metrics")).send().await?;
        let scrape = scrape.text().await?;
        let dropped = scrape
            .lines()
            .find_map(|line| line.strip_prefix("honcho_log_lines_dropped_total "));
        let dropped: u64 = dropped.context("no count")?.parse()?;
        Ok((dropped > 0).then_some(dropped))
    })
    .await;
    child.kill()?;
    child.wait()?;
    assert!(dropped? > 0);
    Ok(())
}
