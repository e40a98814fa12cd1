//! A coupon that somebody holds in a transaction of his own, and claims that wait for it.

use std::sync::Arc;

use anyhow::Result;
use honcho_tests::{Database, eventually};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::api::Api;

/// The service's own limits on a wait, out of the way of a test: nothing runs into them.
pub const PATIENT: [(&str, &str); 2] = [("STATEMENT_TIMEOUT", "100s"), ("LOCK_TIMEOUT", "50s")];

/// A claim under way; its end is the answer as [`Answer::shown`](crate::api::Answer::shown) has it.
pub type Claim = JoinHandle<Result<String>>;

/// Claims `coupon` in a transaction that is left open, until the client is dropped or ends it.
pub async fn hold(database: &Database, coupon: &str) -> Result<Client> {
    let holder = database.connect().await?;
    holder
        .batch_execute(&format!("begin; select honcho_claim('holder', '{coupon}')"))
        .await?;
    Ok(holder)
}

/// Starts a claim.
pub fn claim(api: &Arc<Api>, user_id: &str, coupon: &str) -> Claim {
    let (api, user_id, coupon) = (Arc::clone(api), user_id.to_owned(), coupon.to_owned());
    tokio::spawn(async move { Ok(api.claim(&user_id, &coupon).await?.shown()) })
}

/// Claims until the outcome is certain, as a client does who means to have it.
pub async fn claim_until_certain(api: &Api, user_id: &str, coupon: &str) -> Result<String> {
    eventually("a certain outcome", async || {
        let told = api.claim(user_id, coupon).await?.shown();
        let uncertain = ["503 outcome_unknown", "503 unavailable"].contains(&told.as_str());
        Ok((!uncertain).then_some(told))
    })
    .await
}

/// Who waits in the queue for a coupon of this database, as a condition on `pg_locks`.
const QUEUED: &str = "not granted and locktype = 'object'
                      and database = (select oid from pg_database
                                       where datname = current_database())";

/// How many claims or batches wait in the queues of this database.
pub async fn queued(client: &Client) -> Result<i64> {
    let sql = format!("select count(*) from pg_locks where {QUEUED}");
    Ok(client.query_one(&sql, &[]).await?.get(0))
}

/// Waits until so many claims or batches wait in the queues of this database.
pub async fn until_queued(client: &Client, count: i64) -> Result<()> {
    eventually("the claims to wait in the database", async || {
        Ok((queued(client).await? == count).then_some(()))
    })
    .await
}

/// Calls `pg_cancel_backend` or `pg_terminate_backend` on whoever waits in a queue of this database.
pub async fn signal_queued(client: &Client, function: &str) -> Result<()> {
    let sql = format!("select count({function}(pid)) from pg_locks where {QUEUED}");
    let count: i64 = client.query_one(&sql, &[]).await?.get(0);
    anyhow::ensure!(count == 1, "{count} wait in a queue");
    Ok(())
}

/// A coupon `PROMO` that is held, a claim on it that waits in the database, and a crowd that waits in
/// the lane behind it.
pub struct Jam {
    pub api: Arc<Api>,
    pub client: Client,
    pub holder: Client,
    pub first: Claim,
    pub crowd: Vec<Claim>,
}

impl Jam {
    /// The users of the crowd are `crowd 0`, `crowd 1` and so on; the other is `first`.
    pub async fn new(database: &Database, size: usize, settings: &[(&str, &str)]) -> Result<Self> {
        let limit = size.to_string();
        // The last word is the caller's.
        let mut environment = PATIENT.to_vec();
        environment.push(("WAITING_LIMIT", &limit));
        environment.extend(settings);
        let api = Arc::new(Api::start_with(database.caller_url(), &environment).await?);
        let client = database.connect().await?;
        let holder = hold(database, "PROMO").await?;
        let first = claim(&api, "first", "PROMO");
        until_queued(&client, 1).await?;
        let crowd = (0..size)
            .map(|n| {
                let api = Arc::clone(&api);
                tokio::spawn(async move {
                    loop {
                        let told = api.claim(&format!("crowd {n}"), "PROMO").await?.shown();
                        // The question below may have had the last place for a moment.
                        if told != "503 overloaded" {
                            return Ok(told);
                        }
                    }
                })
            })
            .collect();
        // As many wait as may: all of them.
        eventually("the crowd to wait in its lane", async || {
            let told = api.claim("nobody", "NOTHING").await?.shown();
            Ok((told == "503 overloaded").then_some(()))
        })
        .await?;
        Ok(Self {
            api,
            client,
            holder,
            first,
            crowd,
        })
    }

    /// Lets the holder go; his own claim is undone.
    pub async fn release(&self) -> Result<()> {
        Ok(self.holder.batch_execute("rollback").await?)
    }

    /// Waits for the crowd's answers, which must all be this one.
    pub async fn crowd_is_told(&mut self, expected: &str) -> Result<()> {
        for (n, claim) in self.crowd.drain(..).enumerate() {
            assert_eq!(claim.await??, expected, "crowd {n}");
        }
        Ok(())
    }

    /// Claims once more for everybody, and fails unless they all get one.
    pub async fn all_claim_now(&self, size: usize) -> Result<()> {
        let users = (0..size).map(|n| format!("crowd {n}"));
        for user in users.chain(["first".to_owned()]) {
            let told = claim_until_certain(&self.api, &user, "PROMO").await?;
            assert_eq!(told, "200", "{user}");
        }
        Ok(())
    }
}

/// The users who have claimed, in the order of their claims, as everybody sees them.
pub async fn claimed(client: &Client) -> Result<Vec<String>> {
    let rows = client
        .query("select user_id::text from claims order by id", &[])
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
