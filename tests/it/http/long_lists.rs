//! Long lists: streamed, from one snapshot, and nobody's burden.

use anyhow::Result;
use honcho_tests::{Database, eventually};
use reqwest::Response;
use serde_json::Value;

use crate::fixtures::api::Api;

const MIB: u64 = 1024 * 1024;

/// A coupon with so many claims by users with names of 100 characters. What is left to claim is
/// 1000.
async fn claimed(database: &Database, name: &str, claims: i32) -> Result<()> {
    let client = database.connect().await?;
    // Without the row-by-row check of the foreign key.
    client
        .batch_execute("set session_replication_role = replica")
        .await?;
    client
        .execute(
            "insert into coupons (name, amount, remaining_amount) values ($1, $2 + 1000, 1000)",
            &[&name, &claims],
        )
        .await?;
    client
        .execute(
            "insert into claims (user_id, coupon_name)
             select lpad(n::text, 100, 'u'), $1 from generate_series(1, $2) n",
            &[&name, &claims],
        )
        .await?;
    client.batch_execute("analyze coupons, claims").await?;
    Ok(())
}

fn check_list(body: &Value, claims: i32) {
    let shown = body["claimed_by"].as_array().unwrap();
    assert_eq!(shown.len(), claims as usize);
    for (user, n) in shown.iter().zip(1..) {
        assert_eq!(
            user.as_str().unwrap().trim_start_matches('u'),
            n.to_string()
        );
    }
    assert_eq!(body["amount"], claims + 1000);
    assert_eq!(body["remaining_amount"], 1000);
}

async fn rest(mut response: Response, mut received: Vec<u8>) -> Result<Value> {
    while let Some(chunk) = response.chunk().await? {
        received.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice(&received)?)
}

#[tokio::test]
async fn lists_of_every_length_are_whole() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    for claims in [0, 1, 999, 1000, 1001, 1999, 2000, 2001, 5000] {
        let name = format!("PROMO_{claims}");
        claimed(&database, &name, claims).await?;
        let shown = api.show(&name).await?;
        assert_eq!(shown.status, 200);
        check_list(&shown.body, claims);
    }
    database.books().await
}

#[tokio::test]
async fn a_long_list_is_one_snapshot_in_little_memory() -> Result<()> {
    let claims = 300_000;
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    claimed(&database, "PROMO", claims).await?;
    // What a first request and connection cost is not the list's.
    assert_eq!(api.claim("nobody", "NOTHING").await?.status, 404);
    let before = api.service.resident_bytes()?;

    let mut response = api.show_request("PROMO").send().await?;
    let first = response.chunk().await?.unwrap().to_vec();
    // The list is 30 MB long and the client stands still: it cannot have been read to its end.
    for n in 0..10 {
        assert_eq!(api.claim(&format!("late_{n}"), "PROMO").await?.status, 200);
    }
    check_list(&rest(response, first).await?, claims);
    let grown = api.service.peak_resident_bytes()?.saturating_sub(before);
    assert!(grown < 16 * MIB, "the service grew by {} KiB", grown / 1024);

    assert_eq!(api.show("PROMO").await?.body["remaining_amount"], 990);
    database.books().await
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_connection_back() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start_with(database.caller_url(), &[("DATABASE_POOL_SIZE", "1")]).await?;
    claimed(&database, "PROMO", 200_000).await?;
    for n in 0..3 {
        let mut response = api.show_request("PROMO").send().await?;
        assert!(response.chunk().await?.is_some());
        drop(response);
        // There is only the one connection; waiting for it is bounded at 5 seconds.
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

#[tokio::test]
async fn a_reader_that_stands_still_is_in_nobodys_way_and_cut_off() -> Result<()> {
    let database = crate::database().await?;
    let settings = [("DATABASE_POOL_SIZE", "2"), ("WRITE_TIMEOUT", "2s")];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    claimed(&database, "PROMO", 300_000).await?;
    let mut slow = api.show_request("PROMO").send().await?;
    let first = slow.chunk().await?.unwrap().to_vec();
    let other = async {
        let other = api.show_request("PROMO").send().await?;
        rest(other, Vec::new()).await
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
    // It agrees with itself, whichever of the claims came before it.
    assert_eq!(other["remaining_amount"], 301_000 - shown.len());
    api.service.logged("is cut off").await?;
    // What it got is not to be taken for the whole: the transfer itself breaks off.
    let error = rest(slow, first).await.unwrap_err();
    assert!(error.is::<reqwest::Error>(), "{error}");
    database.books().await
}
