//! Backups: `pg_dump` and `pg_restore` keep coupons, claims, holds, events and sequences, and the documented recipes work.

use anyhow::Result;
use honcho_tests::{ClusterOptions, Database, books, connect, eventually};
use tokio_postgres::{Client, error::SqlState};

use crate::{
    cluster,
    fixtures::{
        api::Api,
        sql::{holds_and_events, releases, rows},
    },
};

/// Dumps `database` and returns the path of the dump.
fn dump(database: &Database, format: &str, arguments: &[&str]) -> Result<String> {
    let path = cluster()
        .directory()
        .join(format!("{}.{format}", database.name()));
    let path = path.to_str().unwrap().to_owned();
    let mut all = vec!["--format", format, "--file", &path];
    all.extend(arguments);
    all.push(database.name());
    cluster().run("pg_dump", all)?;
    Ok(path)
}

/// Restores a dump into a new database `name`, after running `before` there.
async fn restore(dump: &str, name: &str, jobs: &str, before: &str) -> Result<Client> {
    cluster().run("createdb", ["--template=template0", name])?;
    let client = connect(&cluster().url("postgres", name)).await?;
    client.batch_execute(before).await?;
    pg_restore(dump, name, jobs, &[])?;
    Ok(client)
}

fn pg_restore(dump: &str, name: &str, jobs: &str, more: &[&str]) -> Result<()> {
    let mut arguments = vec!["--exit-on-error", "--jobs", jobs, "--dbname", name];
    arguments.extend(more);
    arguments.push(dump);
    cluster().run("pg_restore", arguments)?;
    Ok(())
}

/// Creates 50,000 coupons with a stock of one and claims some of the last: with two jobs, `pg_restore` loads
/// claims while it still loads coupons.
async fn sell_single_use_codes(database: &Database) -> Result<()> {
    database
        .connect()
        .await?
        .batch_execute(
            "insert into coupons (name, amount, remaining_amount)
                 select 'C' || i, 1, 1 from generate_series(1, 50000) i;
             select honcho_claim('u' || i, 'C' || i) from generate_series(49990, 50000) i",
        )
        .await?;
    Ok(())
}

/// Fails unless all coupons and claims exist and the books are right.
async fn assert_single_use_codes(client: &Client, what: &str) -> Result<()> {
    let counted = client
        .query_one(
            "select (select count(*) from coupons), (select count(*) from claims),
                    honcho_claim('u50000', 'C50000')::text, honcho_claim('x', 'C49990')::text,
                    honcho_claim('x', 'C1')::text",
            &[],
        )
        .await?;
    let counts = (counted.get(0), counted.get(1));
    assert_eq!(counts, (50_000_i64, 11_i64), "{what}");
    let outcomes: [&str; 3] = [counted.get(2), counted.get(3), counted.get(4)];
    assert_eq!(
        outcomes,
        ["already_claimed", "sold_out", "claimed"],
        "{what}"
    );
    let broken = "select count(*) from honcho_verify() where holds is not true";
    let broken: i64 = client.query_one(broken, &[]).await?.get(0);
    assert_eq!(broken, 0, "{what}");
    Ok(())
}

#[tokio::test]
async fn restore_with_several_jobs_keeps_claims() -> Result<()> {
    let database = crate::database().await?;
    sell_single_use_codes(&database).await?;
    for (format, jobs) in [
        ("directory", "1"),
        ("directory", "2"),
        ("directory", "4"),
        ("custom", "2"),
    ] {
        let path = dump(&database, format, &[])?;
        let name = format!("{}_{format}_{jobs}", database.name());
        let client = restore(&path, &name, jobs, "").await?;
        assert_single_use_codes(&client, &name).await?;
        drop(client);
        cluster().run("dropdb", ["--force", &name])?;
        if format == "directory" {
            std::fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn dumps_of_releases_restore_with_several_jobs() -> Result<()> {
    for release in releases().await? {
        let database = Database::create_released(cluster(), &release).await?;
        sell_single_use_codes(&database).await?;
        let path = dump(&database, "custom", &[])?;
        let name = format!("{}_restored", database.name());
        let client = restore(&path, &name, "2", "").await?;
        assert_single_use_codes(&client, &release).await?;
        drop(client);
        cluster().run("dropdb", ["--force", &name])?;
    }
    Ok(())
}

/// Columns are added before the restore, indexes and triggers after it.
#[tokio::test]
async fn restore_with_users_columns_indexes_and_triggers() -> Result<()> {
    const COLUMNS: &str = "alter table coupons add column discount integer;
                           alter table claims add column note text";
    const REST: &str = "create index claims_by_user on claims (user_id);
                        create trigger audit after insert on claims for each row execute function audit()";
    let database = crate::database().await?;
    let client = database.connect().await?;
    client.batch_execute(COLUMNS).await?;
    client
        .batch_execute(
            "create table log (user_id text, coupon_name text,
                               foreign key (user_id, coupon_name) references claims (user_id, coupon_name));
             create function audit() returns trigger language plpgsql as
                 'begin insert into public.log values (new.user_id, new.coupon_name); return new; end';
             create view discounts as select name, discount from coupons",
        )
        .await?;
    client.batch_execute(REST).await?;
    client
        .batch_execute(
            "select honcho_create_coupon('PROMO', 5);
             update coupons set discount = 10;
             select honcho_claim('anna', 'PROMO');
             update claims set note = 'first'",
        )
        .await?;
    let path = dump(&database, "custom", &[])?;
    let name = format!("{}_restored", database.name());
    // The log's foreign key needs the claims, a dependency that the dump does not contain: the data comes
    // first.
    cluster().run("createdb", ["--template=template0", &name])?;
    let restored = connect(&cluster().url("postgres", &name)).await?;
    restored
        .batch_execute(&format!("create extension honcho; {COLUMNS}"))
        .await?;
    for section in ["pre-data", "data", "post-data"] {
        pg_restore(&path, &name, "2", &[&format!("--section={section}")])?;
    }
    assert_eq!(rows(&restored).await?, rows(&client).await?);
    books(&restored).await?;
    restored.batch_execute(REST).await?;
    restored
        .batch_execute("select honcho_claim('bert', 'PROMO')")
        .await?;
    let logged = restored
        .query_one("select array(select user_id from log order by 1)", &[])
        .await?;
    assert_eq!(logged.get::<_, Vec<&str>>(0), ["anna", "bert"]);
    books(&restored).await?;
    database.books().await
}

/// Dumps a part of a database: the extension by name, and a schema.
#[tokio::test]
async fn dump_of_the_extension_and_a_schema_restores() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "select honcho_create_coupon('PROMO', 5);
             select honcho_claim('anna', 'PROMO');
             create schema shop;
             create table shop.orders as select 1 as id;
             create schema other;
             create table other.things as select 1 as id",
        )
        .await?;
    let path = dump(
        &database,
        "custom",
        &["--extension=honcho", "--schema=shop"],
    )?;
    let name = format!("{}_restored", database.name());
    let restored = restore(&path, &name, "1", "").await?;
    assert_eq!(rows(&restored).await?, rows(&client).await?);
    let tables =
        "select to_regclass('shop.orders') is not null, to_regclass('other.things') is null";
    let tables = restored.query_one(tables, &[]).await?;
    assert!(tables.get::<_, bool>(0) && tables.get::<_, bool>(1));
    books(&restored).await?;
    database.books().await
}

/// Sequences are not replicated. Until they are set, ids repeat, and `honcho_verify` reports it.
#[tokio::test]
async fn logical_replica_takes_over_once_its_sequences_are_set() -> Result<()> {
    let cluster = ClusterOptions::default()
        .setting("wal_level", "logical")
        .setting("fsync", "off")
        .start()?;
    let (from, to) = (
        Database::create(&cluster).await?,
        Database::create(&cluster).await?,
    );
    let (old, new) = (from.connect().await?, to.connect().await?);
    old.batch_execute(
        "select honcho_create_coupon('PROMO', 9), honcho_create_coupon('GONE', 9);
         select honcho_claim('anna', 'PROMO'), honcho_claim('anna', 'GONE');
         select honcho_reserve('carl', 'PROMO', '1 hour');
         create publication honcho for table coupons, claims, holds, coupon_events",
    )
    .await?;
    // A separate command: in a transaction that has written, it would wait for itself.
    old.batch_execute("select pg_create_logical_replication_slot('honcho', 'pgoutput')")
        .await?;
    // In one cluster, creating the slot here would wait for this very command.
    new.batch_execute(&format!(
        "create subscription honcho connection 'host={} port={} user=postgres dbname={}' publication honcho
             with (create_slot = false)",
        cluster.directory().display(),
        cluster.port(),
        from.name(),
    ))
    .await?;
    old.batch_execute(
        "select honcho_claim('bert', 'PROMO');
         begin;
         delete from claims where coupon_name = 'GONE';
         delete from coupons where name = 'GONE';
         commit",
    )
    .await?;
    eventually("the replica to catch up", async || {
        let same = rows(&new).await? == rows(&old).await?
            && holds_and_events(&new).await? == holds_and_events(&old).await?;
        Ok(same.then_some(()))
    })
    .await?;
    new.batch_execute("drop subscription honcho").await?;

    let broken = "select invariant from honcho_verify() where not holds";
    assert_eq!(new.query_one(broken, &[]).await?.get::<_, &str>(0), "ids");
    let error = new
        .batch_execute("select honcho_create_coupon('NEW', 9)")
        .await
        .expect_err("an id that is taken");
    assert_eq!(error.code(), Some(&SqlState::UNIQUE_VIOLATION), "{error:?}");
    new.batch_execute(
        "select setval('coupons_id_seq', max(id)) from coupons;
         select setval('claims_id_seq', max(id)) from claims;
         select setval('coupon_events_id_seq', max(id)) from coupon_events",
    )
    .await?;
    to.books().await?;
    new.batch_execute("select honcho_create_coupon('NEW', 9), honcho_claim('carl', 'PROMO')")
        .await?;
    let users = "select array(select user_id from honcho_list_claims('PROMO'))";
    let users = new.query_one(users, &[]).await?;
    assert_eq!(users.get::<_, Vec<&str>>(0), ["anna", "bert", "carl"]);
    to.books().await?;
    from.books().await
}

#[tokio::test]
async fn restored_database_serves_claims_with_the_same_rights() -> Result<()> {
    let database = crate::database().await?;
    database
        .connect()
        .await?
        .batch_execute(
            "select honcho_create_coupon('PROMO', 5);
             select honcho_create_coupon('LATER', 5, 'tomorrow', 'infinity');
             select honcho_claim('anna', 'PROMO', 'a key');
             select honcho_claim('bert', 'PROMO');
             select honcho_create_coupon('HELD', 3);
             select honcho_reserve('anna', 'HELD', '1 hour', 'key of a hold');
             select honcho_reserve('late', 'HELD', '1 hour');
             update holds set expires_at = '2020-01-01' where user_id = 'late';
             update coupons set next_expiry = '2020-01-01' where name = 'HELD';
             select honcho_restock('HELD', 1);",
        )
        .await?;
    let restored = format!("{}_restored", database.name());
    let path = dump(&database, "custom", &[])?;
    let after = restore(&path, &restored, "1", "").await?;
    let expected = rows(&database.connect().await?).await?;
    assert_eq!(expected.each_ref().map(Vec::len), [3, 2]);
    assert_eq!(rows(&after).await?, expected);
    let expected = holds_and_events(&database.connect().await?).await?;
    assert_eq!(expected.each_ref().map(Vec::len), [2, 4]);
    assert_eq!(holds_and_events(&after).await?, expected);
    books(&after).await?;

    // Holds, keys and events continue.
    let lives_on = "select honcho_claim('anna', 'PROMO', 'a key')::text,
                           honcho_confirm('anna', 'HELD')::text, honcho_confirm('late', 'HELD')::text,
                           honcho_claim('anna', 'HELD', 'key of a hold')::text";
    let lives_on = after.query_one(lives_on, &[]).await?;
    let answers: [&str; 4] = [0, 1, 2, 3].map(|column| lives_on.get(column));
    assert_eq!(answers, ["claimed", "claimed", "not_held", "claimed"]);
    let last: i64 = after
        .query_one("select max(id) from coupon_events", &[])
        .await?
        .get(0);
    after
        .batch_execute("select honcho_restock('HELD', 1)")
        .await?;
    let kinds = "select array(select kind from honcho_list_events($1))";
    let kinds: Vec<String> = after.query_one(kinds, &[&last]).await?.get(0);
    assert_eq!(kinds, ["restocked"]);
    books(&after).await?;

    // Rights are restored as well: the same caller continues.
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
