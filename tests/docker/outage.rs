//! Containers go and come back: what was told stays true.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::{Result, ensure};
use honcho_tests::eventually;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::stack::{Claimant, Stack, compose, container, docker};

/// Claims under way at any time.
const CLAIMANTS: usize = 16;

/// As many claims tell that the stack works.
const ENOUGH: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_survives_the_database_container() -> Result<()> {
    let stack = Stack::up().await?;
    stack.create("OUTAGE", 1_000_000).await?;
    let load = Load::start(&stack.claimant().await?, "OUTAGE");
    load.goes_on().await?;
    compose(&["restart", "postgres"]).await?;
    load.goes_on().await?;
    compose(&["kill", "postgres"]).await?;
    compose(&["up", "--detach", "--no-build"]).await?;
    load.goes_on().await?;
    let (told, refused) = load.stop().await?;
    ensure!(refused > 0, "nobody noticed that the database was away");

    let (_, shown) = stack.show("OUTAGE").await?;
    let claimed: BTreeSet<&str> = claimants(&shown).collect();
    let lost: Vec<_> = told
        .iter()
        .filter(|user| !claimed.contains(user.as_str()))
        .collect();
    assert!(lost.is_empty(), "told and lost: {lost:?}");
    assert_eq!(shown["remaining_amount"], 1_000_000 - claimed.len());
    stack.books().await
}

#[tokio::test]
async fn data_outlives_down_and_up() -> Result<()> {
    let stack = Stack::up().await?;
    stack.create("KEPT", 3).await?;
    let claimant = stack.claimant().await?;
    for user in ["one", "two"] {
        assert_eq!(claimant.claim(user, "KEPT").await?, "200");
    }
    let before = stack.show("KEPT").await?;

    compose(&["stop"]).await?;
    for service in ["service", "postgres"] {
        let container = container(service).await?;
        let status = docker(&["inspect", "--format", "{{.State.ExitCode}}", &container]).await?;
        assert_eq!(status, "0", "{service} did not end as it was told to");
    }
    compose(&["down"]).await?;
    assert_eq!(container("postgres").await?, "");
    stack.bring_up().await?;

    assert_eq!(stack.show("KEPT").await?, before);
    let claimant = stack.claimant().await?;
    assert_eq!(claimant.claim("one", "KEPT").await?, "409 already_claimed");
    assert_eq!(claimant.claim("three", "KEPT").await?, "200");
    stack.books().await
}

fn claimants(shown: &Value) -> impl Iterator<Item = &str> {
    shown["claimed_by"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// Claims without end, by ever new users.
struct Load {
    stop: Arc<AtomicBool>,
    told: Arc<Mutex<Vec<String>>>,
    refused: Arc<AtomicUsize>,
    claimants: JoinSet<Result<()>>,
}

impl Load {
    fn start(claimant: &Claimant, coupon: &'static str) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            told: Arc::default(),
            refused: Arc::default(),
            claimants: JoinSet::new(),
        };
        let users = Arc::new(AtomicUsize::new(0));
        for _ in 0..CLAIMANTS {
            let claimant = claimant.clone();
            let users = Arc::clone(&users);
            let stop = Arc::clone(&load.stop);
            let told = Arc::clone(&load.told);
            let refused = Arc::clone(&load.refused);
            load.claimants.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let user = format!("user_{}", users.fetch_add(1, Ordering::Relaxed));
                    let outcome = claimant.claim(&user, coupon).await?;
                    match outcome.split(' ').next() {
                        Some("200") => told.lock().unwrap().push(user),
                        Some("503") => _ = refused.fetch_add(1, Ordering::Relaxed),
                        _ => anyhow::bail!("{user} was told {outcome}"),
                    }
                }
                Ok(())
            });
        }
        load
    }

    fn told(&self) -> usize {
        self.told.lock().unwrap().len()
    }

    /// Waits until claims have been made from now on.
    async fn goes_on(&self) -> Result<()> {
        let enough = self.told() + ENOUGH;
        eventually("claims", async || Ok((self.told() >= enough).then_some(()))).await
    }

    /// Who was told that they have the coupon, and how many were told to come back later.
    async fn stop(mut self) -> Result<(Vec<String>, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(claimant) = self.claimants.join_next().await {
            claimant??;
        }
        let told = std::mem::take(&mut *self.told.lock().unwrap());
        Ok((told, self.refused.load(Ordering::Relaxed)))
    }
}
