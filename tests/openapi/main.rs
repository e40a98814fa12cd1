//! The API's description is true, and its documentation works in a browser.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod browser;

use std::{env, ffi::OsStr, time::Duration};

use anyhow::{Context, Result, ensure};
use honcho_tests::{Cluster, ClusterOptions, Database, Service};
use tokio::{process::Command, time::timeout};

/// A token with all scopes.
const TOKEN: &str = "all-0123456789abcdef";

/// A run with fewer cases proves too little.
const CASES: u32 = 3_000;

/// Time limit of a run.
const PATIENCE: Duration = Duration::from_secs(300);

/// A database and a service that uses it.
async fn service(cluster: &Cluster) -> Result<(Database, Service)> {
    let database = Database::create(cluster).await?;
    let tokens = format!("{TOKEN}:claim,read,admin");
    let service = Service::start_with(database.caller_url(), &[("API_TOKENS", &tokens)]).await?;
    Ok((database, service))
}

fn cluster() -> Result<Cluster> {
    ClusterOptions::default().setting("fsync", "off").start()
}

/// Valid and invalid requests, single and in sequences: no 5xx, and no answer whose status, headers or body
/// is not described.
#[tokio::test]
async fn answers_match_the_description() -> Result<()> {
    let cluster = cluster()?;
    let (database, service) = service(&cluster).await?;
    // Coupons to which the description's paths and examples lead.
    for name in ["claim", "PROMO_SUPER"] {
        database.create_coupon(name, 1_000_000).await?;
    }
    let schemathesis = env::var_os("SCHEMATHESIS")
        .context("SCHEMATHESIS must name the program (make test-openapi does)")?;
    let run = async {
        let (mut cases, mut runs) = (0, 0);
        // Each run has another seed, which a failure reports.
        while cases < CASES {
            cases += generate(&schemathesis, &service).await?;
            runs += 1;
            ensure!(runs < 10, "only {cases} cases in {runs} runs");
        }
        Ok(cases)
    };
    let cases = timeout(PATIENCE, run).await.context("it took too long")??;
    println!("{cases} cases");
    database.books().await
}

/// Runs schemathesis once, and returns the number of cases.
async fn generate(schemathesis: &OsStr, service: &Service) -> Result<u32> {
    // It writes a cache into the current directory.
    let directory = tempfile::tempdir()?;
    let output = Command::new(schemathesis)
        .args([
            "--config-file",
            concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/schemathesis.toml"),
            "run",
            &service.url("/openapi.json"),
            "--header",
        ])
        .arg(format!("Authorization: Bearer {TOKEN}"))
        .args([
            "--max-examples",
            "100",
            "--continue-on-failure",
            // Tells that many random values were thrown away, which is chance. The number of cases is checked.
            "--suppress-health-check",
            "filter_too_much",
            // Streams have no end.
            "--exclude-path-regex",
            "/events$",
            "--no-color",
        ])
        .env(
            "SCHEMATHESIS_HOOKS",
            concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/hooks.py"),
        )
        .current_dir(directory.path())
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}\n{errors}");
    said.lines()
        .find_map(|line| line.split_once(" generated"))
        .and_then(|(before, _)| {
            before
                .split_whitespace()
                .last()?
                .replace(',', "")
                .parse()
                .ok()
        })
        .with_context(|| format!("no count in {said}"))
}
