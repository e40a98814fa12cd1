//! Promotion of a synchronous standby after the loss of its primary: it has all that was told.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use honcho_tests::{Stop, books, eventually};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::standby::Pair;
use crate::fixtures::{
    api::Api,
    lives::{Lives, Way},
    sql::{claim, claimed},
};

#[tokio::test]
async fn failover_to_a_synchronous_standby_loses_no_told_claim() -> Result<()> {
    const CLIENTS: i64 = 16;
    let mut pair = Pair::start(1_000_000).await?;
    let answered = Arc::new(Mutex::new(Vec::new()));
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        let client = pair.database.connect().await?;
        let answered = Arc::clone(&answered);
        clients.spawn(async move {
            // Until the connection breaks.
            for i in 0.. {
                let user_id = format!("user {n} {i}");
                match claim(&client, &user_id).await {
                    Ok(outcome) => {
                        assert_eq!(outcome, "claimed");
                        answered.lock().unwrap().push(user_id);
                    }
                    Err(_) => return,
                }
            }
        });
    }
    let count = || answered.lock().unwrap().len();
    eventually(
        "enough answers",
        async || Ok((count() >= 300).then_some(())),
    )
    .await?;
    let deaf = pair.deafen().await?;
    let before = count();
    eventually("all claims to wait for the standby, or none", async || {
        let all_wait = pair.waiting().await? == CLIENTS;
        Ok((all_wait || count() > before + 300).then_some(()))
    })
    .await?;
    pair.primary.stop(Stop::Kill)?;
    drop(deaf);
    clients.join_all().await;

    pair.standby.promote()?;
    let client = pair.connect_to_standby("postgres").await?;
    let kept = claimed(&client).await?;
    let lost: Vec<String> = answered
        .lock()
        .unwrap()
        .iter()
        .filter(|user| !kept.contains(user))
        .cloned()
        .collect();
    assert!(lost.is_empty(), "{} lost, {:?} …", lost.len(), lost.first());
    assert_eq!(claim(&client, "afterwards").await?, "claimed");
    books(&client).await
}

/// Reads events until the session ends, and returns their ids.
async fn read_events(client: Client) -> Vec<i64> {
    let (mut last, mut ids) = (0_i64, Vec::new());
    let sql = "select id from honcho_list_events($1, 20)";
    while let Ok(rows) = client.query(sql, &[&last]).await {
        for row in rows {
            last = row.get(0);
            ids.push(last);
        }
    }
    ids
}

#[tokio::test]
async fn failover_loses_no_hold_release_replay_or_event() -> Result<()> {
    const USERS: usize = 6;
    let mut pair = Pair::start(1_000_000).await?;
    let lives = Arc::new(Lives::default());
    let mut sessions = JoinSet::new();
    let api = Arc::new(Api::start(pair.database.caller_url()).await?);
    api.until_ready().await?;
    for n in 0..24 {
        let way = if n < 12 {
            Way::Service(Arc::clone(&api))
        } else {
            Way::Session(pair.database.connect().await?)
        };
        let first = lives.add(USERS);
        sessions.spawn(Arc::clone(&lives).live(way, first, USERS, fastrand::Rng::new()));
    }
    let reader = tokio::spawn(read_events(pair.database.connect().await?));
    eventually("enough answers", async || {
        Ok((lives.answers() >= 1000).then_some(()))
    })
    .await?;
    pair.primary.stop(Stop::Kill)?;
    lives.end();
    while let Some(session) = sessions.join_next().await {
        session??;
    }
    let read = reader.await?;
    pair.standby.promote()?;

    let client = pair.connect_to_standby("postgres").await?;
    assert_eq!(lives.lost(&client).await?, 0);
    books(&client).await?;
    // What was read is there, and a reader that goes on misses nothing of what is.
    let last = read.last().copied().unwrap_or_default();
    let all = "select array(select id from coupon_events order by id),
                      array(select id from honcho_list_events($1, 10000))";
    let row = client.query_one(all, &[&last]).await?;
    let (all, rest): (Vec<i64>, Vec<i64>) = (row.get(0), row.get(1));
    assert!(read.len() > 10, "{} events were read", read.len());
    assert_eq!([read, rest].concat(), all);
    client
        .batch_execute("select honcho_restock('PROMO', 1)")
        .await?;
    let new = "select count(*) from honcho_list_events($1)";
    let new: i64 = client.query_one(new, &[all.last().unwrap()]).await?.get(0);
    assert_eq!(new, 1);
    books(&client).await
}
