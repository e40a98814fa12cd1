//! Claims on many coupons at once share calls, and none of them holds up the others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use honcho_tests::{Database, eventually};
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::fixtures::{
    api::Api,
    held_coupon::{Claim, LONG_TIMEOUTS, claim, hold, queued, until_queued},
    scrape::until_in_flight,
    shards::{Callers, check_answers},
};

/// The connections of a service, each of which carries out a call.
const CONNECTIONS: usize = 4;

/// A service that uses all its connections, so that further claims wait for the next call.
struct BusyService {
    api: Arc<Api>,
    client: Client,
    /// The claims in the calls, which wait until the gate opens.
    at_gate: Vec<Claim>,
}

impl BusyService {
    async fn start(database: &Database) -> Result<Self> {
        let client = database.connect().await?;
        client
            .batch_execute(
                "create function wait_at_gate() returns trigger language plpgsql
                     as $$ begin
                         -- No wait for a lock: after a short timeout the service repeats such a call on another connection.
                         while not pg_try_advisory_xact_lock_shared(1) loop perform pg_sleep(0.01); end loop;
                         return new;
                     end $$;
                 create trigger gate before insert on claims
                     for each row when (new.user_id = 'gate') execute function wait_at_gate();
                 select pg_advisory_lock(1);",
            )
            .await?;
        let mut settings = LONG_TIMEOUTS.to_vec();
        let pool = CONNECTIONS.to_string();
        settings.push(("DATABASE_POOL_SIZE", &pool));
        let api = Arc::new(Api::start_with(database.caller_url(), &settings).await?);
        api.until_ready().await?;
        let mut busy = Self {
            api,
            client,
            at_gate: Vec::new(),
        };
        for n in 0..CONNECTIONS {
            let coupon = format!("GATE {n}");
            database.create_coupon(&coupon, 5).await?;
            busy.at_gate.push(claim(&busy.api, "gate", &coupon));
            eventually("a call to wait at the gate", async || {
                let waiting = "select count(*) from pg_stat_activity
                                where wait_event = 'PgSleep' and datname = current_database()";
                let waiting: i64 = busy.client.query_one(waiting, &[]).await?.get(0);
                Ok((waiting == n as i64 + 1).then_some(()))
            })
            .await?;
        }
        Ok(busy)
    }

    /// Waits until `count` claims wait behind those at the gate.
    async fn until_waiting(&self, count: usize) -> Result<()> {
        until_in_flight(&self.api.service, (CONNECTIONS + count) as f64).await
    }

    /// Lets the calls end.
    async fn open_gate(&mut self) -> Result<()> {
        self.client
            .execute("select pg_advisory_unlock(1)", &[])
            .await?;
        for claim in self.at_gate.drain(..) {
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
    let claims: Vec<Claim> = (0..COUPONS)
        .map(|n| claim(&busy.api, "user", &coupon(n)))
        .collect();
    busy.until_waiting(COUPONS).await?;
    busy.open_gate().await?;
    for claim in claims {
        assert_eq!(claim.await??, "200");
    }
    let shared = transactions(&busy.client).await?;
    assert_eq!(shared, 1, "transactions");
    database.books().await
}

#[tokio::test]
async fn coupon_that_is_held_leaves_a_shared_call() -> Result<()> {
    let database = crate::database().await?;
    for n in 0..COUPONS {
        database.create_coupon(&coupon(n), 5).await?;
    }
    let mut busy = BusyService::start(&database).await?;
    let holder = hold(&database, &coupon(7)).await?;
    let mut claims: Vec<Claim> = (0..COUPONS)
        .map(|n| claim(&busy.api, "user", &coupon(n)))
        .collect();
    busy.until_waiting(COUPONS).await?;
    busy.open_gate().await?;
    let late = claims.remove(7);
    for claim in claims {
        assert_eq!(claim.await??, "200");
    }
    // It waits in the queue of its coupon by itself.
    until_queued(&busy.client, 1).await?;
    holder.batch_execute("rollback").await?;
    assert_eq!(late.await??, "200");
    database.books().await
}

#[tokio::test]
async fn many_held_coupons_leave_connections_to_others() -> Result<()> {
    const HELD: usize = 100;
    let database = crate::database().await?;
    for n in 0..HELD {
        database.create_coupon(&coupon(n), 5).await?;
    }
    let mut busy = BusyService::start(&database).await?;
    let holder = database.connect().await?;
    holder
        .batch_execute(
            "begin; select honcho_claim('holder', name) from coupons where name like 'COUPON %'",
        )
        .await?;
    let claims: Vec<Claim> = (0..HELD)
        .map(|n| claim(&busy.api, "user", &coupon(n)))
        .collect();
    busy.until_waiting(HELD).await?;
    busy.open_gate().await?;
    // All are left out of the shared call. There are half as many connections for those that wait, and all others wait on
    // none.
    let most = (CONNECTIONS / 2) as i64;
    until_queued(&busy.client, most).await?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(300) {
        let queued = queued(&busy.client).await?;
        assert!(queued <= most, "{queued} sessions wait for a coupon");
        sleep(Duration::from_millis(5)).await;
    }
    holder.batch_execute("rollback").await?;
    for claim in claims {
        assert_eq!(claim.await??, "200");
    }
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
    let mut claims: Vec<Claim> = (0..COUPONS)
        .map(|n| {
            claim(
                &busy.api,
                if n == 7 { "mallory" } else { "user" },
                &coupon(n),
            )
        })
        .collect();
    busy.until_waiting(COUPONS).await?;
    busy.open_gate().await?;
    assert_eq!(claims.remove(7).await??, "500 internal");
    for claim in claims {
        assert_eq!(claim.await??, "200");
    }
    // Each half of a call that fails is tried separately.
    let shared = transactions(&busy.client).await?;
    assert!(shared <= 12, "{shared} transactions");
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
