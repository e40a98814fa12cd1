//! Clients that leave before their answer, take it in slowly or not at all, or ask for large ones: they cost
//! themselves something, and the service little.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use honcho_tests::{Database, Service, eventually};
use reqwest::Method;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, interval},
};

use crate::{
    fixtures::api::{Api, answer},
    operations::metrics::Scrape,
};

const MIB: u64 = 1024 * 1024;

/// A coupon `LONG` with a list of 30 MB.
const CLAIMANTS: i32 = 300_000;

async fn long_list(database: &Database) -> Result<()> {
    let client = database.connect().await?;
    client
        .batch_execute(&format!(
            "set session_replication_role = replica;
             insert into coupons (name, amount, remaining_amount)
                  values ('LONG', {CLAIMANTS} + 1000, 1000);
             insert into claims (user_id, coupon_name)
             select lpad(n::text, 100, 'u'), 'LONG' from generate_series(1, {CLAIMANTS}) n;
             analyze coupons, claims"
        ))
        .await?;
    Ok(())
}

fn check_list(shown: &Value) {
    let users = shown["claimed_by"].as_array().unwrap();
    assert_eq!(users.len(), CLAIMANTS as usize);
    for (user, n) in users.iter().zip(1..) {
        assert_eq!(
            user.as_str().unwrap().trim_start_matches('u'),
            n.to_string()
        );
    }
    assert_eq!(shown["remaining_amount"], 1000);
}

/// Closed: calls of `honcho_list_coupons` over HTTP, and coupons that are created, wait in the database, by
/// no lock.
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

/// The service's calls that wait at the gate.
async fn at_the_gate(client: &tokio_postgres::Client) -> Result<i64> {
    let busy = "select count(*) from pg_stat_activity
                 where datname = current_database() and application_name = 'honcho-service'
                   and state = 'active' and query like '%coupon%'";
    Ok(client.query_one(busy, &[]).await?.get(0))
}

async fn until_at_the_gate(client: &tokio_postgres::Client, count: i64) -> Result<()> {
    eventually("calls at the gate", async || {
        Ok((at_the_gate(client).await? == count).then_some(()))
    })
    .await
}

async fn until_in_flight(service: &Service, count: f64) -> Result<()> {
    eventually("requests under way", async || {
        let scrape = Scrape::of(service).await?;
        // The scrape itself is one.
        Ok((scrape.value("honcho_http_requests_in_flight") == count + 1.0).then_some(()))
    })
    .await
}

/// Sends the same request on so many connections.
async fn send(service: &Service, count: usize, request: &str) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(service.address()).await?;
        stream.write_all(request.as_bytes()).await?;
        streams.push(stream);
    }
    Ok(streams)
}

const LIST: &str = "GET /api/coupons HTTP/1.1\r\nhost: here\r\n\r\n";

/// The abandoned calls are carried to their end in their own places, so nobody else gets their connections.
async fn abandon(request: &str, places: i64) -> Result<Database> {
    let database = crate::database().await?;
    for n in 0..10 {
        database.create_coupon(&format!("PROMO {n}"), 100).await?;
    }
    let client = close_the_gate(&database).await?;
    let settings = [("DATABASE_POOL_SIZE", "4"), ("STATEMENT_TIMEOUT", "30s")];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    for round in 0..3 {
        let streams = send(&api.service, 8, request).await?;
        until_in_flight(&api.service, 8.0).await?;
        until_at_the_gate(&client, places).await?;
        drop(streams);
        until_in_flight(&api.service, 0.0).await?;
        for n in 0..10 {
            let (user, coupon) = (format!("user {round}"), format!("PROMO {n}"));
            let told = api.claim(&user, &coupon).await?.shown();
            assert_eq!(told, "200", "{round}: {n}");
        }
        assert_eq!(at_the_gate(&client).await?, places);
    }
    open_the_gate(&client).await?;
    until_at_the_gate(&client, 0).await?;
    let list = answer(api.request(Method::GET, "/api/coupons")).await?;
    assert_eq!(list.status, 200);
    database.books().await?;
    Ok(database)
}

#[tokio::test]
async fn abandoned_reads_keep_their_places() -> Result<()> {
    abandon(LIST, 2).await?;
    Ok(())
}

#[tokio::test]
async fn abandoned_creations_keep_their_places() -> Result<()> {
    let body = r#"{"name":"NEW","amount":1}"#;
    let request = format!(
        "POST /api/coupons HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let database = abandon(&request, 1).await?;
    // The first one was carried out, though its client had left.
    let made = "select count(*) from coupons where name = 'NEW'";
    let made: i64 = database.connect().await?.query_one(made, &[]).await?.get(0);
    assert_eq!(made, 1);
    Ok(())
}

#[tokio::test]
async fn creations_of_a_name_that_is_held_leave_connections_to_claims() -> Result<()> {
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
    let create = format!(
        "POST /api/coupons HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    // On two connections for a quarter of a second each, a claim behind them would wait 15 s. It gives up
    // after 5.
    let creations = send(&api.service, 120, &create).await?;
    until_in_flight(&api.service, 120.0).await?;
    for n in 0..10 {
        let told = api.claim(&format!("user {n}"), "FREE").await?.shown();
        assert_eq!(told, "200", "{n}");
    }
    drop(creations);
    holder.batch_execute("rollback").await?;
    database.books().await
}

/// Asks for the long list with a small window, and takes its first byte.
async fn ask_for_long_list(service: &Service) -> Result<TcpStream> {
    ask_with_window(service, 64 * 1024).await
}

/// The same with a window of so many bytes.
async fn ask_with_window(service: &Service, window: u32) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(window)?;
    let mut stream = socket.connect(service.address()).await?;
    let request = "GET /api/coupons/LONG HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    ensure!(byte == *b"H", "{byte:?}");
    Ok(stream)
}

/// The list in a chunked answer, without its first byte.
fn unchunked(mut answer: &[u8]) -> Result<Vec<u8>> {
    let find = |text: &[u8], what: &[u8]| text.windows(what.len()).position(|part| part == what);
    let head = find(answer, b"\r\n\r\n").context("no head")?;
    answer = &answer[head + 4..];
    let mut body = Vec::new();
    loop {
        let line = find(answer, b"\r\n").context("the answer ends in a chunk's head")?;
        let length = usize::from_str_radix(std::str::from_utf8(&answer[..line])?, 16)?;
        answer = &answer[line + 2..];
        if length == 0 {
            return Ok(body);
        }
        body.extend_from_slice(answer.get(..length).context("the answer ends in a chunk")?);
        answer = &answer[length + 2..];
    }
}

#[tokio::test]
async fn slow_readers_hold_no_place_no_connection_and_no_snapshot() -> Result<()> {
    let database = crate::database().await?;
    long_list(&database).await?;
    database.create_coupon("OTHER", 100).await?;
    let client = database.connect().await?;
    let settings = [("DATABASE_POOL_SIZE", "4"), ("WRITE_TIMEOUT", "60s")];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    let mut slow = Vec::new();
    for _ in 0..12 {
        slow.push(ask_for_long_list(&api.service).await?);
    }
    for n in 0..5 {
        let user = format!("user {n}");
        for coupon in ["OTHER", "LONG"] {
            assert_eq!(api.claim(&user, coupon).await?.shown(), "200");
        }
        for path in [
            "/api/coupons",
            "/api/coupons/OTHER",
            "/api/coupons/OTHER/claims",
            "/api/coupons/LONG/claims?limit=1000",
            &format!("/api/coupons/OTHER/claims/user%20{n}"),
        ] {
            let told = answer(api.request(Method::GET, path)).await?;
            assert_eq!(told.shown(), "200", "{path}");
        }
    }
    let busy = "select count(*) from pg_stat_activity
                 where datname = current_database() and application_name = 'honcho-service'
                   and (state <> 'idle' or backend_xmin is not null)";
    eventually("the database to be left alone", async || {
        Ok((client.query_one(busy, &[]).await?.get::<_, i64>(0) == 0).then_some(()))
    })
    .await?;
    // The list is whole, and of the moment in which it began: those who claimed since are not in it.
    let mut last = slow.pop().context("no reader")?;
    let mut received = Vec::new();
    last.read_to_end(&mut received).await?;
    check_list(&serde_json::from_slice(&unchunked(&received)?)?);
    database.books().await
}

#[tokio::test]
async fn a_reader_that_takes_in_something_is_not_cut_off() -> Result<()> {
    let database = crate::database().await?;
    long_list(&database).await?;
    let settings = [("WRITE_TIMEOUT", "3s"), ("IDLE_TIMEOUT", "500ms")];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    let mut stream = ask_with_window(&api.service, 4096).await?;
    let mut received = Vec::new();
    // The loopback opens a larger window in steps that are larger than what leaves in a second.
    // 32 kB/s for three times as long as it may take in nothing, then as fast as it can.
    let mut piece = vec![0; 1600];
    let mut tick = interval(Duration::from_millis(50));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(9) {
        tick.tick().await;
        let length = stream.read(&mut piece).await?;
        ensure!(length > 0, "cut off after {} bytes", received.len());
        received.extend_from_slice(&piece[..length]);
    }
    stream.read_to_end(&mut received).await?;
    check_list(&serde_json::from_slice(&unchunked(&received)?)?);
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(scrape.value("honcho_connections_cut_off_total"), 0.0);
    assert_eq!(scrape.value("honcho_http_answers_broken_off_total"), 0.0);
    database.books().await
}

#[tokio::test]
async fn a_list_that_is_cut_off_is_told_and_counted() -> Result<()> {
    let database = crate::database().await?;
    long_list(&database).await?;
    let api = Api::start_with(database.caller_url(), &[("WRITE_TIMEOUT", "500ms")]).await?;
    let mut stream = ask_for_long_list(&api.service).await?;
    api.service
        .logged("took in nothing of an answer for 500ms and is cut off")
        .await?;
    api.service
        .logged("an answer broke off: the client left or was cut off request_id=")
        .await?;
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(scrape.value("honcho_connections_cut_off_total"), 1.0);
    assert_eq!(scrape.value("honcho_http_answers_broken_off_total"), 1.0);
    let mut received = Vec::new();
    // A reset may come before the end of what was sent.
    let _ = stream.read_to_end(&mut received).await;
    assert!(unchunked(&received).is_err());
    // A client that asks for the head alone breaks nothing off.
    let head = api.request(Method::HEAD, "/api/coupons/LONG").send();
    assert_eq!(head.await?.status(), 200);
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(scrape.value("honcho_http_answers_broken_off_total"), 1.0);
    Ok(())
}

#[tokio::test]
async fn long_lists_are_bounded_in_number() -> Result<()> {
    let database = crate::database().await?;
    long_list(&database).await?;
    database.create_coupon("SHORT", 100).await?;
    let settings = [("WRITE_TIMEOUT", "60s")];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    let mut slow = Vec::new();
    for _ in 0..100 {
        slow.push(ask_for_long_list(&api.service).await?);
    }
    assert_eq!(api.show("LONG").await?.shown(), "503 overloaded");
    assert_eq!(api.show("SHORT").await?.shown(), "200");
    assert_eq!(api.show("LONG/claims").await?.shown(), "200");
    slow.pop();
    eventually("a place among the long lists", async || {
        let head = api.request(Method::HEAD, "/api/coupons/LONG").send();
        Ok((head.await?.status() == 200).then_some(()))
    })
    .await
}

#[tokio::test]
async fn large_answers_are_not_kept_by_their_connections() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "select honcho_create_coupon(lpad(n::text, 200, 'n'), 1) from generate_series(1, 1000) n",
        )
        .await?;
    let api = Api::start(database.caller_url()).await?;
    let paths = ["/docs/swagger-ui-bundle.js", "/api/coupons?limit=1000"];
    let read = async |path: &str| -> Result<TcpStream> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\naccept-encoding: gzip\r\n\r\n");
        let mut stream = send(&api.service, 1, &request).await?.remove(0);
        let mut received = Vec::new();
        let mut whole = usize::MAX;
        while received.len() < whole {
            ensure!(stream.read_buf(&mut received).await? > 0, "no whole answer");
            if whole == usize::MAX
                && let Some(end) = received.windows(4).position(|part| part == b"\r\n\r\n")
            {
                let head = std::str::from_utf8(&received[..end])?;
                let (_, length) = head.split_once("content-length: ").context("no length")?;
                let length = length.lines().next().context("no length")?;
                whole = end + 4 + length.parse::<usize>()?;
                ensure!(whole > 300_000, "{path}: {head}");
            }
        }
        Ok(stream)
    };
    // What the first answers cost is not the connections'.
    let mut open = Vec::new();
    for path in paths {
        open.push(read(path).await?);
    }
    let before = api.service.resident_bytes()?;
    for _ in 0..100 {
        for path in paths {
            open.push(read(path).await?);
        }
    }
    // Kept, they would be 80 MB.
    let grown = api.service.resident_bytes()?.saturating_sub(before);
    assert!(grown < 16 * MIB, "the service grew by {} KiB", grown / 1024);
    Ok(())
}

#[tokio::test]
async fn pages_are_not_compiled_by_the_database() -> Result<()> {
    let database = crate::database().await?;
    database
        .connect()
        .await?
        .batch_execute(&format!(
            "create schema before;
             create function before.honcho_list_coupons(bigint, integer)
                 returns table (id bigint, name text, amount integer, remaining_amount integer,
                                created_at timestamptz, starts_at timestamptz, ends_at timestamptz,
                                paused boolean)
                 language sql as $$
                 select 1::bigint, current_setting('jit'), 1, 1, now(), null::timestamptz,
                        null::timestamptz, false $$;
             grant usage on schema before to public;
             alter role {}_caller set search_path = before, public",
            database.name()
        ))
        .await?;
    let api = Api::start(database.caller_url()).await?;
    let list = answer(api.request(Method::GET, "/api/coupons")).await?;
    assert_eq!(list.body["coupons"][0]["name"], "off");
    Ok(())
}
