//! `pg_dump` takes coupons, claims and sequences along.

use anyhow::Result;
use honcho_tests::{books, connect};

use crate::{api::Api, cluster};

#[tokio::test]
async fn a_restored_database_goes_on() -> Result<()> {
    let database = crate::database().await?;
    database
        .connect()
        .await?
        .batch_execute(
            "select honcho_create_coupon('PROMO', 5);
             select honcho_create_coupon('LATER', 5, 'tomorrow', 'infinity');
             select honcho_claim('anna', 'PROMO');
             select honcho_claim('bert', 'PROMO');",
        )
        .await?;
    let restored = format!("{}_restored", database.name());
    let dump = cluster()
        .directory()
        .join(format!("{}.dump", database.name()));
    let dump = dump.to_str().unwrap();
    cluster().run(
        "pg_dump",
        ["--format=custom", "--file", dump, database.name()],
    )?;
    cluster().run("createdb", ["--template=template0", &restored])?;
    cluster().run(
        "pg_restore",
        ["--exit-on-error", "--dbname", &restored, dump],
    )?;

    let before = database.connect().await?;
    let after = connect(&cluster().url("postgres", &restored)).await?;
    let content = "select array(select c::text from coupons c order by id),
                          array(select c::text from claims c order by id)";
    let rows = |row: tokio_postgres::Row| -> [Vec<String>; 2] { [row.get(0), row.get(1)] };
    let expected = rows(before.query_one(content, &[]).await?);
    assert_eq!(expected.each_ref().map(Vec::len), [2, 2]);
    assert_eq!(rows(after.query_one(content, &[]).await?), expected);
    books(&after).await?;

    // The rights came along, too: the same caller goes on where it was.
    let api = Api::start(&cluster().url(&format!("{}_caller", database.name()), &restored)).await?;
    assert_eq!(
        api.claim("anna", "PROMO").await?.shown(),
        "409 already_claimed"
    );
    assert_eq!(api.claim("carl", "PROMO").await?.shown(), "200");
    assert_eq!(api.create("PROMO", 1).await?.shown(), "409 coupon_exists");
    assert_eq!(api.create("NEW", 1).await?.shown(), "201");
    let ids = "select (select max(id) from claims where user_id = 'carl')
                        > (select max(id) from claims where user_id <> 'carl')
                  and (select id from coupons where name = 'NEW')
                        > (select max(id) from coupons where name <> 'NEW')";
    assert!(after.query_one(ids, &[]).await?.get::<_, bool>(0));
    assert_eq!(
        api.show("PROMO").await?.body["claimed_by"],
        serde_json::json!(["anna", "bert", "carl"])
    );
    books(&after).await?;
    database.books().await
}
