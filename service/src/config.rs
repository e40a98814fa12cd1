//! What the service is told: by flags, by its environment, by a file, in this order of strength.
//!
//! Settings come in families, one struct each, with the checks of its values beside them. A field
//! `some_name` of a family is the flag `--some-name`, the variable `SOME_NAME` and the file's key
//! `some_name`; its comment is what `--help` says.

mod access;
mod bounds;
mod database;
mod layers;
mod telemetry;
mod values;

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    thread,
    time::Duration,
};

use clap::{Args, Parser};

use access::AccessSettings;
use bounds::BoundsSettings;
use database::DatabaseSettings;

pub use database::{Database, Sessions};
pub use layers::Stop;
pub use telemetry::Telemetry;
pub use values::Secret;

use crate::{access::Access, admission::Bounds, lanes::Limits, origin, serve};
use layers::Wrong;
use values::{duration, whole};

const ABOUT: &str = "Serves the functions of the PostgreSQL extension honcho over HTTP";

const NAMES: &str = "\
Every setting has three spellings: the flag --some-name, the environment variable SOME_NAME, and the key \
some_name in the file that --config names (TOML). Flags are stronger than the environment, which is \
stronger than the file. An empty variable counts as not set.

SIGHUP reads tokens, keys of JSON Web Tokens, and the database's certificates and passwords anew; the other \
settings are those of the start.";

/// Everything that can be said on the command line.
#[derive(Debug, Parser)]
#[command(name = "honcho-service", version, about = ABOUT, after_help = NAMES)]
#[command(max_term_width = 100)]
struct Settings {
    #[command(flatten)]
    invocation: Invocation,
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    lanes: Lanes,
    #[command(flatten)]
    access: AccessSettings,
    #[command(flatten)]
    bounds: BoundsSettings,
    #[command(flatten)]
    telemetry: Telemetry,
    #[command(flatten)]
    shutdown: Shutdown,
}

/// What to do at all.
#[derive(Debug, Args)]
struct Invocation {
    /// A TOML file with settings; its variable is CONFIG_FILE
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, with the files that it names, and leave
    #[arg(long)]
    check: bool,
    /// Ask the service that runs with this configuration whether it is ready, and leave with 0 if so
    #[arg(long, conflicts_with = "check")]
    health_check: bool,
}

/// Where requests come in, and who works on them.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Listening")]
pub struct Listen {
    /// The address or name to listen on
    #[arg(long, value_name = "NAME", default_value = "127.0.0.1")]
    pub host: String,
    /// The port to listen on; 0 takes any that is free
    #[arg(long, value_name = "NUMBER", default_value_t = 8080,
          value_parser = whole::<u16>(0..=65_535))]
    pub port: u16,
    /// The threads that serve requests; more, if the database is on another machine [default: half
    /// the cores]
    #[arg(long, value_name = "NUMBER", default_value_t = default_workers(),
          hide_default_value = true, value_parser = whole::<usize>(1..=1024))]
    pub worker_threads: usize,
}

impl Listen {
    /// The host under which this machine reaches itself.
    pub fn own_host(&self) -> String {
        match self.host.parse() {
            Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => Ipv4Addr::LOCALHOST.to_string(),
            Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => Ipv6Addr::LOCALHOST.to_string(),
            _ => self.host.clone(),
        }
    }
}

/// How much the lanes take on.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Claims")]
struct Lanes {
    /// The most claims in one batch
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().batch,
          value_parser = whole::<usize>(1..=10_000))]
    batch_limit: usize,
    /// The most claims that wait for one coupon; beyond, 503 at once
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().lane,
          value_parser = whole::<usize>(1..=u64::MAX))]
    lane_limit: usize,
    /// The most claims that wait for all coupons together; beyond, 503 at once
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().total,
          value_parser = whole::<usize>(1..=u64::MAX))]
    waiting_limit: usize,
}

impl From<Lanes> for Limits {
    fn from(lanes: Lanes) -> Self {
        Self {
            batch: lanes.batch_limit,
            lane: lanes.lane_limit,
            total: lanes.waiting_limit,
        }
    }
}

/// How the service stops.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Stopping")]
pub struct Shutdown {
    /// How long requests are still taken in after SIGTERM, while /health/ready already says no
    #[arg(long, value_name = "TIME", default_value = "0s",
          value_parser = duration(Duration::ZERO..=Duration::from_secs(300)))]
    pub shutdown_delay: Duration,
    /// How long requests under way may take after that
    #[arg(long, value_name = "TIME", default_value = "10s",
          value_parser = duration(Duration::ZERO..=Duration::from_secs(300)))]
    pub shutdown_timeout: Duration,
}

/// The configuration, complete and checked.
#[derive(Debug)]
pub struct Config {
    /// Where requests come in.
    pub listen: Listen,
    /// Where the database is.
    pub database: Database,
    /// How much the lanes take on.
    pub lanes: Limits,
    /// Who may do what.
    pub access: Access,
    /// The web pages of other sites that may use the interface.
    pub origins: origin::Origins,
    /// How much is let in.
    pub bounds: Bounds,
    /// What connections are allowed.
    pub connections: serve::Limits,
    /// What to tell of itself.
    pub telemetry: Telemetry,
    /// How to stop.
    pub shutdown: Shutdown,
}

/// What the program was started for.
#[derive(Debug)]
pub enum Task {
    /// To serve.
    Serve(Box<Config>),
    /// To see whether it could: it could.
    Check,
    /// To ask the one that listens there whether it is ready.
    HealthCheck(Listen),
}

/// Reads the command line, the environment and the file. `variable` looks a variable up.
pub fn load(
    arguments: Vec<OsString>,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Task, Stop> {
    let (settings, sources) = layers::load::<Settings>(arguments, variable)?;
    let Settings {
        invocation,
        listen,
        database,
        lanes,
        access,
        bounds,
        telemetry,
        shutdown,
    } = settings;
    if invocation.health_check {
        return Ok(Task::HealthCheck(listen));
    }
    let checked = || -> Result<Config, Wrong> {
        let (access, origins) = access.check()?;
        let (bounds, connections) = bounds.check(&access)?;
        Ok(Config {
            listen,
            database: database.check(variable)?,
            lanes: lanes.into(),
            access,
            origins,
            bounds,
            connections,
            telemetry,
            shutdown,
        })
    };
    let config = checked().map_err(|wrong| sources.explain(wrong))?;
    Ok(if invocation.check {
        Task::Check
    } else {
        Task::Serve(Box::new(config))
    })
}

/// Half of the cores: a claim costs the database about as much as it costs us, and the two usually
/// share a machine. More threads would only hand requests to each other.
fn default_workers() -> usize {
    (cores() / 2).max(1)
}

fn cores() -> usize {
    thread::available_parallelism().map_or(2, usize::from)
}
