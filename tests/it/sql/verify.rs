//! `honcho_verify` reports every broken invariant.

use anyhow::Result;
use tokio_postgres::Client;

/// The broken invariants, each with its coupon.
async fn broken(client: &Client) -> Result<Vec<(String, String)>> {
    let broken = "select coupon_name, invariant from honcho_verify() where not holds";
    let rows = client.query(broken, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

#[tokio::test]
async fn verify_reports_each_broken_invariant() -> Result<()> {
    let database = crate::database().await?;
    let mut client = database.connect().await?;
    client
        .batch_execute(
            "select honcho_create_coupon('cooked', 3), honcho_create_coupon('honest', 3);
             select honcho_claim('anna', 'cooked'), honcho_claim('anna', 'honest');
             select honcho_claim('bert', 'cooked');",
        )
        .await?;
    assert_eq!(broken(&client).await?, []);
    database.books().await?;

    for (cook, invariant) in [
        (
            "update coupons set remaining_amount = 2 where name = 'cooked'",
            "stock",
        ),
        (
            "update coupons set remaining_amount = 0 where name = 'cooked'",
            "stock",
        ),
        (
            "update coupons set amount = 4 where name = 'cooked'",
            "stock",
        ),
        ("delete from claims where user_id = 'bert'", "stock"),
        (
            "insert into claims (user_id, coupon_name) values ('carl', 'cooked')",
            "stock",
        ),
        (
            "alter table coupons drop constraint coupons_remaining_amount_check;
             update coupons set amount = 1, remaining_amount = -1 where name = 'cooked'",
            "range",
        ),
        (
            "alter table claims drop constraint claims_coupon_name_user_id_key;
             update claims set user_id = 'anna' where coupon_name = 'cooked'",
            "one_per_user",
        ),
        (
            "set local session_replication_role = replica;
             delete from coupons where name = 'cooked'",
            "coupon_exists",
        ),
        (
            "insert into claims (id, user_id, coupon_name) values (1000, 'carl', 'cooked');
             update coupons set remaining_amount = 0 where name = 'cooked'",
            "ids",
        ),
        ("update coupons set id = 1000 where name = 'cooked'", "ids"),
    ] {
        // Each change is rolled back before the next.
        let transaction = client.transaction().await?;
        transaction.batch_execute(cook).await?;
        assert_eq!(
            broken(transaction.client()).await?,
            [("cooked".to_owned(), invariant.to_owned())],
            "{cook}"
        );
        transaction.rollback().await?;
    }
    client
        .batch_execute("update coupons set amount = 4 where name = 'cooked'")
        .await?;
    assert!(database.books().await.is_err());
    Ok(())
}
