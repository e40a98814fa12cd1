//! Integration tests over a real cluster and real HTTP: one binary, a module per subject.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod sql;

use std::sync::OnceLock;

use anyhow::Result;
use honcho_tests::{Cluster, ClusterOptions, Database};

/// A database of its own in the cluster that all tests share; a test that stops its cluster or
/// changes its settings starts one for itself.
async fn database() -> Result<Database> {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    let cluster = SHARED.get_or_init(|| {
        ClusterOptions::default()
            .setting("max_connections", "700")
            // Nothing here outlives the machine's power.
            .setting("fsync", "off")
            .start()
            .unwrap()
    });
    Database::create(cluster).await
}
