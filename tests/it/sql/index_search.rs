//! Claims and holds are searched for and compared on the pages of their unique indexes. With claims as the example, every
//! kind of entry and page is understood.

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

/// The scans so far of the unique keys of claims and holds, those of the session of `client` included.
async fn scans(client: &Client) -> Result<[i64; 2]> {
    let flush = "select pg_stat_force_next_flush()";
    client.batch_execute(flush).await?;
    let scans = "select pg_stat_get_numscans('claims_coupon_name_user_id_key'::regclass),
                        pg_stat_get_numscans('holds_pkey'::regclass)";
    let row = client.query_one(scans, &[]).await?;
    Ok([0, 1].map(|i| row.get(i)))
}

/// The number of the users `$2 1` to `$2 $1` who get the coupon, each in a call of its own.
const CLAIM_ALONE: &str = "select count(*) from generate_series(1, $1) i
                           where honcho_claim($2 || ' ' || i, 'PROMO')::text = 'claimed'";

/// The search is there because PostgreSQL's own costs as much as an insertion.
#[tokio::test]
async fn new_users_need_no_index_scan() -> Result<()> {
    // PostgreSQL looks up the root of an index again after some changes of others, such as an `analyze`.
    const FEW: i64 = 10;
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1_000).await?;
    let client = database.connect().await?;
    // More than a batch of two users reads together.
    let reserve = "select count(*) from generate_series(1, 500) i
                   cross join lateral honcho_reserve('holder ' || i, 'PROMO', '1 hour') as reserved
                   where reserved.outcome::text = 'held'";
    assert_eq!(client.query_one(reserve, &[]).await?.get::<_, i64>(0), 500);
    let users: Vec<String> = (0..100).map(|i| format!("user {i}")).collect();

    let before = scans(&client).await?;
    for two in users.chunks(2) {
        assert_eq!(claimed(&client, "PROMO", two).await?, 2);
    }
    let alone = client.query_one(CLAIM_ALONE, &[&50, &"alone"]).await?;
    assert_eq!(alone.get::<_, i64>(0), 50);
    let after = scans(&client).await?;
    assert!(after[0] - before[0] < FEW, "claims: {before:?} {after:?}");
    assert!(after[1] - before[1] < FEW, "holds: {before:?} {after:?}");

    // Those who have one are found by a scan.
    let before = after;
    assert_eq!(claimed(&client, "PROMO", &users).await?, 0);
    let holders = client.query_one(CLAIM_ALONE, &[&100, &"holder"]).await?;
    assert_eq!(holders.get::<_, i64>(0), 100);
    let after = scans(&client).await?;
    assert!(after[0] - before[0] >= 100, "claims: {before:?} {after:?}");
    assert!(after[1] - before[1] >= 100, "holds: {before:?} {after:?}");
    Ok(())
}
