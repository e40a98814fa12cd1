//! Installing `honcho_router`: what it asks for, the rights that it gives, its schema.

use anyhow::Result;
use honcho_tests::{ClusterOptions, Database, connect};
use tokio_postgres::error::SqlState;

use super::{Router, number_with, sqlstate};
use crate::fixtures::sql::CALLS;

#[tokio::test]
async fn extension_asks_for_its_encoding_role_and_server() -> Result<()> {
    let own = ClusterOptions::default().start()?;
    let client = connect(&own.url("postgres", "postgres")).await?;
    let create = "create extension honcho_router cascade";
    let error = client.batch_execute(create).await.expect_err("no role");
    let error = error.as_db_error().expect("of the database");
    assert_eq!(error.code(), &SqlState::UNDEFINED_OBJECT);
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains("create role honcho_router"), "{error:?}");

    client.batch_execute(super::ROLE).await?;
    client
        .batch_execute("create database ascii template template0 encoding 'SQL_ASCII' locale 'C'")
        .await?;
    let other = connect(&own.url("postgres", "ascii")).await?;
    assert_eq!(sqlstate(&other, create).await, "0A000");

    client.batch_execute(create).await?;
    let shard = "select honcho_router.shard('PROMO')";
    assert_eq!(sqlstate(&client, shard).await, "42704");
    // PL/Proxy knows both names of its options.
    for option in ["p", "partition_"] {
        client
            .batch_execute(&format!(
                "create server honcho foreign data wrapper plproxy
                     options (query_timeout '5', {option}0 'dbname=a', {option}1 'dbname=b')"
            ))
            .await?;
        let numbers = "select array(select distinct honcho_router.shard('coupon ' || n)
                                      from generate_series(1, 20) n order by 1)";
        let numbers: Vec<i32> = client.query_one(numbers, &[]).await?.get(0);
        assert_eq!(numbers, [0, 1], "{option}");
        client.batch_execute("drop server honcho").await?;
    }
    Ok(())
}

#[tokio::test]
async fn only_grants_give_rights_on_the_router() -> Result<()> {
    let router = Router::new(1).await?;
    let stranger = router.database.connect_as_stranger().await?;
    for call in CALLS {
        let error = stranger.batch_execute(call).await.expect_err(call);
        let code = error.code();
        assert_eq!(code, Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{call}");
    }
    // Its parts are closed even to those who may call its functions.
    let caller = router.database.connect_as_caller().await?;
    for call in [
        "select honcho_router.claim('ann', 'PROMO', null)",
        "select honcho_router.guard('')",
        "select honcho_router.list_coupons(0, 1)",
    ] {
        assert_eq!(sqlstate(&caller, call).await, "42501", "{call}");
    }
    let as_superuser = "select count(*) from pg_proc p join pg_roles r on r.oid = p.proowner
                         where p.prosecdef and r.rolsuper
                           and p.pronamespace in ('public'::regnamespace, 'honcho_router'::regnamespace)";
    let client = router.database.connect().await?;
    let count: i64 = client.query_one(as_superuser, &[]).await?.get(0);
    assert_eq!(count, 0, "functions run as a superuser");
    // What a caller puts in its search_path is not called as honcho_router.
    let as_called = "select array(select p.oid::regprocedure::text
                                    from pg_proc p join pg_language l on l.oid = p.prolang
                                   where p.pronamespace in ('public'::regnamespace, 'honcho_router'::regnamespace)
                                     and l.lanname in ('sql', 'plpgsql')
                                     and 'search_path=pg_catalog, pg_temp' <> all (coalesce(p.proconfig, '{}')))";
    let as_called: Vec<String> = client.query_one(as_called, &[]).await?.get(0);
    assert!(as_called.is_empty(), "{as_called:?}");
    Ok(())
}

#[tokio::test]
async fn extension_may_be_in_any_schema() -> Result<()> {
    let cluster = crate::cluster();
    let shard = Database::create_empty(cluster).await?;
    let database = Database::create_empty(cluster).await?;
    let admin = shard.connect().await?;
    admin
        .batch_execute(&format!(
            "{}; create schema \"the shop\"; create extension honcho schema \"the shop\";
             grant usage on schema \"the shop\" to honcho_router;
             grant execute on all functions in schema \"the shop\" to honcho_router",
            super::ROLE
        ))
        .await?;
    number_with(cluster, &shard, 3, &["-v", "schema=the shop"])?;
    let client = database.connect().await?;
    client
        .batch_execute(&format!(
            "create schema \"the shop\"; create extension honcho_router schema \"the shop\" cascade;
             create server honcho foreign data wrapper plproxy
                 options (p0 'host={} port={} dbname={}');
             create user mapping for honcho_router server honcho options (user 'honcho_router');
             grant usage on foreign server honcho to honcho_router;
             set search_path = \"the shop\"",
            cluster.directory().display(),
            cluster.port(),
            shard.name()
        ))
        .await?;
    client
        .batch_execute("select honcho_create_coupon('PROMO', 3)")
        .await?;
    assert_eq!(super::claim(&client, "ann", "PROMO").await?, "claimed");
    assert_eq!(
        sqlstate(&client, "select honcho_claim_or_raise('ann', 'PROMO')").await,
        "23505"
    );
    let rows = client
        .query(
            "select * from honcho_claim_batch('PROMO', '{bob,carl}')",
            &[],
        )
        .await?;
    assert_eq!(rows.len(), 2);
    let id: i64 = client
        .query_one("select id from honcho_get_coupon('PROMO')", &[])
        .await?
        .get(0);
    assert_eq!(id, 4);
    Ok(())
}

#[tokio::test]
async fn numbering_a_shard_asks_for_its_extension() -> Result<()> {
    let cluster = crate::cluster();
    let empty = Database::create_empty(cluster).await?;
    let released = Database::create_released(cluster, "0.2.0").await?;
    for (shard, expected) in [
        (empty, "the extension honcho is not in the schema public"),
        (released, "the extension honcho is too old, version 0.2.0"),
    ] {
        let error = number_with(cluster, &shard, 0, &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    Ok(())
}
