//! The servers of a connection string, and failover: connects to the first of them that fits.

mod conninfo;
mod passfile;
mod tls;

use std::{
    fmt,
    future::Future,
    io, iter,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use deadpool_postgres::Connect;
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{
    CancelToken, Client, Config,
    config::{ChannelBinding, SslMode, TargetSessionAttrs},
    error::SqlState,
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::debug;

pub use self::conninfo::{ConninfoError, Parameters};
use self::{passfile::PasswordFile, tls::SslModeSetting};
use super::{
    ids,
    settings::{RequestedLimits, Unfit},
};
use crate::shards::ShardNumber;

/// Longest attempt to connect to one server, unless `connect_timeout` says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Limits after which a peer that has vanished is given up: for unacknowledged data, and the first keepalive,
/// their interval and their number. The system's defaults are hours.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(5), Duration::from_secs(1), 3);

/// The servers, in the order in which they are tried. Clones share the knowledge of the server that works.
#[derive(Clone)]
pub struct Servers(Arc<ServersInner>);

struct ServersInner {
    configs: Vec<Config>,
    credentials: Arc<ArcSwap<ServerCredentials>>,
    /// Limits requested for every session.
    limits: RequestedLimits,
    /// Number of the shard to which every session must lead.
    shard: ShardNumber,
    /// Longest attempt to connect to one server.
    connect_timeout: Duration,
    /// Index of the server that accepted the last connection. It is tried first, so that a server that is gone
    /// costs its timeout once.
    preferred: Arc<AtomicUsize>,
    /// True if the last attempt to connect failed.
    failing: AtomicBool,
    /// True if a server could not be reached, or did not answer, in the last attempt that failed.
    missing: AtomicBool,
}

/// Certificates and passwords. They can be reloaded while the service runs.
struct ServerCredentials {
    tls: MakeRustlsConnect,
    /// One for each of the servers.
    passwords: Vec<Password>,
}

type Password = Option<Vec<u8>>;

/// A connection, the task that drives it, and the index of its server.
pub(crate) struct OpenConnection {
    pub(crate) client: Client,
    pub(crate) task: JoinHandle<()>,
    pub(crate) server: usize,
}

impl Servers {
    /// Reads the certificates and passwords that the parameters name. `session_options` are put before the
    /// parameters' own. Sessions must lead to `shard`.
    ///
    /// # Errors
    /// A parameter or a file that it names is wrong.
    pub fn new(
        parameters: &Parameters,
        session_options: &str,
        shard: ShardNumber,
    ) -> Result<Self, ConninfoError> {
        let (mode, tls) = tls::configure(parameters)?;
        let connect_timeout = parameters
            .parsed(
                "connect_timeout",
                "a whole number of seconds from 1 to 60",
                |text| {
                    text.parse()
                        .ok()
                        .filter(|seconds| (1..=60).contains(seconds))
                },
            )?
            .map_or(CONNECT_TIMEOUT, Duration::from_secs);
        let options = match parameters.get("options") {
            Some(options) => format!("{session_options} {options}"),
            None => session_options.to_owned(),
        };
        let (configs, passwords) = configs(parameters, mode, &options)?.into_iter().unzip();
        let credentials = ServerCredentials {
            tls: MakeRustlsConnect::new(tls),
            passwords,
        };
        Ok(Self(Arc::new(ServersInner {
            configs,
            credentials: Arc::new(ArcSwap::from_pointee(credentials)),
            limits: RequestedLimits::in_options(&options),
            shard,
            connect_timeout,
            preferred: Arc::default(),
            failing: AtomicBool::new(false),
            missing: AtomicBool::new(false),
        })))
    }

    /// Longest attempt to connect: the sum over all servers.
    pub fn connect_timeout(&self) -> Duration {
        let servers = u32::try_from(self.0.configs.len()).unwrap_or(u32::MAX);
        self.0.connect_timeout.saturating_mul(servers)
    }

    /// Returns true if the last attempt to connect failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.0.failing.load(Ordering::Relaxed)
    }

    /// Returns true if a server could not be reached, or did not answer, in the last attempt that failed: the database may
    /// be there, and a server that refuses a connection only be one to which it may move.
    pub(crate) fn is_missing(&self) -> bool {
        self.0.missing.load(Ordering::Relaxed)
    }

    /// Returns the same servers for sessions with another `application_name`: ours and `suffix`.
    pub(crate) fn named(&self, suffix: &str) -> Self {
        let configs = self.0.configs.iter().map(|server| {
            let name = server.get_application_name().unwrap_or_default();
            let mut server = server.clone();
            server.application_name(format!("{name} {suffix}"));
            server
        });
        Self(Arc::new(ServersInner {
            configs: configs.collect(),
            credentials: Arc::clone(&self.0.credentials),
            limits: self.0.limits,
            shard: self.0.shard,
            connect_timeout: self.0.connect_timeout,
            preferred: Arc::clone(&self.0.preferred),
            failing: AtomicBool::new(false),
            missing: AtomicBool::new(false),
        }))
    }

    /// Compares a new session's limits with the requested ones, and its database with the shard.
    ///
    /// # Errors
    /// The session cannot be used.
    pub(crate) async fn check(&self, client: &Client) -> Result<(), Unfit> {
        self.0.limits.check(client).await?;
        match self.0.shard {
            Some(shard) => ids::check(client, shard).await,
            None => Ok(()),
        }
    }

    /// Uses the certificates and passwords of `new`, which has the same servers, for new connections, also in clones and
    /// under other names.
    pub(super) fn adopt(&self, new: &Self) {
        self.0.credentials.store(new.0.credentials.load_full());
    }

    /// Asks the server to cancel the statement of a connection. Tries for `wait` at most and ignores failures.
    pub(crate) async fn cancel(self, token: CancelToken, wait: Duration) {
        let tls = self.0.credentials.load().tls.clone();
        match timeout(wait, token.cancel_query(tls)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!("a statement could not be cancelled: {error}"),
            Err(_) => debug!("a statement could not be cancelled in time"),
        }
    }

    /// Puts this server behind the others, because it does not answer.
    pub(crate) fn demote(&self, server: usize) {
        let next = (server + 1) % self.0.configs.len();
        // Another task may have found a better one already.
        let _ =
            self.0
                .preferred
                .compare_exchange(server, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Connects to the first server that fits. May take [`connect_timeout`](Self::connect_timeout), and longer if
    /// the last of them does not answer: the caller must bound that.
    pub(crate) async fn open(&self) -> Result<OpenConnection, tokio_postgres::Error> {
        // An attempt that is dropped has failed too.
        self.0.failing.store(true, Ordering::Relaxed);
        let opened = self.open_first().await?;
        self.0.failing.store(false, Ordering::Relaxed);
        self.0.missing.store(false, Ordering::Relaxed);
        Ok(opened)
    }

    /// Returns the error that says most: of a server that accepts no more connections while all can be reached, of one that
    /// takes no writes, of one that refuses the connection while all can be reached, or of the last.
    async fn open_first(&self) -> Result<OpenConnection, tokio_postgres::Error> {
        let preferred = self.0.preferred.load(Ordering::Relaxed);
        let others = (0..self.0.configs.len()).filter(|&server| server != preferred);
        let mut order: Vec<usize> = iter::once(preferred).chain(others).collect();
        // The caller bounds the wait for the last one.
        let last = order.pop().unwrap_or(preferred);
        let (mut read_only, mut full, mut unreachable, mut is_missing) = (None, None, None, false);
        for server in order {
            match timeout(self.0.connect_timeout, self.open_at(server)).await {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error)) => {
                    debug!("database server {} does not fit: {error}", server + 1);
                    if takes_no_writes(&error) {
                        read_only = Some(error);
                    } else if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) {
                        full = Some(error);
                    } else if error.code().is_none() {
                        is_missing = true;
                        unreachable = Some(error);
                    }
                }
                Err(_) => {
                    debug!("database server {} does not answer", server + 1);
                    is_missing = true;
                }
            }
        }
        let opened = self.open_at(last).await;
        opened.map_err(|error| {
            let is_refused = error.code().is_some();
            let is_missing = is_missing || !is_refused && !takes_no_writes(&error);
            self.0.missing.store(is_missing, Ordering::Relaxed);
            let is_full = error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS);
            let full = full.filter(|_| !is_missing && !is_full);
            if is_full && !is_missing {
                return error;
            }
            if is_refused {
                full.or(read_only).or(unreachable).unwrap_or(error)
            } else {
                full.or(read_only).unwrap_or(error)
            }
        })
    }

    async fn open_at(&self, server: usize) -> Result<OpenConnection, tokio_postgres::Error> {
        let mut config = self.0.configs[server].clone();
        let tls = {
            let credentials = self.0.credentials.load();
            if let Some(Some(password)) = credentials.passwords.get(server) {
                config.password(password);
            }
            credentials.tls.clone()
        };
        let (client, connection) = config.connect(tls).await?;
        let task = tokio::spawn(async move {
            // A call on it gets the same error.
            if let Err(error) = connection.await {
                debug!("a connection to the database broke: {error}");
            }
        });
        self.0.preferred.store(server, Ordering::Relaxed);
        Ok(OpenConnection {
            client,
            task,
            server,
        })
    }
}

/// Returns true if a server was passed over because of `target_session_attrs`. tokio-postgres reports that as an error of
/// the connection, which, unlike all others of this kind, the system has not given.
pub(crate) fn takes_no_writes(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| {
            error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none()
        })
}

impl Connect for Servers {
    fn connect(
        &self,
        _: &Config,
    ) -> Pin<
        Box<
            dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>>
                + Send
                + '_,
        >,
    > {
        Box::pin(async {
            let OpenConnection { client, task, .. } = self.open().await?;
            Ok((client, task))
        })
    }
}

impl PartialEq for Servers {
    /// Compares the servers and the settings of their sessions, without certificates and passwords.
    fn eq(&self, other: &Self) -> bool {
        self.0.configs == other.0.configs
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // They hold no passwords.
        self.0.configs.fmt(formatter)
    }
}

/// Makes a configuration and a password for each server.
fn configs(
    parameters: &Parameters,
    mode: SslModeSetting,
    options: &str,
) -> Result<Vec<(Config, Password)>, ConninfoError> {
    let common = common(parameters, options)?;
    let (hosts, ports) = (parameters.list("host"), parameters.list("port"));
    let addresses = parameters.parsed("hostaddr", "IP addresses, separated by commas", |list| {
        list.split(',')
            .map(|address| address.parse().ok())
            .collect()
    })?;
    let addresses: Vec<IpAddr> = addresses.unwrap_or_default();
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err(ConninfoError::in_string(
            "must name the database's host, or PGHOST must",
        ));
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(parameters.fault("hostaddr", "must list as many as host does"));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(parameters.fault("port", "must be one, or as many as there are hosts"));
    }
    let passwords = PasswordFile::read(parameters)?;
    (0..count)
        .map(|server| {
            let mut config = common.clone();
            let address = addresses.get(server).map(IpAddr::to_string);
            let host = match (hosts.get(server), &address) {
                (Some(host), _) if !host.is_empty() => *host,
                (_, Some(address)) => address,
                _ => return Err(parameters.fault("host", "must not be empty")),
            };
            let port = match ports.get(server).or(ports.first()) {
                None | Some(&"") => 5432,
                Some(port) => port
                    .parse()
                    .ok()
                    .filter(|&port| port > 0)
                    .ok_or_else(|| parameters.fault("port", "must be from 1 to 65535"))?,
            };
            config.host(host).port(port);
            if let Some(&address) = addresses.get(server) {
                config.hostaddr(address);
            }
            // Like libpq: no TLS within the machine.
            let local = host.starts_with('/') && address.is_none();
            config.ssl_mode(match mode {
                SslModeSetting::Prefer if !local => SslMode::Prefer,
                SslModeSetting::Require | SslModeSetting::VerifyCa | SslModeSetting::VerifyFull
                    if !local =>
                {
                    SslMode::Require
                }
                _ => SslMode::Disable,
            });
            if count > 1 && parameters.get("target_session_attrs").is_none() {
                // Of several servers, only the primary takes claims.
                config.target_session_attrs(TargetSessionAttrs::ReadWrite);
            }
            let password = match parameters.get("password") {
                Some(password) => Some(password.to_owned()),
                None => passwords.look_up(host, port, &config),
            };
            Ok((config, password.map(String::into_bytes)))
        })
        .collect()
}

/// Makes the part of the configuration that all servers share, parameter by parameter.
fn common(parameters: &Parameters, options: &str) -> Result<Config, ConninfoError> {
    let mut config = Config::new();
    if let Some(user) = parameters.get("user") {
        config.user(user);
    }
    if let Some(dbname) = parameters.get("dbname") {
        config.dbname(dbname);
    }
    config.application_name(
        parameters
            .get("application_name")
            .unwrap_or("honcho-service"),
    );
    config.options(options);
    let attributes = parameters.parsed(
        "target_session_attrs",
        "any, read-write or read-only",
        |text| match text {
            "any" => Some(TargetSessionAttrs::Any),
            "read-write" => Some(TargetSessionAttrs::ReadWrite),
            "read-only" => Some(TargetSessionAttrs::ReadOnly),
            _ => None,
        },
    )?;
    if let Some(attributes) = attributes {
        config.target_session_attrs(attributes);
    }
    let binding =
        parameters.parsed(
            "channel_binding",
            "disable, prefer or require",
            |text| match text {
                "disable" => Some(ChannelBinding::Disable),
                "prefer" => Some(ChannelBinding::Prefer),
                "require" => Some(ChannelBinding::Require),
                _ => None,
            },
        )?;
    if let Some(binding) = binding {
        config.channel_binding(binding);
    }
    let milliseconds = parameters.parsed(
        "tcp_user_timeout",
        "a whole number of milliseconds",
        |text| text.parse().ok(),
    )?;
    let unacknowledged = milliseconds.map_or(UNACKNOWLEDGED, Duration::from_millis);
    if !unacknowledged.is_zero() {
        config.tcp_user_timeout(unacknowledged);
    }
    let seconds = |name, default| {
        let seconds =
            parameters.parsed(name, "a whole number of seconds", |text| text.parse().ok())?;
        Ok(seconds.map_or(default, Duration::from_secs))
    };
    let (idle, interval, count) = KEEPALIVE;
    config.keepalives_idle(seconds("keepalives_idle", idle)?);
    config.keepalives_interval(seconds("keepalives_interval", interval)?);
    let count = parameters
        .parsed("keepalives_count", "a whole number", |text| {
            text.parse().ok()
        })?
        .unwrap_or(count);
    config.keepalives_retries(count);
    let keepalives = parameters.parsed("keepalives", "0 or 1", |text| match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    })?;
    config.keepalives(keepalives.unwrap_or(true));
    Ok(config)
}
