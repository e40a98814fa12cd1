//! `/health`: liveness and readiness, for supervisors and load balancers.

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use honcho_tests::{Cluster, Database, Service, Stop, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{task::JoinSet, time::sleep};
use tokio_postgres::error::SqlState;

use crate::fixtures::{
    api::Api,
    held_coupon::{claim, hold, until_queued},
    readiness::soon,
    scrape::Scrape,
};

#[tokio::test]
async fn service_is_ready_within_a_second() -> Result<()> {
    let database = crate::database().await?;
    let mut best = Duration::MAX;
    // Other tests may load the machine: one undisturbed start in five is enough.
    for _ in 0..5 {
        let begun = Instant::now();
        let api = Api::start(database.caller_url()).await?;
        api.until_ready().await?;
        best = best.min(begun.elapsed());
    }
    eprintln!("ready after {best:?}");
    assert!(best < Duration::from_secs(1), "{best:?}");
    Ok(())
}

#[tokio::test]
async fn service_is_live_without_a_database_and_ready_soon_after_it_starts() -> Result<()> {
    let mut cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    cluster.stop(Stop::Fast)?;
    let mut api = Api::start(database.caller_url()).await?;
    api.until_not_ready("the database cannot be reached")
        .await?;
    assert_eq!(api.health("live").await?.body["status"], "live");
    assert_eq!(api.health("ready").await?.header("retry-after"), "1");
    for how in [Stop::Fast, Stop::Immediate] {
        cluster.start()?;
        soon("readiness", api.until_ready()).await?;
        assert_eq!(api.health("ready").await?.body["status"], "ready");
        cluster.stop(how)?;
        api.until_not_ready("the database cannot be reached")
            .await?;
        assert_eq!(api.health("live").await?.status, 200);
    }
    api.service.terminate()?;
    api.service.exit().await?;
    let log = api.service.log();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines(" ready after "), 2, "{log}");
    Ok(())
}

#[tokio::test]
async fn readiness_names_each_misconfiguration() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    let name = database.name();
    let api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    let kick = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where datname = '{name}' and application_name like 'honcho-service%'"
    );
    let faults = [
        (
            "the extension's version is not one that this service speaks",
            "update pg_extension set extversion = '99.1.0' where extname = 'honcho'".to_owned(),
            format!(
                "update pg_extension set extversion = '{}' where extname = 'honcho'",
                env!("CARGO_PKG_VERSION")
            ),
        ),
        (
            "the service's role lacks execute on honcho_list_coupons(bigint, integer)",
            format!("revoke all on function honcho_list_coupons from {name}_caller"),
            format!("grant execute on all functions in schema public to {name}_caller"),
        ),
        (
            "the service's role lacks execute on honcho_create_coupon(text, integer, timestamp with \
             time zone, timestamp with time zone), honcho_get_claim(text, text)",
            format!(
                "revoke all on function honcho_create_coupon, honcho_get_claim from {name}_caller"
            ),
            format!("grant execute on all functions in schema public to {name}_caller"),
        ),
        (
            "the service's role does not find honcho_claim_batch(text, text[]): its search_path needs \
             the extension's schema, and the role usage on that",
            "alter function honcho_claim_batch(text, text[]) rename to elsewhere".to_owned(),
            "alter function elsewhere rename to honcho_claim_batch".to_owned(),
        ),
        (
            "the service's role lacks execute on honcho_restock(text, integer)",
            format!("revoke all on function honcho_restock from {name}_caller"),
            format!("grant execute on all functions in schema public to {name}_caller"),
        ),
        (
            "transactions are read-only (default_transaction_read_only)",
            format!("alter role {name}_caller set default_transaction_read_only = on; {kick}"),
            format!("alter role {name}_caller reset default_transaction_read_only; {kick}"),
        ),
        (
            "the database refuses the service's connections",
            format!("alter role {name}_caller nologin; {kick}"),
            format!("alter role {name}_caller login"),
        ),
        (
            "the extension honcho is not in the database",
            "drop extension honcho".to_owned(),
            format!(
                "create extension honcho;
                 grant execute on all functions in schema public to {name}_caller"
            ),
        ),
    ];
    for (detail, fault, repair) in faults {
        client.batch_execute(&fault).await?;
        api.until_not_ready(detail).await?;
        assert_eq!(api.health("live").await?.status, 200, "{detail}");
        client.batch_execute(&repair).await?;
        soon(detail, api.until_ready()).await?;
        // The log has the reason.
        api.service.logged(detail).await?;
    }
    // None of these is repaired by an update of the extension.
    let log = api.service.log();
    assert!(!log.contains("alter extension honcho update"), "{log}");
    Ok(())
}

#[tokio::test]
async fn temp_file_limit_does_not_make_the_service_unready() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let admin = database.connect().await?;
    let role = format!("{}_caller", database.name());
    admin
        .batch_execute(&format!("alter role {role} set temp_file_limit = '64kB'"))
        .await?;
    // The health check's write exceeds this limit.
    let write = "set work_mem = '64kB';
                 select count(*) from generate_series(1, 50000)";
    let limited = database.connect_as_caller().await?;
    let refused = limited.batch_execute(write).await.err();
    let refused = refused.and_then(|error| error.code().cloned());
    assert_eq!(refused, Some(SqlState::CONFIGURATION_LIMIT_EXCEEDED));

    let api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    // The session that wrote remains usable.
    let last = "select pid, query_start::text from pg_stat_activity
                 where datname = current_database() and application_name = 'honcho-service health'";
    let row = admin.query_one(last, &[]).await?;
    let (session, asked): (i32, String) = (row.get(0), row.get(1));
    eventually("the next health check", async || {
        let row = admin.query_one(last, &[]).await?;
        assert_eq!(row.get::<_, i32>(0), session);
        Ok((row.get::<_, String>(1) != asked).then_some(()))
    })
    .await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "200");
    assert_eq!(api.health("ready").await?.status, 200);
    let log = api.service.log();
    assert!(!log.contains("not ready"), "{log}");
    database.books().await
}

#[tokio::test]
async fn pool_without_connections_makes_the_service_unready() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    // The health check's connection takes the only slot.
    let admin = database.connect().await?;
    let limit = format!("alter role {}_caller connection limit", database.name());
    admin.batch_execute(&format!("{limit} 1")).await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
    api.until_not_ready("the database has no connections left for requests")
        .await?;
    admin.batch_execute(&format!("{limit} -1")).await?;
    soon("readiness", api.until_ready()).await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "200");
    database.books().await
}

#[tokio::test]
async fn pool_that_cannot_grow_serves_all_with_what_it_has() -> Result<()> {
    let database = crate::database().await?;
    let coupons: Vec<String> = (0..20).map(|n| format!("PROMO {n}")).collect();
    for coupon in &coupons {
        database.create_coupon(coupon, 10).await?;
    }
    let api = Arc::new(Api::start(database.caller_url()).await?);
    api.until_ready().await?;
    assert_eq!(api.claim("first", &coupons[0]).await?.shown(), "200");
    // The health check's connection and that of the claim stay; no other can be opened.
    let admin = database.connect().await?;
    let limit = format!("alter role {}_caller connection limit", database.name());
    admin.batch_execute(&format!("{limit} 1")).await?;
    for round in 0..3 {
        let mut requests = JoinSet::new();
        for coupon in &coupons {
            let (api, user, coupon) = (Arc::clone(&api), format!("user {round}"), coupon.clone());
            requests.spawn(async move {
                let claimed = api.claim(&user, &coupon).await?.shown();
                anyhow::Ok([claimed, api.show(&coupon).await?.shown()])
            });
        }
        while let Some(answered) = requests.join_next().await {
            assert_eq!(answered??, ["200", "200"]);
        }
    }
    api.service.logged("too many connections for role").await?;
    let errors = "honcho_database_errors_total{class=\"53\"}";
    assert!(Scrape::of(&api.service).await?.value(errors) > 0.0);

    // Without the limit it grows again.
    admin.batch_execute(&format!("{limit} -1")).await?;
    let size = "honcho_pool_connections{pool=\"fast\"}";
    eventually("the pool to grow", async || {
        let mut claims = JoinSet::new();
        for coupon in &coupons {
            let (api, coupon) = (Arc::clone(&api), coupon.clone());
            claims.spawn(async move { api.claim("user 0", &coupon).await });
        }
        while let Some(answered) = claims.join_next().await {
            assert_eq!(answered??.shown(), "409 already_claimed");
        }
        Ok((Scrape::of(&api.service).await?.value(size) > 1.0).then_some(()))
    })
    .await?;
    database.books().await
}

#[tokio::test]
async fn health_is_answered_while_no_connection_is_free() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let settings = [
        ("DATABASE_POOL_SIZE", "1"),
        ("STATEMENT_TIMEOUT", "100s"),
        ("LOCK_TIMEOUT", "50s"),
    ];
    let api = Arc::new(Api::start_with(database.caller_url(), &settings).await?);
    api.until_ready().await?;
    let holder = hold(&database, "PROMO").await?;
    let waiting = claim(&api, "user", "PROMO");
    until_queued(&database.connect().await?, 1).await?;
    assert_eq!(api.health("ready").await?.status, 200);
    assert_eq!(api.health("live").await?.status, 200);
    assert!(!waiting.is_finished());
    holder.batch_execute("rollback").await?;
    assert_eq!(waiting.await??, "200");
    database.books().await
}

#[tokio::test]
async fn database_that_does_not_answer_makes_the_service_unready() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    let session = "select pid from pg_stat_activity
                    where datname = current_database() and application_name = 'honcho-service health'";
    let session: i32 = database
        .connect()
        .await?
        .query_one(session, &[])
        .await?
        .get(0);
    let session = Pid::from_raw(session).unwrap();
    kill_process(session, Signal::STOP)?;
    api.until_not_ready("the database does not answer").await?;
    // The health check opens a new connection.
    soon("readiness", api.until_ready()).await?;
    kill_process(session, Signal::CONT)?;
    Ok(())
}

#[tokio::test]
async fn service_is_unready_before_it_stops_listening() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let settings = [("SHUTDOWN_DELAY", "300s")];
    let mut api = Api::start_with(database.caller_url(), &settings).await?;
    api.until_ready().await?;
    api.service.terminate()?;
    api.until_not_ready("the service is stopping").await?;
    // Clients that do not know of it yet are still served.
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "200");
    assert_eq!(api.health("live").await?.status, 200);
    // The state of the database has no influence on it.
    let before = "select count(*) from pg_stat_activity
                   where datname = current_database() and application_name = 'honcho-service health'";
    let client = database.connect().await?;
    eventually("the health checks to end", async || {
        let left: i64 = client.query_one(before, &[]).await?.get(0);
        Ok((left == 0).then_some(()))
    })
    .await?;
    api.until_not_ready("the service is stopping").await?;
    // A signal so soon after the first would belong to it.
    sleep(Duration::from_millis(500)).await;
    api.service.terminate()?;
    assert_eq!(api.service.exit().await?.code(), Some(1));
    database.books().await
}

#[tokio::test]
async fn health_check_flag_tells_readiness_by_exit_code() -> Result<()> {
    let mut cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    let api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    let ask = |port: String| {
        Service::command()?
            .args(["--health-check", "--host", "0.0.0.0", "--port", &port])
            .stdin(Stdio::null())
            .output()
            .map_err(anyhow::Error::from)
    };
    let port = api.service.address().port().to_string();
    let asked = ask(port.clone())?;
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    cluster.stop(Stop::Fast)?;
    api.until_not_ready("the database cannot be reached")
        .await?;
    let asked = ask(port.clone())?;
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    assert!(String::from_utf8_lossy(&asked.stdout).contains("the database cannot be reached"));
    drop(api);
    let asked = ask(port)?;
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    assert!(String::from_utf8_lossy(&asked.stderr).contains("no answer from 127.0.0.1:"));
    Ok(())
}
