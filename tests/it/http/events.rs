//! Streams of events: order, resumption, bounds, and what they cost others.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use honcho_tests::{ClusterOptions, Database, PATIENCE, Service, Stop, eventually};
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Barrier,
    task::JoinSet,
    time::timeout,
};
use tokio_postgres::Client;

use crate::fixtures::{
    MIB,
    api::Api,
    event_stream::{EventStream, Received, refused},
    scrape::Scrape,
};

/// Stream of the coupon `PROMO`.
const PROMO: &str = "/api/coupons/PROMO/events";

/// Stream of all coupons.
const ALL: &str = "/api/events";

/// Adds `count` events to a coupon: its stock grows by one with each, in a transaction of its own.
async fn restock(client: &Client, coupon: &str, count: i32) -> Result<()> {
    for _ in 0..count {
        client
            .execute("select honcho_restock($1, 1)", &[&coupon])
            .await?;
    }
    Ok(())
}

/// Adds `count` events to a coupon in one transaction.
async fn restock_at_once(client: &Client, coupon: &str, count: i32) -> Result<()> {
    // With an argument of each row: else the function is called once.
    let sql = "select count(*) from generate_series(1, $2::integer) as n,
                      lateral honcho_restock($1, least(n, 1))";
    let added: i64 = client.query_one(sql, &[&coupon, &count]).await?.get(0);
    ensure!(added == i64::from(count), "{added}");
    Ok(())
}

/// Ids of the events in the table, of one coupon or of all.
async fn written(client: &Client, coupon: Option<&str>) -> Result<Vec<i64>> {
    let sql = "select id from coupon_events where $1::text is null or coupon_name = $1 order by id";
    let rows = client.query(sql, &[&coupon]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn ids(events: &[Received]) -> Vec<i64> {
    events.iter().filter_map(|event| event.id).collect()
}

fn names(events: &[Received]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

async fn open_streams(api: &Api) -> Result<f64> {
    Ok(Scrape::of(&api.service).await?.value("honcho_streams"))
}

async fn until_open(api: &Api, count: f64) -> Result<()> {
    eventually(&format!("{count} open streams"), async || {
        Ok((open_streams(api).await? == count).then_some(()))
    })
    .await
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
        let expected = written(&client, coupon).await?;
        for from in [0, 100] {
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
            client
                .execute("delete from coupon_events where id = $1", &[&event.id])
                .await?;
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
async fn comments_keep_a_stream_open_beyond_all_timeouts() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let settings = [
        ("HEARTBEAT_INTERVAL", "100ms"),
        ("REQUEST_TIMEOUT", "2s"),
        ("IDLE_TIMEOUT", "2s"),
        ("HEADER_TIMEOUT", "2s"),
    ];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    for path in [PROMO, ALL] {
        let begun = Instant::now();
        let mut stream = EventStream::open(&api, path, None).await?;
        stream.until_comments(25).await?;
        assert!(begun.elapsed() > Duration::from_millis(2_400));
        let client = database.connect().await?;
        restock(&client, "PROMO", 1).await?;
        stream.until("restocked").await?;
    }
    // A client that leaves breaks nothing off.
    until_open(&api, 0.0).await?;
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(scrape.value("honcho_http_answers_broken_off_total"), 0.0);
    assert!(
        !api.service.log().contains("broke off"),
        "{}",
        api.service.log()
    );
    Ok(())
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

/// Streams take neither the permits of requests nor the connections of claims.
#[tokio::test]
async fn streams_have_a_bound_of_their_own() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1_000).await?;
    let settings = [
        ("STREAM_LIMIT", "20"),
        ("REQUEST_LIMIT", "1"),
        ("DATABASE_POOL_SIZE", "1"),
    ];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(EventStream::open(&api, PROMO, None).await?);
    }
    for path in [PROMO, ALL] {
        let refusal = refused(api.request(Method::GET, path)).await?;
        assert_eq!(refusal.shown(), "503 overloaded");
        assert!(!refusal.header("retry-after").is_empty());
    }
    for n in 0..100 {
        assert_eq!(
            api.claim(&format!("user_{n}"), "PROMO").await?.shown(),
            "200"
        );
    }
    for stream in &mut streams {
        stream
            .until_stock(|stock| stock["remaining_amount"] == 900)
            .await?;
    }
    let client = database.connect().await?;
    let connections = "select count(*) from pg_stat_activity
                        where datname = current_database() and application_name = 'honcho-service'";
    let connections: i64 = client.query_one(connections, &[]).await?.get(0);
    assert_eq!(connections, 1);
    streams.pop();
    until_open(&api, 19.0).await?;
    EventStream::open(&api, ALL, None).await?;
    database.books().await
}

#[tokio::test]
async fn polls_stop_with_the_last_watcher() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    database.create_coupon("PROMO", 5).await?;
    let api = Api::start(database.caller_url()).await?;
    let polls = async || -> Result<f64> {
        let scrape = Scrape::of(&api.service).await?;
        Ok(scrape.value("honcho_event_polls_total"))
    };
    assert_eq!(polls().await?, 0.0);
    for _ in 0..2 {
        let before = polls().await?;
        let mut stream = EventStream::open(&api, PROMO, None).await?;
        eventually("polls", async || {
            Ok((polls().await? > before + 3.0).then_some(()))
        })
        .await?;
        restock(&client, "PROMO", 1).await?;
        stream.until("restocked").await?;
        drop(stream);
        until_open(&api, 0.0).await?;
        // Events that nobody watches are not for the next watcher.
        restock(&client, "PROMO", 1).await?;
        let quiet = "select max(query_start) < clock_timestamp() - interval '1 second'
                       from pg_stat_activity
                      where datname = current_database() and application_name = 'honcho-service'";
        eventually("a second without polls", async || {
            Ok(client
                .query_one(quiet, &[])
                .await?
                .get::<_, bool>(0)
                .then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// Opens a stream on a connection with a small receive window, and reads its first byte.
async fn open_unread(service: &Service, path: &str) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(service.address()).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    Ok(stream)
}

#[tokio::test]
async fn watcher_that_reads_nothing_is_cut_off() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    // Events of a kilobyte.
    let name = "\u{10348}".repeat(255);
    database.create_coupon(&name, 1).await?;
    let api = Api::start_with(database.caller_url(), &[("WRITE_TIMEOUT", "500ms")]).await?;
    let mut unread = Vec::new();
    for _ in 0..50 {
        unread.push(open_unread(&api.service, ALL).await?);
    }
    let mut reader = EventStream::open(&api, ALL, None).await?;
    until_open(&api, 51.0).await?;
    let before = api.service.resident_bytes()?;
    restock_at_once(&client, &name, 2_000).await?;
    let mut received = Vec::new();
    for _ in 0..2_000 {
        received.extend(reader.until("restocked").await?.id);
    }
    assert_eq!(received, written(&client, None).await?[1..]);
    // The 2 MB of events are there a few times at most, and not for each of those that do not read them.
    let peak = api.service.peak_resident_bytes()?;
    assert!(peak < before + 40 * MIB, "{} MiB", (peak - before) / MIB);
    until_open(&api, 1.0).await?;
    api.service
        .logged("received nothing of an answer for 500ms and is cut off")
        .await?;
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(scrape.value("honcho_connections_cut_off_total"), 50.0);
    restock(&client, &name, 1).await?;
    reader.until("restocked").await?;
    Ok(())
}

#[tokio::test]
async fn watcher_that_reads_nothing_does_not_delay_the_exit() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    // Events of a kilobyte.
    let name = "\u{10348}".repeat(255);
    database.create_coupon(&name, 1).await?;
    let settings = [("WRITE_TIMEOUT", "300s"), ("SHUTDOWN_TIMEOUT", "300s")];
    let mut api = Api::start_with(database.caller_url(), &settings).await?;
    let mut unread = Vec::new();
    for path in [ALL, ALL, &format!("/api/coupons/{name}/events")] {
        unread.push(open_unread(&api.service, path).await?);
    }
    let mut reader = EventStream::open(&api, ALL, None).await?;
    restock_at_once(&client, &name, 2_000).await?;
    for _ in 0..2_000 {
        reader.until("restocked").await?;
    }
    api.service.terminate()?;
    // Of what is ready, readers receive all.
    assert_eq!(reader.rest().await?, []);
    assert!(api.service.exit().await?.success());
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
async fn stream_ends_when_its_token_is_withdrawn() -> Result<()> {
    const TOKEN: &str = "read-0123456789abcdef";
    const OTHER: &str = "claim-0123456789abcdef";
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("tokens");
    fs::write(&file, format!("{TOKEN}:read {OTHER}:claim"))?;
    let settings = [
        ("API_TOKENS_FILE", file.to_str().context("no path")?),
        ("HEARTBEAT_INTERVAL", "100ms"),
    ];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    let request = |path: &str, token: &str| {
        let request = api.request(Method::GET, path);
        request.header("authorization", format!("Bearer {token}"))
    };
    for path in [PROMO, ALL] {
        assert_eq!(refused(api.request(Method::GET, path)).await?.status, 401);
        assert_eq!(
            refused(request(path, OTHER)).await?.shown(),
            "403 forbidden"
        );
    }
    let mut streams = Vec::new();
    for path in [PROMO, ALL] {
        let stream = request(path, TOKEN).send().await?;
        assert_eq!(stream.status(), 200);
        streams.push(stream);
    }
    fs::write(&file, format!("{OTHER}:claim"))?;
    api.reload("tokens: 0 new or changed, 1 gone or changed, 1 as before")
        .await?;
    for stream in streams {
        // The end, and no error.
        timeout(PATIENCE, stream.bytes()).await??;
    }
    until_open(&api, 0.0).await
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
