//! Claims are searched for and compared on the pages of the unique index: every kind of entry and page is understood.

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use honcho_tests::Database;
use tokio::task::JoinSet;
use tokio_postgres::Client;

const SESSIONS: u64 = 4;

/// Coupons whose claims are next to each other in the index; one name is the beginning of another.
fn coupons() -> Vec<String> {
    let long = ["a", "é", "漢"].map(|letter| letter.repeat(255));
    ["P", "PR", "PROMO", "PROMO ", "z"]
        .map(String::from)
        .into_iter()
        .chain(long)
        .collect()
}

/// Users whose names an index stores in every way: with a short or a long header, with gaps before that, compressed.
fn users(rng: &mut Rng) -> Vec<String> {
    let mut users: Vec<String> = (1..=255).map(|length| "u".repeat(length)).collect();
    for i in 0..600 {
        users.push(i.to_string());
        users.push(format!("user {:09}", rng.u32(..1_000_000_000)));
        let length = rng.usize(1..=250);
        let letters = (0..length).map(|_| rng.choice(['a', 'b', '\u{1}', 'é', '漢', '🎫']));
        users.push(letters.flatten().chain(i.to_string().chars()).collect());
        users.push("compressible ".repeat(19) + &i.to_string());
    }
    users.sort();
    users.dedup();
    rng.shuffle(&mut users);
    users
}

/// The number of users of a batch who have claimed, by the outcomes.
async fn claimed(client: &Client, coupon: &str, users: &[String]) -> Result<usize> {
    let sql = "select count(*) filter (where outcome = 'claimed'),
                      count(*) filter (where outcome = 'already_claimed')
               from honcho_claim_batch($1, $2) outcome";
    let row = client.query_one(sql, &[&coupon, &users]).await?;
    let [claimed, already] = [0, 1].map(|i| row.get::<_, i64>(i));
    ensure!(claimed + already == i64::try_from(users.len())?);
    Ok(claimed.try_into()?)
}

/// Fails unless PostgreSQL finds the indexes sound, in a session that has not used ours.
async fn check_indexes(database: &Database) -> Result<()> {
    let client = database.connect().await?;
    client
        .batch_execute(
            "create extension if not exists amcheck;
             select bt_index_parent_check(indexrelid, true, true)
             from pg_index where indrelid in ('claims'::regclass, 'coupons'::regclass)",
        )
        .await?;
    Ok(())
}

/// Each session claims for all users in an order of its own, while pages split and others look at them.
async fn claim_for_all(database: &Database, users: &[String], rng: &mut Rng) -> Result<usize> {
    let mut sessions = JoinSet::new();
    for _ in 0..SESSIONS {
        let client = database.connect_as_caller().await?;
        let (mut users, mut rng) = (users.to_vec(), rng.fork());
        sessions.spawn(async move {
            let (mut coupons, mut count) = (coupons(), 0);
            rng.shuffle(&mut coupons);
            rng.shuffle(&mut users);
            for batch in users.chunks(50) {
                for coupon in &coupons {
                    count += claimed(&client, coupon, batch).await?;
                }
            }
            anyhow::Ok(count)
        });
    }
    let mut all = 0;
    while let Some(count) = sessions.join_next().await {
        all += count??;
    }
    Ok(all)
}

#[tokio::test]
async fn search_finds_every_claim_and_no_other() -> Result<()> {
    let seed = fastrand::u64(..);
    every_claim_and_no_other(Rng::with_seed(seed))
        .await
        .with_context(|| format!("seed {seed}"))
}

async fn every_claim_and_no_other(mut rng: Rng) -> Result<()> {
    let database = crate::database().await?;
    for coupon in coupons() {
        database.create_coupon(&coupon, 1_000_000).await?;
    }
    let users = users(&mut rng);
    let all = users.len() * coupons().len();
    assert_eq!(claim_for_all(&database, &users, &mut rng).await?, all);
    assert_eq!(claim_for_all(&database, &users, &mut rng).await?, 0);
    check_indexes(&database).await?;

    // Several versions of a row have entries with equal keys, until a vacuum; whole pages become empty, and go.
    let client = database.connect().await?;
    let keep = "begin isolation level repeatable read; select from coupons";
    client.batch_execute(keep).await?;
    let writer = database.connect_as_caller().await?;
    let (gone, coupon) = (&users[..users.len() / 3], "PROMO");
    for _ in 0..3 {
        for user in gone {
            let release = "select honcho_release($1, $2)::text = 'released'";
            let released = writer.query_one(release, &[user, &coupon]).await?;
            assert!(released.get::<_, bool>(0));
        }
        assert_eq!(claimed(&writer, coupon, gone).await?, gone.len());
        assert_eq!(claimed(&writer, coupon, &users).await?, 0);
    }
    client.batch_execute("rollback").await?;
    let delete = "select honcho_delete_coupon($1, with_claims => true)::text = 'deleted'";
    for coupon in ["PR", "z"] {
        let deleted = client.query_one(delete, &[&coupon]).await?;
        assert!(deleted.get::<_, bool>(0));
    }
    client
        .batch_execute("vacuum (index_cleanup on) claims")
        .await?;
    for coupon in ["PR", "z"] {
        database.create_coupon(coupon, 1_000_000).await?;
    }
    let created_again = users.len() * 2;
    assert_eq!(
        claim_for_all(&database, &users, &mut rng).await?,
        created_again
    );
    check_indexes(&database).await?;
    database.books().await
}

/// The search is there because PostgreSQL's own costs as much as an insertion.
#[tokio::test]
async fn new_users_need_no_index_scan() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1_000).await?;
    let client = database.connect().await?;
    let scans = async || -> Result<i64> {
        let sql = "select pg_stat_force_next_flush();
                   select pg_stat_clear_snapshot()";
        client.batch_execute(sql).await?;
        let scans = "select pg_stat_get_numscans('claims_coupon_name_user_id_key'::regclass)";
        Ok(client.query_one(scans, &[]).await?.get(0))
    };
    let users: Vec<String> = (0..300).map(|i| format!("user {i}")).collect();
    // PostgreSQL looks up the root of an index that was empty.
    let (first, others) = users.split_at(2);
    for user in first.chunks(1) {
        assert_eq!(claimed(&client, "PROMO", user).await?, 1);
    }
    let before = scans().await?;
    assert_eq!(claimed(&client, "PROMO", others).await?, others.len());
    assert_eq!(scans().await?, before);
    assert_eq!(claimed(&client, "PROMO", others).await?, 0);
    assert_eq!(scans().await?, before + i64::try_from(others.len())?);
    Ok(())
}

/// Scans of the unique keys of claims and of holds by now, which the session of `client` has made.
async fn scans(client: &Client) -> Result<[i64; 2]> {
    client
        .query("select pg_stat_force_next_flush()", &[])
        .await?;
    let sql = "select indexrelname, idx_scan from pg_stat_user_indexes
               where indexrelname in ('claims_coupon_name_user_id_key', 'holds_pkey') order by 1";
    let rows = client.query(sql, &[]).await?;
    ensure!(rows.len() == 2, "there are other indexes");
    Ok([0, 1].map(|i| rows[i].get("idx_scan")))
}

#[tokio::test]
async fn users_without_claim_and_hold_cost_no_scan() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1_000).await?;
    let client = database.connect().await?;
    let hold = "select honcho_reserve('holder', 'PROMO', '1 hour')";
    client.query(hold, &[]).await?;
    let users: Vec<String> = (0..100).map(|number| format!("user {number}")).collect();
    let [claims, holds] = scans(&client).await?;
    assert_eq!(claimed(&client, "PROMO", &users).await?, 100);
    let claim = "select honcho_claim('alone', 'PROMO')";
    client.query(claim, &[]).await?;
    assert_eq!(scans(&client).await?, [claims, holds]);
    // Those who have one are found by a scan.
    assert_eq!(claimed(&client, "PROMO", &users).await?, 0);
    client
        .query("select honcho_claim('holder', 'PROMO')", &[])
        .await?;
    let [claims_after, holds_after] = scans(&client).await?;
    assert!(claims_after >= claims + 100, "{claims} {claims_after}");
    assert!(holds_after > holds, "{holds} {holds_after}");
    Ok(())
}
