//! A client's connection in the test's own hands: open before anything is sent on it, and closed when
//! the test says so.

use anyhow::{Context, Result};
use honcho_tests::Service;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A connection for one request.
pub struct Connection(TcpStream);

impl Connection {
    pub async fn open(service: &Service) -> Result<Self> {
        Ok(Self(TcpStream::connect(service.address()).await?))
    }

    /// Claims and returns what [`Answer::shown`](crate::api::Answer::shown) would.
    pub async fn claim(mut self, user_id: &str, coupon_name: &str) -> Result<String> {
        let body = json!({ "user_id": user_id, "coupon_name": coupon_name }).to_string();
        let request = format!(
            "POST /api/coupons/claim HTTP/1.1\r\nhost: honcho\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no whole head")?;
        let status = head.split(' ').nth(1).context("no status")?;
        let body: Value = serde_json::from_str(body)?;
        Ok(match body["code"].as_str() {
            Some(code) => format!("{status} {code}"),
            None => status.to_owned(),
        })
    }
}
