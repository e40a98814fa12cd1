//! Claims make the entries of their unique indexes by themselves: the same as PostgreSQL makes, in its pages and in its
//! write-ahead log.

use anyhow::Result;
use honcho_tests::{ClusterOptions, Database, connect, eventually};
use tokio_postgres::Client;

/// Users whose names take a short or a long header in an entry, of all lengths.
const CLAIM_FOR_ALL: &str = "
    select count(*) from unnest(array['P', 'PROMO', repeat('é', 62), repeat('é', 63), repeat('漢', 255)]) coupon
    cross join generate_series(1, 255, 30) first
    cross join lateral honcho_claim_batch(
        coupon, array(select repeat('u', i) from generate_series(first, least(first + 29, 255)) i)
    ) batch
    where outcome::text = 'claimed'";

async fn claim_for_all(database: &Database, client: &Client) -> Result<()> {
    for letters in ["P", "PROMO"] {
        database.create_coupon(letters, 1_000).await?;
    }
    for (letter, length) in [("é", 62), ("é", 63), ("漢", 255)] {
        database
            .create_coupon(&letter.repeat(length), 1_000)
            .await?;
    }
    let claimed: i64 = client.query_one(CLAIM_FOR_ALL, &[]).await?.get(0);
    assert_eq!(claimed, 5 * 255);
    Ok(())
}

/// An index that is not unique has entries of PostgreSQL's own.
#[tokio::test]
async fn entries_are_those_that_postgresql_makes() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "create extension pageinspect;
             create index twin_of_key on claims (coupon_name, user_id) with (deduplicate_items = off);
             create index twin_of_primary_key on claims (coupon_name, id) with (deduplicate_items = off);
             create function entries(index regclass) returns setof text language sql as $$
                 select i::text
                 from generate_series(1, pg_relation_size(index) / current_setting('block_size')::bigint - 1) block
                 cross join lateral bt_page_stats(index::text, block) page
                 cross join lateral (
                     select ctid, itemlen, nulls, vars, data, dead, htid
                     from bt_page_items(index::text, block) items
                     where page.btpo_next = 0 or items.itemoffset > 1
                 ) i
                 where page.type = 'l'
             $$",
        )
        .await?;
    claim_for_all(&database, &client).await?;
    for (index, twin) in [
        ("claims_coupon_name_user_id_key", "twin_of_key"),
        ("claims_pkey", "twin_of_primary_key"),
    ] {
        let count = "select count(*) from entries($1::text::regclass)";
        let count: i64 = client.query_one(count, &[&index]).await?.get(0);
        assert_eq!(count, 5 * 255);
        let other = "(select entries($1::text::regclass) except all select entries($2::text::regclass)) limit 1";
        let other = client.query_opt(other, &[&index, &twin]).await?;
        assert!(
            other.is_none(),
            "{index}: {:?}",
            other.map(|row| row.get::<_, String>(0))
        );
    }
    database.books().await
}

/// The standby compares each page with the primary's after each record, and ends if they differ.
#[tokio::test]
async fn standby_and_recovery_make_the_same_pages() -> Result<()> {
    let options = ClusterOptions::default()
        .setting("fsync", "off")
        .setting("wal_consistency_checking", "all");
    let mut primary = options.clone().start()?;
    let standby = options.start_standby_of(&primary)?;
    let database = Database::create(&primary).await?;
    let client = database.connect().await?;
    client.batch_execute("create extension amcheck").await?;
    claim_for_all(&database, &client).await?;
    let written = "select pg_current_wal_insert_lsn()::text";
    let written: String = client.query_one(written, &[]).await?.get(0);

    let check = "select count(bt_index_check(indexrelid, true))
                 from pg_index where indrelid = 'claims'::regclass";
    let replayed = eventually("the standby to have replayed the claims", async || {
        let replica = connect(&standby.url("postgres", "postgres")).await?;
        let replayed = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        Ok(replica
            .query_one(replayed, &[&written])
            .await?
            .get::<_, bool>(0)
            .then_some(()))
    });
    replayed.await?;
    let replica = connect(&standby.url("postgres", database.name())).await?;
    assert_eq!(replica.query_one(check, &[]).await?.get::<_, i64>(0), 2);

    primary.stop(honcho_tests::Stop::Immediate)?;
    primary.start()?;
    let client = database.connect().await?;
    assert_eq!(client.query_one(check, &[]).await?.get::<_, i64>(0), 2);
    let claimed: i64 = client.query_one(CLAIM_FOR_ALL, &[]).await?.get(0);
    assert_eq!(claimed, 0);
    database.books().await
}
