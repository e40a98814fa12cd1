//! Look-ups while an old snapshot keeps every version of the coupons' rows.

use anyhow::Result;
use honcho_tests::{Cluster, Database};
use tokio_postgres::Client;

/// Claims on eight coupons in turn, and the most entries of the index of their names that one of them read. So few entries
/// of such long names fit on a page of the index that it is soon full of versions of several coupons.
const CLAIMS: &str = "
    do $$
    declare
        already bigint;
        most bigint := 0;
    begin
        for i in 1..4000 loop
            already := pg_stat_get_xact_tuples_returned('coupons_name_key'::regclass);
            perform honcho_claim('user ' || i, repeat('PROMO', 50) || i % 8);
            most := greatest(most, pg_stat_get_xact_tuples_returned('coupons_name_key'::regclass) - already);
            commit;
        end loop;
        insert into seen values (most);
    end $$";

/// One before the turn, and one in it.
const FEW: i64 = 2;

/// Entries in vain after which a look-up goes from one version to the next.
const VAIN: i64 = 4;

/// Procedure that makes claims on one coupon. Its tests have a cluster of their own: a transaction of any database keeps
/// the versions from a vacuum.
const MORE_CLAIMS: &str = "
    create table seen (most bigint);
    create procedure claim(users text, count int) language plpgsql as $$
    declare
        already bigint;
        most bigint := 0;
    begin
        for i in 1..count loop
            already := pg_stat_get_xact_tuples_returned('coupons_name_key'::regclass);
            perform honcho_claim(users || i, 'PROMO');
            most := greatest(most, pg_stat_get_xact_tuples_returned('coupons_name_key'::regclass) - already);
            commit;
        end loop;
        insert into seen values (most);
    end $$";

#[tokio::test]
async fn look_ups_start_at_the_newest_version() -> Result<()> {
    let database = crate::database().await?;
    for i in 0..8 {
        let coupon = "PROMO".repeat(50) + &i.to_string();
        database.create_coupon(&coupon, 1_000_000).await?;
    }
    let report = database.connect().await?;
    let keep = "begin isolation level repeatable read; select from coupons";
    report.batch_execute(keep).await?;

    let client = database.connect().await?;
    client
        .batch_execute("create table seen (most bigint)")
        .await?;
    client.batch_execute(CLAIMS).await?;
    let most: i64 = client.query_one("select most from seen", &[]).await?.get(0);
    assert!((1..=FEW).contains(&most), "{most} entries were read");

    report.batch_execute("commit").await?;
    database.books().await
}

#[tokio::test]
async fn look_ups_pass_versions_that_are_not_in_the_order_of_their_age() -> Result<()> {
    let cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 1_000_000).await?;
    let client = database.connect().await?;
    client.batch_execute(MORE_CLAIMS).await?;
    let younger = disorder(&database, &client, [1000, 2000]).await?;
    let other = database.connect().await?;

    // The first look-up of a session reads the entries of all versions that are behind the newest.
    let first = claim(&client, "three", 300).await?;
    assert!(first > 2 * VAIN, "there are only {first} entries");
    let later = claim(&client, "four", 500).await?;
    assert!(later <= 2 * VAIN, "{later} entries were read");
    // What another session has changed or undone meanwhile does not matter.
    let undone = "begin; select honcho_claim('undone', 'PROMO'); rollback";
    claim(&other, "five", 50).await?;
    for _ in 0..10 {
        other.batch_execute(undone).await?;
    }
    claim(&other, "six", 20).await?;
    let later = claim(&client, "seven", 500).await?;
    assert!(later <= 2 * VAIN, "{later} entries were read");

    let remaining = "select remaining_amount from honcho_get_coupon('PROMO')";
    for (session, claims) in [(&client, 4370), (&younger, 1000), (&younger, 1000)] {
        let left: i32 = session.query_one(remaining, &[]).await?.get(0);
        assert_eq!(left, 1_000_000 - claims);
    }

    younger.batch_execute("commit").await?;
    database.books().await
}

#[tokio::test]
async fn look_ups_go_to_no_place_beyond_the_end_of_the_table() -> Result<()> {
    const FAR: i64 = 20;
    let cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 1_000_000).await?;
    let client = database.connect().await?;
    client.batch_execute(MORE_CLAIMS).await?;
    let younger = disorder(&database, &client, [3000, 1000]).await?;
    let block = "select ((ctid::text::point)[0])::bigint from coupons";
    // Until the session knows a version that is behind others, and far from the beginning.
    let mut users = 0;
    loop {
        users += 1;
        assert!(
            users < 100,
            "no version behind others is in block {FAR} or beyond"
        );
        claim(&client, &format!("three {users}"), 40).await?;
        let at: i64 = client.query_one(block, &[]).await?.get(0);
        let entries = claim(&client, &format!("four {users}"), 1).await?;
        if at >= FAR && entries > FEW {
            break;
        }
    }
    younger.batch_execute("commit").await?;

    let other = database.connect().await?;
    other
        .batch_execute("truncate coupons, claims, holds, coupon_events")
        .await?;
    database.create_coupon("PROMO", 1_000_000).await?;
    let younger = disorder(&database, &other, [400, 1000]).await?;
    claim(&other, "three", 150).await?;
    let size = "select pg_relation_size('coupons') / current_setting('block_size')::bigint";
    let blocks: i64 = other.query_one(size, &[]).await?.get(0);
    assert!(blocks <= FAR, "the table has {blocks} blocks");
    let entries = claim(&client, "five", 1).await?;
    assert!(entries > 2 * VAIN, "there are only {entries} entries");

    younger.batch_execute("commit").await?;
    database.books().await
}

/// Makes so many claims under an older snapshot, then so many under a younger one, too, and frees the places of the first:
/// new versions will fill these. Returns the session with the younger snapshot.
async fn disorder(database: &Database, client: &Client, claims: [i32; 2]) -> Result<Client> {
    let keep = "begin isolation level repeatable read; select from coupons";
    let older = database.connect().await?;
    older.batch_execute(keep).await?;
    claim(client, "one", claims[0]).await?;
    let younger = database.connect().await?;
    younger.batch_execute(keep).await?;
    claim(client, "two", claims[1]).await?;
    older.batch_execute("commit").await?;
    let vacuum = database.connect().await?;
    vacuum.batch_execute("vacuum coupons").await?;
    Ok(younger)
}

/// Makes claims, and returns the most entries of the index of names that one of them read.
async fn claim(client: &Client, users: &str, count: i32) -> Result<i64> {
    client.batch_execute("truncate seen").await?;
    let call = format!("call claim('{users} ', {count})");
    client.batch_execute(&call).await?;
    let row = client.query_one("select most from seen", &[]).await?;
    Ok(row.get(0))
}
