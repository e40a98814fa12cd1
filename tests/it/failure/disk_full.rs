//! The disk of the tables runs full: nothing is told that is not so, and readiness says it, also while nobody
//! claims.

use std::fs::{self, File};

use anyhow::Result;
use honcho_tests::{ClusterOptions, Database};

use crate::{fixtures::api::Api, fixtures::preloaded::Library, operations::health::soon};

#[tokio::test]
async fn it_is_not_ready_while_the_disk_is_full() -> Result<()> {
    let library = Library::compile("disk_full", include_str!("disk_full.c"))?;
    let cluster = ClusterOptions::default()
        .environment("LD_PRELOAD", library.path())
        .start()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 10).await?;
    let api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    let full = cluster.directory().join("disk_full");
    let detail = "the database's disk is full";

    // Before anybody claims.
    File::create(&full)?;
    api.until_not_ready(detail).await?;
    // The first claim would be the first row of its table.
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
    assert_eq!(api.health("live").await?.status, 200);
    fs::remove_file(&full)?;
    soon("readiness", api.until_ready()).await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "200");
    api.service.logged("SQLSTATE 53100").await?;

    // Once a claim has met it, at once.
    database.create_coupon("OTHER", 1_000).await?;
    File::create(&full)?;
    let mut told = "200".to_owned();
    for n in 0..1_000 {
        told = api.claim(&format!("user {n}"), "OTHER").await?.shown();
        if told != "200" {
            break;
        }
    }
    // The table cannot grow by another page.
    assert_eq!(told, "503 unavailable");
    soon("unreadiness", api.until_not_ready(detail)).await?;
    fs::remove_file(&full)?;
    soon("readiness", api.until_ready()).await?;
    database.books().await
}
