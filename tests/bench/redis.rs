//! Redis with a Lua script, and redis-benchmark.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use honcho_tests::eventually;
use tempfile::TempDir;
use tokio::process::Command;

use crate::{case::Figures, ground::ENDLESS, machine};

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
    /// Claims per second by number of clients, as last measured: redis-benchmark takes a number of requests,
    /// not a time.
    expected: BTreeMap<u32, f64>,
}

/// Keys of the script.
const KEYS: [&str; 3] = ["stock", "users", "claims"];

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
            expected: BTreeMap::new(),
        };
        eventually("Redis", async || Ok(redis.ask(&["ping"]).await.ok())).await?;
        redis.script = redis
            .ask(&["script", "load", include_str!("claim_redis.lua")])
            .await?;
        Ok(redis)
    }

    /// Single claims on one coupon, without pauses.
    pub async fn claims(&mut self, clients: u32, seconds: u32) -> Result<Figures> {
        if !self.expected.contains_key(&clients) {
            self.run(clients, 2_000).await?;
        }
        let expected = self.expected.get(&clients).copied().unwrap_or_default();
        self.run(clients, (expected * f64::from(seconds)) as u64 + 1)
            .await
    }

    async fn run(&mut self, clients: u32, claims: u64) -> Result<Figures> {
        self.ask(&["flushall"]).await?;
        self.ask(&["set", KEYS[0], &ENDLESS.to_string()]).await?;
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
                &KEYS.len().to_string(),
            ])
            .args(KEYS)
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
        self.check(claims).await?;
        if let Figures::Rate { per_second, .. } = figures {
            self.expected.insert(clients, per_second);
        }
        Ok(figures)
    }

    /// Fails unless stock, users and claims agree on this many.
    async fn check(&self, claims: u64) -> Result<()> {
        let stock: u64 = self.ask(&["get", KEYS[0]]).await?.parse()?;
        let users: u64 = self.ask(&["scard", KEYS[1]]).await?.parse()?;
        let listed: u64 = self.ask(&["llen", KEYS[2]]).await?.parse()?;
        let given = u64::try_from(ENDLESS)? - stock;
        ensure!(
            [given, users, listed] == [claims; 3],
            "{claims} claims, but {given} from stock, {users} users, {listed} listed"
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
