//! Outages of the whole database or of the network to it.

use std::sync::Arc;

use anyhow::{Result, ensure};
use honcho_tests::{Cluster, ClusterOptions, Database, PATIENCE, Proxy, Stop, eventually};
use tokio::{task::JoinSet, time::timeout};

use crate::fixtures::{
    api::Api,
    held_coupon::{claim, claim_until_certain, hold, until_queued},
    readiness::soon,
    recovery::{until_well, url_through},
};

async fn everything_is_unavailable(api: &Api) -> Result<()> {
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
    assert_eq!(api.create("NEW", 1).await?.shown(), "503 unavailable");
    assert_eq!(api.show("PROMO").await?.shown(), "503 unavailable");
    Ok(())
}

#[tokio::test]
async fn database_restart_is_503_and_recovers() -> Result<()> {
    let mut cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 100).await?;
    cluster.stop(Stop::Fast)?;

    // The database is down when the service starts.
    let api = Arc::new(Api::start(database.caller_url()).await?);
    everything_is_unavailable(&api).await?;
    cluster.start()?;
    assert_eq!(api.claim("first", "PROMO").await?.status, 200);

    // The database goes down while the pool has connections, by a crash and by a clean stop.
    for how in [Stop::Immediate, Stop::Fast] {
        claim_concurrently(&api, &format!("before {how:?}"), 20).await?;
        cluster.stop(how)?;
        everything_is_unavailable(&api).await?;
        cluster.start()?;
        // No claim may get a connection from before the restart.
        claim_concurrently(&api, &format!("after {how:?}"), 20).await?;
    }
    // A restart between two requests.
    cluster.stop(Stop::Immediate)?;
    cluster.start()?;
    claim_concurrently(&api, "restarted", 10).await?;

    let shown = api.show("PROMO").await?;
    assert_eq!(shown.body["remaining_amount"], 9);
    assert_eq!(shown.body["claimed_by"].as_array().unwrap().len(), 91);
    database.books().await
}

async fn claim_concurrently(api: &Arc<Api>, who: &str, users: u32) -> Result<()> {
    let mut claims = JoinSet::new();
    for n in 0..users {
        let (api, user) = (Arc::clone(api), format!("{who} {n}"));
        claims.spawn(async move { api.claim(&user, "PROMO").await });
    }
    while let Some(claim) = claims.join_next().await {
        assert_eq!(claim??.shown(), "200", "{who}: {}", api.service.log());
    }
    Ok(())
}

#[tokio::test]
async fn cut_network_is_503_and_recovers() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1000).await?;
    database.create_coupon("HELD", 10).await?;
    let socket = crate::cluster().directory().join(".s.PGSQL.5432");
    let mut proxy = Proxy::start(socket).await?;
    let api = Arc::new(Api::start(&url_through(&proxy, &database)).await?);
    until_well(&api, "before").await?;
    for round in 0..3 {
        // The network is cut during a claim.
        let holder = hold(&database, "HELD").await?;
        let user = format!("user {round}");
        let under_way = claim(&api, &user, "HELD");
        until_queued(&database.connect().await?, 1).await?;
        proxy.cut().await;
        assert_eq!(under_way.await??, "503 outcome_unknown");
        assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
        assert_eq!(api.create("NEW", 1).await?.shown(), "503 unavailable");
        assert_eq!(api.show("PROMO").await?.shown(), "503 unavailable");
        api.until_not_ready("the database cannot be reached")
            .await?;
        proxy.mend().await?;
        soon("recovery", until_well(&api, &format!("round {round}"))).await?;
        holder.batch_execute("rollback").await?;
        let answered = claim_until_certain(&api, &user, "HELD").await?;
        // The server may have made the claim without being able to answer.
        ensure!(
            answered == "200" || answered == "409 already_claimed",
            "{round}: {answered}"
        );
    }
    database.books().await
}

#[tokio::test]
async fn frozen_database_is_outcome_unknown_and_recovers() -> Result<()> {
    let cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 1000).await?;
    let settings = [
        ("STATEMENT_TIMEOUT", "1s"),
        ("LOCK_TIMEOUT", "500ms"),
        ("REQUEST_TIMEOUT", "120s"),
    ];
    let api = Arc::new(Api::start_with(database.caller_url(), &settings).await?);
    until_well(&api, "before").await?;
    for round in 0..2 {
        let frozen = cluster.freeze()?;
        // The connection worked a moment ago, so the server may have received the claim.
        let under_way = claim(&api, &format!("lost {round}"), "PROMO");
        api.until_not_ready("the database does not answer").await?;
        let answered = timeout(PATIENCE, under_way).await?;
        assert_eq!(answered??, "503 outcome_unknown");
        assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
        drop(frozen);
        soon("recovery", until_well(&api, &format!("round {round}"))).await?;
    }
    database.books().await
}

#[tokio::test]
async fn role_connection_limit_is_503_and_recovers() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let api = Api::start(database.caller_url()).await?;
    let limit = |limit: i32| {
        format!(
            "alter role {}_caller connection limit {limit}",
            database.name()
        )
    };
    let admin = database.connect().await?;
    admin.batch_execute(&limit(0)).await?;
    everything_is_unavailable(&api).await?;
    admin.batch_execute(&limit(-1)).await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "200");
    database.books().await
}

#[tokio::test]
async fn exhausted_connections_are_503_and_recover() -> Result<()> {
    let cluster = ClusterOptions::default()
        .setting("max_connections", "12")
        .start()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 1000).await?;
    let admin = database.connect().await?;
    let api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    // Three connections are reserved for superusers.
    let mut others = Vec::new();
    while let Ok(client) = database.connect_as_caller().await {
        others.push(client);
    }
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
    eventually("the reason in the log", async || {
        let log = api.service.log();
        let reasons = [
            "sorry, too many clients already",
            "remaining connection slots",
        ];
        Ok(reasons
            .iter()
            .any(|reason| log.contains(reason))
            .then_some(()))
    })
    .await?;
    api.until_not_ready("the database has no connections left for requests")
        .await?;
    others.clear();
    soon("recovery", until_well(&api, "after")).await?;
    drop(admin);
    database.books().await
}

#[tokio::test]
async fn outage_is_logged_in_few_lines() -> Result<()> {
    let mut cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 10_000).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    until_well(&api, "before").await?;
    cluster.stop(Stop::Immediate)?;
    let mut claims = JoinSet::new();
    for n in 0..300 {
        let api = Arc::clone(&api);
        claims.spawn(async move { api.claim(&format!("user {n}"), "PROMO").await });
    }
    while let Some(claim) = claims.join_next().await {
        assert_eq!(claim??.status, 503);
    }
    // A shorter outage may pass between two health checks.
    eventually("the service to be unready", async || {
        let ready = api.http.get(api.service.url("/health/ready")).send();
        Ok((ready.await?.status() == 503).then_some(()))
    })
    .await?;
    cluster.start()?;
    soon("recovery", until_well(&api, "after")).await?;
    let log = eventually("the end of the outage in the log", async || {
        let log = api.service.log();
        Ok(log.contains(" ready after ").then_some(log))
    })
    .await?;
    let warnings = log.lines().filter(|line| line.contains(" WARN ")).count();
    assert!((1..10).contains(&warnings), "{warnings}:\n{log}");
    assert!(log.contains("not_logged="), "{log}");
    database.books().await
}
