//! Shutdown: requests in flight are finished first.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use honcho_tests::eventually;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};

use crate::fixtures::{
    api::Api,
    event_stream::EventStream,
    held_coupon::{LONG_TIMEOUTS, hold, until_queued},
    sql::claimed,
};

#[tokio::test]
async fn shutdown_finishes_requests_in_flight() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    api.until_ready().await?;
    // The coupon is held, so that claims wait when the signal comes.
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.execute("select honcho_claim('holder', 'PROMO')", &[])
        .await?;
    let mut claims = JoinSet::new();
    for n in 0..20 {
        let api = Arc::clone(&api);
        claims.spawn(async move { api.claim(&format!("user_{n}"), "PROMO").await });
    }
    let client = database.connect().await?;
    let waiting = "select count(*) from pg_stat_activity
                    where datname = current_database() and application_name = 'honcho-service'
                      and wait_event_type = 'Lock'";
    eventually("a claim to wait in the database", async || {
        Ok((client.query_one(waiting, &[]).await?.get::<_, i64>(0) > 0).then_some(()))
    })
    .await?;
    // Wherever the other claims wait, the service must have their connections.
    eventually("all connections to be accepted", async || {
        let sockets = api.service.open_sockets()?;
        // The listener, at least two to the database (one for a claim, one for health), and twenty to
        // clients.
        Ok((sockets >= 23).then_some(()))
    })
    .await?;

    api.service.terminate()?;
    eventually("the service to stop listening", async || {
        Ok(TcpStream::connect(api.service.address())
            .await
            .is_err()
            .then_some(()))
    })
    .await?;
    held.commit().await?;
    while let Some(claim) = claims.join_next().await {
        assert_eq!(claim??.status, 200);
    }
    let mut api = Arc::into_inner(api).unwrap();
    assert_eq!(
        api.service.exit().await?.code(),
        Some(0),
        "{}",
        api.service.log()
    );
    let claims: i64 = client
        .query_one("select count(*) from claims", &[])
        .await?
        .get(0);
    assert_eq!(claims, 21);
    database.books().await
}

#[tokio::test]
async fn shutdown_under_load_answers_every_claim_it_made() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", i32::MAX).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    let answered = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for client in 0..16 {
        let (api, answered) = (Arc::clone(&api), Arc::clone(&answered));
        clients.spawn(async move {
            // Until the service has exited, which a client sees as a refused or closed connection.
            for n in 0.. {
                match api
                    .claim_request(&format!("{client}_{n}"), "PROMO")
                    .send()
                    .await
                {
                    Ok(answer) => {
                        ensure!(answer.status() == 200, "{}", answer.text().await?);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => break,
                }
            }
            Ok(())
        });
    }
    eventually("some claims", async || {
        Ok((answered.load(Ordering::Relaxed) > 200).then_some(()))
    })
    .await?;
    api.service.terminate()?;
    while let Some(client) = clients.join_next().await {
        client??;
    }
    let mut api = Arc::into_inner(api).unwrap();
    assert_eq!(
        api.service.exit().await?.code(),
        Some(0),
        "{}",
        api.service.log()
    );
    let client = database.connect().await?;
    let claims: i64 = client
        .query_one("select count(*) from claims", &[])
        .await?
        .get(0);
    assert_eq!(claims, i64::from(answered.load(Ordering::Relaxed)));
    database.books().await
}

#[tokio::test]
async fn idle_connections_do_not_delay_shutdown() -> Result<()> {
    let database = crate::database().await?;
    let mut api = Api::start(database.caller_url()).await?;
    // One connection that was used and is kept alive, and one that never sent a byte.
    let mut used = TcpStream::connect(api.service.address()).await?;
    used.write_all(b"GET /api/coupons/none HTTP/1.1\r\nhost: here\r\n\r\n")
        .await?;
    let mut byte = [0];
    used.read_exact(&mut byte).await?;
    let _fresh = TcpStream::connect(api.service.address()).await?;
    assert_eq!(api.show("none").await?.status, 404);
    api.service.terminate()?;
    assert_eq!(
        api.service.exit().await?.code(),
        Some(0),
        "{}",
        api.service.log()
    );
    assert!(!api.service.log().contains("did not finish"));
    Ok(())
}

/// One still sends the body of a request that was answered without it, one has sent a part of a head.
#[tokio::test]
async fn clients_without_a_whole_request_do_not_delay_shutdown() -> Result<()> {
    let database = crate::database().await?;
    let settings = [
        ("SHUTDOWN_TIMEOUT", "5s"),
        ("HEADER_TIMEOUT", "60s"),
        ("BODY_TIMEOUT", "60s"),
    ];
    let mut api = Api::start_with(database.caller_url(), &settings).await?;
    let mut unread = TcpStream::connect(api.service.address()).await?;
    unread
        .write_all(
            b"POST /api/nothing HTTP/1.1\r\nhost: here\r\ncontent-length: 1000000\r\n\r\nbody",
        )
        .await?;
    let mut answer = Vec::new();
    // To the end of the answer: the service waits for the client's from then on.
    unread.read_to_end(&mut answer).await?;
    assert!(answer.starts_with(b"HTTP/1.1 404 "), "{answer:?}");
    let mut begun = TcpStream::connect(api.service.address()).await?;
    begun.write_all(b"POST /api/nothing HTTP/1.1\r\nho").await?;
    assert_eq!(api.show("none").await?.status, 404);
    api.service.terminate()?;
    assert_eq!(
        api.service.exit().await?.code(),
        Some(0),
        "{}",
        api.service.log()
    );
    Ok(())
}

#[tokio::test]
async fn shutdown_finishes_claims_whose_clients_left() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let mut api = Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?;
    let holder = hold(&database, "PROMO").await?;
    let claim = tokio::spawn(api.claim_request("user", "PROMO").send());
    let client = database.connect().await?;
    until_queued(&client, 1).await?;
    claim.abort();
    api.service.terminate()?;
    eventually("the service to stop listening", async || {
        let connected = TcpStream::connect(api.service.address()).await;
        Ok(connected.is_err().then_some(()))
    })
    .await?;
    // Much longer than an exit would take.
    let waits = "select count(*) = 1 from pg_stat_activity
                  where datname = current_database() and application_name = 'honcho-service'
                    and wait_event_type = 'Lock' and now() - query_start > interval '500 ms'";
    eventually("the claim to keep waiting", async || {
        let row = client.query_one(waits, &[]).await?;
        Ok(row.get::<_, bool>(0).then_some(()))
    })
    .await?;
    let process = format!("/proc/{}/stat", api.service.pid());
    let state = std::fs::read_to_string(process)?;
    assert!(!state.contains(") Z "), "it has left: {state}");
    holder.batch_execute("rollback").await?;
    assert_eq!(api.service.exit().await?.code(), Some(0));
    assert_eq!(claimed(&client).await?, ["user"]);
    database.books().await
}

#[tokio::test]
async fn shutdown_timeout_bounds_the_wait_and_no_session_is_left() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let settings = [
        LONG_TIMEOUTS[0],
        LONG_TIMEOUTS[1],
        ("SHUTDOWN_TIMEOUT", "500ms"),
    ];
    let mut api = Api::start_with(database.caller_url(), &settings).await?;
    let client = database.connect().await?;
    let holder = hold(&database, "PROMO").await?;
    let claim = tokio::spawn(api.claim_request("user", "PROMO").send());
    until_queued(&client, 1).await?;
    api.service.terminate()?;
    assert_eq!(api.service.exit().await?.code(), Some(1));
    assert!(api.service.log().contains("did not finish in time"));
    assert!(claim.await?.is_err());
    holder.batch_execute("rollback").await?;

    let mut api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    api.claim("another", "PROMO").await?;
    api.service.terminate()?;
    assert_eq!(api.service.exit().await?.code(), Some(0));
    let sessions = "select count(*) from pg_stat_activity
                     where datname = current_database() and application_name like 'honcho-service%'";
    eventually("all sessions to end", async || {
        let sessions: i64 = client.query_one(sessions, &[]).await?.get(0);
        Ok((sessions == 0).then_some(()))
    })
    .await?;
    database.books().await
}

#[tokio::test]
async fn second_signal_exits_immediately() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let mut api = Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?;
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.execute("select honcho_claim('holder', 'PROMO')", &[])
        .await?;
    let claim = tokio::spawn(api.claim_request("user", "PROMO").send());
    let client = database.connect().await?;
    let waiting = "select count(*) from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock'";
    eventually("the claim to wait", async || {
        Ok((client.query_one(waiting, &[]).await?.get::<_, i64>(0) == 1).then_some(()))
    })
    .await?;
    // Signals in the same moment are one: `timeout`, for example, signals the process and then its group.
    api.service.terminate()?;
    api.service.interrupt()?;
    eventually("the service to be stopping", async || {
        Ok(api.service.log().contains("stopping").then_some(()))
    })
    .await?;
    sleep(Duration::from_millis(500)).await;
    let log = api.service.log();
    assert!(!log.contains("second signal"), "{log}");
    api.service.terminate()?;
    assert_eq!(api.service.exit().await?.code(), Some(1));
    assert!(claim.await?.is_err());
    held.rollback().await?;
    database.books().await
}

#[tokio::test]
async fn port_in_use_is_named_in_the_error() -> Result<()> {
    let database = crate::database().await?;
    let first = Api::start(database.caller_url()).await?;
    let port = first.service.address().port().to_string();
    let second = Api::start_with(database.caller_url(), &[("PORT", &port)]).await;
    let error = format!("{:#}", second.err().unwrap());
    assert!(
        error.contains(&format!("cannot listen on 127.0.0.1:{port}")),
        "{error}"
    );
    Ok(())
}

/// They would never end by themselves.
#[tokio::test]
async fn event_streams_end_at_once_at_shutdown() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let mut api = Api::start_with(database.caller_url(), &[("SHUTDOWN_TIMEOUT", "30s")]).await?;
    let mut streams = Vec::new();
    for n in 0..20 {
        let path = ["/api/events", "/api/coupons/PROMO/events"][n % 2];
        streams.push(EventStream::open(&api, path, None).await?);
    }
    let asked = Instant::now();
    api.service.terminate()?;
    for mut stream in streams {
        // An end, not a transfer that breaks off.
        assert_eq!(stream.rest().await?, []);
        assert!(stream.last_event_id.is_some());
    }
    assert_eq!(
        api.service.exit().await?.code(),
        Some(0),
        "{}",
        api.service.log()
    );
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    let log = api.service.log();
    assert!(
        !log.contains("did not finish") && !log.contains("broke off"),
        "{log}"
    );
    Ok(())
}
