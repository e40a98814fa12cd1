//! The HTTP interface as a client sees it.

use anyhow::{Context, Result, ensure};
use honcho_tests::Service;
use reqwest::{Method, RequestBuilder, Response, header::HeaderMap};
use serde_json::{Value, json};

/// A running service and a client of it.
pub struct Api {
    pub service: Service,
    pub http: reqwest::Client,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Api {
    pub async fn start(database_url: &str) -> Result<Self> {
        Self::start_with(database_url, &[]).await
    }

    pub async fn start_with(database_url: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let service = Service::start_with(database_url, environment).await?;
        Ok(Self {
            service,
            http: reqwest::Client::new(),
        })
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.service.url(path))
    }

    pub async fn create(&self, name: &str, amount: i32) -> Result<Answer> {
        let body = json!({ "name": name, "amount": amount });
        answer(self.request(Method::POST, "/api/coupons").json(&body)).await
    }

    pub async fn claim(&self, user_id: &str, coupon_name: &str) -> Result<Answer> {
        answer(self.claim_request(user_id, coupon_name)).await
    }

    pub fn claim_request(&self, user_id: &str, coupon_name: &str) -> RequestBuilder {
        let body = json!({ "user_id": user_id, "coupon_name": coupon_name });
        self.request(Method::POST, "/api/coupons/claim").json(&body)
    }

    /// `path` is what follows `/api/coupons/`.
    pub async fn show(&self, path: &str) -> Result<Answer> {
        answer(self.show_request(path)).await
    }

    pub fn show_request(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, &format!("/api/coupons/{path}"))
    }
}

/// Sends the request and takes the answer apart; whatever is not a success must be a complete
/// problem.
pub async fn answer(request: RequestBuilder) -> Result<Answer> {
    let response: Response = request.send().await?;
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let body = response.bytes().await?;
    let body = serde_json::from_slice(&body)
        .with_context(|| format!("{status}: {}", String::from_utf8_lossy(&body)))?;
    let answer = Answer {
        status,
        headers,
        body,
    };
    ensure!(
        !answer.header("x-request-id").is_empty(),
        "no request id: {answer:?}"
    );
    if status >= 400 {
        answer.check_problem()?;
    }
    Ok(answer)
}

impl Answer {
    /// The status and, of a problem, its code: `409 sold_out`.
    pub fn shown(&self) -> String {
        match self.body["code"].as_str() {
            Some(code) if self.status >= 400 => format!("{} {code}", self.status),
            _ => self.status.to_string(),
        }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    fn check_problem(&self) -> Result<()> {
        let text = |field: &str| self.body[field].as_str().unwrap_or_default();
        ensure!(
            self.header("content-type") == "application/problem+json",
            "{self:?}"
        );
        ensure!(self.body["status"] == self.status, "{self:?}");
        ensure!(
            !text("title").is_empty() && !text("detail").is_empty(),
            "{self:?}"
        );
        ensure!(
            !text("code").is_empty() && text("error") == text("code"),
            "{self:?}"
        );
        ensure!(text("type").ends_with(text("code")), "{self:?}");
        ensure!(self.header("cache-control") == "no-store", "{self:?}");
        ensure!(
            (self.status == 401) <= self.headers.contains_key("www-authenticate"),
            "{self:?}"
        );
        ensure!(
            text("request_id") == self.header("x-request-id"),
            "{self:?}"
        );
        ensure!(
            matches!(self.status, 429 | 503) == self.headers.contains_key("retry-after"),
            "{self:?}"
        );
        Ok(())
    }
}
