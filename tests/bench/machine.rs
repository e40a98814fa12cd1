//! The machine: its tools, its properties, and the duration of a flush of its disk.

use std::{
    env,
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Number of flushes or commits in a probe.
pub const PROBES: usize = 200;

/// Fails unless the environment names the PostgreSQL to measure.
pub fn ensure_postgresql() -> Result<()> {
    let program = env::var_os("PG_CONFIG").context("PG_CONFIG is not set: use make bench")?;
    output(Command::new(program).arg("--version"))?;
    Ok(())
}

/// Installs the load generators and Redis if they are missing.
pub fn install_tools() -> Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/install-tools");
    let installed = Command::new(script)
        .status()
        .with_context(|| format!("{script} does not run"))?;
    ensure!(
        installed.success(),
        "the benchmark cannot do without these programs"
    );
    Ok(())
}

/// Fails if files are kept in memory, where flushes cost nothing.
pub fn ensure_disk(directory: &Path) -> Result<()> {
    let kind = file_system(directory)?;
    ensure!(
        !["tmpfs", "ramfs", "devtmpfs"].contains(&kind.as_str()),
        "{} is on {kind}: flushes there cost nothing (--state DIR on a disk)",
        directory.display()
    );
    Ok(())
}

/// Raises the limit of open files to this number, as far as the system allows: of this process, and of those that
/// it starts.
pub fn raise_file_limit(files: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < files) {
        let raised = limit.maximum.map_or(files, |most| most.min(files));
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(raised),
                ..limit
            },
        )?;
    }
    Ok(())
}

/// Fails unless this process may open so many files.
pub fn ensure_files(files: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile).current;
    ensure!(
        limit.is_none_or(|limit| limit >= files),
        "the system lets a process open {} files, but the clients need {files}: raise the hard limit (ulimit -Hn {files})",
        limit.unwrap_or_default()
    );
    Ok(())
}

fn file_system(directory: &Path) -> Result<String> {
    output(Command::new("df").arg("--output=fstype").arg(directory))?
        .lines()
        .last()
        .map(|kind| kind.trim().to_owned())
        .context("df says nothing")
}

/// Names and values of the properties that matter to the figures.
pub fn describe(directory: &Path) -> Result<Vec<(&'static str, String)>> {
    let processor =
        field("/proc/cpuinfo", "model name").unwrap_or_else(|_| env::consts::ARCH.into());
    let cores = std::thread::available_parallelism()?.get();
    let memory: u64 = field("/proc/meminfo", "MemTotal")?
        .trim_end_matches(" kB")
        .parse()?;
    let system = field_of("/etc/os-release", "PRETTY_NAME", '=')?
        .trim_matches('"')
        .to_owned();
    Ok(vec![
        ("Processor", format!("{processor}, {cores} cores")),
        (
            "Memory",
            format!("{:.0} GiB", memory as f64 / 1024.0 / 1024.0),
        ),
        ("Huge pages reserved", huge_pages()?),
        (
            "System",
            format!(
                "{system}, Linux {}",
                fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
            ),
        ),
        ("File system of the data", file_system(directory)?),
        ("rustc", output(Command::new("rustc").arg("--version"))?),
        (
            "redis-server",
            output(Command::new("redis-server").arg("--version"))?,
        ),
        ("wrk", wrk_version()?),
    ])
}

/// The huge pages that PostgreSQL uses for shared memory by default, if there are enough.
fn huge_pages() -> Result<String> {
    let count = field("/proc/meminfo", "HugePages_Total")?;
    let size = field("/proc/meminfo", "Hugepagesize")?;
    Ok(format!("{count} of {size}"))
}

/// Today's date (UTC), as `2026-11-23`.
pub fn today() -> Result<String> {
    output(Command::new("date").args(["--utc", "+%F"]))
}

fn wrk_version() -> Result<String> {
    // wrk ends with 1 after its version.
    let said = Command::new("wrk").arg("--version").output()?.stdout;
    Ok(String::from_utf8_lossy(&said)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned())
}

fn field(file: &str, name: &str) -> Result<String> {
    field_of(file, name, ':')
}

fn field_of(file: &str, name: &str, separator: char) -> Result<String> {
    fs::read_to_string(file)?
        .lines()
        .filter_map(|line| line.split_once(separator))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
        .with_context(|| format!("no {name} in {file}"))
}

/// Returns a program's output, and fails unless it succeeds.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} does not run"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The median time in microseconds of appending 8 KiB to a file and flushing it.
pub fn probe_flush(file: &Path) -> Result<u128> {
    let mut file = File::options().append(true).open(file)?;
    let mut times = Vec::new();
    for _ in 0..PROBES {
        let started = Instant::now();
        file.write_all(&[1; 8192])?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    Ok(median(&mut times).context("no flushes")?.as_micros())
}

/// The median.
pub fn median(times: &mut [Duration]) -> Option<Duration> {
    percentile(times, 0.5)
}

/// The quantile: the time that this share of all times does not exceed.
pub fn percentile(times: &mut [Duration], share: f64) -> Option<Duration> {
    let last = times.len().checked_sub(1)?;
    times.sort_unstable();
    times.get((last as f64 * share).round() as usize).copied()
}
