//! A flush of the WAL that fails: the server ends with a PANIC, and its recovery finds the commit.

use anyhow::Result;
use honcho_tests::{Database, eventually};
use reqwest::Method;
use rustix::io::Errno;
use serde_json::json;

use crate::fixtures::{api::Api, wal_flush::Fallible};

#[tokio::test]
async fn commit_whose_flush_fails_has_an_unknown_outcome() -> Result<()> {
    let server = Fallible::start()?;
    let database = Database::create(&server.cluster).await?;
    let api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    for (coupon, errno) in [("FULL", Errno::NOSPC), ("BROKEN", Errno::IO)] {
        database.create_coupon(coupon, 10).await?;
        let requests = [
            ("claims", json!({"user_ids": ["ann", "bob"]})),
            ("holds", json!({"user_id": "cy"})),
            ("restock", json!({"delta": 5})),
            ("claim", json!({"user_id": "dan", "coupon_name": coupon})),
        ];
        for (route, body) in requests {
            let path = match route {
                "claim" => route.to_owned(),
                _ => format!("{coupon}/{route}"),
            };
            let starts = server.starts();
            server.fail_once(errno)?;
            let answer = api.send_json(Method::POST, &path, &body).await?;
            assert_eq!(answer.shown(), "503 outcome_unknown", "{errno} {path}");
            assert!(server.has_failed());
            server.until_recovered(starts).await?;
            eventually("the service to have connections again", async || {
                let status = api.show(coupon).await?.status;
                Ok((status == 200).then_some(()))
            })
            .await?;
        }
        assert_eq!(api.stock(coupon).await?, "open 11 1");
    }
    database.books().await
}
