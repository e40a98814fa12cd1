//! Many holds, claims and coupons: one call does a bounded part of the work.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use honcho_tests::{ClusterOptions, Database};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::fixtures::{MIB, sql::lapse};

/// The most expired holds that a claim for one user takes back.
const SWEEP: i64 = 100;

async fn count(client: &Client, sql: &str) -> Result<i64> {
    Ok(client
        .query_one(sql, &[])
        .await
        .with_context(|| sql.to_owned())?
        .get(0))
}

/// Work is counted in holds, because time depends on the machine.
#[tokio::test]
async fn claims_after_a_hundred_thousand_expired_holds_take_back_a_few_each() -> Result<()> {
    const HOLDS: i64 = 100_000;
    const HELD: &str = "select count(*) from holds";
    let database = crate::database().await?;
    database.create_coupon("PROMO", HOLDS.try_into()?).await?;
    let client = database.connect().await?;
    let reserve = "select from honcho_apply('PROMO', array_fill('reserve'::text, array[10000]),
        (select array_agg(concat('holder ', $1::int, ' ', i)) from generate_series(1, 10000) i),
        array_fill('1 hour'::interval, array[10000]))";
    for n in 0..10 {
        assert_eq!(client.execute(reserve, &[&n]).await?, 10_000);
    }
    let all_held = "select honcho_claim('early', 'PROMO')::text = 'all_held'";
    assert!(client.query_one(all_held, &[]).await?.get::<_, bool>(0));
    client.batch_execute(&lapse("true")).await?;

    // Claims and reservations one by one.
    let mut left = HOLDS;
    for (n, sql) in [
        "select honcho_claim('a', 'PROMO')::text",
        "select outcome::text from honcho_reserve('b', 'PROMO', '1 hour')",
        "select outcome::text from honcho_apply('PROMO', '{claim}', '{c}')",
        "select outcome::text from honcho_claim_batch('PROMO', '{d}')",
    ]
    .into_iter()
    .enumerate()
    {
        // Without stock, each has to take some back.
        client
            .batch_execute(
                "update coupons set amount = amount - remaining_amount, remaining_amount = 0",
            )
            .await?;
        let outcome: String = client.query_one(sql, &[]).await?.get(0);
        assert!(
            ["claimed", "held"].contains(&outcome.as_str()),
            "{sql}: {outcome}"
        );
        let expired = count(&client, &format!("{HELD} where user_id like 'holder %'")).await?;
        let taken_back = left - expired;
        assert!(
            (1..=SWEEP).contains(&taken_back),
            "{sql} took back {taken_back}"
        );
        left = expired;
        ensure!(n < 4);
    }
    database.books().await?;

    // Many at the same time: each is served, and none of them does the work of all.
    let mut sessions = JoinSet::new();
    for n in 0..8 {
        let client = database.connect_as_caller().await?;
        sessions.spawn(async move {
            for i in 0..100 {
                let sql = format!("select honcho_claim('buyer {n} {i}', 'PROMO')::text");
                let outcome: String = client.query_one(&sql, &[]).await?.get(0);
                ensure!(outcome == "claimed", "{outcome}");
            }
            Ok(())
        });
    }
    while let Some(session) = sessions.join_next().await {
        session??;
    }
    let largest = "select coalesce(max((details->>'count')::bigint), 0) from coupon_events where kind = 'expired'";
    let largest = count(&client, largest).await?;
    assert!((1..=SWEEP).contains(&largest), "{largest} in one claim");
    database.books().await?;

    // A batch may take back what it needs; the sweep, as many as it is asked for.
    let before = count(&client, HELD).await?;
    let swept = count(&client, "select honcho_expire(1000)::bigint").await?;
    assert_eq!((swept, count(&client, HELD).await?), (1000, before - 1000));
    database.books().await
}

/// The most memory that a process has had, in bytes.
fn peak_memory(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.context("no VmHWM")?.trim().trim_end_matches(" kB");
    Ok(kilobytes.parse::<u64>()? * 1024)
}

#[tokio::test]
async fn deletion_with_many_claims_needs_little_memory() -> Result<()> {
    const CLAIMS: u64 = 300_000;
    // Shared memory that a session has touched counts as its own.
    let cluster = ClusterOptions::default()
        .setting("fsync", "off")
        .setting("shared_buffers", "8MB")
        .start()?;
    let database = Database::create(&cluster).await?;
    let owner = database.connect().await?;
    owner
        .batch_execute(&format!(
            "select honcho_create_coupon('OTHER', 5), honcho_claim('ann', 'OTHER');
             insert into coupons (name, amount, remaining_amount) values ('PROMO', {CLAIMS}, 0);
             insert into claims (user_id, coupon_name) select 'user ' || i, 'PROMO' from generate_series(1, {CLAIMS}) i"
        ))
        .await?;
    let client = database.connect_as_caller().await?;
    let pid = client
        .query_one("select pg_backend_pid()", &[])
        .await?
        .get(0);
    let in_use: String = client
        .query_one("select honcho_delete_coupon('PROMO')::text", &[])
        .await?
        .get(0);
    assert_eq!(in_use, "in_use");
    let before = peak_memory(pid)?;
    let deleted: String = client
        .query_one("select honcho_delete_coupon('PROMO', true)::text", &[])
        .await?
        .get(0);
    assert_eq!(deleted, "deleted");
    let grown = peak_memory(pid)?.saturating_sub(before);
    // A row of its own for each claim would need many times as much.
    assert!(grown < 12 * MIB, "{grown} bytes for {CLAIMS} claims");
    assert_eq!(count(&owner, "select count(*) from claims").await?, 1);
    let details = "select details->>'claims' from coupon_events where kind = 'deleted'";
    let details: String = owner.query_one(details, &[]).await?.get(0);
    assert_eq!(details, CLAIMS.to_string());
    assert_eq!(
        count(
            &owner,
            "select honcho_create_coupon('PROMO', 1)::int::bigint"
        )
        .await?,
        1
    );
    database.books().await
}

#[tokio::test]
async fn claims_of_a_user_are_found_on_ten_thousand_coupons() -> Result<()> {
    const COUPONS: usize = 10_000;
    let database = crate::database().await?;
    let owner = database.connect().await?;
    // Claims of others in front, behind and between.
    owner
        .batch_execute(&format!(
            "insert into coupons (name, amount, remaining_amount)
                 select 'C' || i, 9, case when i % 37 = 0 then 6 else 7 end from generate_series(1, {COUPONS}) i;
             insert into claims (coupon_name, user_id)
                 select 'C' || i, u from generate_series(1, {COUPONS}) i, unnest(array['a', 'z']) u;
             insert into claims (coupon_name, user_id)
                 select 'C' || i, 'me' from generate_series(37, {COUPONS}, 37) i;
             analyze"
        ))
        .await?;
    let caller = database.connect_as_caller().await?;
    let expected: BTreeSet<String> = (37..=COUPONS)
        .step_by(37)
        .map(|i| format!("C{i}"))
        .collect();
    let page = "select coupon_id, coupon_name from honcho_list_user_claims('me', $1, $2)";
    for index in [false, true] {
        if index {
            owner
                .batch_execute("create index on claims (user_id); analyze claims")
                .await?;
        }
        for max in [7, 1000, 10_000] {
            let (mut last, mut found) = (0_i64, Vec::new());
            loop {
                let rows = caller.query(page, &[&last, &max]).await?;
                for row in &rows {
                    ensure!(row.get::<_, i64>(0) > last, "out of order");
                    last = row.get(0);
                    found.push(row.get::<_, String>(1));
                }
                // A page that is not full is the last one.
                if rows.len() < usize::try_from(max)? {
                    break;
                }
            }
            assert_eq!(found.len(), expected.len(), "pages of {max}");
            assert_eq!(found.iter().cloned().collect::<BTreeSet<_>>(), expected);
        }
        assert!(
            caller
                .query("select from honcho_list_user_claims('nobody')", &[])
                .await?
                .is_empty()
        );
    }
    // Each coupon is looked up: no claim of another user is read.
    let reads = "select idx_tup_fetch + seq_tup_read from pg_stat_xact_user_tables where relname = 'claims'";
    owner.batch_execute("begin").await?;
    let before = count(&owner, reads).await?;
    owner
        .batch_execute("select from honcho_list_user_claims('me', 0, 10000)")
        .await?;
    let read = count(&owner, reads).await? - before;
    owner.batch_execute("rollback").await?;
    assert!(
        read <= 2 * i64::try_from(expected.len())?,
        "{read} claims were read"
    );
    database.books().await
}
