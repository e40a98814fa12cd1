//! Sales during failovers by Patroni: callers over HTTP and over SQL, who know both servers. What a caller was told is
//! true on the new leader.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use honcho_tests::{Database, Patroni, Replication, books, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;
use tokio_postgres::Client;

use super::sql_caller::SqlCaller;
use crate::fixtures::{
    api::Api,
    recovery::until_claims_succeed,
    shards::{Caller, Callers, ClaimAnswer, check_answers},
};

/// Pause of an HTTP client after a 503.
const PAUSE: Duration = Duration::from_millis(20);

/// Time within which claims must succeed again after a leader has died or frozen: its lock in etcd expires after 20 s.
const FAILOVER_LIMIT: Duration = Duration::from_secs(40);

/// A client of the service.
struct HttpCaller(Arc<Api>);

impl Caller for HttpCaller {
    async fn claim_shown(&mut self, user_id: &str, coupon_name: &str) -> String {
        let shown = self.0.claim(user_id, coupon_name).await;
        let shown = shown.map_or_else(|error| format!("{error:#}"), |it| it.shown());
        if shown != "200" {
            sleep(PAUSE).await;
        }
        shown
    }
}

/// Two servers under Patroni, and a service that knows both.
struct Site {
    patroni: Patroni,
    database: Database,
    api: Arc<Api>,
}

impl Site {
    /// Node 0 is the leader.
    async fn start(replication: Replication) -> Result<Self> {
        let patroni = Patroni::start(replication).await?;
        let database = Database::create_at(|user, name| patroni.url(user, name)).await?;
        let api = Arc::new(Api::start(database.caller_url()).await?);
        api.until_ready().await?;
        Ok(Self {
            patroni,
            database,
            api,
        })
    }

    /// Opens a sale: half of the callers claim the same coupon.
    async fn open_sale(&self) -> Result<Sale> {
        let mut coupons = Vec::new();
        for coupon in ["HOT", "A", "B", "C"] {
            self.database.create_coupon(coupon, 1_000_000).await?;
            coupons.push(coupon.to_owned());
        }
        let user = format!("{}_caller", self.database.name());
        let sale = Sale {
            http: [
                Callers::start_ways(
                    || HttpCaller(Arc::clone(&self.api)),
                    &coupons[..1],
                    6,
                    "hot",
                ),
                Callers::start_ways(
                    || HttpCaller(Arc::clone(&self.api)),
                    &coupons[1..],
                    2,
                    "http",
                ),
            ],
            sql: Callers::start_ways(
                || SqlCaller::new(&self.patroni, &user, self.database.name()),
                &coupons[..2],
                2,
                "sql",
            ),
            coupons,
        };
        sale.until_claims_succeed(100).await?;
        Ok(sale)
    }

    /// A session on a node.
    async fn session(&self, node: usize) -> Result<Client> {
        let session = self.patroni.connect_to(node, self.database.name()).await;
        session.context("no session")
    }

    /// Ends the sale, and compares what callers were told with the leader. Its standby must have the same claims then.
    async fn close(&self, sale: Sale, leader: usize, what: &str) -> Result<()> {
        let [http, sql] = sale.end().await?;
        let session = self.session(leader).await?;
        let count = |answers: &[ClaimAnswer], shown: &str| {
            answers.iter().filter(|it| it.shown == shown).count()
        };
        for (way, answers) in [("HTTP", http), ("SQL", sql)] {
            let told = check_answers(&session, answers.iter())
                .await
                .with_context(|| format!("{what}, {way}"))?;
            let slowest = answers.iter().map(|it| it.took).max().unwrap_or_default();
            eprintln!(
                "{what}, {way}: {told} told, 0 lost, {} outcome_unknown, {} unavailable, slowest answer {slowest:.1?}",
                count(&answers, "503 outcome_unknown"),
                count(&answers, "503 unavailable"),
            );
        }
        books(&session).await?;
        self.until_alike().await
    }

    /// Waits until both nodes have the same claims.
    async fn until_alike(&self) -> Result<()> {
        let sql = "select count(*) || ' ' || md5(string_agg(user_id || ' ' || coupon_name, ',' order by id)) from claims";
        eventually("both servers to have the same claims", async || {
            let mut found = Vec::new();
            for node in 0..2 {
                let Some(session) = self.patroni.connect_to(node, self.database.name()).await
                else {
                    return Ok(None);
                };
                let Ok(row) = session.query_one(sql, &[]).await else {
                    return Ok(None);
                };
                found.push(row.get::<_, String>(0));
            }
            Ok((found[0] == found[1]).then_some(()))
        })
        .await
    }
}

/// Callers on four coupons.
struct Sale {
    http: [Callers; 2],
    sql: Callers,
    coupons: Vec<String>,
}

impl Sale {
    /// Waits until so many more claims have succeeded on each coupon, over HTTP and over SQL.
    async fn until_claims_succeed(&self, count: usize) -> Result<()> {
        let [hot, others] = &self.http;
        tokio::try_join!(
            hot.until(&self.coupons[..1], "200", count),
            others.until(&self.coupons[1..], "200", count),
            self.sql.until(&self.coupons[..2], "200", count),
        )?;
        Ok(())
    }

    /// All answers over HTTP and over SQL.
    async fn end(self) -> Result<[Vec<ClaimAnswer>; 2]> {
        let [hot, others] = self.http;
        let (hot, others, sql) = tokio::try_join!(hot.end(), others.end(), self.sql.end())?;
        Ok([[hot, others].concat(), sql])
    }
}

/// Waits for the new leader and for claims. Returns how long each took.
async fn failover(site: &Site, sale: &Sale, since: Instant) -> Result<[Duration; 2]> {
    let led = async {
        site.patroni.until_leader(1).await?;
        anyhow::Ok(since.elapsed())
    };
    let claimed = async {
        sale.until_claims_succeed(1).await?;
        anyhow::Ok(since.elapsed())
    };
    let (led, claimed) = tokio::try_join!(led, claimed)?;
    Ok([led, claimed])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Patroni and etcd: make test-scale"]
async fn killed_leader_loses_no_told_claim() -> Result<()> {
    let mut site = Site::start(Replication::Synchronous).await?;
    let sale = site.open_sale().await?;
    let since = Instant::now();
    site.patroni.kill(0)?;
    let [led, claimed] = failover(&site, &sale, since).await?;
    eprintln!("killed: new leader after {led:.1?}, claims after {claimed:.1?}");
    ensure!(claimed < FAILOVER_LIMIT, "claims after {claimed:?}");
    sale.until_claims_succeed(100).await?;
    let since = Instant::now();
    site.patroni.start_node(0)?;
    site.patroni
        .until_followed(1, Replication::Synchronous)
        .await?;
    eprintln!(
        "killed: the old leader follows after {:.1?}",
        since.elapsed()
    );
    sale.until_claims_succeed(100).await?;
    site.close(sale, 1, "killed").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Patroni and etcd: make test-scale"]
async fn frozen_leader_comes_back_as_a_standby_without_claims_of_its_own() -> Result<()> {
    let site = Site::start(Replication::Synchronous).await?;
    let sale = site.open_sale().await?;
    let since = Instant::now();
    let frozen = site.patroni.freeze(0)?;
    let [led, claimed] = failover(&site, &sale, since).await?;
    eprintln!("frozen: new leader after {led:.1?}, claims after {claimed:.1?}");
    ensure!(claimed < FAILOVER_LIMIT, "claims after {claimed:?}");
    sale.until_claims_succeed(100).await?;
    let since = Instant::now();
    drop(frozen);
    site.patroni
        .until_followed(1, Replication::Synchronous)
        .await?;
    eprintln!(
        "frozen: the old leader follows after {:.1?}",
        since.elapsed()
    );
    sale.until_claims_succeed(100).await?;
    site.close(sale, 1, "frozen").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Patroni and etcd: make test-scale"]
async fn switchovers_lose_no_told_claim() -> Result<()> {
    let site = Site::start(Replication::Synchronous).await?;
    let sale = site.open_sale().await?;
    for (from, to) in [(0, 1), (1, 0)] {
        let since = Instant::now();
        let switched = async {
            site.patroni.switch_over(from, to)?;
            site.patroni.until_leader(to).await?;
            anyhow::Ok(since.elapsed())
        };
        let led = switched.await?;
        sale.until_claims_succeed(100).await?;
        let claimed = since.elapsed();
        site.patroni
            .until_followed(to, Replication::Synchronous)
            .await?;
        eprintln!(
            "switchover: new leader after {led:.1?}, 100 claims on each coupon after {claimed:.1?}, followed after {:.1?}",
            since.elapsed()
        );
    }
    site.close(sale, 0, "switchover").await
}

/// A standby that receives no WAL until this is dropped, and that never gets what was sent until then.
struct Deaf(Pid);

impl Drop for Deaf {
    fn drop(&mut self) {
        // It ends before it reads what is left in its connection. It may be gone by now.
        for signal in [Signal::TERM, Signal::CONT] {
            let _ = kill_process(self.0, signal);
        }
    }
}

/// Stops the receiver of the standby, node 1.
async fn deafen(site: &Site) -> Result<Deaf> {
    let receiver = "select pid from pg_stat_wal_receiver";
    let receiver: i32 = site
        .session(1)
        .await?
        .query_one(receiver, &[])
        .await?
        .get(0);
    let receiver = Pid::from_raw(receiver).context("no process")?;
    kill_process(receiver, Signal::STOP)?;
    Ok(Deaf(receiver))
}

/// Claims for ten users, and returns those whose claims were told.
async fn claim_each(site: &Site) -> Result<Vec<String>> {
    let mut told = Vec::new();
    for n in 0..10 {
        let user = format!("user {n}");
        match &*site.api.claim(&user, "PROMO").await?.shown() {
            "200" => told.push(user),
            "503 outcome_unknown" => return Ok(told),
            other => anyhow::bail!("{other}"),
        }
    }
    Ok(told)
}

/// The same fault in both modes: the leader dies with claims that the standby does not have.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Patroni and etcd: make test-scale"]
async fn asynchronous_replication_loses_told_claims_and_synchronous_does_not() -> Result<()> {
    for (replication, told_and_lost) in [
        (Replication::Asynchronous, 10),
        (Replication::Synchronous, 0),
    ] {
        let mut site = Site::start(replication).await?;
        site.database.create_coupon("PROMO", 1000).await?;
        let coupon = "select name from coupons where name = 'PROMO'";
        eventually("the standby to have the coupon", async || {
            let Some(session) = site.patroni.connect_to(1, site.database.name()).await else {
                return Ok(None);
            };
            Ok(session.query_opt(coupon, &[]).await.ok().flatten())
        })
        .await?;
        let deaf = deafen(&site).await?;
        let told = claim_each(&site).await?;
        site.patroni.kill(0)?;
        drop(deaf);
        site.patroni.until_leader(1).await?;
        until_claims_succeed(&site.api, "after").await?;
        let session = site.session(1).await?;
        let kept = "select count(*) from claims where user_id = any($1)";
        let kept: i64 = session.query_one(kept, &[&told]).await?.get(0);
        eprintln!("{replication:?}: {} told, {kept} kept", told.len());
        assert_eq!(told.len() as i64 - kept, told_and_lost, "{replication:?}");
        books(&session).await?;
    }
    Ok(())
}

/// Claims wait for a standby that is gone, until Patroni no longer counts on it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Patroni and etcd: make test-scale"]
async fn claims_wait_for_a_lost_standby_until_patroni_drops_it() -> Result<()> {
    let mut site = Site::start(Replication::Synchronous).await?;
    let sale = site.open_sale().await?;
    let since = Instant::now();
    site.patroni.kill(1)?;
    sale.until_claims_succeed(20).await?;
    eprintln!("standby killed: claims after {:.1?}", since.elapsed());
    site.patroni.start_node(1)?;
    site.patroni
        .until_followed(0, Replication::Synchronous)
        .await?;
    let since = Instant::now();
    let frozen = site.patroni.freeze(1)?;
    sale.until_claims_succeed(20).await?;
    eprintln!("standby frozen: claims after {:.1?}", since.elapsed());
    drop(frozen);
    site.patroni
        .until_followed(0, Replication::Synchronous)
        .await?;
    site.close(sale, 0, "standby lost").await
}
