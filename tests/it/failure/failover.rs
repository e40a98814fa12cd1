//! Failover: the service follows the primary.

use std::sync::Arc;

use anyhow::{Context, Result};
use honcho_tests::{Cluster, ClusterOptions, Database, Proxy, Stop, connect, eventually};
use reqwest::Method;

use crate::fixtures::{
    api::Api,
    event_stream::{EventStream, refused},
    held_coupon::{claim, hold, until_queued},
    readiness::soon,
    recovery::{until_claims_succeed, until_well, url_through},
};

/// A primary, its standby, and a service that is configured with both.
struct Pair {
    primary: Cluster,
    standby: Cluster,
    database: Database,
    api: Arc<Api>,
}

impl Pair {
    async fn start() -> Result<Self> {
        let options = ClusterOptions::default().setting("fsync", "off");
        let primary = options.clone().start()?;
        let standby = options.start_standby_of(&primary)?;
        let database = Database::create(&primary).await?;
        database.create_coupon("PROMO", 1000).await?;
        let pair = Self {
            api: Arc::new(Api::start(&url_of_both(&database, &primary, &standby)).await?),
            primary,
            standby,
            database,
        };
        until_well(&pair.api, "before").await?;
        pair.until_standby_has(1).await?;
        Ok(pair)
    }

    async fn until_standby_has(&self, count: usize) -> Result<()> {
        eventually("the standby to have all claims", async || {
            let url = self.standby.url("postgres", self.database.name());
            let Ok(client) = connect(&url).await else {
                return Ok(None);
            };
            let claims = client.query("select from claims", &[]).await;
            Ok(claims
                .is_ok_and(|claims| claims.len() == count)
                .then_some(()))
        })
        .await
    }

    async fn check_standby_books(&self) -> Result<()> {
        let url = self.standby.url("postgres", self.database.name());
        honcho_tests::books(&connect(&url).await?).await
    }
}

fn url_of_both(database: &Database, primary: &Cluster, standby: &Cluster) -> String {
    format!(
        "host={},{} user={name}_caller dbname={name}",
        primary.directory().display(),
        standby.directory().display(),
        name = database.name()
    )
}

#[tokio::test]
async fn service_follows_from_a_killed_primary_to_its_standby() -> Result<()> {
    let mut pair = Pair::start().await?;
    pair.primary.stop(Stop::Kill)?;
    // The standby runs, but takes no claims.
    pair.api
        .until_not_ready("no server that answers takes writes")
        .await?;
    let answered = pair.api.claim("user", "PROMO").await?;
    assert_eq!(answered.shown(), "503 unavailable");
    pair.standby.promote()?;
    soon("failover", until_well(&pair.api, "after")).await?;
    pair.check_standby_books().await
}

#[tokio::test]
async fn service_follows_from_a_frozen_primary_to_its_standby() -> Result<()> {
    let pair = Pair::start().await?;
    for coupon in OTHERS {
        pair.database.create_coupon(coupon, 10).await?;
    }
    // Concurrent claims open several connections to the primary.
    let mut holders = Vec::new();
    for coupon in OTHERS {
        holders.push(hold(&pair.database, coupon).await?);
    }
    let claims = OTHERS.map(|coupon| claim(&pair.api, "user", coupon));
    until_queued(&pair.database.connect().await?, OTHERS.len() as i64).await?;
    drop(holders);
    for claim in claims {
        assert_eq!(claim.await??, "200");
    }
    pair.until_standby_has(1 + OTHERS.len()).await?;
    let _frozen = pair.primary.freeze()?;
    let under_way = claim(&pair.api, "lost", "PROMO");
    pair.standby.promote()?;
    soon("failover", async {
        // The service may have been unready for too short a time to observe.
        eventually("the service to be ready again", async || {
            Ok(pair
                .api
                .service
                .log()
                .contains(" ready after ")
                .then_some(()))
        })
        .await?;
        // No connection of the pool leads to the old primary any more.
        for claim in OTHERS.map(|coupon| claim(&pair.api, "another", coupon)) {
            assert_eq!(claim.await??, "200");
        }
        // The lane whose claim went to the old primary does not wait for it either.
        until_claims_succeed(&pair.api, "after").await
    })
    .await?;
    // The old primary may have received it, unless its connection still had to prepare the statement.
    let answered = under_way.await??;
    let known = ["503 outcome_unknown", "200"].contains(&answered.as_str());
    assert!(known, "{answered}");
    // A new service tries the frozen server first.
    let url = url_of_both(&pair.database, &pair.primary, &pair.standby);
    let another = Api::start(&url).await?;
    soon("starting", until_well(&another, "another")).await?;
    pair.check_standby_books().await
}

/// A server to which a shard may move refuses connections, because it does not have the database yet. That is no answer
/// while the server that has it is away.
#[tokio::test]
async fn server_without_the_database_does_not_hide_an_outage() -> Result<()> {
    let mut home = ClusterOptions::default().setting("fsync", "off").start()?;
    let database = Database::create(&home).await?;
    database.create_coupon("PROMO", 1000).await?;
    let other = crate::cluster();
    for (n, url) in [
        url_of_both(&database, &home, other),
        url_of_both(&database, other, &home),
    ]
    .into_iter()
    .enumerate()
    {
        let api = Api::start(&url).await?;
        until_well(&api, &format!("before {n}")).await?;
        let check = async |detail: &str| {
            api.until_not_ready(detail).await?;
            for _ in 0..3 {
                let claimed = api.claim("user", "PROMO").await?;
                assert_eq!(claimed.shown(), "503 unavailable", "{url}");
                let read = api.send(Method::GET, "PROMO").await?;
                assert_eq!(read.shown(), "503 unavailable", "{url}");
            }
            anyhow::Ok(())
        };
        home.stop(Stop::Kill)?;
        check("the database cannot be reached").await?;
        home.start()?;
        soon("restart", until_well(&api, &format!("after {n}"))).await?;
        let frozen = home.freeze()?;
        check("the database does not answer").await?;
        drop(frozen);
        soon("thaw", until_well(&api, &format!("at the end {n}"))).await?;
    }
    // Without an outage it is a fault of the configuration.
    let url = format!(
        "host={} user=stranger dbname=nothing",
        other.directory().display()
    );
    let api = Api::start(&url).await?;
    api.until_not_ready("the database refuses the service's connections")
        .await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "500 internal");
    Ok(())
}

const ALL: &str = "/api/events";
const RESTOCK: &str = "select honcho_restock('PROMO', 1)";

impl Pair {
    /// Opens streams of all events and of the coupon, and writes events that only the primary and they have. Returns the
    /// streams, with the id of the last event that the standby has. It is stopped.
    async fn write_unreplicated_events(
        &mut self,
        api: &Api,
    ) -> Result<(Vec<EventStream>, Option<i64>)> {
        let mut streams = Vec::new();
        for path in [ALL, "/api/coupons/PROMO/events"] {
            streams.push(EventStream::open(api, path, None).await?);
        }
        let primary = self.database.connect().await?;
        primary.execute(RESTOCK, &[]).await?;
        for stream in &mut streams {
            stream.until("restocked").await?;
        }
        let kept = streams[0].last_event_id;
        let standby = connect(&self.standby.url("postgres", self.database.name())).await?;
        eventually("the standby to have the event", async || {
            let sql = "select max(id) from coupon_events";
            Ok((standby.query_one(sql, &[]).await?.get::<_, Option<i64>>(0) == kept).then_some(()))
        })
        .await?;
        drop(standby);
        self.standby.stop(Stop::Fast)?;
        for _ in 0..3 {
            primary.execute(RESTOCK, &[]).await?;
        }
        for stream in &mut streams {
            for _ in 0..3 {
                stream.until("restocked").await?;
            }
        }
        Ok((streams, kept))
    }
}

/// The standby did not have the last events: who has seen them must know, for their ids will be given to others.
#[tokio::test]
async fn event_streams_go_on_after_a_failover_that_lost_events() -> Result<()> {
    let mut pair = Pair::start().await?;
    let name = pair.database.name().to_owned();
    let api = Arc::clone(&pair.api);
    let (mut streams, kept) = pair.write_unreplicated_events(&api).await?;
    pair.primary.stop(Stop::Kill)?;
    pair.standby.start()?;
    // It lists no events, which is no defect.
    let alone = Api::start(&pair.standby.url(&format!("{name}_caller"), &name)).await?;
    let refusal = refused(alone.request(Method::GET, ALL)).await?;
    assert_eq!(refusal.shown(), "503 unavailable");
    pair.standby.promote()?;
    until_well(&pair.api, "after").await?;
    for stream in &mut streams {
        assert_eq!(stream.until("reset").await?.id, kept);
    }
    let standby = connect(&pair.standby.url("postgres", &name)).await?;
    standby.execute(RESTOCK, &[]).await?;
    for stream in &mut streams {
        let event = stream.until("restocked").await?;
        assert_eq!(event.data["details"]["amount"], 1002);
    }
    pair.check_standby_books().await
}

/// The ids of a new primary may go on above those that are lost. Here it has their server's address, too, and has written
/// an event before the service finds it.
#[tokio::test]
async fn event_streams_notice_lost_events_before_newer_ones() -> Result<()> {
    let mut pair = Pair::start().await?;
    let socket = |cluster: &Cluster| cluster.directory().join(".s.PGSQL.5432");
    let proxy = Proxy::start(socket(&pair.primary)).await?;
    let api = Api::start(&url_through(&proxy, &pair.database)).await?;
    let (mut streams, kept) = pair.write_unreplicated_events(&api).await?;
    let lost = streams[0].last_event_id;
    api.service.freeze()?;
    pair.primary.stop(Stop::Kill)?;
    pair.standby.start()?;
    pair.standby.promote()?;
    proxy.lead_to(socket(&pair.standby));
    let standby = connect(&pair.standby.url("postgres", pair.database.name())).await?;
    standby.execute(RESTOCK, &[]).await?;
    let newer = "select max(id) from coupon_events";
    let newer: Option<i64> = standby.query_one(newer, &[]).await?.get(0);
    assert!(newer > lost, "{newer:?} is not above {lost:?}");
    api.service.thaw()?;
    for stream in &mut streams {
        assert_eq!(stream.until("reset").await?.id, kept);
        let event = stream.until("restocked").await?;
        assert_eq!(event.id, newer);
        assert_eq!(event.data["details"]["amount"], 1002);
    }
    // So does who comes back.
    let mut resumed = EventStream::open(&api, ALL, lost).await?;
    let reset = resumed.next().await?.context("the stream ended")?;
    assert_eq!((&*reset.name, reset.id), ("reset", newer));
    pair.check_standby_books().await
}

const OTHERS: [&str; 4] = ["A", "B", "C", "D"];

#[tokio::test]
async fn service_on_a_standby_becomes_ready_when_it_is_promoted() -> Result<()> {
    let pair = Pair::start().await?;
    let name = pair.database.name();
    let url = pair.standby.url(&format!("{name}_caller"), name);
    let api = Api::start(&url).await?;
    api.until_not_ready("the database is a standby, which takes no claims")
        .await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
    // Reads are served by the standby.
    assert_eq!(api.show("PROMO").await?.status, 200);
    pair.standby.promote()?;
    soon("promotion", until_well(&api, "after")).await?;
    pair.check_standby_books().await
}

#[tokio::test]
async fn service_reconnects_when_its_address_moves_from_standby_to_primary() -> Result<()> {
    let pair = Pair::start().await?;
    let socket = |cluster: &Cluster| cluster.directory().join(".s.PGSQL.5432");
    let proxy = Proxy::start(socket(&pair.standby)).await?;
    let settings = [("DATABASE_POOL_SIZE", "1")];
    let api = Api::start_with(&url_through(&proxy, &pair.database), &settings).await?;
    api.until_not_ready("the database is a standby, which takes no claims")
        .await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
    // The old connection still works and would lead to the standby for ever.
    proxy.lead_to(socket(&pair.primary));
    soon("recovery", until_well(&api, "after")).await?;
    pair.database.books().await
}
