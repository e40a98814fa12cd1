//! Clients that read their answers slowly, not at all, or not to the end.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use honcho_tests::{Service, eventually};
use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, interval},
};

use crate::fixtures::{
    api::{Api, answer},
    long_list::{check_list, create_claimed, read_list},
    raw_client::{RawClient, SHOW},
    scrape::Scrape,
};

/// Claims of a coupon whose list has 30 MB.
const CLAIMANTS: i32 = 300_000;

/// Requests the list of the coupon `LONG` with a small receive window, and reads its first byte.
async fn ask_for_long_list(service: &Service) -> Result<TcpStream> {
    ask_with_window(service, 64 * 1024).await
}

/// The same with a window of this many bytes.
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

/// Decodes the body of a chunked answer whose first byte is missing.
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
async fn slow_readers_hold_no_permit_connection_or_snapshot() -> Result<()> {
    let database = crate::database().await?;
    create_claimed(&database, "LONG", CLAIMANTS).await?;
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
            let answered = answer(api.request(Method::GET, path)).await?;
            assert_eq!(answered.shown(), "200", "{path}");
        }
    }
    let busy = "select count(*) from pg_stat_activity
                 where datname = current_database() and application_name = 'honcho-service'
                   and (state <> 'idle' or backend_xmin is not null)";
    eventually("all sessions to be idle", async || {
        Ok((client.query_one(busy, &[]).await?.get::<_, i64>(0) == 0).then_some(()))
    })
    .await?;
    // The list is complete and of one snapshot, without the claims made since it began.
    let mut last = slow.pop().context("no reader")?;
    let mut received = Vec::new();
    last.read_to_end(&mut received).await?;
    check_list(&serde_json::from_slice(&unchunked(&received)?)?, CLAIMANTS);
    database.books().await
}

#[tokio::test]
async fn slow_reader_is_not_cut_off() -> Result<()> {
    let database = crate::database().await?;
    create_claimed(&database, "LONG", CLAIMANTS).await?;
    let settings = [("WRITE_TIMEOUT", "3s"), ("IDLE_TIMEOUT", "500ms")];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    let mut stream = ask_with_window(&api.service, 4096).await?;
    let mut received = Vec::new();
    // The kernel opens the loopback's window in steps that are larger than what is read in a second. The test
    // reads 64 kB/s for three times the write timeout, and then as fast as it can.
    let mut piece = vec![0; 3200];
    let mut tick = interval(Duration::from_millis(50));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(9) {
        tick.tick().await;
        let length = stream.read(&mut piece).await?;
        ensure!(length > 0, "cut off after {} bytes", received.len());
        received.extend_from_slice(&piece[..length]);
    }
    stream.read_to_end(&mut received).await?;
    check_list(&serde_json::from_slice(&unchunked(&received)?)?, CLAIMANTS);
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(scrape.value("honcho_connections_cut_off_total"), 0.0);
    assert_eq!(scrape.value("honcho_http_answers_broken_off_total"), 0.0);
    database.books().await
}

#[tokio::test]
async fn stalled_reader_blocks_no_other_request_and_is_cut_off() -> Result<()> {
    let database = crate::database().await?;
    let settings = [("DATABASE_POOL_SIZE", "2"), ("WRITE_TIMEOUT", "2s")];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    create_claimed(&database, "PROMO", CLAIMANTS).await?;
    let mut slow = api.show_request("PROMO").send().await?;
    let first = slow.chunk().await?.unwrap().to_vec();
    let other = async {
        let other = api.show_request("PROMO").send().await?;
        read_list(other, Vec::new()).await
    };
    let claims = async {
        for n in 0..20 {
            assert_eq!(api.claim(&format!("late_{n}"), "PROMO").await?.status, 200);
        }
        anyhow::Ok(())
    };
    let (other, claims) = tokio::join!(other, claims);
    claims?;
    let other = other?;
    let shown = other["claimed_by"].as_array().unwrap();
    // The list is consistent, with any number of the claims.
    assert_eq!(other["remaining_amount"], 301_000 - shown.len());
    api.service.logged("is cut off").await?;
    // The transfer itself breaks off, so that the client cannot take the part for the whole.
    let error = read_list(slow, first).await.unwrap_err();
    assert!(error.is::<reqwest::Error>(), "{error}");
    database.books().await
}

#[tokio::test]
async fn client_that_reads_nothing_is_cut_off() -> Result<()> {
    let database = crate::database().await?;
    create_claimed(&database, "PROMO", CLAIMANTS).await?;
    let api = Api::start_with(database.caller_url(), &[("WRITE_TIMEOUT", "500ms")]).await?;
    assert_eq!(api.claim("nobody", "none").await?.status, 404);
    let before = api.service.open_sockets()?;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut client = RawClient::connect(api.service.address()).await?;
        client.send(SHOW).await?;
        streams.push(client.stream);
    }
    eventually("the lists to begin", async || {
        Ok((api.service.open_sockets()? >= before + 5).then_some(()))
    })
    .await?;
    let started = Instant::now();
    // Connections to the database may have been added: one for each reader.
    for stream in &mut streams {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
    }
    let cut = |received: usize| received < 30_000_000;
    eventually("the clients to be cut off", async || {
        let log = fs::read_to_string(format!("/proc/{}/net/tcp", api.service.pid()))?;
        let port = format!(":{:04X} ", api.service.address().port());
        // Established connections (state 01) to the service's port.
        let open = log
            .lines()
            .filter(|line| {
                let mut fields = line.split_whitespace();
                let local = fields.nth(1).unwrap_or_default();
                format!("{local} ").ends_with(&port) && fields.nth(1) == Some("01")
            })
            .count();
        // One connection is kept by reqwest.
        Ok((open <= 1).then_some(()))
    })
    .await?;
    assert!(
        started.elapsed() < Duration::from_secs(9),
        "{:?}",
        started.elapsed()
    );
    for mut stream in streams {
        let mut received = Vec::new();
        // A reset may arrive before the end of the data.
        let _ = stream.read_to_end(&mut received).await;
        assert!(cut(received.len()), "{}", received.len());
    }
    Ok(())
}

#[tokio::test]
async fn list_cut_off_by_the_write_timeout_is_logged_and_counted() -> Result<()> {
    let database = crate::database().await?;
    create_claimed(&database, "LONG", CLAIMANTS).await?;
    let api = Api::start_with(database.caller_url(), &[("WRITE_TIMEOUT", "500ms")]).await?;
    let mut stream = ask_for_long_list(&api.service).await?;
    api.service
        .logged("received nothing of an answer for 500ms and is cut off")
        .await?;
    api.service
        .logged("an answer broke off: the client left or was cut off request_id=")
        .await?;
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(scrape.value("honcho_connections_cut_off_total"), 1.0);
    assert_eq!(scrape.value("honcho_http_answers_broken_off_total"), 1.0);
    let mut received = Vec::new();
    // A reset may arrive before the end of the data.
    let _ = stream.read_to_end(&mut received).await;
    assert!(unchunked(&received).is_err());
    // HEAD breaks nothing off.
    let head = api.request(Method::HEAD, "/api/coupons/LONG").send();
    assert_eq!(head.await?.status(), 200);
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(scrape.value("honcho_http_answers_broken_off_total"), 1.0);
    Ok(())
}

#[tokio::test]
async fn long_lists_are_bounded_in_number() -> Result<()> {
    let database = crate::database().await?;
    create_claimed(&database, "LONG", CLAIMANTS).await?;
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
    eventually("a free place for a long list", async || {
        let head = api.request(Method::HEAD, "/api/coupons/LONG").send();
        Ok((head.await?.status() == 200).then_some(()))
    })
    .await
}

#[tokio::test]
async fn client_that_leaves_mid_list_frees_its_connection() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start_with(database.caller_url(), &[("DATABASE_POOL_SIZE", "1")]).await?;
    create_claimed(&database, "PROMO", 200_000).await?;
    for n in 0..3 {
        let mut response = api.show_request("PROMO").send().await?;
        assert!(response.chunk().await?.is_some());
        drop(response);
        // The pool has one connection, and a claim waits for it for at most 5 seconds.
        assert_eq!(api.claim(&format!("late_{n}"), "PROMO").await?.status, 200);
    }
    let left = "select count(*) from pg_stat_activity
                 where datname = current_database() and application_name = 'honcho-service'
                   and state <> 'idle'";
    let client = database.connect().await?;
    eventually("the transactions to end", async || {
        Ok((client.query_one(left, &[]).await?.get::<_, i64>(0) == 0).then_some(()))
    })
    .await?;
    database.books().await
}
