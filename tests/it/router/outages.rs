//! Shards and routers that stop: what their callers are told, and that no told claim is lost.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use honcho_tests::{Cluster, ClusterOptions, Database, PATIENCE, Stop, connect, eventually};
use rustix::io::Errno;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::{Router, claim, sqlstate};
use crate::fixtures::{
    held_coupon::hold,
    sql::{CALLS, claimed, until_waiting_for_lock},
    wal_flush::Fallible,
};

/// A cluster that may stop.
fn cluster() -> Result<Cluster> {
    ClusterOptions::default().start()
}

/// Runs statements in a session of their own, and returns their SQLSTATE.
async fn begin(database: &Database, sql: String) -> Result<JoinHandle<String>> {
    let session = database.connect_as_caller().await?;
    Ok(tokio::spawn(async move { sqlstate(&session, &sql).await }))
}

#[tokio::test]
async fn stopped_shard_fails_its_own_callers_only() -> Result<()> {
    let mut own = cluster()?;
    let router = Router::over(crate::cluster(), &[crate::cluster(), &own]).await?;
    let [here, away] = [
        router.create_coupon(0, 500).await?,
        router.create_coupon(1, 500).await?,
    ];
    let old = router.database.connect_as_caller().await?;
    assert_eq!(claim(&old, "old", &away).await?, "claimed");
    own.stop(Stop::Fast)?;

    let claim_there = format!("select honcho_claim('ann', '{away}')");
    // The connection has ended: the session cannot know if the shard still got the call.
    let state = sqlstate(&old, &claim_there).await;
    ensure!(["08007", "57P01"].contains(&&*state), "{state}");
    let new = router.database.connect_as_caller().await?;
    for session in [&old, &new] {
        for n in 0..50 {
            assert_eq!(sqlstate(session, &claim_there).await, "57P03");
            let user = format!("user {n} {}", std::ptr::eq(session, &new));
            assert_eq!(claim(session, &user, &here).await?, "claimed");
        }
        let read = format!("select honcho_get_coupon('{away}')");
        assert_eq!(sqlstate(session, &read).await, "57P03");
        assert_eq!(
            sqlstate(session, "select honcho_list_coupons()").await,
            "57P03"
        );
        assert_eq!(sqlstate(session, "select honcho_verify()").await, "57P03");
        // Other shards may have been tidied.
        assert_eq!(sqlstate(session, "select honcho_expire()").await, "08007");
    }

    own.start()?;
    for session in [&old, &new] {
        eventually("the shard to be back", async || {
            let state = sqlstate(session, &claim_there).await;
            ensure!(["00000", "57P03"].contains(&&*state), "{state}");
            Ok((state == "00000").then_some(()))
        })
        .await?;
    }
    router.books().await
}

#[tokio::test]
async fn lost_answer_is_told_from_a_failed_call() -> Result<()> {
    let mut own = cluster()?;
    let router = Router::over(crate::cluster(), &[&own]).await?;
    let shard = &router.shards[0];
    shard.create_coupon("HELD", 5).await?;
    let holder = hold(shard, "HELD").await?;
    let write = begin(
        &router.database,
        "select honcho_claim('ann', 'HELD')".into(),
    )
    .await?;
    until_waiting_for_lock(&shard.connect().await?).await?;
    own.stop(Stop::Kill)?;
    drop(holder);
    assert_eq!(write.await?, "08007");
    own.start()?;

    let locker = shard.connect().await?;
    locker
        .batch_execute("begin; lock table coupons in access exclusive mode")
        .await?;
    let read = begin(&router.database, "select honcho_get_coupon('HELD')".into()).await?;
    until_waiting_for_lock(&shard.connect().await?).await?;
    own.stop(Stop::Kill)?;
    assert_eq!(read.await?, "08006");
    own.start()?;
    router.books().await
}

#[tokio::test]
async fn cancelled_claim_may_be_there() -> Result<()> {
    let own = cluster()?;
    let router = Router::over(crate::cluster(), &[&own]).await?;
    let shard = &router.shards[0];
    shard.create_coupon("PROMO", 5).await?;
    let admin = shard.connect().await?;
    // The shard's commits wait for a standby that does not come.
    for setting in [
        "alter system set synchronous_standby_names = 'absent'",
        "select pg_reload_conf()",
    ] {
        admin.batch_execute(setting).await?;
    }
    let watcher = shard.connect().await?;
    eventually("the setting", async || {
        let row = watcher
            .query_one("show synchronous_standby_names", &[])
            .await?;
        Ok((row.get::<_, &str>(0) == "absent").then_some(()))
    })
    .await?;
    let session = router.database.connect_as_caller().await?;
    session
        .batch_execute("set statement_timeout = '500ms'")
        .await?;
    assert_eq!(
        sqlstate(&session, "select honcho_claim('ann', 'PROMO')").await,
        "08007"
    );
    assert_eq!(claimed(&watcher).await?, ["ann"]);

    // A cancelled reading changes nothing, and says so.
    admin.batch_execute("begin; lock table coupons").await?;
    assert_eq!(
        sqlstate(&session, "select honcho_get_coupon('PROMO')").await,
        "57014"
    );
    admin.batch_execute("rollback").await?;
    router.books().await
}

/// The last step of a call reads the label of its outcome. A session that does not know it yet waits there for a lock on
/// the labels' table, and the shard has committed.
#[tokio::test]
async fn cancel_after_the_commit_of_a_shard_is_no_undone_call() -> Result<()> {
    let router = Router::new(1).await?;
    let shard = router.shards[0].connect().await?;
    shard
        .batch_execute(
            "select honcho_create_coupon('PROMO', 99), honcho_create_coupon('SPARE', 1);
             select honcho_claim('releaser', 'PROMO'), honcho_reserve('confirmer', 'PROMO', '1 hour'),
                    honcho_reserve('canceller', 'PROMO', '1 hour')",
        )
        .await?;
    let locker = router.database.connect().await?;
    locker
        .batch_execute("begin; lock table pg_catalog.pg_enum in access exclusive mode")
        .await?;
    let watcher = router.database.connect().await?;
    let mut wrong = Vec::new();
    for call in [
        "honcho_claim('one', 'PROMO')",
        "honcho_claim('two', 'PROMO', 'key')",
        "honcho_claim_batch('PROMO', '{three}')",
        "honcho_claim_batch('PROMO', '{four}', '{key}')",
        "honcho_release('releaser', 'PROMO')",
        "honcho_reserve('holder', 'PROMO', '1 hour')",
        "honcho_confirm('confirmer', 'PROMO')",
        "honcho_cancel('canceller', 'PROMO')",
        "honcho_apply('PROMO', '{claim}', '{five}')",
        "honcho_update_coupon('PROMO', 100)",
        "honcho_restock('PROMO', 1)",
        "honcho_delete_coupon('SPARE')",
    ] {
        let state = begin(&router.database, format!("select {call}")).await?;
        until_waiting_for_lock(&watcher).await?;
        let cancel = "select pg_cancel_backend(pid) from pg_stat_activity
                       where datname = current_database() and wait_event_type = 'Lock'";
        watcher.execute(cancel, &[]).await?;
        let state = state.await?;
        if state != "08007" {
            wrong.push(format!("{call}: {state}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let users = ["confirmer", "five", "four", "one", "three", "two"];
    let mut claimed = claimed(&shard).await?;
    claimed.sort();
    assert_eq!(claimed, users);
    let rest = "select (select string_agg(user_id, ',') from holds), string_agg(name || amount, ',') from coupons";
    let rest = shard.query_one(rest, &[]).await?;
    assert_eq!((rest.get(0), rest.get(1)), ("holder", "PROMO101"));
    router.books().await
}

/// Every function has a handler of its own, so each is called in each fault.
#[tokio::test]
async fn every_function_tells_a_failed_call_from_a_lost_answer() -> Result<()> {
    let mut own = cluster()?;
    let router = Router::over(crate::cluster(), &[&own]).await?;
    let shard = &router.shards[0];
    shard.create_coupon("PROMO", 100).await?;
    let calls = CALLS.map(|call| match call {
        "select honcho_list_events()" => "select honcho_list_events(coupon_name => 'PROMO')",
        other => other,
    });
    let reads = |call: &str| {
        let functions = ["honcho_get_", "honcho_list_", "honcho_verify"];
        functions.iter().any(|function| call.contains(function))
    };
    let mut wrong = Vec::new();
    let mut check = |fault: &str, call: &str, state: String, expected: &str| {
        if state != expected {
            wrong.push(format!("{fault}: {call}: {state} instead of {expected}"));
        }
    };

    let session = router.database.connect_as_caller().await?;
    let admin = shard.connect().await?;
    for call in calls {
        session
            .batch_execute("select honcho_get_coupon('PROMO')")
            .await?;
        let ended = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity
                      where datname = current_database() and usename = 'honcho_router'";
        assert_eq!(admin.query_one(ended, &[]).await?.get::<_, i64>(0), 1);
        let expected = if reads(call) { "08006" } else { "08007" };
        check("ended", call, sqlstate(&session, call).await, expected);
    }

    admin
        .batch_execute("begin; lock table coupons, claims, holds, coupon_events")
        .await?;
    session
        .batch_execute("set statement_timeout = '200ms'")
        .await?;
    for call in calls {
        let expected = if reads(call) { "57014" } else { "08007" };
        check("cancelled", call, sqlstate(&session, call).await, expected);
    }
    admin.batch_execute("rollback").await?;

    own.stop(Stop::Fast)?;
    let session = router.database.connect_as_caller().await?;
    for call in calls {
        // Other shards may have been tidied.
        let tidies = ["honcho_expire", "honcho_purge_events"];
        let tidies = tidies.iter().any(|function| call.contains(function));
        let expected = if tidies { "08007" } else { "57P03" };
        check("stopped", call, sqlstate(&session, call).await, expected);
    }
    own.start()?;
    assert!(wrong.is_empty(), "{wrong:#?}");
    router.books().await
}

/// Users who were told that they have a coupon, by coupon.
type Told = Arc<Mutex<BTreeSet<(usize, String)>>>;

/// Claims in sessions on the router until their connections end. A shard that is away does not end them.
fn load(router: &Router, coupons: &[String], told: &Told) -> JoinSet<Result<()>> {
    let mut sessions = JoinSet::new();
    for n in 0..8 {
        let (url, told) = (router.database.caller_url().to_owned(), Arc::clone(told));
        let shard = n % coupons.len();
        let coupon = coupons[shard].clone();
        sessions.spawn(async move {
            let session = connect(&url).await?;
            for claims in 0.. {
                let user = format!("user {n} {claims}");
                match claim(&session, &user, &coupon).await {
                    Ok(outcome) => {
                        assert_eq!(outcome, "claimed");
                        told.lock().unwrap().insert((shard, user));
                    }
                    Err(_) if session.is_closed() => break,
                    Err(error) => {
                        let code = error.code().map(|code| code.code());
                        let of_an_outage = ["57P03", "57P01", "57P02", "08007"];
                        assert!(
                            code.is_some_and(|code| of_an_outage.contains(&code)),
                            "{error:?}"
                        );
                    }
                }
            }
            Ok(())
        });
    }
    sessions
}

/// Waits until this many claims are told in addition.
async fn until_told(told: &Told, count: usize) -> Result<()> {
    let before = told.lock().unwrap().len();
    eventually("claims", async || {
        Ok((told.lock().unwrap().len() >= before + count).then_some(()))
    })
    .await
}

/// Fails unless every told claim is there. Returns their number.
async fn assert_kept(router: &Router, told: &Told) -> Result<usize> {
    let mut kept = BTreeSet::new();
    for (n, shard) in router.shards.iter().enumerate() {
        let users = claimed(&shard.connect().await?).await?;
        kept.extend(users.into_iter().map(|user| (n, user)));
    }
    let told = told.lock().unwrap();
    let lost: Vec<_> = told.difference(&kept).collect();
    assert!(
        lost.is_empty(),
        "{} of {} are lost: {lost:?}",
        lost.len(),
        told.len()
    );
    Ok(told.len())
}

#[tokio::test]
async fn told_claims_survive_killed_shards_and_routers() -> Result<()> {
    let (mut first, mut second) = (cluster()?, cluster()?);
    let router = Router::over(&first, &[&second, &second]).await?;
    let coupons = [
        router.create_coupon(0, 1_000_000).await?,
        router.create_coupon(1, 1_000_000).await?,
    ];
    let told = Told::default();
    let mut sessions = load(&router, &coupons, &told);
    for _ in 0..2 {
        until_told(&told, 500).await?;
        second.stop(Stop::Kill)?;
        second.start()?;
    }
    until_told(&told, 500).await?;
    first.stop(Stop::Kill)?;
    while let Some(session) = sessions.join_next().await {
        session??;
    }
    let kept = assert_kept(&router, &told).await?;
    assert!(kept >= 1_500, "{kept}");

    first.start()?;
    let session = router.database.connect_as_caller().await?;
    assert_eq!(claim(&session, "last", &coupons[0]).await?, "claimed");
    router.books().await
}

/// A HAProxy in front of a shard, killed when dropped.
struct Balancer {
    child: Child,
    port: u16,
}

impl Balancer {
    /// Starts the HAProxy that `$HAPROXY` names, with the settings of docs/router.md.
    fn start(shard: &Cluster) -> Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let configuration = shard.directory().join("haproxy.cfg");
        let settings = format!(
            "defaults
                 timeout connect 2s
                 timeout client 1h
                 timeout server 1h
             listen shard
                 bind 127.0.0.1:{port}
                 mode tcp
                 option pgsql-check user honcho_router
                 default-server inter 500ms fall 2 on-marked-down shutdown-sessions
                 server db1 127.0.0.1:{} check\n",
            shard.port()
        );
        fs::write(&configuration, settings)?;
        let program = std::env::var("HAPROXY").context("HAPROXY must name the program")?;
        // In the foreground, where it can be killed.
        let child = Command::new(program)
            .args(["-db", "-f"])
            .arg(configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, port })
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn frozen_shard_behind_haproxy_does_not_hang_its_callers() -> Result<()> {
    let own = ClusterOptions::default().tcp().start()?;
    let router = Router::over(crate::cluster(), &[crate::cluster(), &own]).await?;
    let balancer = Balancer::start(&own)?;
    let lead = format!(
        "alter server honcho options (set p1 'host=127.0.0.1 port={} dbname={}')",
        balancer.port,
        router.shards[1].name()
    );
    router
        .database
        .connect()
        .await?
        .batch_execute(&lead)
        .await?;
    let coupons = [
        router.create_coupon(0, 1_000_000).await?,
        router.create_coupon(1, 1_000_000).await?,
    ];
    let done = Arc::new(AtomicBool::new(false));
    // Every session calls both shards in turn.
    let mut sessions = JoinSet::new();
    for n in 0..6 {
        let session = router.database.connect_as_caller().await?;
        let (coupons, done) = (coupons.clone(), Arc::clone(&done));
        sessions.spawn(async move {
            let mut calls = Vec::new();
            for claims in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                for (shard, coupon) in coupons.iter().enumerate() {
                    let begun = Instant::now();
                    let call = format!("select honcho_claim('user {n} {claims}', '{coupon}')");
                    let state = sqlstate(&session, &call).await;
                    calls.push((shard, begun.elapsed(), state));
                }
            }
            calls
        });
    }
    let session = router.database.connect_as_caller().await?;
    let probe = async |expected: &str| {
        let call = format!("select honcho_restock('{}', 1)", coupons[1]);
        eventually(expected, async || {
            let state = timeout(PATIENCE, sqlstate(&session, &call));
            let state = state.await.context("the router hangs")?;
            Ok((state == expected).then_some(()))
        })
        .await
    };
    probe("00000").await?;
    let frozen = own.freeze()?;
    probe("57P03").await?;
    drop(frozen);
    probe("00000").await?;
    done.store(true, Ordering::Relaxed);
    let calls = sessions.join_all().await.concat();
    for (shard, taken, state) in &calls {
        assert!(
            *taken < Duration::from_secs(5),
            "{shard}: {state} after {taken:?}"
        );
        let told = match shard {
            0 => &["00000"][..],
            _ => &["00000", "57P03", "08007"],
        };
        assert!(told.contains(&&**state), "{shard}: {state}");
    }
    let lost = calls.iter().filter(|(.., state)| state == "08007").count();
    assert!(lost > 0, "no call was under way when the shard froze");
    router.books().await
}

#[tokio::test]
async fn session_that_a_shard_has_ended_is_a_lost_answer() -> Result<()> {
    let router = Router::new(1).await?;
    let coupon = router.create_coupon(0, 10).await?;
    let client = router.database.connect_as_caller().await?;
    assert_eq!(claim(&client, "ann", &coupon).await?, "claimed");
    let shard = router.shards[0].connect().await?;
    let ended = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity
                  where datname = current_database() and usename = 'honcho_router'";
    assert_eq!(shard.query_one(ended, &[]).await?.get::<_, i64>(0), 1);
    let call = format!("select honcho_claim('bob', '{coupon}')");
    assert_eq!(sqlstate(&client, &call).await, "08007");
    assert_eq!(claim(&client, "bob", &coupon).await?, "claimed");

    // PostgreSQL tells a crash by a warning, and what is between may do so by an error.
    shard
        .batch_execute(
            "create function fail() returns trigger language plpgsql
                 as $$begin raise exception sqlstate '57P02'; end$$;
             create trigger fail before insert on claims for each row execute function fail()",
        )
        .await?;
    let call = format!("select honcho_claim('carl', '{coupon}')");
    assert_eq!(sqlstate(&client, &call).await, "08007");
    router.books().await
}

#[tokio::test]
async fn commit_whose_flush_fails_on_a_shard_is_a_lost_answer() -> Result<()> {
    let server = Fallible::start()?;
    let router = Router::over(crate::cluster(), &[&server.cluster]).await?;
    let coupon = router.create_coupon(0, 10).await?;
    let client = router.database.connect_as_caller().await?;
    for (user, errno) in [("ann", Errno::NOSPC), ("bob", Errno::IO)] {
        let starts = server.starts();
        server.fail_once(errno)?;
        let call = format!("select honcho_claim('{user}', '{coupon}')");
        assert_eq!(sqlstate(&client, &call).await, "08007", "{errno}");
        assert!(server.has_failed());
        server.until_recovered(starts).await?;
        // Recovery has found the commit.
        eventually("the router to have a connection again", async || {
            let outcome = claim(&client, user, &coupon).await;
            Ok(outcome
                .is_ok_and(|it| it == "already_claimed")
                .then_some(()))
        })
        .await?;
    }
    router.books().await
}
