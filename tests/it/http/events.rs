//! Streams of events.

mod connections;
mod delivery;
mod resuming;

use anyhow::{Result, ensure};
use honcho_tests::eventually;
use tokio_postgres::Client;

use crate::fixtures::{api::Api, event_stream::Received, scrape::Scrape};

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
