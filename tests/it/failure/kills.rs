//! Sessions and services that are killed in the middle of a batch: no told claim is lost, and claims without
//! an answer can be repeated.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use honcho_tests::{Cluster, ClusterOptions, Database, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::fixtures::{
    api::Api,
    held_coupon::{BusyLane, claim_until_certain},
    lives::{Lives, Way},
    sql::claimed,
};

/// Ways to end a session.
#[derive(Clone, Copy, Debug)]
enum How {
    /// By `pg_terminate_backend`.
    Terminated,
    /// By SIGKILL: the server then ends all other sessions and recovers as after a crash.
    Killed,
}

impl How {
    /// Ends the session of `pid`.
    async fn end(self, client: &Client, pid: i32) -> Result<()> {
        match self {
            How::Terminated => {
                client
                    .execute("select pg_terminate_backend($1)", &[&pid])
                    .await?;
            }
            How::Killed => kill(pid)?,
        }
        Ok(())
    }
}

fn kill(pid: i32) -> Result<()> {
    Ok(kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL)?)
}

/// A cluster that may crash.
fn cluster() -> Result<Cluster> {
    ClusterOptions::default().setting("fsync", "off").start()
}

/// Connects again after a crash that ended the session of `client`.
async fn reconnect(client: &Client, database: &Database) -> Result<Client> {
    // Before that, the server accepts connections that it is about to end.
    eventually("the server to go down", async || {
        Ok(client.is_closed().then_some(()))
    })
    .await?;
    eventually("the server to be back", async || {
        Ok(database.connect().await.ok())
    })
    .await
}

#[tokio::test]
async fn terminated_sessions_never_lose_a_told_claim() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1_000_000).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    let mut clients = JoinSet::new();
    for client in 0..8 {
        let api = Arc::clone(&api);
        clients.spawn(async move {
            let mut answered = Vec::new();
            let mut n = 0;
            // Until enough claims succeed, whatever number is lost in between.
            while answered.len() < 50 {
                let user = format!("{client}_{n}");
                match api.claim(&user, "PROMO").await?.shown().as_str() {
                    "200" => answered.push(user),
                    "503 outcome_unknown" | "503 unavailable" => {}
                    other => anyhow::bail!("{user}: {other}"),
                }
                n += 1;
            }
            Ok(answered)
        });
    }
    let client = database.connect().await?;
    let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                 where datname = current_database() and application_name = 'honcho-service'";
    let mut killed = 0;
    let mut answered = Vec::new();
    while !clients.is_empty() {
        killed += client.query_one(kill, &[]).await?.get::<_, i64>(0);
        let step = std::time::Duration::from_millis(50);
        if let Ok(Some(done)) = tokio::time::timeout(step, clients.join_next()).await {
            answered.extend(done??);
        }
    }
    assert!(killed > 0);
    let lost = "select count(*) from unnest($1::text[]) as answered(user_id)
                 where not exists (select from claims c where c.user_id = answered.user_id)";
    assert_eq!(
        client.query_one(lost, &[&answered]).await?.get::<_, i64>(0),
        0
    );
    // The pool may still hold dead sessions.
    assert_eq!(
        claim_until_certain(&api, "afterwards", "PROMO").await?,
        "200"
    );
    database.books().await
}

#[tokio::test]
async fn backend_killed_mid_batch_claims_nothing() -> Result<()> {
    let cluster = cluster()?;
    for how in [How::Terminated, How::Killed] {
        let database = Database::create(&cluster).await?;
        database.create_coupon("PROMO", 100).await?;
        let gate = database.connect().await?;
        // The crowd's tenth claim stops the batch until the advisory lock is released.
        gate.batch_execute(
            "create function stop() returns trigger language plpgsql
                 as $$ begin perform pg_advisory_xact_lock(1); return new; end $$;
             create trigger stop before insert on claims
                 for each row when (new.user_id = 'crowd 9') execute function stop();
             select pg_advisory_lock(1);",
        )
        .await?;
        let mut lane = BusyLane::new(&database, 20, &[]).await?;
        lane.release().await?;
        assert_eq!((&mut lane.first).await??, "200");
        let stopped = "select pid from pg_locks where not granted and locktype = 'advisory'";
        let stopped: i32 = eventually("the batch to be in the middle", async || {
            Ok(lane.client.query_opt(stopped, &[]).await?)
        })
        .await?
        .get(0);
        how.end(&lane.client, stopped).await?;
        lane.expect_crowd("503 outcome_unknown").await?;
        drop(gate);

        if matches!(how, How::Killed) {
            lane.client = reconnect(&lane.client, &database).await?;
        }
        assert_eq!(claimed(&lane.client).await?, ["first"], "{how:?}");
        for n in 0..20 {
            let answered = claim_until_certain(&lane.api, &format!("crowd {n}"), "PROMO").await?;
            assert_eq!(answered, "200", "{how:?}");
        }
        database.books().await?;
    }
    Ok(())
}

#[tokio::test]
async fn sale_with_terminated_sessions_loses_no_told_claim() -> Result<()> {
    sale_while(How::Terminated, 20).await
}

#[tokio::test]
async fn sale_with_killed_sessions_loses_no_told_claim() -> Result<()> {
    sale_while(How::Killed, 3).await
}

/// A sale during which `count` sessions are ended while they carry out a batch.
async fn sale_while(how: How, count: usize) -> Result<()> {
    let cluster = cluster()?;
    let database = Database::create(&cluster).await?;
    let sale = Sale::open(&database).await?;
    let mut client = database.connect().await?;
    // Slow claims, so that most batches are ended in the middle.
    client
        .batch_execute(
            "create function dawdle() returns trigger language plpgsql
                 as $$ begin perform pg_sleep(0.0003); return new; end $$;
             create trigger dawdle before insert on claims
                 for each row execute function dawdle();",
        )
        .await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    let mut clients = JoinSet::new();
    for _ in 0..64 {
        let (api, sale) = (Arc::clone(&api), Arc::clone(&sale));
        clients.spawn(async move {
            while let Some(user) = sale.next() {
                let answered = api.claim(&user, "PROMO").await?.shown();
                sale.note(user, answered);
            }
            anyhow::Ok(())
        });
    }
    let batch = "select pid from pg_stat_activity
                  where datname = current_database() and application_name = 'honcho-service'
                    and state = 'active' and query like '%honcho_claim_batch%'
                  limit 1";
    for _ in 0..count {
        let session = eventually("a batch", async || Ok(client.query_opt(batch, &[]).await?));
        how.end(&client, session.await?.get(0)).await?;
        if matches!(how, How::Killed) {
            client = reconnect(&client, &database).await?;
        }
        let before = sale.answered();
        eventually("further answers", async || {
            Ok((sale.answered() > before).then_some(()))
        })
        .await?;
    }
    sale.close().await?;
    while let Some(client) = clients.join_next().await {
        client??;
    }
    sale.check(&database).await
}

#[tokio::test]
async fn lives_with_terminated_sessions_lose_nothing_told() -> Result<()> {
    lives_while(How::Terminated, 40).await
}

#[tokio::test]
async fn lives_with_killed_sessions_lose_nothing_told() -> Result<()> {
    lives_while(How::Killed, 4).await
}

/// Users who reserve, confirm, cancel, claim, repeat and release, while `count` sessions are ended in the middle.
async fn lives_while(how: How, count: usize) -> Result<()> {
    const USERS: usize = 8;
    let cluster = cluster()?;
    let database = Arc::new(Database::create(&cluster).await?);
    database.create_coupon("PROMO", 1_000_000).await?;
    let mut client = database.connect().await?;
    // Slow writes, so that most sessions are ended in the middle.
    client
        .batch_execute(
            "create function dawdle() returns trigger language plpgsql
                 as $$ begin perform pg_sleep(0.0003); return coalesce(new, old); end $$;
             create trigger dawdle before insert or delete on claims
                 for each row execute function dawdle();
             create trigger dawdle before insert or delete on holds
                 for each row execute function dawdle();",
        )
        .await?;
    let lives = Arc::new(Lives::default());
    let over = Arc::new(AtomicBool::new(false));
    let mut sessions = JoinSet::new();
    for _ in 0..16 {
        let (database, lives, over) =
            (Arc::clone(&database), Arc::clone(&lives), Arc::clone(&over));
        sessions.spawn(async move {
            // New users in a new session, when the last one was ended.
            while !over.load(Ordering::Relaxed) {
                let url = format!("{}&application_name=life", database.caller_url());
                let Ok(client) = honcho_tests::connect(&url).await else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let first = lives.add(USERS);
                let life = Arc::clone(&lives).live(
                    Way::Session(client),
                    first,
                    USERS,
                    fastrand::Rng::new(),
                );
                life.await?;
            }
            anyhow::Ok(())
        });
    }
    let life = "select pid from pg_stat_activity
                 where datname = current_database() and application_name = 'life' and state = 'active'
                 order by random() limit 1";
    for _ in 0..count {
        let session = eventually("a session", async || {
            Ok(client.query_opt(life, &[]).await?)
        });
        how.end(&client, session.await?.get(0)).await?;
        if matches!(how, How::Killed) {
            client = reconnect(&client, &database).await?;
        }
        let before = lives.answers();
        eventually("further answers", async || {
            Ok((lives.answers() > before + 20).then_some(()))
        })
        .await?;
    }
    over.store(true, Ordering::Relaxed);
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'life'";
    while !sessions.is_empty() {
        client.query_one(end, &[]).await?;
        let step = std::time::Duration::from_millis(50);
        if let Ok(Some(session)) = tokio::time::timeout(step, sessions.join_next()).await {
            session??;
        }
    }
    assert_eq!(lives.lost(&client).await?, 0, "{how:?}");
    database.books().await
}

#[tokio::test]
async fn sale_with_a_killed_service_loses_no_told_claim() -> Result<()> {
    let database = crate::database().await?;
    let sale = Sale::open(&database).await?;
    for kill_it in [true, true, true, true, true, true, false] {
        let api = Arc::new(Api::start(database.caller_url()).await?);
        let mut clients = JoinSet::new();
        for _ in 0..64 {
            let (api, sale) = (Arc::clone(&api), Arc::clone(&sale));
            clients.spawn(async move {
                // Until the service is killed or the sale is closed.
                while let Some(user) = sale.next() {
                    match api.claim(&user, "PROMO").await {
                        Ok(answer) => sale.note(user, answer.shown()),
                        Err(_) => return sale.note(user, "no answer".to_owned()),
                    }
                }
            });
        }
        if kill_it {
            let before = sale.answered();
            eventually("some claims", async || {
                Ok((sale.answered() >= before + 100).then_some(()))
            })
            .await?;
            kill(api.service.pid().try_into()?)?;
        } else {
            sale.close().await?;
        }
        clients.join_all().await;
    }
    sale.check(&database).await
}

#[tokio::test]
async fn service_killed_while_claims_wait_makes_only_the_claim_it_had_sent() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let mut lane = BusyLane::new(&database, 20, &[]).await?;
    kill(lane.api.service.pid().try_into()?)?;
    assert!((&mut lane.first).await?.is_err());
    for claim in lane.crowd.drain(..) {
        assert!(claim.await?.is_err());
    }
    lane.release().await?;
    // The session has not noticed yet that its client is gone.
    eventually("the batch in flight", async || {
        Ok((claimed(&lane.client).await? == ["first"]).then_some(()))
    })
    .await?;
    let api = Api::start(database.caller_url()).await?;
    assert_eq!(
        api.claim("first", "PROMO").await?.shown(),
        "409 already_claimed"
    );
    for n in 0..20 {
        let answered = api.claim(&format!("crowd {n}"), "PROMO").await?.shown();
        assert_eq!(answered, "200");
    }
    database.books().await
}

/// Users who claim until the outcome is certain, with their answers. New users come until the sale is closed.
struct Sale {
    came: AtomicUsize,
    closed: AtomicBool,
    /// All users who ever got an uncertain outcome, and those of them who have to claim again.
    doubtful: Mutex<(BTreeSet<String>, VecDeque<String>)>,
    answered: Mutex<Vec<(String, String)>>,
}

impl Sale {
    const STOCK: usize = 2_000;
    const USERS: usize = 2_500;

    async fn open(database: &Database) -> Result<Arc<Self>> {
        database.create_coupon("PROMO", Self::STOCK as i32).await?;
        Ok(Arc::new(Self {
            came: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            doubtful: Mutex::default(),
            answered: Mutex::default(),
        }))
    }

    /// Closes the sale once enough users have an answer.
    async fn close(&self) -> Result<()> {
        eventually("enough answers", async || {
            Ok((self.answered() >= Self::USERS).then_some(()))
        })
        .await?;
        self.closed.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn next(&self) -> Option<String> {
        if let Some(user) = self.doubtful.lock().unwrap().1.pop_front() {
            return Some(user);
        }
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        Some(format!(
            "user {}",
            self.came.fetch_add(1, Ordering::Relaxed)
        ))
    }

    /// Records the answer that a user got.
    fn note(&self, user: String, answered: String) {
        match answered.as_str() {
            "503 outcome_unknown" | "503 unavailable" | "no answer" => {
                let (ever, now) = &mut *self.doubtful.lock().unwrap();
                ever.insert(user.clone());
                now.push_back(user);
            }
            _ => self.answered.lock().unwrap().push((user, answered)),
        }
    }

    fn answered(&self) -> usize {
        self.answered.lock().unwrap().len()
    }

    /// Fails unless all answers agree with the table and the whole stock is claimed.
    async fn check(&self, database: &Database) -> Result<()> {
        let client = database.connect().await?;
        let claimants: BTreeSet<String> = claimed(&client).await?.into_iter().collect();
        assert_eq!(claimants.len(), Self::STOCK);
        self.agree_with(&claimants);
        database.books().await
    }

    fn agree_with(&self, claimants: &BTreeSet<String>) {
        let (doubtful, _) = &*self.doubtful.lock().unwrap();
        assert!(!doubtful.is_empty());
        for (user, answered) in self.answered.lock().unwrap().iter() {
            let has_one = match answered.as_str() {
                "200" => true,
                // Only a user with an uncertain outcome before can get this: the claim is the user's own.
                "409 already_claimed" if doubtful.contains(user) => true,
                "409 sold_out" => false,
                other => panic!("{user}: {other}"),
            };
            assert_eq!(claimants.contains(user), has_one, "{user} got {answered}");
        }
    }
}
