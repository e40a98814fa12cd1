//! Full disks: no false answers, and readiness says it, also while nobody claims.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use honcho_tests::{Cluster, ClusterOptions, Database};
use rustix::process::geteuid;

use crate::fixtures::{api::Api, preloaded::Library, readiness::soon, recovery::until_well};

#[tokio::test]
async fn service_is_unready_while_the_disk_is_full() -> Result<()> {
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

#[tokio::test]
async fn full_tablespace_is_503_and_recovers() -> Result<()> {
    let cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 100_000).await?;
    let Some(disk) = Disk::mount(cluster.directory())? else {
        return Ok(());
    };
    let admin = database.connect().await?;
    admin
        .batch_execute(&format!(
            "create tablespace small location '{}'",
            disk.0.display()
        ))
        .await?;
    admin
        .batch_execute("alter table claims set tablespace small")
        .await?;
    let api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    // It has a page by then, with room for some more.
    assert_eq!(api.claim("user 0", "PROMO").await?.shown(), "200");
    disk.fill()?;
    let mut told = 1;
    let refused = loop {
        match api.claim(&format!("user {told}"), "PROMO").await? {
            answer if answer.status == 200 => told += 1,
            answer => break answer,
        }
        ensure!(told < 10_000, "the disk is not full");
    };
    assert_eq!(refused.shown(), "503 unavailable");
    api.service.logged("No space left on device").await?;
    // What does not need room goes on.
    assert_eq!(
        api.claim("user 0", "PROMO").await?.shown(),
        "409 already_claimed"
    );
    let shown = api.show("PROMO").await?;
    assert_eq!(shown.body["remaining_amount"], 100_000 - told);
    disk.empty()?;
    soon("healing", until_well(&api, "after")).await?;
    database.books().await
}

/// A disk of one megabyte.
struct Disk(PathBuf);

impl Disk {
    /// Mounts it below a cluster's directory; none where not even root may.
    fn mount(parent: &Path) -> Result<Option<Self>> {
        let owner = fs::metadata(parent)?;
        let path = parent.join("disk");
        fs::create_dir(&path)?;
        let options = format!("size=1m,mode=0700,uid={},gid={}", owner.uid(), owner.gid());
        let mounted = as_root("mount")
            .args(["-t", "tmpfs", "-o", &options, "honcho-test"])
            .arg(&path)
            .status()?;
        if mounted.success() {
            return Ok(Some(Self(path)));
        }
        eprintln!("NOT TESTED: a full disk, for nobody may mount one here: {mounted}");
        Ok(None)
    }

    /// Takes all the room.
    fn fill(&self) -> Result<()> {
        let filler = self.0.join("filler");
        // Made by its owner, who may be another user.
        let mut file = File::create(&filler).context("no filler")?;
        while file.write_all(&[0; 1024]).is_ok() {}
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Its files are still open; it goes with them.
        let _ = as_root("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn as_root(program: &str) -> Command {
    if geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}
