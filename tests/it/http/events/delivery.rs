//! Events and stock on streams: contents and order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use honcho_tests::{PATIENCE, eventually};
use reqwest::Method;
use serde_json::json;
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{ALL, PROMO, ids, names, restock, until_open, written};
use crate::fixtures::{
    api::Api,
    event_stream::{EventStream, Received, refused},
    scrape::Scrape,
};

/// A stream of all coupons that begins during a poll waits for the next one. That finds nothing new.
#[tokio::test]
async fn stream_that_begins_during_a_poll_waits_for_no_event() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let settings = [("HEARTBEAT_INTERVAL", "10m")];
    let api = Arc::new(Api::start_with(database.caller_url(), &settings).await?);
    let open = |path| {
        let api = Arc::clone(&api);
        tokio::spawn(async move { EventStream::open(&api, path, None).await })
    };
    let mut locker = database.connect().await?;
    let locked = locker.transaction().await?;
    locked.execute("lock table coupon_events", &[]).await?;
    let first = open(PROMO);
    let watcher = database.connect().await?;
    eventually("the poll to wait", async || {
        let waiting =
            "select from pg_locks where relation = 'coupon_events'::regclass and not granted limit 1";
        Ok(watcher.query_opt(waiting, &[]).await?.map(drop))
    })
    .await?;
    let second = open(ALL);
    until_open(&api, 2.0).await?;
    locked.commit().await?;
    first.await??;
    second.await??;
    Ok(())
}

/// A poll is followed by a rest in proportion to its duration, but not if it only waited.
#[tokio::test]
async fn poll_that_waits_delays_no_later_news() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let mut client = database.connect().await?;
    let api = Api::start(database.caller_url()).await?;
    let mut stream = EventStream::open(&api, PROMO, None).await?;
    stream.until("stock").await?;
    let locked = client.transaction().await?;
    locked.execute("lock table coupon_events", &[]).await?;
    sleep(Duration::from_secs(3)).await;
    locked.commit().await?;
    let unlocked = Instant::now();
    restock(&client, "PROMO", 1).await?;
    sleep(Duration::from_millis(1500)).await;
    let mut later = EventStream::open(&api, PROMO, None).await?;
    let stock = later.until("stock").await?;
    assert_eq!(stock.data["amount"], 2, "a stream began with an old stock");
    stream.until("restocked").await?;
    let silence = unlocked.elapsed();
    assert!(silence < Duration::from_secs(10), "{silence:?}");
    database.books().await
}

#[tokio::test]
async fn events_of_a_coupon_come_in_order_with_its_stock() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    database.create_coupon("PROMO", 2).await?;
    database.create_coupon("OTHER", 2).await?;
    let api = Api::start(database.caller_url()).await?;
    let mut stream = EventStream::open(&api, PROMO, None).await?;
    let mut all = EventStream::open(&api, ALL, None).await?;
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
    ] {
        assert_eq!(stream.headers()[name], value);
    }
    assert!(!stream.headers().contains_key("content-encoding"));
    let stock = stream.next().await?.context("no stock")?;
    let expected = json!({
        "name": "PROMO", "amount": 2, "remaining_amount": 2, "held_amount": 0, "starts_at": null,
        "ends_at": null, "paused": false, "state": "open",
    });
    assert_eq!((stock.name.as_str(), &stock.data), ("stock", &expected));
    assert_eq!(stock.id, None);
    // The stream began after the creations.
    let created = written(&client, None).await?;
    assert_eq!(stream.last_event_id, created.last().copied());

    for sql in [
        "select honcho_update_coupon('PROMO', paused => true)",
        "select honcho_update_coupon('OTHER', paused => true)",
        "select honcho_update_coupon('PROMO', paused => false)",
        "select honcho_claim('ann', 'PROMO'), honcho_claim('bob', 'PROMO')",
    ] {
        client.execute(sql, &[]).await?;
    }
    stream
        .until_stock(|stock| stock["state"] == "sold_out" && stock["remaining_amount"] == 0)
        .await?;
    let given_back = "select honcho_release('ann', 'PROMO')";
    client.execute(given_back, &[]).await?;
    stream
        .until_stock(|stock| stock["state"] == "open" && stock["remaining_amount"] == 1)
        .await?;
    // Another coupon of the same name takes its place at once, and is watched on another stream.
    let replace = "begin; select honcho_delete_coupon('PROMO', true);
                   select honcho_create_coupon('PROMO', 7); commit";
    client.batch_execute(replace).await?;
    let rest = stream.rest().await?;
    assert_eq!(names(&rest).last(), Some(&"deleted"));
    let mut resumed = EventStream::open(&api, PROMO, stream.last_event_id).await?;
    assert_eq!(resumed.until("created").await?.data["details"]["amount"], 7);
    assert_eq!(resumed.until("stock").await?.data["amount"], 7);
    client
        .execute("select honcho_delete_coupon('PROMO')", &[])
        .await?;
    assert_eq!(names(&resumed.rest().await?), ["deleted"]);
    let again = refused(api.request(Method::GET, PROMO)).await?;
    assert_eq!(again.shown(), "404 coupon_not_found");

    let mut events = Vec::new();
    while events
        .last()
        .is_none_or(|event: &Received| event.name != "deleted")
    {
        events.push(all.next().await?.context("the stream ended")?);
    }
    let of_promo: Vec<Received> = events
        .iter()
        .filter(|event| event.data["coupon_name"] == "PROMO")
        .cloned()
        .collect();
    let mut kinds = names(&of_promo);
    kinds.dedup();
    assert_eq!(kinds[..3], ["paused", "resumed", "sold_out"]);
    assert!(kinds.contains(&"released") && kinds.contains(&"available_again"));
    assert_eq!(events.len(), of_promo.len() + 1);
    let released = of_promo.iter().find(|event| event.name == "released");
    let released = &released.context("no release")?.data;
    assert_eq!(released["kind"], "released");
    assert_eq!(released["details"]["user_id"], "ann");
    assert_eq!(released["actor"], "postgres");
    assert!(
        released["at"].as_str().is_some_and(|at| at.ends_with('Z')),
        "{released}"
    );
    let mut expected = written(&client, None).await?.split_off(created.len());
    // Since the first deletion, the other coupon was created and deleted.
    expected.truncate(expected.len() - 2);
    assert_eq!(ids(&events), expected);
    database.books().await
}

/// They share one poller, whatever they watch.
#[tokio::test]
async fn many_watchers_receive_the_same_and_share_the_polls() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    database.create_coupon("PROMO", 30).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    let begun = Instant::now();
    let mut watchers = JoinSet::new();
    let all_watch = Arc::new(Barrier::new(201));
    for n in 0..200 {
        let api = Arc::clone(&api);
        let all_watch = Arc::clone(&all_watch);
        watchers.spawn(async move {
            let path = if n % 10 == 0 { ALL } else { PROMO };
            let mut stream = EventStream::open(&api, path, None).await?;
            all_watch.wait().await;
            let mut events = Vec::new();
            // The last stock before the end is the one that all must have seen.
            let mut stock = None;
            while let Some(event) = stream.next().await? {
                if event.name == "stock" {
                    stock = Some(event.data);
                    continue;
                }
                let is_last = event.name == "deleted";
                events.push(event);
                if is_last && path == ALL {
                    break;
                }
            }
            anyhow::Ok((path, events, stock))
        });
    }
    timeout(PATIENCE, all_watch.wait()).await?;
    for n in 0..30 {
        assert_eq!(
            api.claim(&format!("user_{n}"), "PROMO").await?.shown(),
            "200"
        );
    }
    for pause in [true, false, true, false, true] {
        let sql = "select honcho_update_coupon('PROMO', paused => $1)";
        client.execute(sql, &[&pause]).await?;
    }
    let mut last = EventStream::open(&api, PROMO, None).await?;
    last.until_stock(|stock| stock["paused"] == true && stock["remaining_amount"] == 0)
        .await?;
    drop(last);
    let scrape = Scrape::of(&api.service).await?;
    let most = 4.0 * begun.elapsed().as_secs_f64() + 110.0;
    let polls = scrape.value("honcho_event_polls_total");
    // Those for new streams come in crowds, every 10 ms at most.
    assert!(polls < most, "{polls} polls, not {most}");
    client
        .execute("select honcho_delete_coupon('PROMO', true)", &[])
        .await?;
    let mut received = Vec::new();
    while let Some(watcher) = watchers.join_next().await {
        received.push(watcher??);
    }
    let (_, first, _) = &received[0];
    assert_eq!(
        names(first),
        [
            "sold_out", "paused", "resumed", "paused", "resumed", "paused", "deleted"
        ]
    );
    for (path, events, stock) in &received {
        assert_eq!(events, first, "{path}");
        if *path == PROMO {
            let stock = stock.as_ref().context("no stock")?;
            assert_eq!(stock["remaining_amount"], 0);
            assert_eq!(stock["paused"], true);
        }
    }
    until_open(&api, 0.0).await?;
    database.books().await
}

#[tokio::test]
async fn unknown_coupon_is_404_before_the_stream() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    let long = "x".repeat(256);
    for name in ["NOTHING", "%FF", "%00", long.as_str()] {
        for id in [None, Some(0)] {
            let path = format!("/api/coupons/{name}/events");
            let mut request = api.request(Method::GET, &path);
            if let Some(id) = id {
                request = request.header("last-event-id", id);
            }
            let answered = refused(request).await?;
            assert_eq!(answered.shown(), "404 coupon_not_found", "{name}");
        }
    }
    // It is there as soon as it is created.
    database.create_coupon("NOTHING", 1).await?;
    let mut stream = EventStream::open(&api, "/api/coupons/NOTHING/events", None).await?;
    assert_eq!(stream.until("stock").await?.data["state"], "open");
    // A stream does not outlive its coupon, even if no event says so.
    let client = database.connect().await?;
    client.execute("delete from coupons", &[]).await?;
    assert_eq!(stream.rest().await?, []);
    until_open(&api, 0.0).await
}

#[tokio::test]
async fn stock_comes_at_most_four_times_a_second() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1_000_000).await?;
    let api = Api::start(database.caller_url()).await?;
    let mut stream = EventStream::open(&api, PROMO, None).await?;
    stream.until("stock").await?;
    let is_over = AtomicBool::new(false);
    let claims = async {
        for n in 0.. {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            assert_eq!(api.claim(&format!("user_{n}"), "PROMO").await?.status, 200);
        }
        anyhow::Ok(())
    };
    let watch = async {
        let begun = Instant::now();
        for _ in 0..9 {
            stream.until("stock").await?;
        }
        is_over.store(true, Ordering::Relaxed);
        anyhow::Ok(begun.elapsed())
    };
    let (claims, watched) = tokio::join!(claims, watch);
    claims?;
    // There are eight intervals between nine of them; each is measured from the beginning of a poll.
    let watched = watched?;
    assert!(watched > Duration::from_millis(1_900), "{watched:?}");
    database.books().await
}
