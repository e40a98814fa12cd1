//! PgBouncer in transaction mode between two services and a shard. What makes a service unready is in
//! `operations/pooler.rs`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use honcho_tests::{Database, Pooler, connect, eventually};

use crate::fixtures::{
    api::Api,
    held_coupon::{claim, hold},
    pooler::{IGNORING, settings_on_the_role},
    scrape::Scrape,
    shards::{Callers, Shards, check_answers},
    sql::show,
};

/// The number of sales, and of the times that a coupon is read in each.
const ROUNDS: usize = 6;
const READS: usize = 50;

/// More than callers can claim.
const AMOUNT: i32 = 1_000_000;

/// A service whose second shard is behind the pooler.
async fn service(direct: &Database, pooler: &Pooler) -> Result<Arc<Api>> {
    let urls = format!("{} {}", direct.caller_url(), pooler.url());
    // A role has one value, so both kinds of sessions have the same.
    let settings = [("DATABASE_SHARDS", &*urls), ("LOCK_TIMEOUT", "250ms")];
    Ok(Arc::new(Api::start_with("", &settings).await?))
}

/// Waits until both shards of a service are ready: the service is while one of them is.
async fn until_both_ready(api: &Api) -> Result<()> {
    eventually("both shards to be ready", async || {
        let scrape = Scrape::of(&api.service).await?;
        let is_ready = |shard| {
            let series = format!("honcho_ready{{reason=\"none\",shard=\"{shard}\"}}");
            scrape.series().contains(&*series) && scrape.value(&series) == 1.0
        };
        Ok((is_ready(0) && is_ready(1)).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a PgBouncer of 1.21 or newer: make test-scale"]
async fn transaction_pooler_in_front_of_a_shard_serves_two_services() -> Result<()> {
    let mut shards = Shards::start(&[crate::cluster()], 2, &[]).await?;
    let [direct, pooled] = [0, 1].map(|shard| &shards.databases[shard]);
    let settings = format!(
        "pool_mode = transaction\nmax_prepared_statements = 100\ndefault_pool_size = 20\n{IGNORING}"
    );
    let pooler = Pooler::start_new(crate::cluster(), pooled, &settings).await?;

    // The settings that a session asks for do not get through.
    let api = service(direct, &pooler).await?;
    api.service.logged("drops the session's settings (").await?;
    let names = shards.coupon_on_each("REFUSED", 10).await?;
    assert_eq!(api.claim("user", &names[0]).await?.shown(), "200");
    assert_eq!(
        api.claim("user", &names[1]).await?.shown(),
        "503 unavailable"
    );

    // Those of its role do.
    settings_on_the_role(pooled).await?;
    drop(pooler);
    let pooler = Pooler::start_new(crate::cluster(), pooled, &settings).await?;
    assert_eq!(
        show(&connect(pooler.url()).await?, "lock_timeout").await?,
        "250ms"
    );
    let services = [
        service(direct, &pooler).await?,
        service(direct, &pooler).await?,
    ];
    for api in &services {
        until_both_ready(api).await?;
    }

    shards.api = Arc::clone(&services[0]);
    let client = shards.databases[1].connect().await?;
    let (mut told, mut pooled) = (0, 0);
    for round in 0..ROUNDS {
        let coupons = shards
            .coupon_on_each(&format!("ROUND {round}"), AMOUNT)
            .await?;
        let callers = [0, 1].map(|n| {
            let who = format!("service {n}");
            Callers::start(&services[n], &coupons, 4, &who)
        });
        for callers in &callers {
            callers.until(&coupons, "200", 50).await?;
        }
        for n in 0..READS {
            let shown = services[n % 2].show(&coupons[1]).await?.body;
            let claims = shown["claimed_by"].as_array().map_or(0, Vec::len);
            let left = &shown["remaining_amount"];
            ensure!(
                *left == AMOUNT - i32::try_from(claims)?,
                "{left} left after {claims} claims"
            );
        }
        for callers in callers {
            let answers = callers.end().await?;
            for answer in &answers {
                assert_eq!(answer.shown, "200", "{answer:?}");
            }
            told += shards.check(&answers).await?;
            let of_pooled = answers.iter().filter(|it| it.coupon == coupons[1]);
            pooled += check_answers(&client, of_pooled).await?;
        }
    }

    // Without lock_timeout, the claim would wait for statement_timeout.
    let holder = hold(&shards.databases[1], &names[1]).await?;
    let begun = Instant::now();
    let waiting = claim(&services[1], "waiting", &names[1]);
    assert_eq!(waiting.await??, "503 unavailable");
    let waited = begun.elapsed();
    ensure!(waited < Duration::from_secs(4), "{waited:?}");
    holder.batch_execute("rollback").await?;
    eprintln!(
        "{told} claims, of them {pooled} through PgBouncer; {} reads of one snapshot each; a held coupon was given up \
         after {waited:.1?}",
        ROUNDS * READS
    );
    shards.books().await
}
