//! Errors of the database: statement and lock timeouts, conflicts, hung sessions, misconfiguration.

use std::sync::Arc;

use anyhow::Result;
use honcho_tests::{Cluster, Database, Stop, books, connect, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;

use crate::fixtures::{
    api::{Api, answer},
    held_coupon::{hold, until_queued},
    sql::until_waiting_for_lock,
};

#[tokio::test]
async fn claim_during_a_crash_is_outcome_unknown() -> Result<()> {
    let mut cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 10).await?;
    let api = Api::start(database.caller_url()).await?;
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.execute("select honcho_claim('holder', 'PROMO')", &[])
        .await?;
    let claim = api.claim("user", "PROMO");
    let crash = async {
        until_waiting_for_lock(&database.connect().await?).await?;
        cluster.stop(Stop::Immediate)
    };
    let (claim, crash) = tokio::join!(claim, crash);
    crash?;
    assert_eq!(claim?.shown(), "503 outcome_unknown");
    cluster.start()?;
    // Neither claim was committed.
    assert_eq!(api.show("PROMO").await?.body["remaining_amount"], 10);
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "200");
    database.books().await
}

#[tokio::test]
async fn hung_session_is_outcome_unknown_and_replaced() -> Result<()> {
    let cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 10).await?;
    let api = Api::start_with(database.caller_url(), &[("DATABASE_POOL_SIZE", "1")]).await?;
    assert_eq!(api.claim("first", "PROMO").await?.shown(), "200");
    let client = database.connect().await?;
    let session = "select pid from pg_stat_activity where application_name = 'honcho-service'";
    let session: i32 = client.query_one(session, &[]).await?.get(0);
    let session = Pid::from_raw(session).unwrap();
    kill_process(session, Signal::STOP)?;
    assert_eq!(
        api.claim("second", "PROMO").await?.shown(),
        "503 outcome_unknown"
    );
    // The pool has one connection, so it is a new one.
    assert_eq!(api.claim("third", "PROMO").await?.shown(), "200");
    kill_process(session, Signal::CONT)?;
    // The server had received the claim and makes it after all, so "no" would have been wrong.
    eventually("the second claim", async || {
        let claim = client
            .query_opt("select honcho_get_claim('second', 'PROMO')", &[])
            .await?;
        Ok(claim.map(drop))
    })
    .await?;
    assert_eq!(
        api.claim("second", "PROMO").await?.shown(),
        "409 already_claimed"
    );
    database.books().await
}

#[tokio::test]
async fn held_coupon_is_503_and_blocks_no_other() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("HELD", 10).await?;
    database.create_coupon("FREE", 10).await?;
    let api = Api::start(database.caller_url()).await?;
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.execute("select honcho_claim('holder', 'HELD')", &[])
        .await?;
    let (waits, passes) = tokio::join!(api.claim("user", "HELD"), async {
        until_waiting_for_lock(&database.connect().await?).await?;
        let passes = api.claim("user", "FREE").await?;
        // Reads need no lock and do not wait.
        assert_eq!(api.show("HELD").await?.body["remaining_amount"], 10);
        anyhow::Ok(passes)
    });
    assert_eq!(passes?.shown(), "200");
    assert_eq!(waits?.shown(), "503 unavailable");
    held.rollback().await?;
    assert_eq!(api.claim("user", "HELD").await?.shown(), "200");
    database.books().await
}

#[tokio::test]
async fn statement_timeout_is_504() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("HELD", 10).await?;
    // Options in the URL override those that the service sets.
    let url = format!(
        "{}&options=-c%20statement_timeout%3D200ms",
        database.caller_url()
    );
    let api = Api::start(&url).await?;
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.execute("select honcho_claim('holder', 'HELD')", &[])
        .await?;
    assert_eq!(api.claim("user", "HELD").await?.shown(), "504 timeout");
    held.rollback().await?;
    assert_eq!(api.claim("user", "HELD").await?.shown(), "200");
    database.books().await
}

#[tokio::test]
async fn serialization_conflict_is_retried() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let isolation = "set default_transaction_isolation = 'repeatable read'";
    let client = database.connect().await?;
    client
        .batch_execute(&format!(
            "alter role {}_caller {isolation}",
            database.name()
        ))
        .await?;
    let api = Api::start(database.caller_url()).await?;
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.execute("select honcho_claim('holder', 'PROMO')", &[])
        .await?;
    let (claim, committed) = tokio::join!(api.claim("user", "PROMO"), async {
        until_waiting_for_lock(&client).await?;
        // The waiter's snapshot is older than this.
        anyhow::Ok(held.commit().await?)
    });
    committed?;
    assert_eq!(claim?.shown(), "200");
    let conflicts = "select xact_rollback from pg_stat_database where datname = current_database()";
    eventually("the conflict to be counted", async || {
        Ok((client.query_one(conflicts, &[]).await?.get::<_, i64>(0) > 0).then_some(()))
    })
    .await?;
    database.books().await
}

#[tokio::test]
async fn serializable_conflicts_never_oversell() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let admin = database.connect().await?;
    admin
        .batch_execute(&format!(
            "alter role {}_caller set default_transaction_isolation = 'serializable'",
            database.name()
        ))
        .await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    let mut claims = JoinSet::new();
    for n in 0..40 {
        let api = Arc::clone(&api);
        claims.spawn(async move { api.claim(&format!("user_{n}"), "PROMO").await });
    }
    let mut answered = 0;
    while let Some(claim) = claims.join_next().await {
        match claim??.shown().as_str() {
            "200" => answered += 1,
            "409 sold_out" | "503 unavailable" => {}
            other => panic!("{other}"),
        }
    }
    assert!((1..=5).contains(&answered));
    let claimed: i64 = admin
        .query_one("select count(*) from claims", &[])
        .await?
        .get(0);
    assert_eq!(claimed, answered);
    database.books().await
}

#[tokio::test]
async fn misconfiguration_is_500_and_its_cause_only_in_the_log() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let stranger = database
        .superuser_url()
        .replace("postgres@", &format!("{}_stranger@", database.name()));
    let api = Api::start(&stranger).await?;
    for request in [
        api.claim_request("user", "PROMO"),
        api.show_request("PROMO"),
    ] {
        let answer = answer(request).await?;
        assert_eq!(answer.shown(), "500 internal");
        let text = answer.body.to_string();
        assert!(
            !text.contains("permission") && !text.contains("honcho_"),
            "{text}"
        );
        let id = answer.header("x-request-id").to_owned();
        // The request's line follows the error's line.
        api.service
            .logged(&format!("bytes={} request_id={id}", text.len()))
            .await?;
        let log = api.service.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&id)).collect();
        assert_eq!(lines.len(), 2, "{log}");
        assert!(
            lines[0].contains("ERROR") && lines[0].contains("permission denied"),
            "{log}"
        );
    }

    database
        .connect()
        .await?
        .batch_execute("drop extension honcho")
        .await?;
    let api = Api::start(database.caller_url()).await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "500 internal");
    Ok(())
}

#[tokio::test]
async fn service_recovers_once_the_extension_is_created() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    client.batch_execute("drop extension honcho").await?;
    let api = Api::start(database.superuser_url()).await?;
    assert_eq!(api.create("PROMO", 1).await?.shown(), "500 internal");
    client.batch_execute("create extension honcho").await?;
    assert_eq!(api.create("PROMO", 1).await?.shown(), "201");
    // The statements are prepared on this connection, and their functions are replaced.
    client
        .batch_execute("drop extension honcho; create extension honcho")
        .await?;
    assert_eq!(api.create("PROMO", 1).await?.shown(), "201");
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "200");
    books(&connect(database.superuser_url()).await?).await
}

/// Clients retry: a retry must not leave a backend that waits on.
#[tokio::test]
async fn late_statement_is_cancelled_in_the_database() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("HELD", 10).await?;
    // The database itself would wait for ever.
    let url = format!(
        "{}&options=-c%20statement_timeout%3D0%20-c%20lock_timeout%3D0",
        database.caller_url()
    );
    let settings = [("STATEMENT_TIMEOUT", "100ms")];
    let api = Api::start_with(&url, &settings).await?;
    let client = database.connect().await?;
    let holder = hold(&database, "HELD").await?;
    for _ in 0..3 {
        assert_eq!(
            api.claim("user", "HELD").await?.shown(),
            "503 outcome_unknown"
        );
    }
    until_queued(&client, 0).await?;
    let writers = "select count(*) from claims where user_id = 'user'";
    holder.batch_execute("rollback").await?;
    assert_eq!(client.query_one(writers, &[]).await?.get::<_, i64>(0), 0);

    // The same for reads.
    let mut locker = database.connect().await?;
    let locked = locker.transaction().await?;
    locked
        .batch_execute("lock table coupons in access exclusive mode")
        .await?;
    for path in ["", "/HELD", "/HELD/claims"] {
        let request = api.request(reqwest::Method::GET, &format!("/api/coupons{path}"));
        assert_eq!(answer(request).await?.shown(), "504 timeout", "{path}");
    }
    let waiting =
        "select count(*) from pg_locks where not granted and relation = 'coupons'::regclass";
    eventually("the end of all waits", async || {
        let waiting: i64 = locked.query_one(waiting, &[]).await?.get(0);
        Ok((waiting == 0).then_some(()))
    })
    .await?;
    locked.rollback().await?;
    database.books().await
}
