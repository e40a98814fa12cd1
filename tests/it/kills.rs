//! Killed in the middle of a batch, the session or the whole service: what was told is true, and what
//! was not can be asked again.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use honcho_tests::{Cluster, ClusterOptions, Database, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::{JoinSet, yield_now};
use tokio_postgres::Client;

use crate::{
    api::Api,
    held::{Jam, PATIENT, claim_until_certain, claimed},
};

/// A way to end a session.
#[derive(Clone, Copy, Debug)]
enum How {
    /// By `pg_terminate_backend`.
    Terminated,
    /// By SIGKILL, upon which the server ends all others too and recovers as from a crash.
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

/// Connects again after a crash that ended `client` too.
async fn reconnect(client: &Client, database: &Database) -> Result<Client> {
    // Until then the server takes connections that it is about to end.
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
async fn a_batch_cut_off_in_the_middle_leaves_nothing() -> Result<()> {
    let cluster = cluster()?;
    for how in [How::Terminated, How::Killed] {
        let database = Database::create(&cluster).await?;
        database.create_coupon("PROMO", 100).await?;
        let gate = database.connect().await?;
        // The tenth of the crowd stops the batch until the gate is opened.
        gate.batch_execute(
            "create function stop() returns trigger language plpgsql
                 as $$ begin perform pg_advisory_xact_lock(1); return new; end $$;
             create trigger stop before insert on claims
                 for each row when (new.user_id = 'crowd 9') execute function stop();
             select pg_advisory_lock(1);",
        )
        .await?;
        let mut jam = Jam::new(&database, 20, PATIENT, &[]).await?;
        jam.release().await?;
        assert_eq!((&mut jam.first).await??, "200");
        let stopped = "select pid from pg_locks where not granted and locktype = 'advisory'";
        let stopped: i32 = eventually("the batch to be in the middle", async || {
            Ok(jam.client.query_opt(stopped, &[]).await?)
        })
        .await?
        .get(0);
        how.end(&jam.client, stopped).await?;
        jam.crowd_is_told("503 outcome_unknown").await?;
        drop(gate);

        if matches!(how, How::Killed) {
            jam.client = reconnect(&jam.client, &database).await?;
        }
        assert_eq!(claimed(&jam.client).await?, ["first"], "{how:?}");
        for n in 0..20 {
            let told = claim_until_certain(&jam.api, &format!("crowd {n}"), "PROMO").await?;
            assert_eq!(told, "200", "{how:?}");
        }
        database.books().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_sale_while_sessions_are_terminated() -> Result<()> {
    sale_while(How::Terminated, 40).await
}

#[tokio::test]
async fn a_sale_while_sessions_are_killed() -> Result<()> {
    sale_while(How::Killed, 3).await
}

/// A sale during which sessions that carry out a batch are ended, so often at most.
async fn sale_while(how: How, limit: usize) -> Result<()> {
    let cluster = cluster()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 2_000).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    let sale = Arc::new(Sale::of(2_500));
    let mut clients = JoinSet::new();
    for _ in 0..64 {
        let (api, sale) = (Arc::clone(&api), Arc::clone(&sale));
        clients.spawn(async move {
            while let Some(user) = sale.next() {
                let told = api.claim(&user, "PROMO").await?.shown();
                sale.note(user, told);
            }
            anyhow::Ok(())
        });
    }
    let mut client = database.connect().await?;
    let batch = "select pid from pg_stat_activity
                  where datname = current_database() and application_name = 'honcho-service'
                    and state = 'active' and query like '%honcho_claim_batch%'
                  limit 1";
    let mut ended = 0;
    while ended < limit && sale.is_on() {
        if let Some(row) = client.query_opt(batch, &[]).await? {
            how.end(&client, row.get(0)).await?;
            ended += 1;
            if matches!(how, How::Killed) {
                client = reconnect(&client, &database).await?;
            }
        }
        yield_now().await;
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    assert!(ended > 0 && sale.uncertain.load(Ordering::Relaxed) > 0);
    sale.check(&database, 2_000).await
}

#[tokio::test]
async fn a_sale_while_the_service_is_killed() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 2_000).await?;
    let sale = Arc::new(Sale::of(2_500));
    let mut kills = 0;
    while sale.is_on() {
        let api = Arc::new(Api::start(database.caller_url()).await?);
        let before = sale.told();
        let mut clients = JoinSet::new();
        for _ in 0..64 {
            let (api, sale) = (Arc::clone(&api), Arc::clone(&sale));
            clients.spawn(async move {
                // Until the service is gone.
                while let Some(user) = sale.next() {
                    let told = match api.claim(&user, "PROMO").await {
                        Ok(answer) => answer.shown(),
                        Err(_) => return sale.note(user, "no answer".to_owned()),
                    };
                    sale.note(user, told);
                }
            });
        }
        if kills < 6 {
            eventually("some claims", async || {
                Ok((sale.told() >= before + 150 || !sale.is_on()).then_some(()))
            })
            .await?;
            kill(api.service.pid().try_into()?)?;
            kills += 1;
        }
        clients.join_all().await;
    }
    assert!(sale.uncertain.load(Ordering::Relaxed) > 0);
    sale.check(&database, 2_000).await
}

#[tokio::test]
async fn a_service_killed_while_claims_wait_takes_only_those_it_had_sent() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let mut jam = Jam::new(&database, 20, PATIENT, &[]).await?;
    kill(jam.api.service.pid().try_into()?)?;
    assert!((&mut jam.first).await?.is_err());
    for claim in jam.crowd.drain(..) {
        assert!(claim.await?.is_err());
    }
    jam.release().await?;
    // The session does not know yet that nobody listens.
    eventually("the batch that was under way", async || {
        Ok((claimed(&jam.client).await? == ["first"]).then_some(()))
    })
    .await?;
    let api = Api::start(database.caller_url()).await?;
    assert_eq!(
        api.claim("first", "PROMO").await?.shown(),
        "409 already_claimed"
    );
    for n in 0..20 {
        let told = api.claim(&format!("crowd {n}"), "PROMO").await?.shown();
        assert_eq!(told, "200");
    }
    database.books().await
}

/// Users who claim until they know for certain, and what they were told.
struct Sale {
    waiting: Mutex<VecDeque<String>>,
    told: Mutex<Vec<(String, String)>>,
    users: usize,
    uncertain: AtomicUsize,
}

impl Sale {
    fn of(users: usize) -> Self {
        Self {
            waiting: Mutex::new((0..users).map(|n| format!("user {n}")).collect()),
            told: Mutex::default(),
            users,
            uncertain: AtomicUsize::new(0),
        }
    }

    fn next(&self) -> Option<String> {
        self.waiting.lock().unwrap().pop_front()
    }

    /// Notes what a user was told; whoever is not certain claims again.
    fn note(&self, user: String, told: String) {
        match told.as_str() {
            "503 outcome_unknown" | "503 unavailable" | "no answer" => {
                self.uncertain.fetch_add(1, Ordering::Relaxed);
                self.waiting.lock().unwrap().push_back(user);
            }
            _ => self.told.lock().unwrap().push((user, told)),
        }
    }

    fn told(&self) -> usize {
        self.told.lock().unwrap().len()
    }

    fn is_on(&self) -> bool {
        self.told() < self.users
    }

    /// Everybody was told what the table says, and the whole stock is claimed.
    async fn check(&self, database: &Database, stock: usize) -> Result<()> {
        let client = database.connect().await?;
        let claimants: BTreeSet<String> = claimed(&client).await?.into_iter().collect();
        assert_eq!(claimants.len(), stock);
        let told = self.told.lock().unwrap().clone();
        assert_eq!(told.len(), self.users);
        for (user, told) in told {
            let has_one = match told.as_str() {
                "200" | "409 already_claimed" => true,
                "409 sold_out" => false,
                other => panic!("{user}: {other}"),
            };
            assert_eq!(claimants.contains(&user), has_one, "{user} was told {told}");
        }
        database.books().await
    }
}
