//! Another build of Honcho, to measure this one against.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use honcho_tests::Service;

use crate::machine::output;

/// The build of another checkout.
#[derive(Clone, Debug)]
pub struct Build {
    /// Its PostgreSQL, into which its extension is installed.
    pub pg_config: PathBuf,
    service: PathBuf,
    /// Its commit, with the day.
    pub commit: String,
}

impl Build {
    /// Asks the scripts of a checkout in which `make build` was run. Fails unless it has another PostgreSQL than
    /// this one, of the same version.
    pub fn of(checkout: &Path) -> Result<Self> {
        let checkout = checkout
            .canonicalize()
            .with_context(|| format!("no checkout {}", checkout.display()))?;
        let environment = checkout.join("scripts/env");
        ensure!(
            environment.exists(),
            "{} is no checkout",
            checkout.display()
        );
        let ours = env::var_os("PG_CONFIG").context("PG_CONFIG is not set: use make bench")?;
        let named = output(
            Command::new(environment)
                .args(["printenv", "PG_CONFIG", "HONCHO_SERVICE"])
                // These choose among the trees and target directories of this checkout.
                .env_remove("HONCHO_TREE")
                .env_remove("CARGO_TARGET_DIR"),
        )?;
        let (pg_config, service) = named.split_once('\n').context("no PG_CONFIG")?;
        ensure!(
            OsStr::new(pg_config) != ours,
            "{} is this checkout",
            checkout.display()
        );
        ensure!(
            Path::new(service).exists(),
            "{} is not built: make build there",
            checkout.display()
        );
        let version = |program: &OsStr| output(Command::new(program).arg("--version"));
        let (theirs, ours) = (version(OsStr::new(pg_config))?, version(&ours)?);
        ensure!(theirs == ours, "{theirs} there, {ours} here");
        let mut commit = Command::new("git");
        commit
            .arg("-C")
            .arg(&checkout)
            .args(["log", "-1", "--format=%h of %cs"]);
        Ok(Self {
            pg_config: pg_config.into(),
            service: service.into(),
            commit: output(&mut commit)?,
        })
    }

    /// Starts its service.
    pub async fn serve(&self, database_url: &str) -> Result<Service> {
        let mut command = Command::new(&self.service);
        command
            .env("DATABASE_URL", database_url)
            .env("HOST", "127.0.0.1")
            .env("PORT", "0");
        Service::spawn(command).await
    }
}
