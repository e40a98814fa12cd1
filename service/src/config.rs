//! Configuration: flags, then environment, then file.
//!
//! Each group of settings is a struct with the checks of its values. A field `some_name` is the flag `--some-name`,
//! the variable `SOME_NAME` and the file's key `some_name`; its doc comment is the text in `--help`. The checked
//! settings become the option structs of the parts of the service, which do not know this module.

mod auth;
mod database;
mod layers;
mod limits;
mod telemetry;
mod values;

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    thread,
    time::Duration,
};

use clap::{Args, Parser};

pub use self::{layers::Stop, values::Secret};

use self::{
    auth::AuthSettings,
    database::DatabaseSettings,
    layers::InvalidSetting,
    limits::LimitSettings,
    telemetry::TelemetrySettings,
    values::{duration, whole},
};
use crate::{
    auth::Policy,
    database::DatabaseOptions,
    events::StreamOptions,
    http::{AllowedOrigins, ConnectionLimits, RequestLimits},
    lanes::LaneLimits,
    shards::Shards,
    telemetry::TelemetryOptions,
};

const ABOUT: &str = "Serves the functions of the PostgreSQL extension honcho over HTTP";

const NAMES: &str = "\
Every setting can be given as the flag --some-name, as the environment variable SOME_NAME, or as the key \
some_name in the TOML file that --config names. Flags override the environment, which overrides the file. An \
empty variable counts as not set.

SIGHUP reloads tokens; keys, issuer and audience of JSON Web Tokens; and the certificates and passwords for the \
database. Other settings change only with a restart.";

/// The command line.
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
    lanes: LaneSettings,
    #[command(flatten)]
    auth: AuthSettings,
    #[command(flatten)]
    limits: LimitSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
    #[command(flatten)]
    shutdown: Shutdown,
}

/// Actions other than serving.
#[derive(Debug, Args)]
struct Invocation {
    /// TOML file with settings; as a variable: CONFIG_FILE
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and the files that it names, then exit
    #[arg(long)]
    check: bool,
    /// Ask the running service with this configuration if it is ready, then exit; status 0 if it is
    #[arg(long, conflicts_with = "check")]
    health_check: bool,
}

/// Address and threads.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Listening")]
pub struct Listen {
    /// Address or name to listen on
    #[arg(long, value_name = "NAME", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 for any free port
    #[arg(long, value_name = "NUMBER", default_value_t = 8080,
          value_parser = whole::<u16>(0..=65_535))]
    pub port: u16,
    /// Threads that serve requests; use more if the database is on another machine [default: half the
    /// cores, but two of two]
    #[arg(long, value_name = "NUMBER", default_value_t = default_workers(),
          hide_default_value = true, value_parser = whole::<usize>(1..=1024))]
    pub worker_threads: usize,
}

impl Listen {
    /// Host by which this machine reaches the service.
    pub fn own_host(&self) -> String {
        match self.host.parse() {
            Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => Ipv4Addr::LOCALHOST.to_string(),
            Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => Ipv6Addr::LOCALHOST.to_string(),
            _ => self.host.clone(),
        }
    }
}

/// Limits of the lanes, and holds.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Claims and holds")]
struct LaneSettings {
    /// Most claims and other operations in one batch
    #[arg(long, value_name = "NUMBER", default_value_t = LaneLimits::default().batch,
          value_parser = whole::<usize>(1..=10_000))]
    batch_limit: usize,
    /// Most claims and other operations waiting for one coupon; more are answered 503
    #[arg(long, value_name = "NUMBER", default_value_t = LaneLimits::default().lane,
          value_parser = whole::<usize>(1..=u64::MAX))]
    lane_limit: usize,
    /// Most claims and other operations waiting for all coupons of a database together; more are answered 503
    #[arg(long, value_name = "NUMBER", default_value_t = LaneLimits::default().total,
          value_parser = whole::<usize>(1..=u64::MAX))]
    waiting_limit: usize,
    /// Time for which a coupon is held if the request names none
    #[arg(long, value_name = "TIME", default_value = "5m",
          value_parser = duration(Duration::from_secs(1)..=Duration::from_secs(24 * 3600)))]
    hold_ttl: Duration,
}

impl From<LaneSettings> for LaneLimits {
    fn from(lanes: LaneSettings) -> Self {
        Self {
            batch: lanes.batch_limit,
            lane: lanes.lane_limit,
            total: lanes.waiting_limit,
        }
    }
}

/// Shutdown.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Shutdown")]
pub struct Shutdown {
    /// Time after SIGTERM during which new requests are still served, while /health/ready answers 503
    #[arg(long, value_name = "TIME", default_value = "0s",
          value_parser = duration(Duration::ZERO..=Duration::from_secs(300)))]
    pub shutdown_delay: Duration,
    /// Time after that for requests in progress
    #[arg(long, value_name = "TIME", default_value = "10s",
          value_parser = duration(Duration::ZERO..=Duration::from_secs(300)))]
    pub shutdown_timeout: Duration,
}

/// The checked configuration.
#[derive(Debug)]
pub struct Config {
    /// Address and threads.
    pub listen: Listen,
    /// Connections to the databases.
    pub databases: Shards<DatabaseOptions>,
    /// Limits of the lanes.
    pub lanes: LaneLimits,
    /// Time for which a coupon is held if the request names none.
    pub hold_ttl: Duration,
    /// Accepted tokens.
    pub policy: Policy,
    /// Origins of web pages that may use the API.
    pub origins: AllowedOrigins,
    /// Limits of requests.
    pub requests: RequestLimits,
    /// Limits of connections.
    pub connections: ConnectionLimits,
    /// Event streams.
    pub streams: StreamOptions,
    /// Logs and traces.
    pub telemetry: TelemetryOptions,
    /// Separate address of /metrics, if there is one.
    pub metrics_listen: Option<SocketAddr>,
    /// Shutdown.
    pub shutdown: Shutdown,
}

/// Task of the program.
#[derive(Debug)]
pub enum Task {
    /// Serve.
    Serve(Box<Config>),
    /// Check the configuration: it is valid.
    Check,
    /// Ask the service at this address if it is ready.
    HealthCheck(Listen),
}

/// Reads the command line, the environment and the file. `variable` looks up a variable.
///
/// # Errors
/// A setting is invalid, or the command line asks for a text such as `--help`.
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
        auth,
        limits,
        telemetry,
        shutdown,
    } = settings;
    if invocation.health_check {
        return Ok(Task::HealthCheck(listen));
    }
    let checked = || -> Result<Config, InvalidSetting> {
        let (policy, origins) = auth.check()?;
        let (requests, connections, streams) = limits.check(&policy)?;
        let (telemetry, metrics_listen) = telemetry.options();
        Ok(Config {
            listen,
            databases: database.check(variable)?,
            hold_ttl: lanes.hold_ttl,
            lanes: lanes.into(),
            policy,
            origins,
            requests,
            connections,
            streams,
            telemetry,
            metrics_listen,
            shutdown,
        })
    };
    let config = checked().map_err(|invalid| sources.explain(invalid))?;
    Ok(if invocation.check {
        Task::Check
    } else {
        Task::Serve(Box::new(config))
    })
}

/// Half of the cores: a claim costs the database about as much as it costs the service, and the two usually share
/// a machine. More threads would only pass requests to each other.
/// The database needs the other cores. Of two cores it gets its share by itself: one thread was as much as 15 % slower.
fn default_workers() -> usize {
    let cores = cores();
    (cores / 2).max(cores.min(2))
}

fn cores() -> usize {
    thread::available_parallelism().map_or(2, usize::from)
}
