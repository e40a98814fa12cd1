//! Full disks: no false answers, and the service is unready even if no client claims.

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

    // Before any claim.
    File::create(&full)?;
    api.until_not_ready(detail).await?;
    // The first claim needs the first page of its table.
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
    assert_eq!(api.health("live").await?.status, 200);
    fs::remove_file(&full)?;
    soon("readiness", api.until_ready()).await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "200");
    api.service.logged("SQLSTATE 53100").await?;

    // After a failed claim, immediately.
    database.create_coupon("OTHER", 1_000).await?;
    File::create(&full)?;
    let mut answered = "200".to_owned();
    for n in 0..1_000 {
        answered = api.claim(&format!("user {n}"), "OTHER").await?.shown();
        if answered != "200" {
            break;
        }
    }
    // The table needs another page.
    assert_eq!(answered, "503 unavailable");
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
    // The table has a page now, with room for more rows.
    assert_eq!(api.claim("user 0", "PROMO").await?.shown(), "200");
    disk.fill()?;
    let mut answered = 1;
    let refused = loop {
        match api.claim(&format!("user {answered}"), "PROMO").await? {
            answer if answer.status == 200 => answered += 1,
            answer => break answer,
        }
        ensure!(answered < 10_000, "the disk is not full");
    };
    assert_eq!(refused.shown(), "503 unavailable");
    api.service.logged("No space left on device").await?;
    // Requests that need no room on the disk still succeed.
    assert_eq!(
        api.claim("user 0", "PROMO").await?.shown(),
        "409 already_claimed"
    );
    let shown = api.show("PROMO").await?;
    assert_eq!(shown.body["remaining_amount"], 100_000 - answered);
    disk.empty()?;
    soon("recovery", until_well(&api, "after")).await?;
    database.books().await
}

/// A disk of one megabyte.
struct Disk(PathBuf);

impl Disk {
    /// Mounts it below a cluster's directory. Returns none if root may not mount either.
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
        eprintln!("NOT TESTED: a full disk, because it cannot be mounted here: {mounted}");
        Ok(None)
    }

    /// Fills it completely.
    fn fill(&self) -> Result<()> {
        let filler = self.0.join("filler");
        // The directory belongs to PostgreSQL's user, which may be another than ours.
        let mut file = File::create(&filler).context("the filler cannot be created")?;
        while file.write_all(&[0; 1024]).is_ok() {}
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Its files are still open, so the mount goes when the server closes them.
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
