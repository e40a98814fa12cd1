//! A synchronous standby: a claim is answered when the standby has it, and passes its turn on before that.

use anyhow::{Context, Result};
use honcho_tests::{Cluster, ClusterOptions, Database, PATIENCE, Stop, books, connect, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_postgres::{AsyncMessage, Client, NoTls, error::SqlState};

use crate::fixtures::{
    held_coupon::{hold, until_queued},
    sql::{claim, claim_coupon, claimed, show},
};

/// A primary with a synchronous standby.
pub(super) struct Pair {
    pub primary: Cluster,
    pub standby: Cluster,
    pub database: Database,
    /// A session of the primary, to observe it.
    client: Client,
}

impl Pair {
    pub async fn start(stock: i32) -> Result<Self> {
        let options = ClusterOptions::default().setting("fsync", "off");
        let primary = options
            .clone()
            .setting("synchronous_standby_names", "*")
            .start()?;
        let standby = options.start_standby_of(&primary)?;
        let database = Database::create(&primary).await?;
        database.create_coupon("PROMO", stock).await?;
        let client = database.connect().await?;
        let pair = Self {
            primary,
            standby,
            database,
            client,
        };
        // The standby has received the coupon, but may not have replayed it.
        eventually("the standby to show the coupon", async || {
            let Ok(client) = pair.connect_to_standby("postgres").await else {
                return Ok(None);
            };
            let coupon = "select from honcho_get_coupon('PROMO')";
            Ok(client.query_opt(coupon, &[]).await.ok().flatten())
        })
        .await?;
        Ok(pair)
    }

    /// Connects to the standby as this user.
    pub async fn connect_to_standby(&self, user: &str) -> Result<Client> {
        connect(&self.standby.url(user, self.database.name())).await
    }

    /// Stops the standby from receiving WAL until the returned value is dropped.
    pub async fn deafen(&self) -> Result<Deaf> {
        let client = self.connect_to_standby("postgres").await?;
        let receiver = "select pid from pg_stat_wal_receiver";
        let receiver: i32 = client.query_one(receiver, &[]).await?.get(0);
        let receiver = Pid::from_raw(receiver).context("no process")?;
        kill_process(receiver, Signal::STOP)?;
        Ok(Deaf(receiver))
    }

    /// Counts the sessions that wait for the standby.
    pub async fn waiting(&self) -> Result<i64> {
        let sql = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        Ok(self.client.query_one(sql, &[]).await?.get(0))
    }

    async fn until_waiting(&self, count: i64) -> Result<()> {
        eventually("the claims to wait for the standby", async || {
            Ok((self.waiting().await? == count).then_some(()))
        })
        .await
    }
}

/// A standby that receives no WAL.
pub(super) struct Deaf(Pid);

impl Drop for Deaf {
    fn drop(&mut self) {
        // It may be gone by now.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Starts a claim in a session with this `synchronous_commit`. Returns the session with the outcome.
async fn claim_with(
    database: &Database,
    level: &str,
    user_id: &'static str,
) -> Result<JoinHandle<(Client, Result<String, tokio_postgres::Error>)>> {
    let client = database.connect().await?;
    client
        .batch_execute(&format!("set synchronous_commit = {level}"))
        .await?;
    Ok(tokio::spawn(async move {
        let answered = claim(&client, user_id).await;
        (client, answered)
    }))
}

#[tokio::test]
async fn claim_waits_for_the_standby_without_blocking_other_claims() -> Result<()> {
    let pair = Pair::start(100).await?;
    let on_standby = pair.connect_to_standby("postgres").await?;
    let deaf = pair.deafen().await?;
    let ann = claim_with(&pair.database, "on", "ann").await?;
    pair.until_waiting(1).await?;
    // The next claim gets as far as this wait: it does not wait for ann's.
    let bob = claim_with(&pair.database, "on", "bob").await?;
    pair.until_waiting(2).await?;
    // So does a refusal that rests on a claim that the standby does not have.
    let again = claim_with(&pair.database, "on", "ann").await?;
    pair.until_waiting(3).await?;
    // So does a batch without waiters.
    let client = pair.database.connect().await?;
    let batch = tokio::spawn(async move {
        let sql = "select from honcho_claim_batch('PROMO', '{carl, dora}')";
        client.execute(sql, &[]).await
    });
    pair.until_waiting(4).await?;
    let turns = "select count(*) from pg_locks where locktype = 'object'";
    assert_eq!(pair.client.query_one(turns, &[]).await?.get::<_, i64>(0), 0);
    assert!(!ann.is_finished() && !bob.is_finished() && !again.is_finished());
    assert!(claimed(&on_standby).await?.is_empty());

    drop(deaf);
    for (claim, outcome) in [
        (ann, "claimed"),
        (bob, "claimed"),
        (again, "already_claimed"),
    ] {
        let (client, answered) = claim.await?;
        assert_eq!(answered?, outcome);
        assert_eq!(show(&client, "synchronous_commit").await?, "on");
    }
    assert_eq!(batch.await??, 2);
    // The standby has received them, and replays them soon.
    eventually("all claims on the standby", async || {
        Ok((claimed(&on_standby).await?.len() == 4).then_some(()))
    })
    .await?;
    pair.database.books().await?;
    books(&on_standby).await
}

#[tokio::test]
async fn local_and_off_commits_do_not_wait_for_the_standby() -> Result<()> {
    let pair = Pair::start(100).await?;
    let _deaf = pair.deafen().await?;
    for (setting, user) in [("local", "ann"), ("off", "bob")] {
        let claim = claim_with(&pair.database, setting, user).await?;
        let (client, answered) = timeout(PATIENCE, claim).await??;
        assert_eq!(answered?, "claimed");
        assert_eq!(show(&client, "synchronous_commit").await?, setting);
    }
    pair.database.books().await
}

#[tokio::test]
async fn cancelled_wait_for_the_standby_keeps_the_claim() -> Result<()> {
    let pair = Pair::start(100).await?;
    let deaf = pair.deafen().await?;
    let waiting = "select pid from pg_stat_activity where wait_event = 'SyncRep'";

    let (client, mut connection) =
        tokio_postgres::connect(pair.database.superuser_url(), NoTls).await?;
    let (sender, mut notices) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) =
            std::future::poll_fn(|context| connection.poll_message(context)).await
        {
            if let AsyncMessage::Notice(notice) = message {
                // The receiver may be gone.
                let _ = sender.send(notice);
            }
        }
    });
    let ann = tokio::spawn(async move {
        let answered = claim(&client, "ann").await;
        (client, answered)
    });
    pair.until_waiting(1).await?;
    let session: i32 = pair.client.query_one(waiting, &[]).await?.get(0);
    pair.client
        .execute("select pg_cancel_backend($1)", &[&session])
        .await?;
    let (client, answered) = ann.await?;
    assert_eq!(answered?, "claimed");
    let notice = notices.recv().await.context("no warning")?;
    assert_eq!(*notice.code(), SqlState::WARNING, "{notice}");
    assert_eq!(show(&client, "synchronous_commit").await?, "on");

    let bob = claim_with(&pair.database, "on", "bob").await?;
    pair.until_waiting(1).await?;
    let session: i32 = pair.client.query_one(waiting, &[]).await?.get(0);
    pair.client
        .execute("select pg_terminate_backend($1)", &[&session])
        .await?;
    assert!(bob.await?.1.is_err());
    assert_eq!(claimed(&pair.client).await?, ["ann", "bob"]);
    drop(deaf);
    pair.database.books().await
}

/// A session with this `statement_timeout`.
async fn impatient(database: &Database, milliseconds: u32) -> Result<Client> {
    let client = database.connect().await?;
    client
        .batch_execute(&format!("set statement_timeout = {milliseconds}"))
        .await?;
    Ok(client)
}

#[tokio::test]
async fn interrupted_wait_of_a_refusal_for_the_standby_is_an_error() -> Result<()> {
    let pair = Pair::start(1).await?;
    let deaf = pair.deafen().await?;
    let ann = claim_with(&pair.database, "on", "ann").await?;
    pair.until_waiting(1).await?;

    // The coupon is sold out for bob, and claimed already by ann; one transaction wrote both rows.
    for user in ["bob", "ann"] {
        let client = impatient(&pair.database, 300).await?;
        let answered = claim(&client, user).await.unwrap_err();
        assert_eq!(answered.code(), Some(&SqlState::QUERY_CANCELED), "{user}");
        // The session still works, and its next statement waits again.
        let answered = claim(&client, user).await.unwrap_err();
        assert_eq!(answered.code(), Some(&SqlState::QUERY_CANCELED), "{user}");
    }
    // A cancelled or terminated wait is an error as well.
    let waiting = "select pid from pg_stat_activity where wait_event = 'SyncRep'
                                                      and query like '%honcho_claim%'
                    order by backend_start desc limit 1";
    for (interruption, code) in [
        ("pg_cancel_backend", SqlState::QUERY_CANCELED),
        ("pg_terminate_backend", SqlState::ADMIN_SHUTDOWN),
    ] {
        let bob = claim_with(&pair.database, "on", "bob").await?;
        pair.until_waiting(2).await?;
        let session: i32 = pair.client.query_one(waiting, &[]).await?.get(0);
        let interrupt = format!("select {interruption}($1)");
        pair.client.execute(&interrupt, &[&session]).await?;
        let answered = bob.await?.1.unwrap_err();
        assert_eq!(answered.code(), Some(&code), "{interruption}");
    }

    drop(deaf);
    assert_eq!(ann.await?.1?, "claimed");
    let bob = claim_with(&pair.database, "on", "bob").await?;
    assert_eq!(bob.await?.1?, "sold_out");
    pair.database.books().await
}

/// Two transactions wrote the claim and the stock: there is one wait, for the later one.
#[tokio::test]
async fn statement_timeout_bounds_the_whole_wait_of_a_refusal() -> Result<()> {
    let pair = Pair::start(2).await?;
    let deaf = pair.deafen().await?;
    let ann = claim_with(&pair.database, "on", "ann").await?;
    pair.until_waiting(1).await?;
    let bob = claim_with(&pair.database, "on", "bob").await?;
    pair.until_waiting(2).await?;
    let client = impatient(&pair.database, 300).await?;
    for sql in [
        "select honcho_claim('ann', 'PROMO')",
        "select from honcho_claim_batch('PROMO', '{ann, bob, carl}')",
        "select honcho_claim_or_raise('ann', 'PROMO')",
    ] {
        let answered = timeout(PATIENCE, client.batch_execute(sql)).await?;
        let answered = answered.unwrap_err();
        assert_eq!(answered.code(), Some(&SqlState::QUERY_CANCELED), "{sql}");
    }
    drop(deaf);
    for claim in [ann, bob] {
        assert_eq!(claim.await?.1?, "claimed");
    }
    pair.database.books().await
}

/// A batch in which some users are refused because of claims that the standby does not have, and others can
/// claim.
#[tokio::test]
async fn refusal_waiting_for_the_standby_holds_no_turn_row_or_pin() -> Result<()> {
    let pair = Pair::start(100).await?;
    let buffers = "create schema buffers; create extension pg_buffercache schema buffers";
    pair.client.batch_execute(buffers).await?;
    let deaf = pair.deafen().await?;
    let ann = claim_with(&pair.database, "on", "ann").await?;
    pair.until_waiting(1).await?;
    let client = pair.database.connect().await?;
    let batch = tokio::spawn(async move {
        let sql = "select outcome::text from honcho_claim_batch('PROMO', '{ann, bob, ann, carl}')";
        let rows = client.query(sql, &[]).await?;
        Ok::<Vec<String>, tokio_postgres::Error>(rows.iter().map(|row| row.get(0)).collect())
    });
    pair.until_waiting(2).await?;
    // The refused user comes second, so that the refusal is found during the turn. The transaction stays
    // open, so that no commit waits.
    let client = pair.database.connect().await?;
    let reversed = tokio::spawn(async move {
        client.batch_execute("begin").await?;
        let sql = "select outcome::text from honcho_claim_batch('PROMO', '{dora, ann}')";
        let rows = client.query(sql, &[]).await?;
        client.batch_execute("commit").await?;
        Ok::<Vec<String>, tokio_postgres::Error>(rows.iter().map(|row| row.get(0)).collect())
    });
    pair.until_waiting(3).await?;
    let answered = "select count(*) from pg_stat_activity
                 where wait_event = 'SyncRep' and query not like '%honcho_claim%'";
    assert_eq!(
        pair.client.query_one(answered, &[]).await?.get::<_, i64>(0),
        0
    );
    let held = "select count(*) from pg_locks
                 where locktype = 'object'
                   and database = (select oid from pg_database where datname = current_database())";
    assert_eq!(pair.client.query_one(held, &[]).await?.get::<_, i64>(0), 0);
    let pins = "select count(*) from buffers.pg_buffercache
                 where pinning_backends > 0
                   and relfilenode in (select pg_relation_filenode(oid) from pg_class
                                        where relnamespace = 'public'::regnamespace)";
    assert_eq!(pair.client.query_one(pins, &[]).await?.get::<_, i64>(0), 0);
    // A claim that does not wait for the standby finds turn and row free.
    let eve = claim_with(&pair.database, "local", "eve").await?;
    assert_eq!(timeout(PATIENCE, eve).await??.1?, "claimed");

    drop(deaf);
    assert_eq!(ann.await?.1?, "claimed");
    let first = batch.await??;
    assert_eq!(
        first,
        ["already_claimed", "claimed", "already_claimed", "claimed"]
    );
    assert_eq!(reversed.await??, ["claimed", "already_claimed"]);
    pair.database.books().await
}

/// In a transaction block an answer is reported before the commit that would wait, and a rollback does not.
#[tokio::test]
async fn refusal_beside_a_claim_waits_for_the_standby_in_a_transaction_block() -> Result<()> {
    let pair = Pair::start(10).await?;
    for (coupon, is_seen_in_its_turn) in [("FIRST", false), ("SECOND", true)] {
        pair.database.create_coupon(coupon, 1).await?;
        let deaf = pair.deafen().await?;
        let ann = pair.database.connect().await?;
        let claim_last = async move { claim_coupon(&ann, "ann", coupon).await };
        let client = pair.database.connect().await?;
        let call = async move {
            let sql = format!(
                "select string_agg(outcome::text, ' ' order by ordinal)
                   from honcho_claim_many('{{bob, carl}}', '{{PROMO, {coupon}}}')"
            );
            client.batch_execute("begin").await?;
            let outcomes: String = client.query_one(&sql, &[]).await?.get(0);
            client.batch_execute("rollback").await?;
            anyhow::Ok(outcomes)
        };
        let (last, call) = if is_seen_in_its_turn {
            // The call looks while the coupon has stock, and waits for the turn of the other one.
            let holder = hold(&pair.database, "PROMO").await?;
            let call = tokio::spawn(call);
            until_queued(&pair.client, 1).await?;
            let last = tokio::spawn(claim_last);
            pair.until_waiting(1).await?;
            holder.batch_execute("rollback").await?;
            (last, call)
        } else {
            let last = tokio::spawn(claim_last);
            pair.until_waiting(1).await?;
            (last, tokio::spawn(call))
        };
        pair.until_waiting(2).await?;
        assert!(!call.is_finished() && !last.is_finished());
        drop(deaf);
        assert_eq!(call.await??, "claimed sold_out", "{coupon}");
        assert_eq!(last.await??, "claimed");
    }
    pair.database.books().await
}

/// Freezing a row does not make its writer's commit durable.
#[tokio::test]
async fn refusal_by_a_frozen_row_waits_for_the_standby() -> Result<()> {
    let pair = Pair::start(1).await?;
    let deaf = pair.deafen().await?;
    let ann = claim_with(&pair.database, "on", "ann").await?;
    pair.until_waiting(1).await?;
    for sql in [
        "set synchronous_commit = local",
        "vacuum freeze coupons, claims",
    ] {
        pair.client.batch_execute(sql).await?;
    }
    // Checks that the table is frozen, which the test is about.
    let frozen = "select age(relfrozenxid) from pg_class where relname = 'coupons'";
    let age: i32 = pair.client.query_one(frozen, &[]).await?.get(0);
    assert!(age <= 2, "{age}");
    for user in ["ann", "bob"] {
        let client = impatient(&pair.database, 300).await?;
        let answered = claim(&client, user).await.unwrap_err();
        assert_eq!(answered.code(), Some(&SqlState::QUERY_CANCELED), "{user}");
    }
    drop(deaf);
    assert_eq!(ann.await?.1?, "claimed");
    pair.database.books().await
}

/// PostgreSQL always flushes a commit that deletes files, and records no position of it. Such a commit must
/// not be visible before the standby has it.
#[tokio::test]
async fn claim_with_a_dropped_table_is_visible_only_once_replicated() -> Result<()> {
    for beside in [
        "truncate junk",
        "drop table junk",
        "create temporary table t () on commit drop",
    ] {
        let pair = Pair::start(1).await?;
        pair.client.batch_execute("create table junk ()").await?;
        // The commit log keeps one position for 32 transactions, which must not be one of an earlier
        // transaction.
        pair.client
            .batch_execute("set synchronous_commit = local")
            .await?;
        for _ in 0..70 {
            pair.client
                .batch_execute("create table t (); drop table t")
                .await?;
        }
        let deaf = pair.deafen().await?;
        let client = pair.database.connect().await?;
        let ann = tokio::spawn(async move {
            let sql = format!("begin; {beside}; select honcho_claim('ann', 'PROMO'); commit");
            client.batch_execute(&sql).await
        });
        pair.until_waiting(1).await?;
        for user in ["bob", "ann"] {
            let client = impatient(&pair.database, 300).await?;
            let answered = claim(&client, user).await.unwrap_err();
            assert_eq!(
                answered.code(),
                Some(&SqlState::QUERY_CANCELED),
                "{beside}, {user}"
            );
        }
        drop(deaf);
        ann.await??;
        pair.database.books().await?;
    }
    Ok(())
}

#[tokio::test]
async fn no_refusal_is_answered_when_the_postmaster_dies() -> Result<()> {
    let mut pair = Pair::start(1).await?;
    let _deaf = pair.deafen().await?;
    let ann = claim_with(&pair.database, "on", "ann").await?;
    pair.until_waiting(1).await?;
    let bob = claim_with(&pair.database, "on", "bob").await?;
    pair.until_waiting(2).await?;
    let postmaster = pair.primary.pid().context("no postmaster")?;
    let postmaster = Pid::from_raw(i32::try_from(postmaster)?).context("no process")?;
    kill_process(postmaster, Signal::KILL)?;
    assert!(bob.await?.1.is_err());
    // Ann's claim is committed, and its session gets no answer.
    assert!(ann.await?.1.is_err());
    pair.primary.stop(Stop::Kill)
}

#[tokio::test]
async fn standby_answers_refusals_but_makes_no_claims() -> Result<()> {
    let pair = Pair::start(2).await?;
    let caller = pair.database.connect_as_caller().await?;
    caller
        .batch_execute("set synchronous_commit = remote_apply")
        .await?;
    assert_eq!(claim(&caller, "ann").await?, "claimed");
    let on_standby = pair
        .connect_to_standby(&format!("{}_caller", pair.database.name()))
        .await?;
    assert_eq!(claim(&on_standby, "ann").await?, "already_claimed");
    let nothing = "select honcho_claim('bob', 'NOTHING')::text";
    let nothing: String = on_standby.query_one(nothing, &[]).await?.get(0);
    assert_eq!(nothing, "not_found");
    for sql in [
        "select honcho_claim('bob', 'PROMO')",
        "select honcho_claim_batch('PROMO', array['ann', 'bob'])",
        "select honcho_claim_or_raise('bob', 'PROMO')",
    ] {
        let error = on_standby.batch_execute(sql).await.unwrap_err();
        assert_eq!(
            error.code(),
            Some(&SqlState::READ_ONLY_SQL_TRANSACTION),
            "{sql}"
        );
    }
    assert_eq!(claim(&caller, "bob").await?, "claimed");
    assert_eq!(claim(&on_standby, "carl").await?, "sold_out");
    let left = "select remaining_amount from honcho_get_coupon('PROMO')";
    assert_eq!(on_standby.query_one(left, &[]).await?.get::<_, i32>(0), 0);
    pair.database.books().await
}
