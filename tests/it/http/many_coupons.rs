//! Claims on many coupons at once share calls, and none of them holds up the others.

use std::{sync::Arc, thread};

use anyhow::Result;
use honcho_tests::{Database, eventually};
use tokio_postgres::Client;

use crate::fixtures::{
    api::Api,
    held_coupon::{Claim, LONG_TIMEOUTS, claim, hold, until_queued},
    scrape::until_in_flight,
    shards::{Callers, check_answers},
};

/// A service that carries out as many calls as it does at once, so that further claims wait for the next shared call.
struct BusyService {
    api: Arc<Api>,
    client: Client,
    /// Sessions that hold coupons. The calls of their lanes wait in the queues.
    holders: Vec<Client>,
    /// The claims in those calls.
    alone: Vec<Claim>,
    /// The claims in shared calls, which wait until the gate opens.
    shared: Vec<Claim>,
}

impl BusyService {
    async fn start(database: &Database) -> Result<Self> {
        // For half of the processors there are calls of one lane each, for all of them shared ones.
        let processors = thread::available_parallelism()?.get();
        let client = database.connect().await?;
        client
            .batch_execute(
                "create function wait_at_gate() returns trigger language plpgsql
                     as $$ begin perform pg_advisory_xact_lock_shared(1); return new; end $$;
                 create trigger gate before insert on claims
                     for each row when (new.user_id = 'gate') execute function wait_at_gate();
                 select pg_advisory_lock(1);",
            )
            .await?;
        let mut settings = LONG_TIMEOUTS.to_vec();
        let pool = (4 * processors).max(8).to_string();
        settings.push(("DATABASE_POOL_SIZE", &pool));
        let api = Arc::new(Api::start_with(database.caller_url(), &settings).await?);
        api.until_ready().await?;
        let mut busy = Self {
            api,
            client,
            holders: Vec::new(),
            alone: Vec::new(),
            shared: Vec::new(),
        };
        for n in 0..processors.div_ceil(2) {
            let coupon = format!("HELD {n}");
            database.create_coupon(&coupon, 5).await?;
            busy.holders.push(hold(database, &coupon).await?);
            busy.alone.push(claim(&busy.api, "user", &coupon));
            until_queued(&busy.client, n as i64 + 1).await?;
        }
        for n in 0..processors {
            let coupon = format!("GATE {n}");
            database.create_coupon(&coupon, 5).await?;
            busy.shared.push(claim(&busy.api, "gate", &coupon));
            eventually("a shared call to wait at the gate", async || {
                let waiting = "select count(*) from pg_locks
                                where locktype = 'advisory' and not granted
                                  and database = (select oid from pg_database
                                                   where datname = current_database())";
                let waiting: i64 = busy.client.query_one(waiting, &[]).await?.get(0);
                Ok((waiting == n as i64 + 1).then_some(()))
            })
            .await?;
        }
        Ok(busy)
    }

    /// Lets the shared calls end.
    async fn open_gate(&mut self) -> Result<()> {
        self.client
            .execute("select pg_advisory_unlock(1)", &[])
            .await?;
        for claim in self.shared.drain(..) {
            assert_eq!(claim.await??, "200");
        }
        Ok(())
    }

    /// Ends the transactions of the sessions that hold coupons.
    async fn release(mut self) -> Result<()> {
        for holder in self.holders.drain(..) {
            holder.batch_execute("rollback").await?;
        }
        for claim in self.alone.drain(..) {
            assert_eq!(claim.await??, "200");
        }
        Ok(())
    }
}

const COUPONS: usize = 30;

fn coupon(n: usize) -> String {
    format!("COUPON {n}")
}

/// The number of transactions that have made the claims on these coupons.
async fn transactions(client: &Client) -> Result<i64> {
    let sql = "select count(distinct xmin::text) from claims where coupon_name like 'COUPON %'";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

#[tokio::test]
async fn claims_on_many_coupons_share_a_call() -> Result<()> {
    let database = crate::database().await?;
    for n in 0..COUPONS {
        database.create_coupon(&coupon(n), 5).await?;
    }
    let mut busy = BusyService::start(&database).await?;
    let before = (busy.alone.len() + busy.shared.len()) as f64;
    let claims: Vec<Claim> = (0..COUPONS)
        .map(|n| claim(&busy.api, "user", &coupon(n)))
        .collect();
    until_in_flight(&busy.api.service, before + COUPONS as f64).await?;
    busy.open_gate().await?;
    for claim in claims {
        assert_eq!(claim.await??, "200");
    }
    let shared = transactions(&busy.client).await?;
    assert!(shared <= 4, "{shared} transactions");
    busy.release().await?;
    database.books().await
}

#[tokio::test]
async fn coupon_that_is_held_leaves_a_shared_call() -> Result<()> {
    let database = crate::database().await?;
    for n in 0..COUPONS {
        database.create_coupon(&coupon(n), 5).await?;
    }
    let mut busy = BusyService::start(&database).await?;
    let before = (busy.alone.len() + busy.shared.len()) as f64;
    let queued = busy.alone.len() as i64;
    let holder = hold(&database, &coupon(7)).await?;
    let mut claims: Vec<Claim> = (0..COUPONS)
        .map(|n| claim(&busy.api, "user", &coupon(n)))
        .collect();
    until_in_flight(&busy.api.service, before + COUPONS as f64).await?;
    busy.open_gate().await?;
    let late = claims.remove(7);
    for claim in claims {
        assert_eq!(claim.await??, "200");
    }
    // It waits in the queue of its coupon by itself.
    until_queued(&busy.client, queued + 1).await?;
    holder.batch_execute("rollback").await?;
    assert_eq!(late.await??, "200");
    busy.release().await?;
    database.books().await
}

#[tokio::test]
async fn claim_that_fails_spoils_no_other_in_a_shared_call() -> Result<()> {
    let database = crate::database().await?;
    for n in 0..COUPONS {
        database.create_coupon(&coupon(n), 5).await?;
    }
    let owner = database.connect().await?;
    owner
        .batch_execute(
            "create function refuse() returns trigger language plpgsql
                 as $$ begin raise 'no'; end $$;
             create trigger refuse before insert on claims
                 for each row when (new.user_id = 'mallory') execute function refuse();",
        )
        .await?;
    let mut busy = BusyService::start(&database).await?;
    let before = (busy.alone.len() + busy.shared.len()) as f64;
    let mut claims: Vec<Claim> = (0..COUPONS)
        .map(|n| {
            claim(
                &busy.api,
                if n == 7 { "mallory" } else { "user" },
                &coupon(n),
            )
        })
        .collect();
    until_in_flight(&busy.api.service, before + COUPONS as f64).await?;
    busy.open_gate().await?;
    assert_eq!(claims.remove(7).await??, "500 internal");
    for claim in claims {
        assert_eq!(claim.await??, "200");
    }
    // Each half of a call that fails is tried separately.
    let shared = transactions(&busy.client).await?;
    assert!(shared <= 12, "{shared} transactions");
    busy.release().await?;
    database.books().await
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_that_leaves_a_shared_call_changes_no_answer_of_others() -> Result<()> {
    let database = crate::database().await?;
    let coupons: Vec<String> = (0..COUPONS).map(coupon).collect();
    for coupon in &coupons {
        database.create_coupon(coupon, 1_000_000).await?;
    }
    let api = Arc::new(Api::start(database.caller_url()).await?);
    api.until_ready().await?;
    // With several callers on each coupon, several claims leave a call together.
    let callers = Callers::start(&api, &coupons, 4, "caller");
    callers.until(&coupons, "200", 10).await?;
    for _ in 0..300 {
        let holder = hold(&database, &coupon(0)).await?;
        holder.batch_execute("rollback").await?;
    }
    callers.until(&coupons, "200", 10).await?;
    let answers = callers.end().await?;
    let other = answers.iter().find(|it| it.shown != "200");
    assert!(other.is_none(), "{other:?}");
    let client = database.connect().await?;
    check_answers(&client, answers.iter()).await?;
    database.books().await
}
