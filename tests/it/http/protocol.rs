//! HTTP/1.1 on the wire: malformed and unfinished requests, half-closed connections, pipelining, `Expect`, `Host`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use honcho_tests::{PATIENCE, Service, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{interval, timeout},
};

use crate::fixtures::{
    api::Api,
    held_coupon::LONG_TIMEOUTS,
    long_list::create_claimed,
    raw_client::{RawClient, SHOW, post, problem_code},
    scrape::{Scrape, until_in_flight},
    sql::{row_counts, rows},
};

const TOKEN: &str = "all-0123456789abcdef";
const TOKENS: &str = "all-0123456789abcdef:claim,read,admin";

#[tokio::test]
async fn incomplete_requests_write_nothing() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let client = database.connect().await?;
    let before = rows(&client).await?;
    let head = "POST /api/coupons HTTP/1.1\r\nhost: here\r\n";
    let body = r#"{"name":"NEW","amount":5}"#;
    for (sent, answered) in [
        // Fewer bytes than announced, or a chunk that never ends: no answer is needed.
        (format!("{head}content-length: 100\r\n\r\n{body}"), ""),
        (
            format!("{head}transfer-encoding: chunked\r\n\r\n19\r\n{body}"),
            "",
        ),
        (format!("{head}content-length: 25"), ""),
        (
            format!("{head}content-length: minus\r\n\r\n{body}"),
            "HTTP/1.1 400",
        ),
        (
            format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n{body}"),
            "HTTP/1.1 400",
        ),
        (
            "GET /api/coupons/\0 HTTP/1.1\r\n\r\n".to_owned(),
            "HTTP/1.1 400",
        ),
        ("\u{16}\u{3}\u{1} hello".to_owned(), "HTTP/1.1 400"),
    ] {
        let received = send_half(&api.service, &sent).await?;
        assert!(received.starts_with(answered), "{sent}: {received}");
        assert!(!received.starts_with("HTTP/1.1 2"), "{sent}: {received}");
        assert!(!received.starts_with("HTTP/1.1 5"), "{sent}: {received}");
        assert_eq!(rows(&client).await?, before, "{sent}");
    }
    assert_eq!(api.create("PROMO", 1).await?.status, 201);
    database.books().await
}

/// Sends the bytes, closes the sending half, and returns all that is received.
async fn send_half(service: &Service, sent: &str) -> Result<String> {
    let mut stream = TcpStream::connect(service.address()).await?;
    stream.write_all(sent.as_bytes()).await?;
    stream.shutdown().await?;
    let mut received = Vec::new();
    // A reset is also an answer.
    let _ = stream.read_to_end(&mut received).await;
    Ok(String::from_utf8_lossy(&received).into_owned())
}

#[tokio::test]
async fn half_closed_connection_gets_its_answer() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    create_claimed(&database, "LISTED", 40_000).await?;
    let api = Api::start(database.caller_url()).await?;
    let whole = api.show("LISTED").await?.body.to_string();
    let page = api.show("LISTED/claims?limit=1000").await?.body.to_string();
    assert!(whole.len() > 4_000_000 && page.len() > 100_000);
    for n in 0..20 {
        let claim = format!(r#"{{"user_id":"user_{n}","coupon_name":"PROMO"}}"#);
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
        for (request, body) in [
            (get("/api/coupons/PROMO/claims/nobody"), "claim_not_found"),
            (post("/api/coupons/claim", "", &claim), "coupon claimed"),
            (get("/api/coupons/LISTED/claims?limit=1000"), page.as_str()),
            (get("/api/coupons/LISTED"), "]}\r\n0\r\n\r\n"),
        ] {
            let mut client = RawClient::connect(api.service.address()).await?;
            client.send(&request).await?;
            client.stream.shutdown().await?;
            let answer = client.read_to_end().await?;
            let start: String = answer.chars().take(200).collect();
            assert!(answer.contains(body), "{request}: {start}");
            assert!(body != "]}\r\n0\r\n\r\n" || answer.len() > whole.len());
        }
    }
    database.books().await
}

#[tokio::test]
async fn pipelined_request_does_not_cut_off_the_answer_before_it() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    create_claimed(&database, "LISTED", 300_000).await?;
    let environment = [("HEADER_TIMEOUT", "500ms")];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let mut client = RawClient::connect(api.service.address()).await?;
    let long = SHOW.replace("PROMO", "LISTED");
    client.send(&long).await?;
    // The list is being sent when the next request arrives.
    client.stream.read_exact(&mut [0]).await?;
    client.send(SHOW).await?;
    // Reads for longer than the header timeout.
    let started = Instant::now();
    let mut received = Vec::new();
    let mut tick = interval(Duration::from_millis(20));
    while !received.ends_with(br#""remaining_amount":1,"claimed_by":[]}"#) {
        tick.tick().await;
        let mut piece = vec![0; 256 * 1024];
        let read = timeout(PATIENCE, client.stream.read(&mut piece)).await??;
        ensure!(read > 0, "cut off after {} bytes", received.len());
        received.extend_from_slice(&piece[..read]);
    }
    assert!(started.elapsed() > Duration::from_secs(1));
    assert!(received.len() > 30_000_000);
    // An incomplete head that was sent early has the same timeout as any other.
    client.send("GET /api").await?;
    assert_eq!(client.read_to_end().await?, "");
    Ok(())
}

#[tokio::test]
async fn bytes_that_come_while_an_answer_is_awaited_do_not_cut_it_off() -> Result<()> {
    let database = crate::database().await?;
    let owner = database.connect().await?;
    let many = "select count(honcho_create_coupon(rpad(i::text, 240, 'x'), 1))
                  from generate_series(1, 1000) as i";
    owner.execute(many, &[]).await?;
    let api = Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?;
    let head = "GET /api/coupons?limit=1000 HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";
    for further in ["\r\n", SHOW] {
        owner
            .batch_execute("begin; lock table coupons in access exclusive mode")
            .await?;
        // The end of the answer is still in the service's buffer when the service closes the connection.
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        let stream = socket.connect(api.service.address()).await?;
        let mut client = RawClient { stream };
        client.send(head).await?;
        until_in_flight(&api.service, 1.0).await?;
        client.send(further).await?;
        // By the answers to these, the service has seen it.
        for _ in 0..20 {
            Scrape::of(&api.service).await?;
        }
        owner.batch_execute("rollback").await?;
        let answer = client.read_to_end().await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{head}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn client_that_leaves_is_noticed_even_if_the_body_of_its_request_is_not_read() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let owner = database.connect().await?;
    let api = Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?;
    let head = "GET /api/coupons/PROMO/stock HTTP/1.1\r\nhost: here\r\n";
    for body in [
        "content-length: 2\r\n\r\n{}",
        "transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "\r\n",
    ] {
        owner
            .batch_execute("begin; lock table coupons in access exclusive mode")
            .await?;
        let mut clients = Vec::new();
        for _ in 0..10 {
            let mut client = RawClient::connect(api.service.address()).await?;
            client.send(&format!("{head}{body}")).await?;
            clients.push(client);
        }
        until_in_flight(&api.service, 10.0).await?;
        drop(clients);
        // Long before the timeouts of the database.
        timeout(Duration::from_secs(20), until_in_flight(&api.service, 0.0))
            .await
            .context("the clients that left are not noticed")??;
        owner.batch_execute("rollback").await?;
    }
    Ok(())
}

#[tokio::test]
async fn no_100_continue_for_a_body_that_will_be_refused() -> Result<()> {
    let database = crate::database().await?;
    let environment = [("API_TOKENS", TOKENS)];
    let service = Service::start_with(database.caller_url(), &environment).await?;
    let authorized = format!("authorization: Bearer {TOKEN}\r\n");
    let expect = "expect: 100-continue\r\n";
    let head = |headers: &str, length: u64| {
        format!(
            "POST /api/coupons HTTP/1.1\r\nhost: here\r\ncontent-length: {length}\r\n{headers}\r\n"
        )
    };
    for (request, expected) in [
        (
            head(&format!("{authorized}{expect}"), 70_000),
            "413 Payload Too Large",
        ),
        (head(&authorized, 10_000_000_000), "413 Payload Too Large"),
        (head(expect, 100), "401 Unauthorized"),
        (
            head(
                &format!("{authorized}{expect}origin: https://evil.example\r\n"),
                100,
            ),
            "403 Forbidden",
        ),
    ] {
        let mut client = RawClient::connect(service.address()).await?;
        client.send(&request).await?;
        let answer = client.read_to_end().await?;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}\r\n")),
            "{request}: {answer}"
        );
    }
    // A client that sends the body all the same can still read the refusal.
    let mut client = RawClient::connect(service.address()).await?;
    client
        .send(&post("/api/coupons", &authorized, &" ".repeat(20_000_000)))
        .await?;
    assert_eq!(
        problem_code(&client.read_to_end().await?)?,
        "payload_too_large"
    );
    // A body that is accepted is asked for.
    let mut client = RawClient::connect(service.address()).await?;
    let body = r#"{"name":"PROMO","amount":1}"#;
    client
        .send(&head(&format!("{authorized}{expect}"), body.len() as u64))
        .await?;
    assert_eq!(
        client.read_until("\r\n\r\n").await?,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    client.send(body).await?;
    assert!(client.read_until("}").await?.starts_with("HTTP/1.1 201 "));
    assert_eq!(row_counts(&database).await?, (1, 0));
    Ok(())
}

#[tokio::test]
async fn malformed_requests_are_logged_and_counted() -> Result<()> {
    let database = crate::database().await?;
    let service = Service::start(database.caller_url()).await?;
    let padded = |length: usize| {
        let padding = "x".repeat(length);
        format!("GET /health/live HTTP/1.1\r\nhost: here\r\npadding: {padding}\r\n")
    };
    let mut client = RawClient::connect(service.address()).await?;
    client.send(&format!("{}\r\n", padded(60_000))).await?;
    assert!(client.read_until("}").await?.starts_with("HTTP/1.1 200 "));
    for (sent, status) in [
        // Longer than a head may be, although it never ends.
        (padded(70_000), 431),
        (padded(400_000), 431),
        ("GET / HTTP/9\r\n\r\n".to_owned(), 400),
        ("\u{16}\u{3}\u{1} hello\r\n\r\n".to_owned(), 400),
        (post("/api/coupons", "content-length: 7\r\n", "{}"), 400),
    ] {
        let mut client = RawClient::connect(service.address()).await?;
        client.send(&sent).await?;
        let answer = client.read_to_end().await?;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    eventually("the metrics", async || {
        let scrape = Scrape::of(&service).await?;
        let counted = |status: u32| {
            let labels = format!(r#"{{route="unmatched",method="OTHER",status="{status}"}}"#);
            scrape.value(&format!("honcho_http_requests_total{labels}"))
        };
        Ok((counted(431) == 2.0 && counted(400) == 3.0).then_some(()))
    })
    .await?;
    service.logged("status=431").await?;
    service.logged("client=127.0.0.1").await
}

#[tokio::test]
async fn request_must_name_exactly_one_host() -> Result<()> {
    let database = crate::database().await?;
    let service = Service::start(database.caller_url()).await?;
    for (head, status) in [
        ("GET /health/live HTTP/1.1\r\nhost: here\r\n", 200),
        ("GET /health/live HTTP/1.1\r\nhost: [::1]:8080\r\n", 200),
        ("GET /health/live HTTP/1.0\r\n", 200),
        ("GET /health/live HTTP/1.1\r\n", 400),
        ("GET /api/coupons HTTP/1.1\r\n", 400),
        (
            "GET /health/live HTTP/1.1\r\nhost: here\r\nhost: here\r\n",
            400,
        ),
        (
            "GET /health/live HTTP/1.0\r\nhost: here\r\nhost: there\r\n",
            400,
        ),
        ("GET /health/live HTTP/1.1\r\nhost: here, there\r\n", 400),
        ("GET /health/live HTTP/1.1\r\nhost: here/there\r\n", 400),
        ("GET /health/live HTTP/1.1\r\nhost: user@here\r\n", 400),
    ] {
        let mut client = RawClient::connect(service.address()).await?;
        client
            .send(&format!("{head}connection: close\r\n\r\n"))
            .await?;
        let answer = client.read_to_end().await?;
        assert!(answer.contains(&format!(" {status} ")), "{head}: {answer}");
        if status == 400 {
            assert_eq!(problem_code(&answer)?, "invalid_request", "{head}");
        }
    }
    Ok(())
}

/// Otherwise a client sends its next request on a connection that is about to close, and gets no answer.
#[tokio::test]
async fn answer_to_an_unread_body_says_that_the_connection_closes() -> Result<()> {
    let database = crate::database().await?;
    let service = Service::start(database.caller_url()).await?;
    let large = format!("content-length: {}\r\n", 2 * 1024 * 1024);
    for (path, status) in [
        ("/api/coupons/PROMO/claims", 413),
        ("/api/coupons", 413),
        ("/nowhere", 404),
    ] {
        for headers in [large.as_str(), "transfer-encoding: chunked\r\n"] {
            if status == 413 && headers != large {
                continue;
            }
            let mut client = RawClient::connect(service.address()).await?;
            client
                .send(&format!(
                    "POST {path} HTTP/1.1\r\nhost: here\r\n{headers}\r\n"
                ))
                .await?;
            let answer = client.read_to_end().await?;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
            assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        }
    }
    // A small one is there with its head, and the connection stays.
    let mut client = RawClient::connect(service.address()).await?;
    client
        .send(&post("/nowhere", "", r#"{"user_id":"ann"}"#))
        .await?;
    let answer = client.read_until("}").await?;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(!answer.contains("connection: close"), "{answer}");
    client
        .send("GET /health/live HTTP/1.1\r\nhost: here\r\n\r\n")
        .await?;
    let answer = client.read_until("}").await?;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(())
}
