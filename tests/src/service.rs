use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;

/// A running `honcho-service` on a free port of the loopback address, killed when dropped.
#[derive(Debug)]
pub struct Service {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
    unread: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts the binary named by `$HONCHO_SERVICE` on this database and waits until it listens.
    pub async fn start(database_url: &str) -> Result<Self> {
        Self::start_with(database_url, &[]).await
    }

    /// The same with more environment variables.
    pub async fn start_with(database_url: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let mut command = Self::command()?;
        command
            .env("DATABASE_URL", database_url)
            .env("HOST", "127.0.0.1")
            .env("PORT", "0");
        command.envs(environment.iter().copied());
        Self::spawn(command).await
    }

    /// The binary named by `$HONCHO_SERVICE`, for tests that pass flags.
    pub fn command() -> Result<Command> {
        Ok(Command::new(binary()?))
    }

    /// Starts any command that logs `listening on http://<address>` on its standard error.
    pub async fn spawn(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("the service did not start")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let log = Arc::new(Mutex::new(String::new()));
        let unread = Arc::new(AtomicBool::new(false));
        // A thread, not a task: a test that blocks its runtime must not block the pipe.
        let reader = thread::spawn({
            let log = Arc::clone(&log);
            let unread = Arc::clone(&unread);
            move || {
                let mut stderr = BufReader::with_capacity(64 * 1024, stderr);
                let mut line = String::new();
                while !unread.load(Ordering::Relaxed)
                    && stderr.read_line(&mut line).is_ok_and(|length| length > 0)
                {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.push_str(&line);
                    line.clear();
                }
                // Reads until the end, which may also be an error.
                let _ = io::copy(&mut stderr, &mut io::sink());
            }
        });
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut service = Self {
            child,
            address: unspecified,
            log,
            unread,
            reader: Some(reader),
        };
        service.address = eventually("the service to listen", async || {
            let log = service.log();
            if let Some(address) = listening(&log) {
                return Ok(Some(address));
            }
            if let Some(status) = service.child.try_wait()? {
                service.read_to_the_end()?;
                bail!("the service ended with {status}:\n{}", service.log());
            }
            Ok(None)
        })
        .await?;
        Ok(service)
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Discards its log after the next line, because a service under load logs very much.
    pub fn leave_log_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    /// Waits until its log contains `text`: the service writes its log after it has answered.
    pub async fn logged(&self, text: &str) -> Result<()> {
        let logged = eventually("a line in the log", async || {
            Ok(self.log().contains(text).then_some(()))
        });
        logged
            .await
            .with_context(|| format!("no {text:?} in\n{}", self.log()))
    }

    /// The memory in use, in bytes: the resident set of `/proc/<pid>/status`.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The peak of the memory in use, in bytes.
    pub fn peak_resident_bytes(&self) -> Result<u64> {
        self.status_bytes("VmHWM:")
    }

    /// Counts its open sockets, including the listener and those to the database.
    pub fn open_sockets(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count())
    }

    fn status_bytes(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kilobytes: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .with_context(|| format!("no {field} in /proc/{}/status", self.pid()))?
            .parse()?;
        Ok(kilobytes * 1024)
    }

    /// Sends SIGTERM: finish requests in flight and exit.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends SIGINT, which means the same.
    pub fn interrupt(&self) -> Result<()> {
        self.signal(Signal::INT)
    }

    /// Sends SIGHUP: read the reloadable files again.
    pub fn hang_up(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// Stops the process until `thaw`.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Continues the process.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid().try_into()?).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Waits for its exit, and for the end of its log.
    pub async fn exit(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        let status = eventually("the service to end", async || Ok(child.try_wait()?)).await?;
        self.read_to_the_end()?;
        Ok(status)
    }

    /// Once the process has ended, the thread may still have its last lines to read.
    fn read_to_the_end(&mut self) -> Result<()> {
        if let Some(reader) = self.reader.take() {
            let read = reader.join();
            ensure!(read.is_ok(), "the log could not be read");
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> Result<OsString> {
    env::var_os("HONCHO_SERVICE")
        .context("HONCHO_SERVICE must name the service's binary (make test-it does)")
}

fn listening(log: &str) -> Option<SocketAddr> {
    log.lines().find_map(|line| {
        let (_, address) = line.split_once("listening on http://")?;
        // In JSON, a quotation mark ends it.
        let end = |character: char| character.is_whitespace() || character == '"';
        address.split(end).next()?.parse().ok()
    })
}
