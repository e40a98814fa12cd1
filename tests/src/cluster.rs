use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    io::Errno,
    process::{Pid, Signal, geteuid, kill_process},
};

use crate::PATIENCE;

/// Waits for the end of its standard input, which comes when the process that owns the cluster
/// drops it or dies in whatever way, and then takes the cluster down and away. A static is never
/// dropped, so the shared cluster of a test binary depends on it.
const GUARD: &str = r#"
cat >/dev/null
# A server that was killed leaves its lock file behind.
if [ -f "$1/data/postmaster.pid" ] && kill -QUIT "$(head -n 1 "$1/data/postmaster.pid")" 2>/dev/null; then
    tries=0
    while [ -f "$1/data/postmaster.pid" ] && [ "$tries" -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
fi
rm -rf "$1"
"#;

/// The port of a cluster that is reachable only through its unix socket.
const DEFAULT_PORT: u16 = 5432;

/// How to stop a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Disconnects everybody and shuts down cleanly.
    Fast,
    /// Drops everything at once, as a crash does: the next start goes through recovery.
    Immediate,
    /// Kills every process, as the end of the machine does: none of them can do anything more.
    Kill,
}

/// What a cluster is made and started with.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    parent: PathBuf,
    settings: Vec<(String, String)>,
    environment: Vec<(OsString, OsString)>,
    tcp: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            parent: env::temp_dir(),
            settings: Vec::new(),
            environment: Vec::new(),
            tcp: false,
        }
    }
}

impl ClusterOptions {
    /// Listens on a port of the loopback address too.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// The directory in which the cluster makes its own. Keep it short: socket paths end at 107
    /// bytes.
    pub fn parent(mut self, parent: impl Into<PathBuf>) -> Self {
        self.parent = parent.into();
        self
    }

    /// A server setting, given as `-c name=value` at every start.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An environment variable of the server, such as `LD_PRELOAD`.
    pub fn environment(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Makes the cluster and starts it.
    pub fn start(self) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(self)?;
        let data = cluster.data();
        cluster.run(
            "initdb",
            [
                OsStr::new("--auth=trust"),
                OsStr::new("--username=postgres"),
                OsStr::new("--encoding=UTF8"),
                OsStr::new("--no-locale"),
                OsStr::new("--no-sync"),
                OsStr::new("--pgdata"),
                data.as_os_str(),
            ],
        )?;
        cluster.start()?;
        Ok(cluster)
    }

    /// Makes a hot standby of `primary`, which must be running, and starts it.
    pub fn start_standby_of(self, primary: &Cluster) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(self)?;
        let data = cluster.data();
        cluster.run(
            "pg_basebackup",
            [
                OsStr::new("--host"),
                primary.directory().as_os_str(),
                OsStr::new("--checkpoint=fast"),
                OsStr::new("--no-sync"),
                OsStr::new("--write-recovery-conf"),
                OsStr::new("--pgdata"),
                data.as_os_str(),
            ],
        )?;
        cluster.start()?;
        Ok(cluster)
    }
}

/// A private PostgreSQL cluster: a fresh data directory, reachable only through a unix socket in
/// a directory of its own unless TCP is asked for, stopped and removed when it is dropped or when this process ends.
///
/// PostgreSQL refuses to run as root, so when we are root it runs as the user `postgres`.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    bindir: PathBuf,
    owner: Option<(u32, u32)>,
    options: ClusterOptions,
    port: u16,
    postmaster: Option<Child>,
    guard: Option<Child>,
}

impl Cluster {
    /// Makes a cluster with default options and starts it.
    pub fn start_new() -> Result<Self> {
        ClusterOptions::default().start()
    }

    /// A cluster without a data directory yet.
    fn prepare(options: ClusterOptions) -> Result<Self> {
        let bindir = bindir()?;
        let owner = owner()?;
        let port = if options.tcp {
            free_port()?
        } else {
            DEFAULT_PORT
        };
        let directory = tempfile::Builder::new()
            .prefix("honcho-")
            .tempdir_in(&options.parent)
            .with_context(|| format!("no directory under {}", options.parent.display()))?
            .keep();
        let guard = Command::new("sh")
            .args(["-c", GUARD, "honcho-guard"])
            .arg(&directory)
            .stdin(Stdio::piped())
            // Outlives a Ctrl+C at the terminal, which would otherwise end it with its owner.
            .process_group(0)
            .spawn()
            .context("the guard did not start")?;
        let cluster = Self {
            directory,
            bindir,
            owner,
            options,
            port,
            postmaster: None,
            guard: Some(guard),
        };
        if let Some((user, group)) = owner {
            chown(&cluster.directory, Some(user), Some(group))?;
        }
        Ok(cluster)
    }

    /// Starts the server again after [`stop`](Self::stop) and waits until it takes connections.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.postmaster.is_none(), "the cluster runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data());
        let addresses = if self.options.tcp { "127.0.0.1" } else { "" };
        command.args(["-c", &format!("listen_addresses={addresses}")]);
        command.args(["-c", &format!("port={}", self.port), "-c"]);
        command.arg(setting("unix_socket_directories", &self.directory));
        for (name, value) in &self.options.settings {
            command.args(["-c", &format!("{name}={value}")]);
        }
        for (name, value) in &self.options.environment {
            command.env(name, value);
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let postmaster = self
            .postmaster
            .insert(command.spawn().context("no postmaster")?);
        let pid = postmaster.id();
        let deadline = Instant::now() + PATIENCE;
        while !is_ready(&self.directory.join("data"), pid) {
            if let Some(status) = postmaster.try_wait()? {
                self.postmaster = None;
                bail!("the server ended with {status}:\n{}", self.log());
            }
            ensure!(
                Instant::now() < deadline,
                "the server is not ready:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Stops the server and waits for its end; the data stays.
    pub fn stop(&mut self, how: Stop) -> Result<()> {
        let Some(mut postmaster) = self.postmaster.take() else {
            return Ok(());
        };
        let mode = match how {
            Stop::Fast => "fast",
            Stop::Immediate => "immediate",
            Stop::Kill => {
                kill_with_children(postmaster.id())?;
                postmaster.wait()?;
                return Ok(());
            }
        };
        let data = self.data();
        self.run(
            "pg_ctl",
            [
                OsStr::new("stop"),
                OsStr::new("-m"),
                OsStr::new(mode),
                OsStr::new("-D"),
                data.as_ref(),
            ],
        )?;
        postmaster.wait()?;
        Ok(())
    }

    /// Makes a standby a primary, and waits until it is. Not by a query, which replay may break off.
    pub fn promote(&self) -> Result<()> {
        let data = self.data();
        self.run(
            "pg_ctl",
            [OsStr::new("promote"), OsStr::new("-D"), data.as_ref()],
        )?;
        Ok(())
    }

    /// Runs one of PostgreSQL's programs as the cluster's owner, connected to the cluster as its
    /// superuser, and fails with what it said unless it succeeds.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Output> {
        let output = self
            .program(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "{program}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }

    /// A command for one of PostgreSQL's programs, with the user, the working directory and the
    /// `PG…` variables set so that it reaches this cluster.
    pub fn program(&self, program: &str) -> Command {
        let mut command = Command::new(self.bindir.join(program));
        // The owner may not be able to enter the directory in which we were started.
        command.current_dir(&self.directory);
        command
            .env("PGHOST", &self.directory)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres");
        command.env_remove("PGDATABASE").env_remove("PGDATA");
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        command
    }

    /// A URL for libpq and for the service.
    pub fn url(&self, user: &str, database: &str) -> String {
        let host = self
            .directory
            .to_string_lossy()
            .replace('%', "%25")
            .replace('/', "%2F");
        let port = self.port;
        format!("postgresql://{user}@/{database}?host={host}&port={port}")
    }

    /// The port of its sockets: unix, and the loopback address if TCP was asked for.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops every process of the running server from doing anything until the returned value is
    /// dropped. To others it looks like a machine that hangs: connections stay, nothing answers.
    pub fn freeze(&self) -> Result<Frozen> {
        let postmaster = self.pid().context("the server does not run")?;
        let mut frozen = Frozen(Vec::new());
        // The postmaster first: it starts nothing new meanwhile.
        for pid in std::iter::once(postmaster).chain(children(postmaster)?) {
            signal(pid, Signal::STOP)?;
            frozen.0.push(pid);
        }
        Ok(frozen)
    }

    /// Where PostgreSQL's programs are.
    pub fn bindir(&self) -> &Path {
        &self.bindir
    }

    /// The cluster's own directory: the socket, the log, and the data directory `data`. It
    /// belongs to the cluster's owner.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process id of the running server.
    pub fn pid(&self) -> Option<u32> {
        self.postmaster.as_ref().map(Child::id)
    }

    /// All that the server has logged.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The guard does the rest, whatever came of the stop; nobody is left to tell.
        let _ = self.stop(Stop::Immediate);
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}

/// A server of which no process does anything.
#[derive(Debug)]
pub struct Frozen(Vec<u32>);

impl Drop for Frozen {
    fn drop(&mut self) {
        for &pid in &self.0 {
            // It may be gone by now.
            let _ = signal(pid, Signal::CONT);
        }
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("a strange process id")?;
    match kill_process(pid, signal) {
        Err(Errno::SRCH) => Ok(()),
        result => Ok(result?),
    }
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(children
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?)
}

/// A port that nobody listens on at present.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Kills a server: it is stopped first, so that it starts nothing new while its children go.
fn kill_with_children(server: u32) -> Result<()> {
    signal(server, Signal::STOP)?;
    let children = children(server)?;
    for &child in &children {
        signal(child, Signal::KILL)?;
    }
    signal(server, Signal::KILL)?;
    // The next server does not start while one of them still has the shared memory.
    let deadline = Instant::now() + PATIENCE;
    while children.iter().any(|&child| is_alive(child)) {
        ensure!(Instant::now() < deadline, "killed processes go on");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether a process is there and more than an entry that nobody has collected.
fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
        state != Some("Z")
    })
}

/// The directory of PostgreSQL's programs, from `$PG_CONFIG`.
fn bindir() -> Result<PathBuf> {
    let pg_config = env::var_os("PG_CONFIG").context(
        "PG_CONFIG must name the pg_config of the PostgreSQL to test (make test-it does)",
    )?;
    let output = Command::new(&pg_config)
        .arg("--bindir")
        .output()
        .with_context(|| format!("{} does not run", pg_config.display()))?;
    ensure!(
        output.status.success(),
        "{} --bindir: {}",
        pg_config.display(),
        output.status
    );
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}

/// User and group to run PostgreSQL as, when it cannot be ours.
fn owner() -> Result<Option<(u32, u32)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let id = |kind: &str| -> Result<u32> {
        let output = Command::new("id").args([kind, "postgres"]).output()?;
        ensure!(
            output.status.success(),
            "PostgreSQL does not run as root: add a user postgres"
        );
        Ok(String::from_utf8(output.stdout)?.trim().parse()?)
    };
    Ok(Some((id("-u")?, id("-g")?)))
}

/// Whether the server with this process id takes connections: the eighth line of its lock file
/// says so, which is what `pg_ctl start` waits for.
fn is_ready(data: &Path, pid: u32) -> bool {
    let Ok(lock) = fs::read_to_string(data.join("postmaster.pid")) else {
        return false;
    };
    let mut lines = lock.lines();
    // The lock file of a server that crashed stays until the next one takes it over.
    lines.next() == Some(pid.to_string().as_str())
        && lines.nth(6).is_some_and(|status| status.trim() == "ready")
}

fn setting(name: &str, value: &Path) -> OsString {
    let mut setting = OsString::from(name);
    setting.push("=");
    setting.push(value);
    setting
}
