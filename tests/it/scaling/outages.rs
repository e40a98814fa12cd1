//! Outages of one shard leave the others alone, and no told claim is lost.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use honcho_tests::{Cluster, ClusterOptions, Stop, eventually};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};

use crate::fixtures::{
    api::{Api, answer},
    event_stream::{EventStream, refused},
    scrape::Scrape,
    shards::{Callers, ClaimAnswer, Shards},
};

/// A cluster that may crash.
fn cluster() -> Result<Cluster> {
    ClusterOptions::default().setting("fsync", "off").start()
}

/// A cluster that may crash, for so many shards.
fn cluster_of(shards: usize) -> Result<Cluster> {
    let connections = (shards * 20).max(100).to_string();
    ClusterOptions::default()
        .setting("fsync", "off")
        .setting("max_connections", &connections)
        .start()
}

/// Two clusters with two shards each: even numbers in the first, odd ones in the second.
async fn two_clusters(environment: &[(&str, &str)]) -> Result<(Cluster, Cluster, Shards)> {
    let (even, odd) = (cluster()?, cluster()?);
    let shards = Shards::start(&[&even, &odd], 4, environment).await?;
    until_ready(&shards.api, 0..4).await?;
    Ok((even, odd, shards))
}

/// The calls that count at a time: the service has these processors, too.
fn calls_that_count() -> usize {
    let processors = thread::available_parallelism().map_or(2, usize::from);
    2 * processors
}

/// Waits until these shards are ready.
async fn until_ready(api: &Api, shards: impl Iterator<Item = usize> + Clone) -> Result<()> {
    until_shown(api, shards, "none", 1.0).await
}

async fn until_shown(
    api: &Api,
    shards: impl Iterator<Item = usize> + Clone,
    reason: &str,
    value: f64,
) -> Result<()> {
    eventually(reason, async || {
        let scrape = Scrape::of(&api.service).await?;
        let is_shown = |shard| {
            let series = format!("honcho_ready{{reason={reason:?},shard=\"{shard}\"}}");
            scrape.series().contains(&*series) && scrape.value(&series) == value
        };
        Ok(shards.clone().all(is_shown).then_some(()))
    })
    .await
}

async fn list(api: &Api, path: &str) -> Result<String> {
    Ok(answer(api.request(Method::GET, path)).await?.shown())
}

/// The even coupons' answers, which must all be 200, and the slowest of those that began since then.
fn slowest_of_even(answers: &[ClaimAnswer], even: &[String], since: Instant) -> Duration {
    let of_even: Vec<_> = answers
        .iter()
        .filter(|it| even.contains(&it.coupon))
        .collect();
    for answer in &of_even {
        assert_eq!(answer.shown, "200", "{answer:?}");
    }
    let during = of_even.iter().filter(|it| it.begun > since);
    during.map(|it| it.took).max().unwrap()
}

// More threads: a look at all answers must not count in those that arrive meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn stopped_shards_are_503_and_the_others_serve() -> Result<()> {
    let (_even, mut odd, shards) = two_clusters(&[]).await?;
    let api = &shards.api;
    let coupons = shards.coupon_on_each("PROMO", 1_000_000).await?;
    let (evens, odds): (Vec<_>, Vec<_>) = coupons
        .iter()
        .cloned()
        .partition(|name| shards.number_of(name) % 2 == 0);
    for (round, how) in [Stop::Kill, Stop::Immediate].into_iter().enumerate() {
        let callers = Callers::start(api, &coupons, 4, &format!("stop {round}"));
        callers.until(&coupons, "200", 50).await?;
        let since = Instant::now();
        odd.stop(how)?;
        until_shown(api, [1, 3].into_iter(), "unreachable", 0.0).await?;
        callers.until(&odds, "503", 20).await?;
        callers.until(&evens, "200", 100).await?;
        assert_eq!(api.health("ready").await?.status, 200);
        for path in ["/api/coupons", "/api/users/user/claims"] {
            assert_eq!(list(api, path).await?, "503 unavailable");
        }
        let events = refused(api.request(Method::GET, "/api/events")).await?;
        assert_eq!(events.shown(), "503 unavailable");
        let shown = api.show(&evens[0]).await?;
        assert_eq!(shown.status, 200);
        assert_eq!(api.show(&odds[0]).await?.shown(), "503 unavailable");
        odd.start()?;
        until_ready(api, 0..4).await?;
        callers.until(&coupons, "200", 50).await?;
        assert_eq!(list(api, "/api/coupons").await?, "200");
        let answers = callers.end().await?;
        let slowest = slowest_of_even(&answers, &evens, since);
        let told = shards.check(&answers).await?;
        eprintln!("{how:?}: {told} told, 0 lost; slowest answer of others {slowest:?}");
        shards.books().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_shards_do_not_hold_up_the_others() -> Result<()> {
    // A call on a shard that does not answer is given up after this time and one second more.
    const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);
    let statement_timeout = format!("{}s", STATEMENT_TIMEOUT.as_secs());
    let settings = [
        ("STATEMENT_TIMEOUT", &*statement_timeout),
        ("REQUEST_TIMEOUT", "120s"),
        ("DATABASE_POOL_SIZE", "4"),
    ];
    // Those of one cluster can have all calls that count in the limit over all shards.
    let count = 2 * (calls_that_count() + 1).next_power_of_two();
    let (even, odd) = (cluster_of(count / 2)?, cluster_of(count / 2)?);
    let shards = Shards::start(&[&even, &odd], count, &settings).await?;
    until_ready(&shards.api, 0..count).await?;
    let api = &shards.api;
    // Two on each shard, so that their lanes share calls, too.
    let mut coupons = shards.coupon_on_each("PROMO", 1_000_000).await?;
    coupons.extend(shards.coupon_on_each("OTHER", 1_000_000).await?);
    let (evens, odds): (Vec<_>, Vec<_>) = coupons
        .iter()
        .cloned()
        .partition(|name| shards.number_of(name) % 2 == 0);
    let callers = Callers::start(api, &coupons, 4, "freeze");
    callers.until(&coupons, "200", 100).await?;
    let before = callers.answers();
    let frozen = odd.freeze()?;
    let since = Instant::now();
    until_shown(api, (1..count).step_by(2), "silent", 0.0).await?;
    callers.until(&odds, "503", 4).await?;
    callers.until(&evens, "200", 200).await?;
    assert_eq!(api.health("ready").await?.status, 200);
    let lists = list(api, "/api/coupons").await?;
    assert!(
        ["504 timeout", "503 unavailable"].contains(&&*lists),
        "{lists}"
    );
    let during = callers.answers();
    drop(frozen);
    until_ready(api, 0..count).await?;
    callers.until(&coupons, "200", 50).await?;
    let answers = callers.end().await?;
    let slowest = slowest_of_even(&during, &evens, since);
    let usual = before.iter().map(|it| it.took).max().unwrap();
    let told = shards.check(&answers).await?;
    eprintln!(
        "frozen: {told} told, 0 lost; slowest answer of others {slowest:?}, before {usual:?}"
    );
    // On an idle machine it is some milliseconds, but the others share this one with whatever runs beside the test.
    assert!(slowest < STATEMENT_TIMEOUT / 2, "{slowest:?}");
    shards.books().await
}

#[tokio::test]
async fn killed_service_loses_no_told_claim_of_any_shard() -> Result<()> {
    let mut shards = Shards::start(&[crate::cluster()], 4, &[]).await?;
    let coupons = shards.coupon_on_each("PROMO", 1_000_000).await?;
    let mut all = Vec::new();
    for round in 0..5 {
        let callers = Callers::start(&shards.api, &coupons, 8, &format!("kill {round}"));
        callers.until(&coupons, "200", 50).await?;
        let pid = i32::try_from(shards.api.service.pid())?;
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL)?;
        all.extend(callers.until_unanswered().await?);
        shards.api = Shards::start_service(&shards.databases, &[]).await?;
    }
    let told = shards.check(&all).await?;
    eprintln!("killed service: {told} told, 0 lost");
    shards.books().await
}

/// A stream that has begun goes on with the events of the others.
#[tokio::test]
async fn stream_of_all_shards_goes_on_while_one_is_away() -> Result<()> {
    let (_even, mut odd, shards) = two_clusters(&[]).await?;
    let api = &shards.api;
    let coupons = shards.coupon_on_each("PROMO", 10).await?;
    let mut stream = EventStream::open(api, "/api/events", None).await?;
    stream.until_position().await?;
    odd.stop(Stop::Immediate)?;
    until_shown(api, [1, 3].into_iter(), "unreachable", 0.0).await?;
    let restock = serde_json::json!({ "delta": 1 });
    for coupon in coupons
        .iter()
        .filter(|name| shards.number_of(name) % 2 == 0)
    {
        let path = format!("{coupon}/restock");
        assert_eq!(
            api.send_json(Method::POST, &path, &restock).await?.status,
            200
        );
        assert_eq!(
            stream.until("restocked").await?.data["coupon_name"],
            **coupon
        );
    }
    odd.start()?;
    until_ready(api, 0..4).await?;
    for coupon in &coupons {
        let path = format!("{coupon}/restock");
        assert_eq!(
            api.send_json(Method::POST, &path, &restock).await?.status,
            200
        );
        assert_eq!(
            stream.until("restocked").await?.data["coupon_name"],
            **coupon
        );
    }
    shards.books().await
}
