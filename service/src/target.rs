//! The servers of a connection string, and the way to the first of them that will do.

use std::{
    fmt,
    future::Future,
    iter,
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
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::debug;

use crate::{
    libpq::{Fault, Parameters},
    passfile::PasswordFile,
    session::{Asked, Unfit},
    tls::{self, Mode},
};

/// How long one server may take to accept a connection, unless `connect_timeout` says otherwise.
const PATIENCE: Duration = Duration::from_secs(2);

/// When a peer that has vanished without a word is given up: unacknowledged data, and the first
/// keepalive, their distance and their number. The system's defaults are hours.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(5), Duration::from_secs(1), 3);

/// The servers, in the order in which they are tried. Clones share what they learn about them.
#[derive(Clone)]
pub struct Target(Arc<Shared>);

struct Shared {
    servers: Vec<Config>,
    credentials: Arc<ArcSwap<Credentials>>,
    /// The limits that every session is asked to have.
    asked: Asked,
    patience: Duration,
    /// The server that took the last connection: the first to be asked for the next, so that one
    /// that is gone costs its patience once.
    preferred: Arc<AtomicUsize>,
    /// Whether the last attempt to connect led to nothing.
    failing: AtomicBool,
}

/// What proves us to the servers and them to us. It can be read anew while we run.
struct Credentials {
    tls: MakeRustlsConnect,
    /// For each of the servers.
    passwords: Vec<Password>,
}

type Password = Option<Vec<u8>>;

/// A connection, the task that drives it, and the server that took it.
pub(crate) struct Opened {
    pub(crate) client: Client,
    pub(crate) task: JoinHandle<()>,
    pub(crate) server: usize,
}

impl Target {
    /// Reads the certificates and passwords that the parameters name. `session_options` come before
    /// the parameters' own.
    pub fn new(parameters: &Parameters, session_options: &str) -> Result<Self, Fault> {
        let (mode, tls) = tls::configure(parameters)?;
        let patience = parameters
            .parsed(
                "connect_timeout",
                "a whole number of seconds from 1 to 60",
                |text| {
                    text.parse()
                        .ok()
                        .filter(|seconds| (1..=60).contains(seconds))
                },
            )?
            .map_or(PATIENCE, Duration::from_secs);
        let options = match parameters.get("options") {
            Some(options) => format!("{session_options} {options}"),
            None => session_options.to_owned(),
        };
        let (servers, passwords) = servers(parameters, mode, &options)?.into_iter().unzip();
        let credentials = Credentials {
            tls: MakeRustlsConnect::new(tls),
            passwords,
        };
        Ok(Self(Arc::new(Shared {
            servers,
            credentials: Arc::new(ArcSwap::from_pointee(credentials)),
            asked: Asked::in_options(&options),
            patience,
            preferred: Arc::default(),
            failing: AtomicBool::new(false),
        })))
    }

    /// The longest that an attempt to connect may take: every server's patience.
    pub fn patience(&self) -> Duration {
        let servers = u32::try_from(self.0.servers.len()).unwrap_or(u32::MAX);
        self.0.patience.saturating_mul(servers)
    }

    /// Whether the last attempt to connect led to nothing.
    pub(crate) fn is_failing(&self) -> bool {
        self.0.failing.load(Ordering::Relaxed)
    }

    /// The same servers, to be met under a name of its own in `pg_stat_activity`.
    pub(crate) fn named(&self, suffix: &str) -> Self {
        let servers = self.0.servers.iter().map(|server| {
            let name = server.get_application_name().unwrap_or_default();
            let mut server = server.clone();
            server.application_name(format!("{name} {suffix}"));
            server
        });
        Self(Arc::new(Shared {
            servers: servers.collect(),
            credentials: Arc::clone(&self.0.credentials),
            asked: self.0.asked,
            patience: self.0.patience,
            preferred: Arc::clone(&self.0.preferred),
            failing: AtomicBool::new(false),
        }))
    }

    /// Compares a new session's limits with what was asked for.
    ///
    /// # Errors
    /// The session cannot be used.
    pub(crate) async fn check(&self, client: &Client) -> Result<(), Unfit> {
        self.0.asked.check(client).await
    }

    /// Uses the certificates and passwords of `new` for new connections, here and under all other names.
    ///
    /// # Errors
    /// `new` leads elsewhere.
    pub(crate) fn adopt(&self, new: &Self) -> Result<(), &'static str> {
        if self.0.servers != new.0.servers {
            return Err("only a restart changes where the database is");
        }
        self.0.credentials.store(new.0.credentials.load_full());
        Ok(())
    }

    /// Tells the server to break off what is asked on a connection, as a courtesy: for so long at most, and
    /// whether it succeeds or not.
    pub(crate) async fn cancel(self, token: CancelToken, wait: Duration) {
        let tls = self.0.credentials.load().tls.clone();
        match timeout(wait, token.cancel_query(tls)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!("a statement could not be cancelled: {error}"),
            Err(_) => debug!("a statement could not be cancelled in time"),
        }
    }

    /// Puts this server behind the others: it answers no more.
    pub(crate) fn pass_over(&self, server: usize) {
        let next = (server + 1) % self.0.servers.len();
        // Somebody may have found another one already.
        let _ =
            self.0
                .preferred
                .compare_exchange(server, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Connects to the first server that will do. May take [`patience`](Self::patience) and, where the
    /// last of them says nothing at all, longer.
    pub(crate) async fn open(&self) -> Result<Opened, tokio_postgres::Error> {
        // An attempt that is broken off has failed too.
        self.0.failing.store(true, Ordering::Relaxed);
        let opened = self.open_first().await?;
        self.0.failing.store(false, Ordering::Relaxed);
        Ok(opened)
    }

    async fn open_first(&self) -> Result<Opened, tokio_postgres::Error> {
        let preferred = self.0.preferred.load(Ordering::Relaxed);
        let others = (0..self.0.servers.len()).filter(|&server| server != preferred);
        let mut order: Vec<usize> = iter::once(preferred).chain(others).collect();
        // Whoever waits bounds the wait for the last one.
        let last = order.pop().unwrap_or(preferred);
        for server in order {
            match timeout(self.0.patience, self.open_at(server)).await {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error)) => debug!("database server {} will not do: {error}", server + 1),
                Err(_) => debug!("database server {} says nothing", server + 1),
            }
        }
        self.open_at(last).await
    }

    async fn open_at(&self, server: usize) -> Result<Opened, tokio_postgres::Error> {
        let mut config = self.0.servers[server].clone();
        let tls = {
            let credentials = self.0.credentials.load();
            if let Some(Some(password)) = credentials.passwords.get(server) {
                config.password(password);
            }
            credentials.tls.clone()
        };
        let (client, connection) = config.connect(tls).await?;
        let task = tokio::spawn(async move {
            // Whoever asks something on it learns the same.
            if let Err(error) = connection.await {
                debug!("a connection to the database broke: {error}");
            }
        });
        self.0.preferred.store(server, Ordering::Relaxed);
        Ok(Opened {
            client,
            task,
            server,
        })
    }
}

impl Connect for Target {
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
            let Opened { client, task, .. } = self.open().await?;
            Ok((client, task))
        })
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The passwords are elsewhere.
        self.0.servers.fmt(formatter)
    }
}

/// A configuration and a password for each server.
fn servers(
    parameters: &Parameters,
    mode: Mode,
    options: &str,
) -> Result<Vec<(Config, Password)>, Fault> {
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
        return Err(Fault::in_string(
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
            // As libpq has it: no TLS within the machine.
            let local = host.starts_with('/') && address.is_none();
            config.ssl_mode(match mode {
                Mode::Prefer if !local => SslMode::Prefer,
                Mode::Require | Mode::VerifyCa | Mode::VerifyFull if !local => SslMode::Require,
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

/// What is the same for all servers.
fn common(parameters: &Parameters, options: &str) -> Result<Config, Fault> {
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
