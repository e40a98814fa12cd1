//! A cluster with both systems in it, their services, and their books.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use honcho_tests::{Cluster, ClusterOptions, Database, Service, connect, eventually};
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::{
    before::Build,
    case::Subject,
    machine::{self, median},
    peer_service::{self, Store},
    units,
};

/// Delay of each flush on slow ground.
const DELAY: Duration = Duration::from_millis(1);

/// More than any case can sell.
pub const ENDLESS: i32 = 2_000_000_000;

/// The most operations in a call of `honcho_apply`.
const MOST_OPERATIONS: usize = 10_000;

/// Numbers of coupons of each kind.
#[derive(Clone, Copy, Debug)]
pub enum Stock {
    /// More than any case can sell.
    Endless,
    /// This many.
    Pieces(i32),
}

impl Stock {
    fn amount(self) -> i32 {
        match self {
            Self::Endless => ENDLESS,
            Self::Pieces(pieces) => pieces,
        }
    }
}

/// Settings that differ from PostgreSQL's own: 200 clients and three services must fit in.
const SETTINGS: [(&str, &str); 1] = [("max_connections", "300")];

/// Options of a benchmark's cluster.
pub fn cluster_options(directory: &Path) -> ClusterOptions {
    SETTINGS.iter().fold(
        ClusterOptions::default().parent(directory),
        |options, (name, value)| options.setting(name, value),
    )
}

/// A cluster with a database for each system.
pub struct Ground {
    // Dropped in this order: the services before the cluster that they use.
    services: BTreeMap<Subject, Service>,
    build: Option<Build>,
    honcho: Result<Database, String>,
    prior_url: String,
    units_url: String,
    cluster: Cluster,
    flush_time: Duration,
    commit_time: Duration,
    serial: u32,
    _shim: Option<TempDir>,
}

impl Ground {
    /// Starts the cluster; with the ordinary ground given, one whose flushes take [`DELAY`]
    /// longer, which is checked; with a build given, one of that build.
    pub async fn start(
        directory: &Path,
        ordinary: Option<&Self>,
        build: Option<Build>,
    ) -> Result<Self> {
        let mut options = cluster_options(directory);
        if let Some(build) = &build {
            options = options.pg_config(&build.pg_config);
        }
        let mut shim = None;
        let mut preload = None;
        if ordinary.is_some() {
            let home = readable_directory(directory)?;
            let library = build_shim(home.path())?;
            options = options.environment("LD_PRELOAD", &library);
            preload = Some(library);
            shim = Some(home);
        }
        let flush_time = probe_flush(directory, preload.as_deref())?;
        let cluster = options.start()?;
        let prior_url = create_prior(&cluster, "prior").await?;
        let commit_time = commit_time(&prior_url).await?;
        if let Some(ordinary) = ordinary {
            let least = DELAY.mul_f64(0.9);
            for (what, without, with) in [
                ("flush", ordinary.flush_time, flush_time),
                ("commit", ordinary.commit_time, commit_time),
            ] {
                ensure!(
                    with >= without + least,
                    "the delay does not act: a {what} takes {with:?} with it, {without:?} without"
                );
            }
        }
        let units_url = create_database(&cluster, "units", units::TABLES).await?;
        let honcho = create_honcho(&cluster)
            .await
            .map_err(|error| format!("no extension to measure: {error:#}"));
        Ok(Self {
            services: BTreeMap::new(),
            build,
            honcho,
            prior_url,
            units_url,
            cluster,
            flush_time,
            commit_time,
            serial: 0,
            _shim: shim,
        })
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Duration of a flush of 8 KiB outside of PostgreSQL.
    pub fn flush_time(&self) -> Duration {
        self.flush_time
    }

    /// Duration of a single insert with its commit.
    pub fn commit_time(&self) -> Duration {
        self.commit_time
    }

    /// A name that no coupon had before; all names have one length.
    pub fn next_name(&mut self) -> String {
        self.serial += 1;
        format!("SALE_{:06}", self.serial)
    }

    /// The URL for the subject's clients: for Honcho, with a role that may only execute its functions.
    pub fn url(&self, subject: Subject) -> Result<String> {
        match subject {
            Subject::Honcho | Subject::Before | Subject::Bare => {
                Ok(self.honcho()?.caller_url().to_owned())
            }
            // It writes the tables itself.
            Subject::SqlInQueue => Ok(self.honcho()?.superuser_url().to_owned()),
            Subject::Units => Ok(self.units_url.clone()),
            _ => Ok(self.prior_url.clone()),
        }
    }

    /// The subject's tables, through the superuser.
    pub async fn books(&self, subject: Subject) -> Result<Books> {
        match subject {
            Subject::Honcho | Subject::Before | Subject::Bare | Subject::SqlInQueue => {
                Ok(Books::honcho(self.honcho()?.connect().await?))
            }
            _ => Ok(Books::prior(connect(&self.url(subject)?).await?)),
        }
    }

    /// The subject's service, started when it is first asked for.
    pub async fn service(&mut self, subject: Subject) -> Result<&Service> {
        if !self.services.contains_key(&subject) {
            let service = match subject {
                Subject::Honcho => Service::start(&self.url(subject)?).await?,
                Subject::Before => {
                    let build = self.build.as_ref().context("no version before")?;
                    build.serve(&self.url(subject)?).await?
                }
                Subject::Bare => bare(&self.url(subject)?).await?,
                Subject::Pool4 => peer_service::start(&self.pool(4)).await?,
                Subject::Pool16 => peer_service::start(&self.pool(16)).await?,
                Subject::NoOp => peer_service::start(&Store::Nothing).await?,
                _ => bail!("{subject} has no service"),
            };
            service.leave_log_unread();
            self.services.insert(subject, service);
        }
        self.services.get(&subject).context("no service")
    }

    /// Settings of the cluster that matter to the figures, and all of the extension's.
    pub async fn settings(&self) -> Result<Vec<(String, String)>> {
        let client = match &self.honcho {
            Ok(database) => {
                let client = database.connect().await?;
                // Loads the extension, and with it its settings.
                client.execute("select * from honcho_verify()", &[]).await?;
                client
            }
            Err(_) => connect(&self.prior_url).await?,
        };
        let rows = client
            .query(
                "select name, current_setting(name) from pg_settings
                  where name in ('autovacuum', 'checkpoint_timeout', 'fsync', 'full_page_writes',
                                 'huge_pages', 'listen_addresses', 'max_connections',
                                 'max_wal_size', 'server_version', 'shared_buffers', 'synchronous_commit',
                                 'wal_sync_method')
                     or name like 'honcho.%'
                  order by name",
                &[],
            )
            .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// The prior system's database through a pool of this size.
    fn pool(&self, size: usize) -> Store {
        Store::Pool {
            size,
            database_url: self.prior_url.clone(),
        }
    }

    fn honcho(&self) -> Result<&Database> {
        self.honcho
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
    }
}

/// The tables of one system.
pub struct Books {
    client: Client,
    honcho: bool,
}

impl Books {
    pub fn honcho(client: Client) -> Self {
        Self {
            client,
            honcho: true,
        }
    }

    pub fn prior(client: Client) -> Self {
        Self {
            client,
            honcho: false,
        }
    }

    /// Empties the tables and creates these coupons, so that no table grows from case to case, and every case
    /// starts right after a checkpoint.
    pub async fn start_over(&self, coupons: &[(String, Stock)]) -> Result<()> {
        self.empty().await?;
        self.create(coupons).await?;
        self.client.batch_execute("checkpoint").await?;
        Ok(())
    }

    /// Empties the tables, those of them that this system has.
    pub async fn empty(&self) -> Result<()> {
        let tables: String = self
            .client
            .query_one(
                "select string_agg(tablename, ', ') from pg_tables
                  where schemaname = 'public'
                    and tablename in ('claims', 'coupons', 'holds', 'coupon_events')",
                &[],
            )
            .await?
            .get(0);
        self.client
            .batch_execute(&format!("truncate {tables} cascade"))
            .await?;
        Ok(())
    }

    /// Creates coupons.
    pub async fn create(&self, coupons: &[(String, Stock)]) -> Result<()> {
        let names: Vec<&str> = coupons.iter().map(|(name, _)| name.as_str()).collect();
        let amounts: Vec<i32> = coupons.iter().map(|(_, stock)| stock.amount()).collect();
        let create = if self.honcho {
            "select count(*) filter (where honcho_create_coupon(name, amount))
               from unnest($1::text[], $2::int[]) coupon (name, amount)"
        } else {
            "with made as (
                 insert into coupons (name, amount, remaining_amount)
                 select name, amount, amount
                   from unnest($1::text[], $2::int[]) coupon (name, amount) returning 1
             ) select count(*) from made"
        };
        let made: i64 = self
            .client
            .query_one(create, &[&names, &amounts])
            .await?
            .get(0);
        ensure!(
            usize::try_from(made)? == coupons.len(),
            "{made} of {} coupons made",
            coupons.len()
        );
        Ok(())
    }

    /// Makes claims for the users that the wrk script uses.
    pub async fn claim_beforehand(&self, coupon: &str, users: u32) -> Result<()> {
        let claim = if self.honcho {
            "select count(*) filter (where outcome::text = 'claimed')
               from (select array_agg('user_old_' || 100000000 + n) as users
                       from generate_series(1, $2::int) n
                      group by n / 5000) batch,
                    honcho_claim_batch($1, users)"
        } else {
            "select count(*) filter (
                        where prior_claim('user_old_' || 100000000 + n, $1) = 'claimed')
               from generate_series(1, $2::int) n"
        };
        let users = i32::try_from(users)?;
        let claimed: i64 = self
            .client
            .query_one(claim, &[&coupon, &users])
            .await?
            .get(0);
        ensure!(
            claimed == i64::from(users),
            "{claimed} of {users} claims went through"
        );
        Ok(())
    }

    /// Makes holds for these users, which outlive the case, and a checkpoint after them.
    pub async fn reserve_beforehand(&self, coupon: &str, users: &[String]) -> Result<()> {
        let reserve = self
            .client
            .prepare(
                "select count(*) filter (where outcome::text = 'held')
                   from honcho_apply($1, array_fill('reserve'::text, array[cardinality($2::text[])]), $2,
                                     array_fill(interval '1 hour', array[cardinality($2)]))",
            )
            .await?;
        for users in users.chunks(MOST_OPERATIONS) {
            let held: i64 = self
                .client
                .query_one(&reserve, &[&coupon, &users])
                .await?
                .get(0);
            ensure!(
                usize::try_from(held)? == users.len(),
                "{held} of {} reservations went through",
                users.len()
            );
        }
        // Else autovacuum would do it during the measurement.
        self.client
            .batch_execute("vacuum (analyze) coupons, holds")
            .await?;
        self.client.batch_execute("checkpoint").await?;
        Ok(())
    }

    /// Fails unless a claim by a new user is refused with this outcome.
    pub async fn ensure_refused(&self, coupon: &str, expected: &str) -> Result<()> {
        let claim = "select honcho_claim('user_new', $1)::text";
        let row = self.client.query_one(claim, &[&coupon]).await?;
        let outcome: &str = row.get(0);
        ensure!(outcome == expected, "a claim was answered {outcome}");
        Ok(())
    }

    /// Claims a coupon in a transaction that stays open.
    pub async fn claim_and_keep_open(&self, coupon: &str) -> Result<()> {
        self.client.batch_execute("begin").await?;
        let claim = "select honcho_claim('user_open', $1)::text";
        let row = self.client.query_one(claim, &[&coupon]).await?;
        let outcome: &str = row.get(0);
        ensure!(outcome == "claimed", "a claim was answered {outcome}");
        Ok(())
    }

    /// Rolls the open transaction back.
    pub async fn roll_back(&self) -> Result<()> {
        Ok(self.client.batch_execute("rollback").await?)
    }

    /// Takes a snapshot in a transaction that stays open.
    pub async fn keep_snapshot(&self) -> Result<()> {
        self.client
            .batch_execute("begin isolation level repeatable read")
            .await?;
        self.ensure_snapshot().await
    }

    /// Fails unless no coupon has a claim in the snapshot.
    pub async fn ensure_snapshot(&self) -> Result<()> {
        let claimed = "select count(*) from coupons where remaining_amount <> amount";
        let claimed: i64 = self.client.query_one(claimed, &[]).await?.get(0);
        ensure!(claimed == 0, "the snapshot shows claims");
        Ok(())
    }

    /// Creates a trigger that refuses the claims of users whose names begin with this.
    pub async fn refuse_users(&self, beginning: &str) -> Result<()> {
        let refuse = format!(
            "create function refuse() returns trigger language plpgsql as
                 $$ begin raise exception 'refused'; end $$;
             create trigger refuse before insert on claims
                 for each row when (starts_with(new.user_id::text, '{beginning}')) execute function refuse()"
        );
        Ok(self.client.batch_execute(&refuse).await?)
    }

    /// Drops this trigger.
    pub async fn refuse_no_users(&self) -> Result<()> {
        let drop = "drop function refuse cascade";
        Ok(self.client.batch_execute(drop).await?)
    }

    /// Adds a piece to a coupon.
    pub async fn restock(&self, coupon: &str) -> Result<()> {
        let restock = "select outcome::text from honcho_restock($1, 1)";
        let row = self.client.query_one(restock, &[&coupon]).await?;
        let outcome: &str = row.get(0);
        ensure!(outcome == "updated", "a restock was answered {outcome}");
        Ok(())
    }

    /// Waits until this database is idle: load generators leave requests behind.
    pub async fn settle(&self) -> Result<()> {
        eventually("the clients to leave", async || {
            let busy: i64 = self
                .client
                .query_one(
                    "select count(*) from pg_stat_activity
                      where datname = current_database() and pid <> pg_backend_pid()
                        and backend_type = 'client backend' and state <> 'idle'",
                    &[],
                )
                .await?
                .get(0);
            Ok((busy == 0).then_some(()))
        })
        .await
    }

    /// Fails unless stock and claims agree, on this coupon or on all.
    pub async fn check(&self, coupon: Option<&str>) -> Result<()> {
        let check = if self.honcho {
            "select count(distinct coupon_name),
                    string_agg(format('%s: %s: %s', coupon_name, invariant, detail), '; ')
                        filter (where holds is not true)
               from honcho_verify($1)"
        } else {
            "select count(*),
                    string_agg(format('%s: %s of %s left', name, remaining_amount, amount), '; ')
                        filter (where amount - remaining_amount <> claimed or remaining_amount < 0)
               from coupons, lateral (
                        select count(*) claimed from claims where coupon_name = name) as taken
              where $1::text is null or name = $1"
        };
        let row = self.client.query_one(check, &[&coupon]).await?;
        let (checked, broken): (i64, Option<String>) = (row.get(0), row.get(1));
        if let Some(broken) = broken {
            bail!("the books are broken: {broken}");
        }
        ensure!(checked > 0, "there are no books to check");
        Ok(())
    }

    /// Counts the claims on this coupon.
    pub async fn claims_on(&self, coupon: &str) -> Result<u64> {
        let count = "select count(*) from claims where coupon_name = $1";
        let claims: i64 = self.client.query_one(count, &[&coupon]).await?.get(0);
        Ok(claims.try_into()?)
    }

    /// Counts all claims.
    pub async fn claims(&self) -> Result<u64> {
        let claims: i64 = self
            .client
            .query_one("select count(*) from claims", &[])
            .await?
            .get(0);
        Ok(claims.try_into()?)
    }

    /// Counts all holds; none if this system has no table of them.
    pub async fn holds(&self) -> Result<u64> {
        let table = "select to_regclass('holds') is not null";
        if !self.client.query_one(table, &[]).await?.get::<_, bool>(0) {
            return Ok(0);
        }
        let count = "select count(*) from holds";
        let holds: i64 = self.client.query_one(count, &[]).await?.get(0);
        Ok(holds.try_into()?)
    }

    /// The superuser's connection.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// Creates a database with the prior system's tables.
pub async fn create_prior(cluster: &Cluster, name: &str) -> Result<String> {
    create_database(cluster, name, include_str!("prior.sql")).await
}

/// Creates a database with the extension, and the claim in SQL on its tables.
async fn create_honcho(cluster: &Cluster) -> Result<Database> {
    let database = Database::create(cluster).await?;
    let client = database.connect().await?;
    client
        .batch_execute(include_str!("sql_in_queue.sql"))
        .await?;
    Ok(database)
}

/// Creates a database with these tables and functions.
async fn create_database(cluster: &Cluster, name: &str, sql: &str) -> Result<String> {
    let admin = connect(&cluster.url("postgres", "postgres")).await?;
    admin
        .batch_execute(&format!("create database {name} template template0"))
        .await?;
    let url = cluster.url("postgres", name);
    connect(&url).await?.batch_execute(sql).await?;
    Ok(url)
}

/// Starts the service's routes without their layers; the program was built beside this one.
async fn bare(url: &str) -> Result<Service> {
    let mut command = Command::new(std::env::current_exe()?.with_file_name("examples/bare"));
    command.env("DATABASE_URL", url);
    Service::spawn(command).await
}

/// A directory that the cluster's owner may read.
fn readable_directory(parent: &Path) -> Result<TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::Builder::new()
        .prefix("shim-")
        .tempdir_in(parent)?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

/// Compiles the library that delays each flush.
fn build_shim(directory: &Path) -> Result<std::path::PathBuf> {
    let source = directory.join("slow_flush.c");
    fs::write(&source, include_str!("slow_flush.c"))?;
    let library = directory.join("slow_flush.so");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2"])
        .arg(format!("-DDELAY_US={}", DELAY.as_micros()))
        .arg("-o")
        .args([&library, &source])
        .arg("-ldl")
        .output()
        .context("cc does not run")?;
    ensure!(
        compiled.status.success(),
        "cc: {}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    Ok(library)
}

/// Measures a flush in a separate process, so that the library can be preloaded.
fn probe_flush(directory: &Path, preload: Option<&Path>) -> Result<Duration> {
    let file = tempfile::Builder::new()
        .prefix("flush-")
        .tempfile_in(directory)?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("flush-probe")
        .arg(file.path())
        .stdin(Stdio::null());
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library);
    }
    let probed = command.output()?;
    ensure!(
        probed.status.success(),
        "{}",
        String::from_utf8_lossy(&probed.stderr)
    );
    let microseconds: u64 = String::from_utf8(probed.stdout)?.trim().parse()?;
    Ok(Duration::from_micros(microseconds))
}

/// Measures a single insert with its commit.
async fn commit_time(url: &str) -> Result<Duration> {
    let client = connect(url).await?;
    let insert = client
        .prepare("insert into flush_probe default values")
        .await?;
    let mut times = Vec::new();
    for _ in 0..machine::PROBES {
        let started = Instant::now();
        client.execute(&insert, &[]).await?;
        times.push(started.elapsed());
    }
    median(&mut times).context("no commits")
}
