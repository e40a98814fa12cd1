//! Permits of the connection pool: reads and creations, even if abandoned, leave connections to claims.

use anyhow::Result;
use honcho_tests::{Database, Service, eventually};
use reqwest::Method;
use serde_json::json;

use crate::fixtures::{
    api::{Api, answer},
    held_coupon::hold,
    raw_client::{RawClient, post},
    scrape::until_in_flight,
};

/// While the gate is closed, lists of coupons over HTTP and creations of coupons wait in the database,
/// without a lock.
async fn close_the_gate(database: &Database) -> Result<tokio_postgres::Client> {
    let client = database.connect().await?;
    client
        .batch_execute(&format!(
            "create schema gate;
             create table gate.closed as select 1;
             create function gate.pass() returns void language plpgsql as $$
             begin
                 while exists (select from gate.closed) loop perform pg_sleep(0.01); end loop;
             end $$;
             create function gate.honcho_list_coupons(bigint, integer)
                 returns table (id bigint, name text, amount integer, remaining_amount integer,
                                created_at timestamptz, starts_at timestamptz, ends_at timestamptz,
                                paused boolean)
                 language plpgsql as $$
             begin
                 perform gate.pass();
                 return query select * from public.honcho_list_coupons($1, $2);
             end $$;
             create function gate.at_coupon() returns trigger language plpgsql as $$
             begin
                 perform gate.pass();
                 return new;
             end $$;
             create trigger gate before insert on coupons
                 for each row execute function gate.at_coupon();
             grant usage on schema gate to public;
             grant select on gate.closed to public;
             alter role {}_caller set search_path = gate, public",
            database.name()
        ))
        .await?;
    Ok(client)
}

async fn open_the_gate(client: &tokio_postgres::Client) -> Result<()> {
    Ok(client.batch_execute("delete from gate.closed").await?)
}

/// Counts the service's calls that wait at the gate.
async fn at_the_gate(client: &tokio_postgres::Client) -> Result<i64> {
    let busy = "select count(*) from pg_stat_activity
                 where datname = current_database() and application_name = 'honcho-service'
                   and state = 'active' and query like '%coupon%'";
    Ok(client.query_one(busy, &[]).await?.get(0))
}

async fn until_at_the_gate(client: &tokio_postgres::Client, count: i64) -> Result<()> {
    eventually("the calls to wait at the gate", async || {
        Ok((at_the_gate(client).await? == count).then_some(()))
    })
    .await
}

/// Sends the same request on `count` connections.
async fn send(service: &Service, count: usize, request: &str) -> Result<Vec<RawClient>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = RawClient::connect(service.address()).await?;
        client.send(request).await?;
        clients.push(client);
    }
    Ok(clients)
}

const LIST: &str = "GET /api/coupons HTTP/1.1\r\nhost: here\r\n\r\n";

/// Abandoned calls are completed with their permits, so no other request gets their connections.
async fn abandon(request: &str, permits: i64) -> Result<Database> {
    let database = crate::database().await?;
    for n in 0..10 {
        database.create_coupon(&format!("PROMO {n}"), 100).await?;
    }
    let client = close_the_gate(&database).await?;
    let settings = [("DATABASE_POOL_SIZE", "4"), ("STATEMENT_TIMEOUT", "30s")];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    for round in 0..3 {
        let clients = send(&api.service, 8, request).await?;
        until_in_flight(&api.service, 8.0).await?;
        until_at_the_gate(&client, permits).await?;
        drop(clients);
        until_in_flight(&api.service, 0.0).await?;
        for n in 0..10 {
            let (user, coupon) = (format!("user {round}"), format!("PROMO {n}"));
            let answered = api.claim(&user, &coupon).await?.shown();
            assert_eq!(answered, "200", "{round}: {n}");
        }
        assert_eq!(at_the_gate(&client).await?, permits);
    }
    open_the_gate(&client).await?;
    until_at_the_gate(&client, 0).await?;
    let list = answer(api.request(Method::GET, "/api/coupons")).await?;
    assert_eq!(list.status, 200);
    database.books().await?;
    Ok(database)
}

#[tokio::test]
async fn abandoned_reads_keep_their_permits() -> Result<()> {
    abandon(LIST, 2).await?;
    Ok(())
}

#[tokio::test]
async fn abandoned_creations_keep_their_permits() -> Result<()> {
    let body = r#"{"name":"NEW","amount":1}"#;
    let request = post("/api/coupons", "content-type: application/json\r\n", body);
    let database = abandon(&request, 1).await?;
    // The first creation was completed, although its client had left.
    let made = "select count(*) from coupons where name = 'NEW'";
    let made: i64 = database.connect().await?.query_one(made, &[]).await?.get(0);
    assert_eq!(made, 1);
    Ok(())
}

#[tokio::test]
async fn creations_of_a_held_name_leave_connections_to_claims() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("FREE", 100).await?;
    let holder = database.connect().await?;
    holder
        .batch_execute("begin; select honcho_create_coupon('HELD', 1)")
        .await?;
    let settings = [
        ("DATABASE_POOL_SIZE", "2"),
        ("LOCK_TIMEOUT", "20s"),
        ("STATEMENT_TIMEOUT", "40s"),
    ];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    let body = r#"{"name":"HELD","amount":1}"#;
    let create = post("/api/coupons", "content-type: application/json\r\n", body);
    // Each creation takes 50 ms of two connections: a claim behind all of them would wait for 6 s, and would give up
    // after 5 s.
    let creations = send(&api.service, 250, &create).await?;
    until_in_flight(&api.service, 250.0).await?;
    for n in 0..10 {
        let answered = api.claim(&format!("user {n}"), "FREE").await?.shown();
        assert_eq!(answered, "200", "{n}");
    }
    drop(creations);
    holder.batch_execute("rollback").await?;
    database.books().await
}

#[tokio::test]
async fn changes_and_batches_of_a_held_coupon_hold_up_no_other() -> Result<()> {
    let database = crate::database().await?;
    for name in ["HELD", "FREE"] {
        database.create_coupon(name, 100).await?;
    }
    let holder = hold(&database, "HELD").await?;
    // One permit for each kind of call.
    let settings = [
        ("DATABASE_POOL_SIZE", "4"),
        ("LOCK_TIMEOUT", "20s"),
        ("STATEMENT_TIMEOUT", "40s"),
    ];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    let batch = r#"{"user_ids":["a","b"]}"#;
    let batch = post(
        "/api/coupons/HELD/claims",
        "content-type: application/json\r\n",
        batch,
    );
    let restock = post(
        "/api/coupons/HELD/restock",
        "content-type: application/json\r\n",
        r#"{"delta":1}"#,
    );
    let mut waiting = send(&api.service, 2, &batch).await?;
    waiting.extend(send(&api.service, 2, &restock).await?);
    until_in_flight(&api.service, 4.0).await?;
    for paused in [true, false] {
        let pause = api.request(Method::PATCH, "/api/coupons/FREE");
        let answered = answer(pause.json(&json!({ "paused": paused }))).await?;
        assert_eq!(answered.shown(), "200", "{answered:?}");
        let batch = api.request(Method::POST, "/api/coupons/FREE/claims");
        let answered = answer(batch.json(&json!({ "user_ids": ["a"] }))).await?;
        assert_eq!(answered.shown(), "200", "{answered:?}");
    }
    drop(waiting);
    holder.batch_execute("rollback").await?;
    database.books().await
}
