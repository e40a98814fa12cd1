//! Authorization: a token allows what its scopes allow, and a request without one learns nothing.

use std::fs;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tokio_postgres::Client;

use crate::fixtures::{
    api::{Answer, Api, answer},
    raw_client::RawClient,
};

const CLAIM: &str = "claim-0123456789abcdef";
const READ: &str = "read-0123456789abcdef";
const ADMIN: &str = "admin-0123456789abcdef==";
const ALL: &str = "all-0123456789abcdef";
const TOKENS: &str = "claim-0123456789abcdef:claim read-0123456789abcdef:read \
                      admin-0123456789abcdef==:admin all-0123456789abcdef:claim,read,admin";

async fn api(environment: &[(&str, &str)]) -> Result<(honcho_tests::Database, Api)> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let api = Api::start_with(database.caller_url(), environment).await?;
    Ok((database, api))
}

/// All operations of the API's description, each with a request that would succeed and the scope that it
/// needs.
async fn operations(api: &Api) -> Result<Vec<(Method, String, &'static str, String)>> {
    let document: Value = api
        .request(Method::GET, "/openapi.json")
        .send()
        .await?
        .json()
        .await?;
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().context("no paths")? {
        if !path.starts_with("/api/") {
            continue;
        }
        for (method, operation) in item.as_object().context("no operations")? {
            let method: Method = method.to_uppercase().parse()?;
            let scope = operation["security"][0]["bearer"][0]
                .as_str()
                .unwrap_or_default();
            let body = match (&method, path.as_str()) {
                (&Method::POST, "/api/coupons") => r#"{"name":"NEW","amount":1}"#,
                (&Method::POST, "/api/coupons/claim") => {
                    r#"{"user_id":"new","coupon_name":"PROMO"}"#
                }
                (&Method::POST, "/api/coupons/{name}/claims") => r#"{"user_ids":["new"]}"#,
                (&Method::POST, "/api/coupons/{name}/holds") => r#"{"user_id":"new"}"#,
                (&Method::POST, "/api/coupons/{name}/restock") => r#"{"delta":1}"#,
                (&Method::PATCH, _) => r#"{"paused":true}"#,
                _ => "",
            };
            let query = match (&method, path.ends_with("}") || path.ends_with("/claim")) {
                (&Method::DELETE, true) if !path.contains("{user_id}") => "?claims=true",
                _ => "",
            };
            // The user holds one coupon and has claimed the other.
            let coupon = if path.contains("/holds") {
                "HELD"
            } else {
                "PROMO"
            };
            let path = path.replace("{name}", coupon).replace("{user_id}", "user") + query;
            operations.push((method, path, body, scope.to_owned()));
        }
    }
    ensure!(
        operations.len() >= 20,
        "operations are missing: {operations:?}"
    );
    Ok(operations)
}

fn with(request: RequestBuilder, token: &str) -> RequestBuilder {
    request.header("authorization", format!("Bearer {token}"))
}

/// Makes the coupons anew, with a claim and a hold, so that each operation would succeed.
async fn make_coupons(client: &Client) -> Result<()> {
    let sql = "select honcho_delete_coupon(name, true) from coupons;
               select honcho_create_coupon(name, 5) from unnest(array['claim', 'HELD', 'PROMO']) as name;
               select honcho_claim('user', 'PROMO');
               select honcho_reserve('user', 'HELD', '1 hour');";
    Ok(client.batch_execute(sql).await?)
}

#[tokio::test]
async fn each_operation_needs_exactly_its_scope() -> Result<()> {
    let (database, api) = api(&[("API_TOKENS", TOKENS)]).await?;
    let client = database.connect().await?;
    let request = |method: &Method, path: &str, body: &'static str| {
        api.request(method.clone(), path).body(body)
    };
    for (method, path, body, scope) in &operations(&api).await? {
        for (token, holds) in [(CLAIM, "claim"), (READ, "read"), (ADMIN, "admin")] {
            make_coupons(&client).await?;
            let request = with(request(method, path, body), token);
            if holds == scope {
                // Only the head: a stream of events has no end.
                let status = request.send().await?.status();
                assert!(status.is_success(), "{method} {path} as {holds}: {status}");
            } else {
                let answer = answer(request).await?;
                assert_eq!(
                    answer.shown(),
                    "403 forbidden",
                    "{method} {path} as {holds}"
                );
                let expected = format!(
                    r#"Bearer realm="honcho", error="insufficient_scope", scope="{scope}""#
                );
                assert_eq!(answer.header("www-authenticate"), expected);
            }
        }
        // A token with several scopes may do it as well.
        make_coupons(&client).await?;
        let request = with(request(method, path, body), ALL);
        let status = request.send().await?.status();
        assert!(status.is_success(), "{method} {path}: {status}");
    }
    database.books().await
}

/// All that an answer could reveal, without the parts that differ between any two requests.
fn essence(answer: &Answer) -> Result<(u16, Vec<String>, Value)> {
    let mut headers: Vec<String> = answer
        .headers
        .iter()
        .filter(|(name, _)| {
            !matches!(
                name.as_str(),
                "date" | "x-request-id" | "content-length" | "allow"
            )
        })
        .map(|(name, value)| Ok(format!("{name}: {}", value.to_str()?)))
        .collect::<Result<_>>()?;
    headers.sort();
    let mut body = answer.body.clone();
    body["request_id"].take();
    Ok((answer.status, headers, body))
}

#[tokio::test]
async fn unauthorized_answers_reveal_nothing() -> Result<()> {
    let (database, api) = api(&[("API_TOKENS", TOKENS)]).await?;
    let mut requests: Vec<(Method, String, &'static str)> = operations(&api)
        .await?
        .into_iter()
        .map(|(method, path, body, _)| (method, path, body))
        .collect();
    // Existing, missing and impossible coupons and routes must look the same.
    for path in [
        "PROMO",
        "none",
        "%00",
        "PROMO/claims",
        "none/claims",
        "PROMO/claims?limit=0",
        "a/b/c",
    ] {
        requests.push((Method::GET, format!("/api/coupons/{path}"), ""));
        requests.push((Method::DELETE, format!("/api/coupons/{path}"), ""));
    }
    for body in [
        "{",
        r#"{"user_id":"","coupon_name":"PROMO"}"#,
        r#"{"user_id":"u","coupon_name":"none"}"#,
    ] {
        requests.push((Method::POST, "/api/coupons/claim".to_owned(), body));
    }
    for (token, challenge) in [
        (None, r#"Bearer realm="honcho""#),
        (
            Some("Basic dXNlcjpwYXNzd29yZA=="),
            r#"Bearer realm="honcho""#,
        ),
        (Some("Bearer"), r#"Bearer realm="honcho""#),
        (
            Some("Bearer claim-0123456789abcdee"),
            "error=\"invalid_token\"",
        ),
        (
            Some("Bearer claim-0123456789abcdef0"),
            "error=\"invalid_token\"",
        ),
        (
            Some("Bearer claim-0123456789abcdef:claim"),
            "error=\"invalid_token\"",
        ),
        (
            Some("Bearer CLAIM-0123456789ABCDEF"),
            "error=\"invalid_token\"",
        ),
    ] {
        let mut first = None;
        for (method, path, body) in &requests {
            let mut request = api.request(method.clone(), path).body(*body);
            if let Some(token) = token {
                request = request.header("authorization", token);
            }
            let answer = answer(request).await?;
            assert_eq!(
                answer.shown(),
                "401 unauthorized",
                "{method} {path} with {token:?}"
            );
            assert!(
                answer.header("www-authenticate").contains(challenge),
                "{answer:?}"
            );
            let essence = essence(&answer)?;
            let expected = first.get_or_insert(essence.clone());
            assert_eq!(*expected, essence, "{method} {path} with {token:?}");
        }
    }
    let two = with(with(api.show_request("PROMO"), READ), ALL);
    assert_eq!(answer(two).await?.shown(), "401 unauthorized");
    let claims: i64 = database
        .connect()
        .await?
        .query_one("select count(*) from claims", &[])
        .await?
        .get(0);
    assert_eq!(claims, 0);
    Ok(())
}

#[tokio::test]
async fn unauthorized_requests_are_refused_before_their_body() -> Result<()> {
    let (_database, api) = api(&[("API_TOKENS", TOKENS)]).await?;
    for (token, status) in [("nobody-knows-this-one", "401"), (READ, "403")] {
        let mut client = RawClient::connect(api.service.address()).await?;
        let head = format!(
            "POST /api/coupons/claim HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {token}\r\n\
             content-length: 1000\r\n\r\n"
        );
        client.send(&head).await?;
        // The service answers and closes without having received the body.
        let received = client.read_to_end().await?;
        assert!(
            received.starts_with(&format!("HTTP/1.1 {status} ")),
            "{received}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn documentation_needs_no_token() -> Result<()> {
    let (_database, api) = api(&[("API_TOKENS", TOKENS)]).await?;
    for path in ["/openapi.json", "/docs/", "/docs/index.html"] {
        let status = api.request(Method::GET, path).send().await?.status();
        assert_eq!(status, 200, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn tokens_can_come_from_a_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("tokens");
    fs::write(
        &file,
        "# the shop\n\nshop-0123456789abcdef:claim,read # until May\n\tops-0123456789abcdef:admin\n",
    )?;
    let file = file.to_str().context("no path")?;
    let (_database, api) = api(&[("API_TOKENS_FILE", file), ("API_TOKENS", TOKENS)]).await?;
    for (token, status) in [
        ("shop-0123456789abcdef", 200),
        ("ops-0123456789abcdef", 403),
        (READ, 200),
        ("#", 401),
        ("until", 401),
    ] {
        let answer = answer(with(api.show_request("PROMO"), token)).await?;
        assert_eq!(answer.status, status, "{token}");
    }
    // The scheme is case-insensitive.
    let request = api
        .show_request("PROMO")
        .header("authorization", format!("bEARER {READ}"));
    assert_eq!(answer(request).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn service_without_tokens_logs_a_warning() -> Result<()> {
    let (_database, open) = api(&[]).await?;
    let warning = "no tokens are configured";
    honcho_tests::eventually("the warning", async || {
        Ok(open.service.log().contains(warning).then_some(()))
    })
    .await?;
    let document: Value = open
        .request(Method::GET, "/openapi.json")
        .send()
        .await?
        .json()
        .await?;
    assert!(document["components"].get("securitySchemes").is_none());
    assert!(
        document["paths"]["/api/coupons"]["get"]["responses"]
            .get("401")
            .is_none()
    );

    let (_database, closed) = api(&[("API_TOKENS", TOKENS)]).await?;
    assert_eq!(
        answer(with(closed.show_request("PROMO"), READ))
            .await?
            .status,
        200
    );
    assert!(
        !closed.service.log().contains(warning),
        "{}",
        closed.service.log()
    );
    Ok(())
}
