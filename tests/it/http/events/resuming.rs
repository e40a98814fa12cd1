//! Streams that are resumed, and what they do if events are gone.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use honcho_tests::{ClusterOptions, Database, Stop, eventually};
use reqwest::Method;
use tokio::task::JoinSet;

use super::{ALL, PROMO, ids, restock, restock_at_once, written};
use crate::fixtures::{
    api::Api,
    event_stream::{EventStream, refused},
    scrape::Scrape,
};

/// A client that comes back with the last id that it has: to another service, while events are written.
#[tokio::test]
async fn resumed_streams_miss_nothing_across_restarts() -> Result<()> {
    let database = Arc::new(crate::database().await?);
    for name in ["PROMO", "OTHER"] {
        database.create_coupon(name, 1).await?;
    }
    let client = database.connect().await?;
    let created = written(&client, None).await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for name in ["PROMO", "OTHER"] {
        let (database, is_over) = (Arc::clone(&database), Arc::clone(&is_over));
        writers.spawn(async move {
            let mut client = database.connect().await?;
            while !is_over.load(Ordering::Relaxed) {
                // A transaction that takes its ids early and commits late.
                let open = client.transaction().await?;
                open.execute("select honcho_restock($1, 1)", &[&name])
                    .await?;
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..20))).await;
                open.execute("select honcho_restock($1, 1)", &[&name])
                    .await?;
                open.commit().await?;
            }
            anyhow::Ok(())
        });
    }
    let mut received: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    let mut resume: BTreeMap<&str, Option<i64>> = BTreeMap::new();
    for round in 0..4 {
        let mut api = Api::start(database.caller_url()).await?;
        let mut streams = Vec::new();
        for path in [PROMO, ALL] {
            let last = resume
                .get(path)
                .copied()
                .flatten()
                .or(created.last().copied());
            streams.push((path, EventStream::open(&api, path, last).await?));
        }
        for (path, stream) in &mut streams {
            for _ in 0..20 {
                let event = stream.until("restocked").await?;
                received.entry(path).or_default().extend(event.id);
            }
        }
        if round == 3 {
            is_over.store(true, Ordering::Relaxed);
            while let Some(writer) = writers.join_next().await {
                writer??;
            }
            for (path, stream) in &mut streams {
                let coupon = (*path == PROMO).then_some("PROMO");
                let last = written(&client, coupon).await?.last().copied();
                let received = received.entry(path).or_default();
                while received.last().copied() != last {
                    received.extend(stream.until("restocked").await?.id);
                }
            }
        }
        api.service.terminate()?;
        for (path, mut stream) in streams {
            received
                .entry(path)
                .or_default()
                .extend(ids(&stream.rest().await?));
            resume.insert(path, stream.last_event_id);
        }
        assert_eq!(api.service.exit().await?.code(), Some(0));
    }
    for (path, coupon) in [(PROMO, Some("PROMO")), (ALL, None)] {
        let mut expected = written(&client, coupon).await?;
        expected.retain(|id| !created.contains(id));
        assert_eq!(received[path], expected, "{path}");
    }
    database.books().await
}

/// More than one feed holds and more than one page of the database.
#[tokio::test]
async fn long_gaps_are_read_from_the_database() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    for name in ["PROMO", "OTHER"] {
        database.create_coupon(name, 1).await?;
        restock(&client, name, 450).await?;
    }
    let api = Api::start(database.caller_url()).await?;
    for (path, coupon) in [(PROMO, Some("PROMO")), (ALL, None)] {
        for from in [0, 100] {
            let expected = written(&client, coupon).await?;
            // From the beginning, by the query, and in the middle, by the header.
            let (path, last) = match from {
                0 => (format!("{path}?after=0"), None),
                _ => (format!("{path}?after=7"), Some(expected[from - 1])),
            };
            let mut stream = EventStream::open(&api, &path, last).await?;
            for id in &expected[from..] {
                let event = stream.next().await?.context("the stream ended")?;
                assert_eq!(event.id, Some(*id), "{path}");
            }
            // Then it goes on.
            restock(&client, "PROMO", 1).await?;
            let event = stream.until("restocked").await?;
            assert_eq!(event.id, written(&client, None).await?.last().copied());
        }
    }
    Ok(())
}

#[tokio::test]
async fn place_that_is_not_known_is_a_reset() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    database.create_coupon("PROMO", 1).await?;
    restock(&client, "PROMO", 3).await?;
    let api = Api::start(database.caller_url()).await?;
    let known = written(&client, None).await?;
    let last = known.last().copied().context("no event")?;
    for path in [PROMO, ALL] {
        for (wrong, named) in [
            ("x", "Last-Event-ID "),
            ("-1", "Last-Event-ID "),
            ("9223372036854775808", "Last-Event-ID "),
        ] {
            let request = api
                .request(Method::GET, path)
                .header("last-event-id", wrong);
            let refusal = refused(request).await?;
            assert_eq!(refusal.shown(), "400 invalid_request");
            let detail = refusal.body["detail"].as_str().unwrap_or_default();
            assert!(detail.starts_with(named), "{detail}");
        }
        for query in ["?limit=1", "?after=", "?after=1&after=2"] {
            let refusal = refused(api.request(Method::GET, &format!("{path}{query}"))).await?;
            assert_eq!(refusal.shown(), "400 invalid_request", "{query}");
        }
        // In the future: a failover may have lost it.
        let mut future = EventStream::open(&api, path, Some(last + 1_000)).await?;
        let reset = future.next().await?.context("no reset")?;
        assert_eq!((reset.name.as_str(), reset.id), ("reset", Some(last)));
        // Known ones are none.
        let mut resumed = EventStream::open(&api, path, Some(known[1])).await?;
        let event = resumed.next().await?.context("the stream ended")?;
        assert_eq!(
            (event.name.as_str(), event.id),
            ("restocked", Some(known[2]))
        );
    }
    // Purged.
    let purge = "select honcho_purge_events('infinity', 2)";
    client.execute(purge, &[]).await?;
    let api = Api::start(database.caller_url()).await?;
    for path in [PROMO, ALL] {
        let mut purged = EventStream::open(&api, path, Some(known[1])).await?;
        let reset = purged.next().await?.context("no reset")?;
        assert_eq!((reset.name.as_str(), reset.id), ("reset", Some(last)));
        let mut kept = EventStream::open(&api, path, Some(known[2])).await?;
        let event = kept.next().await?.context("the stream ended")?;
        assert_eq!(event.id, Some(known[3]));
    }
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(
        scrape.value("honcho_stream_events_total{kind=\"reset\"}"),
        2.0
    );
    Ok(())
}

#[tokio::test]
async fn beginning_of_purged_events_is_no_reset() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    database.create_coupon("PROMO", 1).await?;
    let api = Api::start(database.caller_url()).await?;
    for path in [ALL, PROMO] {
        // It keeps the feed, whose beginning is behind the events that are purged.
        let mut earlier = EventStream::open(&api, path, None).await?;
        restock(&client, "PROMO", 3).await?;
        for _ in 0..3 {
            earlier.until("restocked").await?;
        }
        let purge = "select honcho_purge_events(now() + interval '1 hour', 1000)";
        let purged: i32 = client.query_one(purge, &[]).await?.get(0);
        assert!(purged >= 3, "{purged}");
        let mut stream = EventStream::open(&api, path, Some(0)).await?;
        restock(&client, "PROMO", 1).await?;
        let last = written(&client, None).await?.last().copied();
        // First the last of those before, which stays.
        for id in [earlier.last_event_id, last] {
            let received = loop {
                let received = stream.next().await?.context("the stream ended")?;
                if received.name != "stock" {
                    break received;
                }
            };
            assert_eq!((&*received.name, received.id), ("restocked", id), "{path}");
        }
    }
    Ok(())
}

/// The client is still far behind them.
#[tokio::test]
async fn events_that_are_purged_before_they_are_sent_are_a_reset() -> Result<()> {
    let database = crate::database().await?;
    let mut client = database.connect().await?;
    database.create_coupon("PROMO", 1).await?;
    let api = Api::start(database.caller_url()).await?;
    for path in [PROMO, ALL] {
        let before = written(&client, None).await?.last().copied();
        restock_at_once(&client, "PROMO", 5000).await?;
        let mut stream = EventStream::open(&api, path, before).await?;
        stream.until("restocked").await?;
        // The lock lets no page be read meanwhile.
        let purge = client.transaction().await?;
        purge
            .batch_execute("lock table coupon_events; select honcho_purge_events('infinity')")
            .await?;
        purge.commit().await?;
        let last = written(&client, None).await?;
        assert_eq!(last.len(), 1);
        let reset = stream.until("reset").await?;
        assert_eq!(reset.id, last.last().copied(), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn stream_of_purged_events_can_be_resumed_after_a_restart() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    database.create_coupon("PROMO", 1).await?;
    restock(&client, "PROMO", 3).await?;
    let purge = "select honcho_purge_events('infinity')";
    client.execute(purge, &[]).await?;
    let api = Api::start(database.caller_url()).await?;
    let mut stream = EventStream::open(&api, ALL, None).await?;
    stream.until_position().await?;
    let position = stream.last_event_id;
    assert_eq!(position, written(&client, None).await?.last().copied());
    drop(stream);
    // While the client is away, an event is written and purged.
    restock(&client, "PROMO", 2).await?;
    client.execute(purge, &[]).await?;
    let api = Api::start(database.caller_url()).await?;
    let mut stream = EventStream::open(&api, ALL, position).await?;
    assert_eq!(
        stream.next().await?.context("the stream ended")?.name,
        "reset"
    );
    // A client that has the last event has missed nothing.
    let last = stream.last_event_id;
    let mut stream = EventStream::open(&api, ALL, last).await?;
    restock(&client, "PROMO", 1).await?;
    assert_eq!(
        stream.next().await?.context("the stream ended")?.name,
        "restocked"
    );
    Ok(())
}

#[tokio::test]
async fn streams_outlive_a_restart_of_the_database() -> Result<()> {
    let mut cluster = ClusterOptions::default().setting("fsync", "off").start()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 1).await?;
    let settings = [("HEARTBEAT_INTERVAL", "100ms")];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    let mut streams = Vec::new();
    for path in [PROMO, ALL] {
        streams.push(EventStream::open(&api, path, None).await?);
    }
    cluster.stop(Stop::Fast)?;
    for (stream, path) in streams.iter_mut().zip([PROMO, ALL]) {
        // Comments go on, and so does a stream that is polled already; a new one must say no.
        stream.until_comments(stream.comments + 5).await?;
        let refusal = refused(api.request(Method::GET, "/api/coupons/NEW/events")).await?;
        assert_eq!(refusal.shown(), "503 unavailable", "{path}");
    }
    cluster.start()?;
    let client = database.connect().await?;
    restock(&client, "PROMO", 1).await?;
    for stream in &mut streams {
        stream.until("restocked").await?;
    }
    database.books().await
}

#[tokio::test]
async fn database_without_events_says_so_until_it_is_updated() -> Result<()> {
    let database = Database::create_released(crate::cluster(), "0.2.0").await?;
    database.create_coupon("PROMO", 1).await?;
    let api = Api::start(database.caller_url()).await?;
    for path in [PROMO, ALL] {
        let refusal = refused(api.request(Method::GET, path)).await?;
        assert_eq!(refusal.shown(), "501 extension_outdated");
    }
    let client = database.connect().await?;
    let update = format!(
        "alter extension honcho update; grant execute on all functions in schema public to {}_caller",
        database.name()
    );
    client.batch_execute(&update).await?;
    for path in [PROMO, ALL] {
        eventually("a stream", async || {
            let opened = api.request(Method::GET, path).send().await?;
            Ok((opened.status() == 200).then_some(()))
        })
        .await?;
    }
    Ok(())
}
