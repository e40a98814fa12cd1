use std::{collections::BTreeMap, future::Future, sync::Arc};

use anyhow::Result;
use tokio::{sync::Barrier, task::JoinSet};

/// Prepares a claim for every user, starts all of them when the last is ready, and counts the outcomes.
pub async fn concurrently<P, C>(
    users: Vec<String>,
    prepare: impl Fn(String) -> P,
) -> Result<BTreeMap<String, usize>>
where
    P: Future<Output = Result<C>> + Send + 'static,
    C: Future<Output = Result<String>> + Send + 'static,
{
    let barrier = Arc::new(Barrier::new(users.len()));
    let mut claims = JoinSet::new();
    for user in users {
        let prepared = prepare(user);
        let barrier = Arc::clone(&barrier);
        claims.spawn(async move {
            let prepared = prepared.await;
            barrier.wait().await;
            prepared?.await
        });
    }
    let mut outcomes = BTreeMap::new();
    while let Some(outcome) = claims.join_next().await {
        *outcomes.entry(outcome??).or_default() += 1;
    }
    Ok(outcomes)
}

/// The counts that [`concurrently`] is expected to return.
pub fn counts(outcomes: &[(&str, usize)]) -> BTreeMap<String, usize> {
    outcomes
        .iter()
        .map(|&(outcome, count)| (outcome.to_owned(), count))
        .collect()
}
