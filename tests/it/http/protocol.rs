//! What strangers can try at the service's edge: web pages, connections, heads and bodies that mean no good.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use honcho_tests::{Database, PATIENCE, Service, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{interval, timeout},
};

use crate::fixtures::api::{Api, answer};

/// Another client's bytes: sent as they are.
struct Raw(TcpStream);

impl Raw {
    async fn connect(service: &Service) -> Result<Self> {
        Ok(Self(TcpStream::connect(service.address()).await?))
    }

    async fn send(&mut self, bytes: &str) -> Result<()> {
        Ok(self.0.write_all(bytes.as_bytes()).await?)
    }

    /// All that comes until the other side ends the connection, which must not be by a reset.
    async fn rest(&mut self) -> Result<String> {
        let mut received = Vec::new();
        timeout(PATIENCE, self.0.read_to_end(&mut received))
            .await
            .context("the connection was never ended")??;
        Ok(String::from_utf8(received)?)
    }

    /// All that comes until `end`.
    async fn until(&mut self, end: &str) -> Result<String> {
        let mut received = Vec::new();
        let ended = async {
            while !received.ends_with(end.as_bytes()) {
                if self.0.read_buf(&mut received).await? == 0 {
                    bail!("ended after {}", String::from_utf8_lossy(&received));
                }
            }
            Ok(())
        };
        timeout(PATIENCE, ended).await.context("no answer")??;
        Ok(String::from_utf8(received)?)
    }
}

/// A request with this body, to a server called `here`.
fn post(path: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: here\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// The problem's code of an answer that was read to its end.
fn code(answer: &str) -> Result<String> {
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    let problem: Value = serde_json::from_str(body).with_context(|| answer.to_owned())?;
    Ok(problem["code"].as_str().unwrap_or_default().to_owned())
}

/// How many coupons and claims there are.
async fn rows(database: &Database) -> Result<(i64, i64)> {
    let counts = "select (select count(*) from coupons), (select count(*) from claims)";
    let row = database.connect().await?.query_one(counts, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

const SHOW: &str = "GET /api/coupons/PROMO HTTP/1.1\r\nhost: here\r\n\r\n";
const TOKEN: &str = "all-0123456789abcdef";
const TOKENS: &str = "all-0123456789abcdef:claim,read,admin";

#[tokio::test]
async fn no_foreign_web_page_creates_or_claims() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let open = Api::start(database.caller_url()).await?;
    let before = rows(&database).await?;
    // Without a preflight: what a form or `fetch` with `no-cors` sends.
    let send = |api: &Api, page: &[(&str, &str)], path: &str, body: Value| {
        let mut request = api
            .request(Method::POST, path)
            .header("content-type", "text/plain")
            .body(body.to_string());
        for (name, value) in page {
            request = request.header(*name, *value);
        }
        answer(request)
    };
    let coupon = |name: &str| json!({ "name": name, "amount": 1 });
    let claim = |user: &str| json!({ "user_id": user, "coupon_name": "PROMO" });
    for page in [
        vec![("origin", "https://evil.example")],
        vec![
            ("origin", "https://evil.example"),
            ("sec-fetch-site", "cross-site"),
        ],
        vec![
            ("origin", "http://localhost:3000"),
            ("sec-fetch-site", "same-site"),
        ],
        vec![("origin", "http://127.0.0.1")],
        vec![("origin", "null")],
        vec![("sec-fetch-site", "cross-site")],
        // The page's own name, made to lead to this machine.
        vec![("origin", "http://evil.example"), ("host", "evil.example")],
        vec![
            ("origin", "http://localhost.evil.example:8080"),
            ("host", "localhost.evil.example:8080"),
        ],
    ] {
        for (path, body) in [
            ("/api/coupons", coupon("CSRF")),
            ("/api/coupons/claim", claim("csrf")),
        ] {
            let refused = send(&open, &page, path, body).await?;
            assert_eq!(refused.shown(), "403 foreign_origin", "{page:?} {path}");
            let detail = refused.body["detail"].as_str().unwrap_or_default();
            assert!(detail.contains("CORS_ORIGINS"), "{detail}");
        }
    }
    assert_eq!(rows(&database).await?, before);

    // Our own page, also behind proxies, and programs that are no browsers.
    let own = format!("http://{}", open.service.address());
    for (n, page) in [
        vec![],
        vec![("origin", own.as_str())],
        vec![("origin", own.as_str()), ("sec-fetch-site", "same-origin")],
        vec![
            ("origin", "http://localhost:8080"),
            ("host", "localhost:8080"),
        ],
        vec![
            ("origin", "https://docs.example"),
            ("sec-fetch-site", "same-origin"),
            ("host", "docs.example"),
        ],
        vec![
            ("origin", "https://docs.example"),
            ("sec-fetch-site", "same-origin"),
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let created = send(&open, &page, "/api/coupons", coupon(&format!("OWN{n}"))).await?;
        assert_eq!(created.shown(), "201", "{page:?}");
    }
    // What a page cannot read the answer of, it may ask for.
    let read = open
        .show_request("PROMO")
        .header("origin", "https://evil.example");
    assert_eq!(answer(read).await?.status, 200);

    let environment = [
        ("API_TOKENS", TOKENS),
        ("CORS_ORIGINS", "https://shop.example:443"),
    ];
    let closed = Api::start_with(database.caller_url(), &environment).await?;
    let token = format!("Bearer {TOKEN}");
    for (page, expected) in [
        (
            vec![("origin", "https://evil.example")],
            "403 foreign_origin",
        ),
        // A token keeps out pages that have their name lead here.
        (
            vec![("origin", "http://docs.example"), ("host", "docs.example")],
            "200",
        ),
        (vec![("origin", "https://shop.example")], "200"),
    ] {
        let mut page = page;
        page.push(("authorization", &token));
        let user = format!("{page:?}");
        let claimed = send(&closed, &page, "/api/coupons/claim", claim(&user)).await?;
        assert_eq!(claimed.shown(), expected, "{page:?}");
    }
    // The default port of a listed origin is the one that browsers leave out.
    let preflight = closed
        .request(Method::OPTIONS, "/api/coupons/claim")
        .header("origin", "https://shop.example")
        .header("access-control-request-method", "POST")
        .send()
        .await?;
    assert_eq!(
        preflight.headers()["access-control-allow-origin"],
        "https://shop.example"
    );
    database.books().await
}

#[tokio::test]
async fn health_is_answered_when_connections_have_run_out() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let environment = [("CONNECTION_LIMIT", "5"), ("HEADER_TIMEOUT", "60s")];
    let service = Service::start_with(database.caller_url(), &environment).await?;
    let mut kept = Vec::new();
    for _ in 0..5 {
        let mut client = Raw::connect(&service).await?;
        client.send(SHOW).await?;
        client.until("}").await?;
        kept.push(client);
    }
    // More of those that ask nothing than there are places for.
    let mut silent = Vec::new();
    for _ in 0..1100 {
        silent.push(Raw::connect(&service).await?);
    }
    for path in ["/health/live", "/health/ready", "/metrics"] {
        let mut client = Raw::connect(&service).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
        client.send(&request).await?;
        let answer = client.rest().await?;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    let probe = Service::command()?
        .args([
            "--health-check",
            "--port",
            &service.address().port().to_string(),
        ])
        .output()?;
    assert!(probe.status.success(), "{probe:?}");

    // Everything else is refused, and the refusal is seen by clients that send without looking.
    let big = "x".repeat(2_000_000);
    for request in [
        SHOW.to_owned(),
        "GET /docs/ HTTP/1.1\r\nhost: here\r\n\r\n".to_owned(),
        post(
            "/api/coupons/claim",
            "",
            r#"{"user_id":"u","coupon_name":"PROMO"}"#,
        ),
        post("/api/coupons", "", &big),
    ] {
        for _ in 0..20 {
            let mut client = Raw::connect(&service).await?;
            client.send(&request).await?;
            let answer = client.rest().await?;
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            assert!(answer.contains("retry-after: 1"), "{answer}");
            assert_eq!(code(&answer)?, "overloaded");
        }
    }
    assert_eq!(rows(&database).await?, (1, 0));
    // Those that were there first have lost nothing.
    for client in &mut kept {
        client.send(SHOW).await?;
        client.until("}").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    listed(&database, 40_000).await?;
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
            let mut client = Raw::connect(&api.service).await?;
            client.send(&request).await?;
            client.0.shutdown().await?;
            let answer = client.rest().await?;
            let start: String = answer.chars().take(200).collect();
            assert!(answer.contains(body), "{request}: {start}");
            assert!(body != "]}\r\n0\r\n\r\n" || answer.len() > whole.len());
        }
    }
    database.books().await
}

#[tokio::test]
async fn a_request_sent_early_does_not_cut_off_the_answer_before_it() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    listed(&database, 300_000).await?;
    let environment = [("HEADER_TIMEOUT", "500ms")];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let mut client = Raw::connect(&api.service).await?;
    let long = SHOW.replace("PROMO", "LISTED");
    client.send(&long).await?;
    // The list is on its way when the next request comes.
    client.0.read_exact(&mut [0]).await?;
    client.send(SHOW).await?;
    // Read over more time than a head may take.
    let started = Instant::now();
    let mut received = Vec::new();
    let mut tick = interval(Duration::from_millis(20));
    while !received.ends_with(br#""remaining_amount":1,"claimed_by":[]}"#) {
        tick.tick().await;
        let mut piece = vec![0; 256 * 1024];
        let read = timeout(PATIENCE, client.0.read(&mut piece)).await??;
        ensure!(read > 0, "cut off after {} bytes", received.len());
        received.extend_from_slice(&piece[..read]);
    }
    assert!(started.elapsed() > Duration::from_secs(1));
    assert!(received.len() > 30_000_000);
    // A head of which only the beginning has come early is waited for no longer than any.
    client.send("GET /api").await?;
    assert_eq!(client.rest().await?, "");
    Ok(())
}

/// A coupon called LISTED with so many claims by users with names of 100 characters.
async fn listed(database: &Database, claims: i32) -> Result<()> {
    let client = database.connect().await?;
    client
        .batch_execute(&format!(
            "set session_replication_role = replica;
             insert into coupons (name, amount, remaining_amount) values ('LISTED', {claims}, 0);
             insert into claims (user_id, coupon_name)
             select lpad(n::text, 100, 'u'), 'LISTED' from generate_series(1, {claims}) n;"
        ))
        .await?;
    Ok(())
}

#[tokio::test]
async fn heads_without_their_bodies_take_nobodys_place() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let environment = [("REQUEST_LIMIT", "5"), ("BODY_TIMEOUT", "60s")];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let body = r#"{"user_id":"user_10","coupon_name":"PROMO"}"#;
    let mut unfinished = Vec::new();
    for n in 10..30 {
        let mut client = Raw::connect(&api.service).await?;
        let request = post(
            "/api/coupons/claim",
            "",
            &body.replace("10", &n.to_string()),
        );
        let (now, later) = request.split_at(request.len() - 5);
        client.send(now).await?;
        unfinished.push((client, later.to_owned()));
    }
    eventually("the heads to be there", async || {
        let metrics = reqwest::get(api.service.url("/metrics"))
            .await?
            .text()
            .await?;
        // The one that asks is among them.
        Ok(metrics
            .contains("honcho_http_requests_in_flight 21\n")
            .then_some(()))
    })
    .await?;
    for n in 0..10 {
        assert_eq!(api.show("PROMO").await?.status, 200);
        assert_eq!(api.claim(&format!("other_{n}"), "PROMO").await?.status, 200);
    }
    for (client, later) in &mut unfinished {
        client.send(later).await?;
        assert!(client.until("}").await?.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(rows(&database).await?, (1, 30));
    database.books().await
}

#[tokio::test]
async fn reads_that_announce_bodies_have_the_same_places_as_others() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let environment = [
        ("REQUEST_LIMIT", "5"),
        ("LOCK_TIMEOUT", "20s"),
        ("STATEMENT_TIMEOUT", "40s"),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let announcing = [
        "GET /api/coupons/PROMO HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\n",
        "GET /api/coupons/PROMO HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n",
        "HEAD /api/coupons/PROMO HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\n",
        "OPTIONS /api/coupons/PROMO HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\n",
    ];
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.batch_execute("lock table coupons in access exclusive mode")
        .await?;
    let mut waiting = Vec::new();
    for n in 0..5 {
        let mut client = Raw::connect(&api.service).await?;
        client.send(announcing[n % 2]).await?;
        waiting.push(client);
    }
    eventually("the reads to be under way", async || {
        let metrics = reqwest::get(api.service.url("/metrics"))
            .await?
            .text()
            .await?;
        // The one that asks is among them.
        Ok(metrics
            .contains("honcho_http_requests_in_flight 6\n")
            .then_some(()))
    })
    .await?;
    assert_eq!(api.show("PROMO").await?.shown(), "503 overloaded");
    for request in announcing {
        let mut client = Raw::connect(&api.service).await?;
        client.send(request).await?;
        let answer = client.rest().await?;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{request}: {answer}");
    }
    held.rollback().await?;
    for client in &mut waiting {
        assert!(client.until("}").await?.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(api.show("PROMO").await?.status, 200);
    database.books().await
}

#[tokio::test]
async fn a_body_that_will_be_refused_is_not_asked_for() -> Result<()> {
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
        let mut client = Raw::connect(&service).await?;
        client.send(&request).await?;
        let answer = client.rest().await?;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}\r\n")),
            "{request}: {answer}"
        );
    }
    // One that is sent all the same does not keep its client from reading why it was not taken.
    let mut client = Raw::connect(&service).await?;
    client
        .send(&post("/api/coupons", &authorized, &" ".repeat(20_000_000)))
        .await?;
    assert_eq!(code(&client.rest().await?)?, "payload_too_large");
    // One that is taken is asked for.
    let mut client = Raw::connect(&service).await?;
    let body = r#"{"name":"PROMO","amount":1}"#;
    client
        .send(&head(&format!("{authorized}{expect}"), body.len() as u64))
        .await?;
    assert_eq!(
        client.until("\r\n\r\n").await?,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    client.send(body).await?;
    assert!(client.until("}").await?.starts_with("HTTP/1.1 201 "));
    assert_eq!(rows(&database).await?, (1, 0));
    Ok(())
}

#[tokio::test]
async fn what_is_no_request_is_logged_and_counted() -> Result<()> {
    let database = crate::database().await?;
    let service = Service::start(database.caller_url()).await?;
    let padded = |length: usize| {
        let padding = "x".repeat(length);
        format!("GET /health/live HTTP/1.1\r\nhost: here\r\npadding: {padding}\r\n")
    };
    let mut client = Raw::connect(&service).await?;
    client.send(&format!("{}\r\n", padded(60_000))).await?;
    assert!(client.until("}").await?.starts_with("HTTP/1.1 200 "));
    for (sent, status) in [
        // More than a head may have, though it never ends.
        (padded(70_000), 431),
        (padded(400_000), 431),
        ("GET / HTTP/9\r\n\r\n".to_owned(), 400),
        ("\u{16}\u{3}\u{1} hello\r\n\r\n".to_owned(), 400),
        (post("/api/coupons", "content-length: 7\r\n", "{}"), 400),
    ] {
        let mut client = Raw::connect(&service).await?;
        client.send(&sent).await?;
        let answer = client.rest().await?;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    eventually("the metrics", async || {
        let metrics = reqwest::get(service.url("/metrics")).await?.text().await?;
        let counted = |status: u32, times: u32| {
            let labels = format!(r#"{{route="unmatched",method="OTHER",status="{status}"}}"#);
            metrics.contains(&format!("honcho_http_requests_total{labels} {times}\n"))
        };
        Ok((counted(431, 2) && counted(400, 3)).then_some(()))
    })
    .await?;
    service.logged("status=431").await?;
    service.logged("client=127.0.0.1").await
}

#[tokio::test]
async fn a_request_names_one_host() -> Result<()> {
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
        let mut client = Raw::connect(&service).await?;
        client
            .send(&format!("{head}connection: close\r\n\r\n"))
            .await?;
        let answer = client.rest().await?;
        assert!(answer.contains(&format!(" {status} ")), "{head}: {answer}");
        if status == 400 {
            assert_eq!(code(&answer)?, "invalid_request", "{head}");
        }
    }
    Ok(())
}
