//! Look-ups while an old snapshot keeps every version of the coupons' rows.

use anyhow::Result;

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
