//! The API's description: whether it is true, and whether it can be used.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod browser;

use std::{env, ffi::OsStr, time::Duration};

use anyhow::{Context, Result, ensure};
use honcho_tests::{Cluster, ClusterOptions, Database, Service};
use tokio::{process::Command, time::timeout};

/// What may do everything.
const TOKEN: &str = "all-0123456789abcdef";

/// The fewest cases that say something.
const CASES: u32 = 3_000;

/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// A database, and the service on it.
async fn service(cluster: &Cluster) -> Result<(Database, Service)> {
    let database = Database::create(cluster).await?;
    let tokens = format!("{TOKEN}:claim,read,admin");
    let service = Service::start_with(database.caller_url(), &[("API_TOKENS", &tokens)]).await?;
    Ok((database, service))
}

fn cluster() -> Result<Cluster> {
    ClusterOptions::default().setting("fsync", "off").start()
}

/// Requests of all kinds, valid and not, one by one and in sequences: no 5xx, and no answer that is not
/// described, in its status, its headers and its body.
#[tokio::test]
async fn the_description_is_true() -> Result<()> {
    let cluster = cluster()?;
    let (database, service) = service(&cluster).await?;
    // Something that the paths and examples of the description lead to.
    for name in ["claim", "PROMO_SUPER"] {
        database.create_coupon(name, 1_000_000).await?;
    }
    let schemathesis = env::var_os("SCHEMATHESIS")
        .context("SCHEMATHESIS must name the program (make test-openapi does)")?;
    let run = async {
        let (mut cases, mut runs) = (0, 0);
        // Each with another seed, which a failure tells.
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

/// One run of schemathesis; how many cases that was.
async fn generate(schemathesis: &OsStr, service: &Service) -> Result<u32> {
    // It leaves a cache of what it has found.
    let directory = tempfile::tempdir()?;
    let output = Command::new(schemathesis)
        .args(["run", &service.url("/openapi.json"), "--header"])
        .arg(format!("Authorization: Bearer {TOKEN}"))
        .args([
            "--max-examples",
            "100",
            "--continue-on-failure",
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
