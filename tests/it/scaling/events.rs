//! Events over all shards.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::json;

use crate::fixtures::{
    event_stream::{EventStream, refused},
    shards::Shards,
};

/// Restocks a coupon.
async fn restock(shards: &Shards, coupon: &str) -> Result<()> {
    let path = format!("{coupon}/restock");
    let restocked = shards
        .api
        .send_json(Method::POST, &path, &json!({ "delta": 1 }))
        .await?;
    assert_eq!(restocked.status, 200, "{restocked:?}");
    Ok(())
}

#[tokio::test]
async fn stream_of_all_shards_resumes_from_each_without_loss() -> Result<()> {
    const ROUNDS: usize = 40;
    let shards = Shards::start(&[crate::cluster()], 4, &[]).await?;
    let coupons = shards.coupon_on_each("PROMO", 10).await?;
    let mut stream = EventStream::open(&shards.api, "/api/events", None).await?;
    stream.until_position().await?;
    let mut received: BTreeMap<String, usize> = BTreeMap::new();
    let note = |received: &mut BTreeMap<String, usize>, event: &serde_json::Value| {
        let name = event["coupon_name"].as_str().unwrap_or_default();
        *received.entry(name.to_owned()).or_default() += 1;
    };
    for round in 0..ROUNDS {
        // Some rounds change all coupons, others only one: the shards' ids move apart.
        let changed = match round % 3 {
            0 => &coupons[..],
            other => &coupons[other..=other],
        };
        // Half of the events are read, and the rest is written while there is no stream.
        let (before, after) = changed.split_at(changed.len() / 2);
        for coupon in before {
            restock(&shards, coupon).await?;
            let event = stream.until("restocked").await?;
            note(&mut received, &event.data);
        }
        let position = stream.position.clone();
        assert_eq!(position.as_ref().map(|it| it.split('-').count()), Some(4));
        drop(stream);
        for coupon in after {
            restock(&shards, coupon).await?;
        }
        stream = EventStream::resume(&shards.api, "/api/events", position).await?;
        for _ in after {
            let event = stream.until("restocked").await?;
            note(&mut received, &event.data);
        }
    }
    let all = ROUNDS.div_ceil(3);
    let one = |rest: usize| (0..ROUNDS).filter(|round| round % 3 == rest).count();
    let expected: BTreeMap<String, usize> = coupons
        .into_iter()
        .zip([all, all + one(1), all + one(2), all])
        .collect();
    assert_eq!(received, expected);
    shards.books().await
}

#[tokio::test]
async fn stream_of_a_coupon_has_the_ids_of_its_shard() -> Result<()> {
    let shards = Shards::start(&[crate::cluster()], 4, &[]).await?;
    for coupon in shards.coupon_on_each("PROMO", 10).await? {
        let path = format!("/api/coupons/{coupon}/events");
        let mut stream = EventStream::open(&shards.api, &path, Some(0)).await?;
        let created = stream.until("created").await?.id.context("no id")?;
        restock(&shards, &coupon).await?;
        let mut resumed = EventStream::open(&shards.api, &path, Some(created)).await?;
        let id = resumed.until("restocked").await?.id.context("no id")?;
        let client = shards.database_of(&coupon).connect().await?;
        let written = "select kind from coupon_events where id = $1 and coupon_name = $2";
        let row = client.query_one(written, &[&id, &coupon]).await?;
        assert_eq!(row.get::<_, &str>(0), "restocked");
        let deleted = shards.api.send(Method::DELETE, &coupon).await?;
        assert_eq!(deleted.status, 204);
        assert_eq!(
            resumed.rest().await?.last().map(|it| &*it.name),
            Some("deleted")
        );
    }
    shards.books().await
}

#[tokio::test]
async fn position_of_another_number_of_shards_is_refused() -> Result<()> {
    let shards = Shards::start(&[crate::cluster()], 2, &[]).await?;
    for position in ["0", "0-0-0", "0-", "0,0"] {
        let request = shards.api.request(Method::GET, "/api/events");
        let request = request.header("last-event-id", position);
        let answer = refused(request).await?;
        assert_eq!(answer.shown(), "400 invalid_request", "{position}");
        let detail = answer.body["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("2 whole numbers"), "{detail}");
    }
    shards.books().await
}

#[tokio::test]
async fn client_resumes_before_a_gap_until_it_has_heard_of_it() -> Result<()> {
    let shards = Shards::start(&[crate::cluster()], 2, &[]).await?;
    shards.coupon_on_each("PROMO", 10).await?;
    // The second shard has no such event.
    let lost = "0-99999999999".to_owned();
    let mut stream = EventStream::resume(&shards.api, "/api/events", Some(lost.clone())).await?;
    stream.until_position().await?;
    assert_eq!(stream.position.as_ref(), Some(&lost));
    stream.until("reset").await?;
    let position = stream.position.context("no id")?;
    assert!(!position.ends_with("-99999999999"), "{position}");
    shards.books().await
}
