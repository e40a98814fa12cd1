//! Reads the configuration, starts the service, and shuts it down on a signal.
#![forbid(unsafe_code)]

use std::{
    env,
    future::{Future, pending},
    process::{ExitCode, exit},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use honcho_service::{
    auth::Policy,
    config::{self, Config, Listen, Shutdown, Stop, Task},
    database::{Database, DatabaseOptions},
    events::Events,
    health::Health,
    http::{
        App, check_queue_limit, listen, metrics_router, raise_file_limit, routes, runtime, serve,
    },
    lanes::Lanes,
    probe,
    shards::Shards,
    telemetry::{self, logs},
};
use mimalloc::MiMalloc;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    time::{sleep, timeout},
};
use tracing::{info, warn};

// A claim arrives on one thread and is answered on another, which costs glibc's allocator a fifth of the service's
// time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Longest time for reading the files at a SIGHUP.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for the runtime's threads after all requests are answered.
const RUNTIME_TIMEOUT: Duration = Duration::from_secs(1);

/// A signal so soon after the first one belongs to it: `timeout`, for example, signals its command and then its process
/// group.
const FIRST_SIGNAL: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let task = config::load(env::args_os().collect(), &|name| env::var_os(name));
    let outcome = match task {
        Ok(Task::Serve(config)) => serve_until_stopped(*config),
        Ok(Task::Check) => {
            println!("the configuration is valid");
            Ok(())
        }
        Ok(Task::HealthCheck(listen)) => probe::ask(&listen.own_host(), listen.port),
        Err(stop) => return stop.print(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("honcho-service: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve_until_stopped(config: Config) -> Result<()> {
    telemetry::start(config.telemetry.clone())?;
    let runtime = runtime(config.listen.worker_threads)?;
    // As a task: connections are accepted by a thread that serves, instead of being handed over by a third one.
    let served = runtime.block_on(runtime.spawn(run(config)));
    // Remaining tasks may still log something, but a thread that waits for a name server must not delay the exit.
    runtime.shutdown_timeout(RUNTIME_TIMEOUT);
    telemetry::finish();
    served.context("the service panicked")?
}

async fn run(config: Config) -> Result<()> {
    reload_at_hangup(config.policy.clone(), config.databases.clone())?;
    let Listen { host, port, .. } = &config.listen;
    let databases = config
        .databases
        .try_map(|_, options| Database::new(options))?;
    let lanes = Lanes::of(&databases, config.lanes);
    let events = Events::new(&databases, config.streams);
    let health = databases.map(|database| Health::new(database.shard()));
    let pool_sizes = config.databases.iter().map(|options| options.pool_size);
    raise_file_limit(config.connections.connections, pool_sizes.sum());
    check_queue_limit();
    let listener = listen(host, *port)
        .await
        .with_context(|| format!("cannot listen on {host}:{port}"))?;
    // Before the line that reports the start.
    let stop = stop_at_signal(config.shutdown, health.clone())?;
    let is_open = config.policy.is_open();
    let routes = routes(App {
        databases: databases.clone(),
        lanes: lanes.clone(),
        events: events.clone(),
        health: health.clone(),
        policy: config.policy,
        hold_ttl: config.hold_ttl,
        limits: config.requests,
        origins: config.origins,
        metrics: config.metrics_listen.is_none(),
    })?;
    if let Some(address) = config.metrics_listen {
        let listener = listen(&address.ip().to_string(), address.port())
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        info!("metrics at http://{}/metrics", listener.local_addr()?);
        let router = metrics_router(databases.clone(), lanes.clone());
        tokio::spawn(serve(listener, router, config.connections, pending()));
    }
    // Before the first connection to the database, so that the start is visible without one.
    let address = listener.local_addr()?;
    info!("listening on http://{address} (try it out at http://{address}/docs)");
    if is_open {
        warn!("no tokens are configured: every client may create, claim, change, delete and read");
    }
    for ((health, database), options) in health
        .iter()
        .zip(databases.iter())
        .zip(config.databases.iter())
    {
        let (health, sessions) = (health.clone(), options.sessions.clone());
        tokio::spawn(health.watch(database.clone(), sessions));
    }
    let stop = async move {
        stop.await;
        // They have no end of their own.
        events.stop();
    };
    serve(listener, routes, config.connections, stop).await;
    for lanes in lanes.iter() {
        lanes.drained().await;
    }
    for database in databases.iter() {
        database.close();
    }
    info!("stopped");
    Ok(())
}

/// Completes when no more requests are to be accepted: at the first SIGTERM or SIGINT, or `shutdown_delay` later. The
/// process exits at a second signal, unless it comes with the first, or when the time for the requests in progress is over.
fn stop_at_signal(shutdown: Shutdown, health: Shards<Health>) -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stopping, mut stop) = watch::channel(false);
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        for health in health.iter() {
            health.stop();
        }
        let stop_in_time = async {
            let Shutdown {
                shutdown_delay: delay,
                shutdown_timeout: grace,
            } = shutdown;
            if !delay.is_zero() {
                info!("stopping: not ready; accepting requests for another {delay:?}");
                sleep(delay).await;
            }
            info!("stopping: no new requests; those in progress have {grace:?}");
            stopping.send_replace(true);
            sleep(grace).await;
            warn!("some requests did not finish in time");
        };
        let second_signal = async {
            // Never ends by itself.
            let first = async {
                loop {
                    either(&mut terminate, &mut interrupt).await;
                }
            };
            let _: Result<(), _> = timeout(FIRST_SIGNAL, first).await;
            either(&mut terminate, &mut interrupt).await;
        };
        tokio::select! {
            () = stop_in_time => {}
            () = second_signal => warn!("second signal: exiting immediately"),
        }
        logs::finish();
        exit(1);
    });
    Ok(async move {
        // An error means that the task above has ended, and the process with it.
        let _ = stop.wait_for(|stopping| *stopping).await;
    })
}

/// Reloads tokens, keys, certificates and passwords at each SIGHUP.
fn reload_at_hangup(policy: Policy, databases: Shards<DatabaseOptions>) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match timeout(RELOAD_TIMEOUT, reload()).await {
                Ok(Ok(new)) => adopt(&new, &policy, &databases),
                Ok(Err(why)) => {
                    warn!("SIGHUP: the old tokens, keys and certificates stay: {why}");
                }
                Err(_) => warn!(
                    "SIGHUP: the old tokens, keys and certificates stay: the files took more than \
                     {RELOAD_TIMEOUT:?} to read"
                ),
            }
        }
    });
    Ok(())
}

/// Reads the current configuration. A result after the caller has given up is dropped.
///
/// # Errors
/// The configuration is invalid.
async fn reload() -> Result<Box<Config>, String> {
    let (sender, result) = oneshot::channel();
    // A read may hang for ever (a FIFO, a network disk). A thread of its own delays neither the runtime's shutdown nor
    // the look-up of names.
    let reader = thread::Builder::new().name("reload".into()).spawn(move || {
        let task = config::load(env::args_os().collect(), &|name| env::var_os(name));
        let _ = sender.send(match task {
            Ok(Task::Serve(new)) => Ok(new),
            Ok(Task::Check | Task::HealthCheck(_)) | Err(Stop::Answer(_)) => {
                Err("the arguments ask for no service".to_owned())
            }
            Err(Stop::Invalid(why)) => Err(why),
        });
    });
    if let Err(error) = reader {
        return Err(error.to_string());
    }
    result
        .await
        .unwrap_or_else(|_| Err("the reader panicked".to_owned()))
}

/// Adopts the parts of the new configuration that can change while the service runs.
fn adopt(new: &Config, policy: &Policy, databases: &Shards<DatabaseOptions>) {
    match policy.replace(&new.policy) {
        Ok(changes) => info!("SIGHUP: {changes}"),
        Err(why) => warn!("SIGHUP: the old tokens and keys stay: {why}"),
    }
    match databases.adopt(&new.databases) {
        Ok(()) => info!(
            "SIGHUP: new connections to the database use the reloaded certificates and passwords"
        ),
        Err(why) => warn!("SIGHUP: the old certificates and passwords stay: {why}"),
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
