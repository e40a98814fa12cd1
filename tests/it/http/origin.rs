//! Origins: pages of listed origins may use the API, and foreign pages may not write.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixtures::{
    api::{Api, answer},
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
    assert_eq!(allowed.status(), 200);
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
