//! A shard behind the router moves to another server.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Result, ensure};
use honcho_tests::{connect, eventually};
use tokio::task::JoinSet;

use super::{ROLE, Router, claim};
use crate::fixtures::{moves::Homes, sql::claimed};

#[tokio::test(flavor = "multi_thread")]
async fn sessions_follow_a_shard_that_moves_and_no_told_claim_is_lost() -> Result<()> {
    let homes = Homes::start()?;
    let router = Router::over(crate::cluster(), &[crate::cluster(), &homes.old]).await?;
    let shard = &router.shards[1];
    homes.admit(shard).await?;
    connect(&homes.new.url("postgres", "postgres"))
        .await?
        .batch_execute(ROLE)
        .await?;
    let coupons = [
        router.create_coupon(0, 1_000_000).await?,
        router.create_coupon(1, 1_000_000).await?,
    ];
    let told: Arc<Mutex<[BTreeSet<String>; 2]>> = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let mut sessions = JoinSet::new();
    // Every session calls both shards in turn, through the whole move.
    for n in 0..4 {
        let session = router.database.connect_as_caller().await?;
        let (coupons, told, done) = (coupons.clone(), Arc::clone(&told), Arc::clone(&done));
        sessions.spawn(async move {
            let mut failures: BTreeMap<String, usize> = BTreeMap::new();
            for claims in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                for (shard, coupon) in coupons.iter().enumerate() {
                    let user = format!("user {n} {claims}");
                    match claim(&session, &user, coupon).await {
                        Ok(outcome) => {
                            assert_eq!(outcome, "claimed");
                            told.lock().unwrap()[shard].insert(user);
                        }
                        Err(error) => {
                            assert_eq!(shard, 1, "{error:?}");
                            let code = error.code().map_or("none", |code| code.code()).to_owned();
                            *failures.entry(code).or_default() += 1;
                        }
                    }
                }
            }
            failures
        });
    }
    let until_told = async |count: usize| {
        let before = told.lock().unwrap()[1].len();
        eventually("claims", async || {
            Ok((told.lock().unwrap()[1].len() >= before + count).then_some(()))
        })
        .await
    };
    until_told(100).await?;
    let lead = format!(
        "psql -Xq -d '{}' -c \"alter server honcho options (set p1 'host={} dbname={}')\"",
        router.database.superuser_url(),
        homes.new.directory().display(),
        shard.name()
    );
    let moved = homes.run(shard, &["--switch", &lead]).await?;
    ensure!(moved.succeeded);
    until_told(100).await?;
    done.store(true, Ordering::Relaxed);
    let mut failures: BTreeMap<String, usize> = BTreeMap::new();
    for session in sessions.join_all().await {
        for (code, count) in session {
            *failures.entry(code).or_default() += count;
        }
    }
    // The old home refuses a write, or its session has ended: before the call, or in it.
    let expected = ["25006", "57P03", "57P01", "08007"];
    ensure!(
        failures.keys().all(|code| expected.contains(&&**code)),
        "{failures:?}"
    );
    ensure!(failures.contains_key("25006"), "{failures:?}");

    let there = shard.in_cluster(&homes.new);
    let told = told.lock().unwrap().clone();
    for (database, told) in [&router.shards[0], &there].into_iter().zip(&told) {
        let kept: BTreeSet<String> = claimed(&database.connect().await?)
            .await?
            .into_iter()
            .collect();
        let lost: Vec<_> = told.difference(&kept).collect();
        ensure!(lost.is_empty(), "{} are lost: {lost:?}", lost.len());
        eprintln!("{} told, 0 lost", told.len());
        database.books().await?;
    }
    eprintln!("{failures:?}; {} s", moved.refused_for()?);
    Ok(())
}
