//! Containers that stop and come back: no told claim is lost.

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

/// Concurrent claims.
const CLAIMANTS: usize = 16;

/// This many successful claims show that the stack works.
const ENOUGH: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn database_restart_and_kill_lose_no_told_claim() -> Result<()> {
    let stack = Stack::up().await?;
    stack.create("OUTAGE", 1_000_000).await?;
    let load = Load::start(&stack.claimant().await?, "OUTAGE");
    load.goes_on().await?;
    compose(&["restart", "postgres"]).await?;
    load.goes_on().await?;
    compose(&["kill", "postgres"]).await?;
    compose(&["up", "--detach", "--no-build"]).await?;
    load.goes_on().await?;
    let (answered, refused) = load.stop().await?;
    ensure!(refused > 0, "no claim was refused during the outage");

    let (_, shown) = stack.show("OUTAGE").await?;
    let claimed: BTreeSet<&str> = claimants(&shown).collect();
    let lost: Vec<_> = answered
        .iter()
        .filter(|user| !claimed.contains(user.as_str()))
        .collect();
    assert!(lost.is_empty(), "answered and lost: {lost:?}");
    assert_eq!(shown["remaining_amount"], 1_000_000 - claimed.len());
    stack.books().await
}

#[tokio::test]
async fn data_survives_compose_down_and_up() -> Result<()> {
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
        assert_eq!(status, "0", "{service} did not exit as asked");
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

/// Claims by new users without end.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<Mutex<Vec<String>>>,
    refused: Arc<AtomicUsize>,
    claimants: JoinSet<Result<()>>,
}

impl Load {
    fn start(claimant: &Claimant, coupon: &'static str) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            refused: Arc::default(),
            claimants: JoinSet::new(),
        };
        let users = Arc::new(AtomicUsize::new(0));
        for _ in 0..CLAIMANTS {
            let claimant = claimant.clone();
            let users = Arc::clone(&users);
            let stop = Arc::clone(&load.stop);
            let answered = Arc::clone(&load.answered);
            let refused = Arc::clone(&load.refused);
            load.claimants.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let user = format!("user_{}", users.fetch_add(1, Ordering::Relaxed));
                    let outcome = claimant.claim(&user, coupon).await?;
                    match outcome.split(' ').next() {
                        Some("200") => answered.lock().unwrap().push(user),
                        Some("503") => _ = refused.fetch_add(1, Ordering::Relaxed),
                        _ => anyhow::bail!("{user} got {outcome}"),
                    }
                }
                Ok(())
            });
        }
        load
    }

    fn answered(&self) -> usize {
        self.answered.lock().unwrap().len()
    }

    /// Waits until new claims have succeeded.
    async fn goes_on(&self) -> Result<()> {
        let enough = self.answered() + ENOUGH;
        eventually("claims", async || {
            Ok((self.answered() >= enough).then_some(()))
        })
        .await
    }

    /// Returns the users whose claims succeeded, and the number of claims that were refused with 503.
    async fn stop(mut self) -> Result<(Vec<String>, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(claimant) = self.claimants.join_next().await {
            claimant??;
        }
        let answered = std::mem::take(&mut *self.answered.lock().unwrap());
        Ok((answered, self.refused.load(Ordering::Relaxed)))
    }
}
