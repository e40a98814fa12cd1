//! Redis with a Lua script: through redis-benchmark, and through a service.

use std::{
    collections::BTreeMap,
    fmt,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use honcho_tests::{Service, eventually};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    case::Figures,
    ground::ENDLESS,
    load::{self, Http},
    machine,
    peer_service::{self, PATH, Store},
};

/// Claims in Redis, in one step.
pub const SCRIPT: &str = include_str!("claim_redis.lua");

/// Reads stock, users and claims at the same moment.
const COUNT: &str = "return {redis.call('GET', KEYS[1]), redis.call('SCARD', KEYS[2]), redis.call('LLEN', KEYS[3])}";

/// Ends the server at the end of its standard input, which comes when the benchmark ends in any way.
const GUARD: &str = r#"
redis-server "$@" &
server=$!
cat >/dev/null
kill "$server"
wait "$server"
"#;

/// Policies by which Redis flushes its append-only file.
#[derive(Clone, Copy, Debug)]
pub enum Append {
    Always,
    Everysec,
}

impl fmt::Display for Append {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Always => "always",
            Self::Everysec => "everysec",
        })
    }
}

/// A private server on a unix socket.
pub struct Redis {
    guard: Child,
    home: TempDir,
    script: String,
    /// The service over it, from the first case over HTTP on.
    service: Option<Service>,
    /// The number of coupons so far.
    serial: u32,
    /// Claims per second by number of clients, as last measured: redis-benchmark takes a number of requests,
    /// not a time.
    expected: BTreeMap<u32, f64>,
}

/// The script's keys for a coupon: its stock, the users who have it, its claims.
pub fn keys(coupon: &str) -> [String; 3] {
    ["stock", "users", "claims"].map(|part| format!("{part}:{coupon}"))
}

impl Redis {
    pub async fn start(directory: &Path, append: Append) -> Result<Self> {
        let home = tempfile::Builder::new()
            .prefix("redis-")
            .tempdir_in(directory)?;
        let mut guard = std::process::Command::new("sh");
        guard.args(["-c", GUARD, "redis-guard"]);
        guard
            .args(["--port", "0", "--unixsocket"])
            .arg(home.path().join("socket"));
        guard.arg("--dir").arg(home.path());
        // No snapshots and no rewriting of the log during a case.
        guard.args(["--save", "", "--auto-aof-rewrite-percentage", "0"]);
        guard.args(["--appendonly", "yes", "--appendfsync", &append.to_string()]);
        guard
            .args(["--logfile", "log"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        // Its own process group: Ctrl+C at the terminal ends the benchmark, which then ends the guard.
        std::os::unix::process::CommandExt::process_group(&mut guard, 0);
        let guard = guard.spawn().context("redis-server does not run")?;
        let mut redis = Self {
            guard,
            home,
            script: String::new(),
            service: None,
            serial: 0,
            expected: BTreeMap::new(),
        };
        eventually("Redis", async || Ok(redis.ask(&["ping"]).await.ok())).await?;
        redis.script = redis.ask(&["script", "load", SCRIPT]).await?;
        Ok(redis)
    }

    /// Single claims on one coupon through redis-benchmark, without pauses.
    pub async fn claims(&mut self, clients: u32, seconds: u32) -> Result<Figures> {
        if !self.expected.contains_key(&clients) {
            self.run(clients, 2_000).await?;
        }
        let expected = self.expected.get(&clients).copied().unwrap_or_default();
        self.run(clients, (expected * f64::from(seconds)) as u64 + 1)
            .await
    }

    /// Claims on one coupon over HTTP, through the service.
    pub async fn http_claims(&mut self, clients: u32, seconds: u32) -> Result<Figures> {
        let coupon = self.start_over().await?;
        let url = self.service().await?.url(PATH);
        let http = Http {
            coupon: &coupon,
            tag: "u",
            users: 0,
            coupons: 0,
            audit: None,
        };
        let tally = load::wrk(&url, &http, clients, seconds).await?;
        ensure!(
            tally.refused == 0,
            "{} of {} answers were refusals",
            tally.refused,
            tally.answers
        );
        self.check(&coupon, tally.done()).await?;
        Ok(tally.figures)
    }

    async fn service(&mut self) -> Result<&Service> {
        if self.service.is_none() {
            let service = peer_service::start(&Store::Redis(self.socket())).await?;
            service.leave_log_unread();
            self.service = Some(service);
        }
        self.service.as_ref().context("no service")
    }

    /// Removes everything, and makes a coupon that cannot be sold out.
    async fn start_over(&mut self) -> Result<String> {
        self.serial += 1;
        let coupon = format!("SALE_{:06}", self.serial);
        let [stock, ..] = keys(&coupon);
        self.ask(&["flushall"]).await?;
        self.ask(&["set", &stock, &ENDLESS.to_string()]).await?;
        Ok(coupon)
    }

    async fn run(&mut self, clients: u32, claims: u64) -> Result<Figures> {
        let coupon = self.start_over().await?;
        let keys = keys(&coupon);
        let output = Command::new("redis-benchmark")
            .arg("-s")
            .arg(self.socket())
            .args([
                "-c",
                &clients.to_string(),
                "-n",
                &claims.to_string(),
                "--csv",
            ])
            // Two random numbers of 12 digits make the users unique.
            .args([
                "-r",
                "1000000000",
                "evalsha",
                &self.script,
                &keys.len().to_string(),
            ])
            .args(keys)
            .arg("user:__rand_int____rand_int__")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("redis-benchmark does not run")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "redis-benchmark: {}\n{said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let figures = parse(&said).with_context(|| format!("redis-benchmark says\n{said}"))?;
        self.check(&coupon, claims..=claims).await?;
        if let Figures::Rate { per_second, .. } = figures {
            self.expected.insert(clients, per_second);
        }
        Ok(figures)
    }

    /// Fails unless stock, users and claims of the coupon agree on one of these numbers.
    async fn check(&self, coupon: &str, claims: RangeInclusive<u64>) -> Result<()> {
        let [stock, users, listed] = keys(coupon);
        let counted = self
            .ask(&["eval", COUNT, "3", &stock, &users, &listed])
            .await?;
        let counts = counted
            .lines()
            .map(|line| line.parse().context("not a number"));
        let &[left, users, listed] = counts.collect::<Result<Vec<u64>>>()?.as_slice() else {
            bail!("the counts are {counted}");
        };
        let given = u64::try_from(ENDLESS)? - left;
        ensure!(
            claims.contains(&given) && [users, listed] == [given; 2],
            "{} to {} claims answered, but {given} from stock, {users} users, {listed} listed",
            claims.start(),
            claims.end()
        );
        Ok(())
    }

    async fn ask(&self, arguments: &[&str]) -> Result<String> {
        let mut command = std::process::Command::new("redis-cli");
        command
            .arg("-s")
            .arg(self.socket())
            .arg("-e")
            .args(arguments);
        tokio::task::spawn_blocking(move || machine::output(&mut command)).await?
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("socket")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.service.take());
        drop(self.guard.stdin.take());
        // It ends by itself now.
        let _ = self.guard.wait();
    }
}

/// Reads the line after the header from its end, because the command before it may contain any text.
fn parse(csv: &str) -> Result<Figures> {
    let line = csv.lines().last().context("nothing")?;
    let mut fields = line
        .rsplit(',')
        .map(|field| field.trim_matches('"').parse::<f64>());
    let mut next = || {
        fields
            .next()
            .context("too few fields")?
            .context("not a number")
    };
    let (_max, p99, _p95, p50, _min, _mean, per_second) = (
        next()?,
        next()?,
        next()?,
        next()?,
        next()?,
        next()?,
        next()?,
    );
    let time = |milliseconds: f64| Duration::from_secs_f64(milliseconds / 1000.0);
    Ok(Figures::Rate {
        per_second,
        p50: time(p50),
        p99: time(p99),
    })
}
