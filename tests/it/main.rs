//! Integration tests over a real cluster and real HTTP: one binary, a module per subject.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod access;
mod api;
mod backup;
mod bad_input;
mod batch;
mod bounds;
mod config;
mod connection;
mod contract;
mod disk_full;
mod docs;
mod early_release;
mod encoding;
mod faults;
mod flash_sale;
mod health;
mod held;
mod holder;
mod hostile;
mod hostile_edge;
mod hostile_reads;
mod jwt;
mod kills;
mod lanes;
mod listing;
mod logs;
mod messages;
mod metrics;
mod outages;
mod pooler;
mod power_loss;
mod preloaded;
mod queue;
mod rate_limit;
mod reading;
mod reload;
mod rights;
mod shutdown;
mod standby;
mod tls;
mod traces;
mod transactions;
mod upgrade;
mod verify;

use std::sync::OnceLock;

use anyhow::Result;
use honcho_tests::{Cluster, ClusterOptions, Database};

/// The cluster that all tests share but those that stop it or change its settings.
fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        ClusterOptions::default()
            .setting("max_connections", "1500")
            // Nothing here outlives the machine's power.
            .setting("fsync", "off")
            .start()
            .unwrap()
    })
}

/// A database of its own in the shared cluster.
async fn database() -> Result<Database> {
    Database::create(cluster()).await
}
