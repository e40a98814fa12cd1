//! The database, or the way to it, is lost as a whole: what that is answered while it lasts, and how soon
//! it is over once the database is back.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use honcho_tests::{Cluster, ClusterOptions, Database, PATIENCE, Proxy, Stop, connect, eventually};
use rustix::process::geteuid;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    fixtures::api::Api,
    fixtures::held::{claim, claim_until_certain, hold, until_queued},
    operations::health::soon,
};

/// Claims, each time for somebody new, until somebody gets one.
async fn until_claims_succeed(api: &Api, who: &str) -> Result<()> {
    let mut n = 0;
    eventually("a claim to succeed", async || {
        n += 1;
        let told = api.claim(&format!("{who} {n}"), "PROMO").await?.shown();
        match told.as_str() {
            "200" => Ok(Some(())),
            "503 unavailable" | "503 outcome_unknown" => Ok(None),
            other => anyhow::bail!("{other}"),
        }
    })
    .await
}

/// Both: the service says that it is well, and it is.
async fn until_well(api: &Api, who: &str) -> Result<()> {
    api.until_ready().await?;
    until_claims_succeed(api, who).await
}

/// The caller's URL through a proxy.
fn url_through(proxy: &Proxy, database: &Database) -> String {
    format!(
        "postgresql://{name}_caller@{}/{name}",
        proxy.address(),
        name = database.name()
    )
}

#[tokio::test]
async fn a_network_that_is_cut() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1000).await?;
    database.create_coupon("HELD", 10).await?;
    let socket = crate::cluster().directory().join(".s.PGSQL.5432");
    let mut proxy = Proxy::start(socket).await?;
    let api = Arc::new(Api::start(&url_through(&proxy, &database)).await?);
    until_well(&api, "before").await?;
    for round in 0..3 {
        // In the midst of a claim.
        let holder = hold(&database, "HELD").await?;
        let user = format!("user {round}");
        let under_way = claim(&api, &user, "HELD");
        until_queued(&database.connect().await?, 1).await?;
        proxy.cut().await;
        assert_eq!(under_way.await??, "503 outcome_unknown");
        assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
        assert_eq!(api.create("NEW", 1).await?.shown(), "503 unavailable");
        assert_eq!(api.show("PROMO").await?.shown(), "503 unavailable");
        api.until_not_ready("the database cannot be reached")
            .await?;
        proxy.mend().await?;
        soon("healing", until_well(&api, &format!("round {round}"))).await?;
        holder.batch_execute("rollback").await?;
        let told = claim_until_certain(&api, &user, "HELD").await?;
        // The server may have carried out what it could not answer.
        ensure!(
            told == "200" || told == "409 already_claimed",
            "{round}: {told}"
        );
    }
    database.books().await
}

#[tokio::test]
async fn a_server_that_freezes() -> Result<()> {
    let cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 1000).await?;
    let settings = [
        ("STATEMENT_TIMEOUT", "1s"),
        ("LOCK_TIMEOUT", "500ms"),
        ("REQUEST_TIMEOUT", "120s"),
    ];
    let api = Arc::new(Api::start_with(database.caller_url(), &settings).await?);
    until_well(&api, "before").await?;
    for round in 0..2 {
        let frozen = cluster.freeze()?;
        // Asked on a connection that was good a moment ago, so it may have been heard.
        let under_way = claim(&api, &format!("lost {round}"), "PROMO");
        api.until_not_ready("the database does not answer").await?;
        let told = timeout(PATIENCE, under_way).await?;
        assert_eq!(told??, "503 outcome_unknown");
        assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
        drop(frozen);
        soon("healing", until_well(&api, &format!("round {round}"))).await?;
    }
    database.books().await
}

/// A primary, its standby, and a service that knows both.
struct Pair {
    primary: Cluster,
    standby: Cluster,
    database: Database,
    api: Arc<Api>,
}

impl Pair {
    async fn start() -> Result<Self> {
        let options = ClusterOptions::default().setting("fsync", "off");
        let primary = options.clone().start()?;
        let standby = options.start_standby_of(&primary)?;
        let database = Database::create(&primary).await?;
        database.create_coupon("PROMO", 1000).await?;
        let pair = Self {
            api: Arc::new(Api::start(&url_of_both(&database, &primary, &standby)).await?),
            primary,
            standby,
            database,
        };
        until_well(&pair.api, "before").await?;
        pair.until_standby_has(1).await?;
        Ok(pair)
    }

    async fn until_standby_has(&self, count: usize) -> Result<()> {
        eventually("the standby to have all claims", async || {
            let url = self.standby.url("postgres", self.database.name());
            let Ok(client) = connect(&url).await else {
                return Ok(None);
            };
            let claims = client.query("select from claims", &[]).await;
            Ok(claims
                .is_ok_and(|claims| claims.len() == count)
                .then_some(()))
        })
        .await
    }

    async fn books_of_standby(&self) -> Result<()> {
        let url = self.standby.url("postgres", self.database.name());
        honcho_tests::books(&connect(&url).await?).await
    }
}

fn url_of_both(database: &Database, primary: &Cluster, standby: &Cluster) -> String {
    format!(
        "host={},{} user={name}_caller dbname={name}",
        primary.directory().display(),
        standby.directory().display(),
        name = database.name()
    )
}

#[tokio::test]
async fn a_primary_that_dies_is_followed_by_its_standby() -> Result<()> {
    let mut pair = Pair::start().await?;
    pair.primary.stop(Stop::Kill)?;
    // The standby is there, but it is none to claim from.
    pair.api
        .until_not_ready("the database cannot be reached")
        .await?;
    let told = pair.api.claim("user", "PROMO").await?;
    assert_eq!(told.shown(), "503 unavailable");
    pair.standby.promote()?;
    soon("failing over", until_well(&pair.api, "after")).await?;
    pair.books_of_standby().await
}

#[tokio::test]
async fn a_primary_that_freezes_is_followed_by_its_standby() -> Result<()> {
    let pair = Pair::start().await?;
    for coupon in OTHERS {
        pair.database.create_coupon(coupon, 10).await?;
    }
    // So that the pool has several connections to the primary.
    let mut holders = Vec::new();
    for coupon in OTHERS {
        holders.push(hold(&pair.database, coupon).await?);
    }
    let claims = OTHERS.map(|coupon| claim(&pair.api, "user", coupon));
    until_queued(&pair.database.connect().await?, OTHERS.len() as i64).await?;
    drop(holders);
    for claim in claims {
        assert_eq!(claim.await??, "200");
    }
    pair.until_standby_has(1 + OTHERS.len()).await?;
    let _frozen = pair.primary.freeze()?;
    let under_way = claim(&pair.api, "lost", "PROMO");
    pair.standby.promote()?;
    soon("failing over", async {
        // It may have been unready too shortly for us to ask.
        eventually("the service to be ready again", async || {
            Ok(pair
                .api
                .service
                .log()
                .contains(" ready after ")
                .then_some(()))
        })
        .await?;
        // None of the pool's connections leads to the old primary any more.
        for claim in OTHERS.map(|coupon| claim(&pair.api, "another", coupon)) {
            assert_eq!(claim.await??, "200");
        }
        // Nor does the lane wait in which one claim was asked of it.
        until_claims_succeed(&pair.api, "after").await
    })
    .await?;
    assert_eq!(under_way.await??, "503 outcome_unknown");
    // Whoever comes now asks the frozen one first.
    let url = url_of_both(&pair.database, &pair.primary, &pair.standby);
    let another = Api::start(&url).await?;
    soon("starting", until_well(&another, "another")).await?;
    pair.books_of_standby().await
}

const OTHERS: [&str; 4] = ["A", "B", "C", "D"];

#[tokio::test]
async fn an_address_that_leads_to_a_standby_first_and_then_to_the_primary() -> Result<()> {
    let pair = Pair::start().await?;
    let name = pair.database.name();
    let url = pair.standby.url(&format!("{name}_caller"), name);
    let api = Api::start(&url).await?;
    api.until_not_ready("the database is a standby, which takes no claims")
        .await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
    // What can be read there is.
    assert_eq!(api.show("PROMO").await?.status, 200);
    pair.standby.promote()?;
    soon("promotion", until_well(&api, "after")).await?;
    pair.books_of_standby().await
}

#[tokio::test]
async fn an_address_that_is_given_to_another_server() -> Result<()> {
    let pair = Pair::start().await?;
    let socket = |cluster: &Cluster| cluster.directory().join(".s.PGSQL.5432");
    let proxy = Proxy::start(socket(&pair.standby)).await?;
    let settings = [("DATABASE_POOL_SIZE", "1")];
    let api = Api::start_with(&url_through(&proxy, &pair.database), &settings).await?;
    api.until_not_ready("the database is a standby, which takes no claims")
        .await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
    // The old connection is as good as ever, and leads to the standby for ever.
    proxy.lead_to(socket(&pair.primary));
    soon("healing", until_well(&api, "after")).await?;
    pair.database.books().await
}

#[tokio::test]
async fn no_connection_is_left() -> Result<()> {
    let cluster = ClusterOptions::default()
        .setting("max_connections", "12")
        .start()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 1000).await?;
    let admin = database.connect().await?;
    let api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    // Superusers have three places of their own.
    let mut others = Vec::new();
    while let Ok(client) = database.connect_as_caller().await {
        others.push(client);
    }
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
    eventually("the reason in the log", async || {
        let log = api.service.log();
        let reasons = [
            "sorry, too many clients already",
            "remaining connection slots",
        ];
        Ok(reasons
            .iter()
            .any(|reason| log.contains(reason))
            .then_some(()))
    })
    .await?;
    api.until_not_ready("the database has no connections left for requests")
        .await?;
    others.clear();
    soon("healing", until_well(&api, "after")).await?;
    drop(admin);
    database.books().await
}

#[tokio::test]
async fn a_disk_that_is_full() -> Result<()> {
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

#[tokio::test]
async fn an_outage_is_logged_once_and_counted() -> Result<()> {
    let mut cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 10_000).await?;
    let api = Arc::new(Api::start(database.caller_url()).await?);
    until_well(&api, "before").await?;
    cluster.stop(Stop::Immediate)?;
    let mut claims = JoinSet::new();
    for n in 0..300 {
        let api = Arc::clone(&api);
        claims.spawn(async move { api.claim(&format!("user {n}"), "PROMO").await });
    }
    while let Some(claim) = claims.join_next().await {
        assert_eq!(claim??.status, 503);
    }
    // A shorter one may pass between two looks.
    eventually("the outage to be noticed", async || {
        let ready = api.http.get(api.service.url("/health/ready")).send();
        Ok((ready.await?.status() == 503).then_some(()))
    })
    .await?;
    cluster.start()?;
    soon("healing", until_well(&api, "after")).await?;
    let log = eventually("the end of the outage in the log", async || {
        let log = api.service.log();
        Ok(log.contains(" ready after ").then_some(log))
    })
    .await?;
    let warnings = log.lines().filter(|line| line.contains(" WARN ")).count();
    assert!((1..10).contains(&warnings), "{warnings}:\n{log}");
    assert!(log.contains("not_logged="), "{log}");
    database.books().await
}
