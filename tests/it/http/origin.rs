//! Origins: pages of listed origins may use the API, and foreign pages may not write.

use anyhow::Result;
use honcho_tests::Service;
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixtures::{
    api::{Api, answer},
    raw_client::{RawClient, SHOW},
    scrape::Scrape,
    sql::row_counts,
};

const TOKEN: &str = "all-0123456789abcdef";
const TOKENS: &str = "all-0123456789abcdef:claim,read,admin";

#[tokio::test]
async fn pages_of_listed_origins_may_use_the_api() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let environment = [
        ("API_TOKENS", TOKENS),
        ("CORS_ORIGINS", "https://shop.example,http://localhost:3000"),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let preflight = |origin: &'static str| {
        api.request(Method::OPTIONS, "/api/coupons/claim")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type",
            )
            .send()
    };
    let allowed = preflight("https://shop.example").await?;
    assert_eq!(allowed.status(), 204);
    let header = |name: &str| allowed.headers()[name].to_str().unwrap().to_lowercase();
    assert_eq!(
        header("access-control-allow-origin"),
        "https://shop.example"
    );
    assert!(header("access-control-allow-methods").contains("post"));
    assert!(header("access-control-allow-headers").contains("authorization"));
    let other = preflight("https://evil.example").await?;
    assert!(other.headers().get("access-control-allow-origin").is_none());
    // The page must be able to read refusals as well.
    let refused = answer(
        api.show_request("PROMO")
            .header("origin", "http://localhost:3000"),
    )
    .await?;
    assert_eq!(refused.shown(), "401 unauthorized");
    assert_eq!(
        refused.header("access-control-allow-origin"),
        "http://localhost:3000"
    );

    let closed = Api::start_with(database.caller_url(), &[("API_TOKENS", TOKENS)]).await?;
    let plain = closed
        .show_request("PROMO")
        .header("origin", "https://shop.example")
        .send()
        .await?;
    assert!(plain.headers().get("access-control-allow-origin").is_none());
    Ok(())
}

/// Sends a request without a body, and returns the status and the head of its answer.
async fn raw(service: &Service, request_line: &str, headers: &str) -> Result<(String, String)> {
    let mut client = RawClient::connect(service.address()).await?;
    let request = format!("{request_line} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
    client.send(&request).await?;
    let answer = client.read_to_end().await?;
    let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    Ok((status, head.to_lowercase()))
}

#[tokio::test]
async fn preflights_need_no_token_and_pass_all_other_checks() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let environment = [
        ("API_TOKENS", TOKENS),
        ("CORS_ORIGINS", "https://shop.example"),
        ("RATE_LIMIT", "12/h"),
        ("CONNECTION_LIMIT", "3"),
    ];
    let service = Service::start_with(database.caller_url(), &environment).await?;
    let host = "host: here\r\n";
    let asked = "origin: https://shop.example\r\naccess-control-request-method: POST\r\n\
                 x-request-id: preflight\r\n";
    let token = format!("authorization: Bearer {TOKEN}\r\n");
    let (claim, nothing) = ("OPTIONS /api/coupons/claim", "OPTIONS /nothing");
    for (line, headers, expected) in [
        (claim, [host, asked, ""], "204"),
        (claim, [host, asked, host], "400"),
        (nothing, [host, asked, ""], "404"),
        // What is no preflight is answered as without `CORS_ORIGINS`.
        (claim, [host, "", ""], "401"),
        (claim, [host, &token, ""], "204"),
        (claim, [host, host, ""], "400"),
        (nothing, [host, "", ""], "404"),
    ] {
        let (status, head) = raw(&service, line, &headers.concat()).await?;
        assert_eq!(status, expected, "{line} {headers:?}: {head}");
        assert!(head.contains("x-request-id: "), "{head}");
        let allows = head.contains("access-control-allow-methods: ");
        assert_eq!(allows, headers[1] == asked, "{line} {headers:?}: {head}");
    }
    let scrape = Scrape::of(&service).await?;
    for (status, count) in [(204, 2.0), (400, 2.0), (401, 1.0)] {
        let labels =
            format!(r#"{{route="/api/coupons/claim",method="OPTIONS",status="{status}"}}"#);
        let counted = scrape.value(&format!("honcho_http_requests_total{labels}"));
        assert_eq!(counted, count, "{status}");
    }
    service.logged("request_id=preflight").await?;

    // The limits: of connections, and of requests by address.
    let mut kept = Vec::new();
    // More than the limit: earlier connections may still be ending.
    for _ in 0..6 {
        let mut client = RawClient::connect(service.address()).await?;
        client.exchange(SHOW).await?;
        kept.push(client);
    }
    let preflight = format!("{host}{asked}");
    let (status, head) = raw(&service, claim, &preflight).await?;
    assert_eq!(status, "503", "{head}");
    drop(kept);
    honcho_tests::eventually("a preflight to exceed the rate limit", async || {
        let (status, _) = raw(&service, claim, &preflight).await?;
        Ok((status == "429").then_some(()))
    })
    .await
}

#[tokio::test]
async fn foreign_pages_cannot_create_or_claim() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let open = Api::start(database.caller_url()).await?;
    let before = row_counts(&database).await?;
    // Requests without a preflight: forms, and `fetch` with `no-cors`.
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
        // DNS rebinding: the page's own name leads to this machine.
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
    assert_eq!(row_counts(&database).await?, before);

    // The service's own page, also behind proxies, and clients that are not browsers.
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
    // Reads are allowed, because the browser keeps the answer from the page.
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
        // With tokens, DNS rebinding gains nothing.
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
    // Browsers leave out the default port of a listed origin.
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
