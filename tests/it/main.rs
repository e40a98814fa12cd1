//! Integration tests over a real cluster and real HTTP: one binary, a module per subject.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod docs;
mod failover;
mod failure;
mod fixtures;
mod http;
mod operations;
mod router;
mod scaling;
mod sql;

use std::sync::OnceLock;

use anyhow::Result;
use honcho_tests::{Cluster, ClusterOptions, Database};

/// The cluster that all tests share, except those that stop it or change its settings.
fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        ClusterOptions::default()
            .setting("max_connections", "1500")
            // No test in this cluster survives a loss of power.
            .setting("fsync", "off")
            .start()
            .unwrap()
    })
}

/// A database of its own in the shared cluster.
async fn database() -> Result<Database> {
    Database::create(cluster()).await
}
