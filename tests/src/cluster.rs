use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
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

use crate::{PATIENCE, directory::Directory};

/// The port of a cluster that is reachable only through its unix socket.
const DEFAULT_PORT: u16 = 5432;

/// Ways to stop a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Disconnects all clients and shuts down cleanly.
    Fast,
    /// Drops everything immediately, as a crash does: the next start goes through recovery.
    Immediate,
    /// Kills every process, as the end of the machine does: no process runs any further.
    Kill,
}

/// Options of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    pg_config: Option<PathBuf>,
    parent: PathBuf,
    settings: Vec<(String, String)>,
    environment: Vec<(OsString, OsString)>,
    tcp: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            pg_config: None,
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

    /// The `pg_config` of the PostgreSQL to run, instead of the one that `$PG_CONFIG` names.
    pub fn pg_config(mut self, program: impl Into<PathBuf>) -> Self {
        self.pg_config = Some(program.into());
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

    /// Creates the cluster and starts it.
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

    /// Creates a hot standby of `primary`, which must be running, and starts it.
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

/// A private PostgreSQL cluster with a fresh data directory. It is reachable only through a unix socket in
/// its own directory unless TCP is asked for, and is stopped and removed when it is dropped or this process
/// ends.
///
/// PostgreSQL refuses to run as root, so root runs it as the user `postgres`.
#[derive(Debug)]
pub struct Cluster {
    directory: Directory,
    bindir: PathBuf,
    owner: Option<(u32, u32)>,
    options: ClusterOptions,
    port: u16,
    postmaster: Option<Child>,
}

impl Cluster {
    /// Creates a cluster with default options and starts it.
    pub fn start_new() -> Result<Self> {
        ClusterOptions::default().start()
    }

    /// A cluster without a data directory yet.
    fn prepare(options: ClusterOptions) -> Result<Self> {
        let bindir = bindir(options.pg_config.as_deref())?;
        let owner = owner()?;
        let port = if options.tcp {
            free_port()?
        } else {
            DEFAULT_PORT
        };
        Ok(Self {
            directory: Directory::new(&options.parent)?,
            bindir,
            owner,
            options,
            port,
            postmaster: None,
        })
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
        command.arg(setting("unix_socket_directories", self.directory()));
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
        let data = self.data();
        let postmaster = self
            .postmaster
            .insert(command.spawn().context("no postmaster")?);
        let pid = postmaster.id();
        let deadline = Instant::now() + PATIENCE;
        while !is_ready(&data, pid) {
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

    /// Makes a standby a primary, and waits for it. Not with a query, which replay may cancel.
    pub fn promote(&self) -> Result<()> {
        let data = self.data();
        self.run(
            "pg_ctl",
            [OsStr::new("promote"), OsStr::new("-D"), data.as_ref()],
        )?;
        Ok(())
    }

    /// Runs one of PostgreSQL's programs as the cluster's owner, connected to the cluster as its superuser.
    /// Fails with the program's output unless it succeeds.
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
        // The owner may lack access to the current directory.
        command.current_dir(self.directory());
        command
            .env("PGHOST", self.directory())
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
            .directory()
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

    /// Stops every process of the running server until the returned value is dropped. To clients it looks
    /// like a machine that hangs: connections stay open, and nothing answers.
    pub fn freeze(&self) -> Result<Frozen> {
        let mut frozen = Frozen::default();
        frozen.add_server(self.pid().context("the server does not run")?)?;
        Ok(frozen)
    }

    /// The directory of PostgreSQL's programs.
    pub fn bindir(&self) -> &Path {
        &self.bindir
    }

    /// The cluster's own directory: the socket, the log, and the data directory `data`. It
    /// belongs to the cluster's owner.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process id of the running server.
    pub fn pid(&self) -> Option<u32> {
        self.postmaster.as_ref().map(Child::id)
    }

    /// The server's whole log.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.directory().join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.directory().join("log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The directory's guard does the rest, even if the stop failed.
        let _ = self.stop(Stop::Immediate);
    }
}

/// Processes that are stopped until this is dropped.
#[derive(Debug, Default)]
pub struct Frozen(Vec<u32>);

impl Frozen {
    /// Stops a process.
    pub(crate) fn add(&mut self, pid: u32) -> Result<()> {
        signal(pid, Signal::STOP)?;
        self.0.push(pid);
        Ok(())
    }

    /// Stops a server with all its processes: the postmaster first, so that it starts no process meanwhile.
    pub(crate) fn add_server(&mut self, postmaster: u32) -> Result<()> {
        self.add(postmaster)?;
        for pid in children(postmaster)? {
            self.add(pid)?;
        }
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for &pid in &self.0 {
            // It may be gone by now.
            let _ = signal(pid, Signal::CONT);
        }
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("an invalid process id")?;
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

/// A port on which no process listens at present.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Kills a server. It is stopped first, so that it starts no process while its children are killed.
pub(crate) fn kill_with_children(server: u32) -> Result<()> {
    signal(server, Signal::STOP)?;
    let children = children(server)?;
    for &child in &children {
        signal(child, Signal::KILL)?;
    }
    signal(server, Signal::KILL)?;
    // The next server does not start while one of them is attached to the shared memory.
    let deadline = Instant::now() + PATIENCE;
    while children.iter().any(|&child| is_alive(child)) {
        ensure!(Instant::now() < deadline, "killed processes go on");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Tells if a process exists and is not a zombie.
fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
        state != Some("Z")
    })
}

/// The directory of PostgreSQL's programs, from this `pg_config` or `$PG_CONFIG`.
pub(crate) fn bindir(pg_config: Option<&Path>) -> Result<PathBuf> {
    let named = pg_config.map(OsString::from);
    let pg_config = named.or_else(|| env::var_os("PG_CONFIG")).context(
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

/// User and group that run PostgreSQL if this process cannot.
pub(crate) fn owner() -> Result<Option<(u32, u32)>> {
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

/// Tells if the server with this process id accepts connections. `pg_ctl start` waits for the same line of
/// the lock file, the eighth.
fn is_ready(data: &Path, pid: u32) -> bool {
    let Ok(lock) = fs::read_to_string(data.join("postmaster.pid")) else {
        return false;
    };
    let mut lines = lock.lines();
    // After a crash, the lock file stays until the next server replaces it.
    lines.next() == Some(pid.to_string().as_str())
        && lines.nth(6).is_some_and(|status| status.trim() == "ready")
}

fn setting(name: &str, value: &Path) -> OsString {
    let mut setting = OsString::from(name);
    setting.push("=");
    setting.push(value);
    setting
}
