//! Reads the configuration, starts, and stops when told to.
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
    App,
    access::Access,
    config::{self, Config, Listen, Sessions, Shutdown, Stop, Task},
    db::Database,
    health::Health,
    lanes::Lanes,
    metrics_router, probe, router,
    serve::{make_room, runtime, serve},
    telemetry::{self, logs},
};
use mimalloc::MiMalloc;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    time::{sleep, timeout},
};
use tracing::{info, warn};

// A claim is taken in on one thread and answered on another, which costs glibc's allocator a fifth of
// the service's time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The time for the files that a SIGHUP reads.
const RELOAD_WAIT: Duration = Duration::from_secs(5);

/// The time for the runtime's threads once all requests are answered.
const END_WAIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let task = config::load(env::args_os().collect(), &|name| env::var_os(name));
    let outcome = match task {
        Ok(Task::Serve(config)) => serve_until_told(*config),
        Ok(Task::Check) => {
            println!("the configuration is valid");
            Ok(())
        }
        Ok(Task::HealthCheck(listen)) => probe::ask(&listen),
        Err(stop) => return stop.tell(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("honcho-service: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve_until_told(config: Config) -> Result<()> {
    telemetry::begin(&config.telemetry)?;
    let runtime = runtime(config.listen.worker_threads)?;
    let served = runtime.block_on(run(config));
    // What is still under way may have something to say, but a thread that a look-up of a name keeps waiting must
    // not keep the process.
    runtime.shutdown_timeout(END_WAIT);
    telemetry::finish();
    served
}

async fn run(config: Config) -> Result<()> {
    watch_for_hangup(config.access.clone(), config.database.sessions.clone())?;
    let Listen { host, port, .. } = &config.listen;
    let database = Database::new(&config.database)?;
    let lanes = Lanes::new(database.clone(), config.lanes);
    let health = Health::default();
    make_room(config.connections.connections, config.database.pool_size);
    let listener = TcpListener::bind((host.as_str(), *port))
        .await
        .with_context(|| format!("cannot listen on {host}:{port}"))?;
    // Before the line that tells the world that we are there.
    let stop = watch_for_stop(config.shutdown, health.clone())?;
    let is_open = config.access.is_open();
    let router = router(App {
        database: database.clone(),
        lanes: lanes.clone(),
        health: health.clone(),
        access: config.access,
        bounds: config.bounds,
        origins: config.origins,
        metrics: config.telemetry.metrics_listen.is_none(),
    })?;
    if let Some(address) = config.telemetry.metrics_listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        info!("metrics at http://{}/metrics", listener.local_addr()?);
        let router = metrics_router(database.clone(), lanes.clone());
        tokio::spawn(serve(listener, router, config.connections, pending()));
    }
    // Before the database is asked for: whoever starts us wants to see that we live.
    let address = listener.local_addr()?;
    info!("listening on http://{address} (try it out at http://{address}/docs)");
    if is_open {
        warn!("no tokens are configured: whoever reaches this address may create, claim and read");
    }
    tokio::spawn(health.keep(database.clone(), config.database.sessions));
    serve(listener, router, config.connections, stop).await;
    lanes.drained().await;
    database.close();
    info!("stopped");
    Ok(())
}

/// Completes when no more requests are to be taken in: some time after the first SIGTERM or SIGINT,
/// where that is wanted. The process ends when a second one comes or when the time for the requests
/// under way is over, if it has not ended before.
fn watch_for_stop(shutdown: Shutdown, health: Health) -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stopping, mut stop) = watch::channel(false);
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        health.stop();
        let stop_in_time = async {
            let Shutdown {
                shutdown_delay: delay,
                shutdown_timeout: grace,
            } = shutdown;
            if !delay.is_zero() {
                info!("stopping: not ready; requests are taken in for {delay:?} more");
                sleep(delay).await;
            }
            info!("stopping: no new requests, those under way have {grace:?}");
            stopping.send_replace(true);
            sleep(grace).await;
            warn!("some requests did not finish in time");
        };
        tokio::select! {
            () = stop_in_time => {}
            () = either(&mut terminate, &mut interrupt) => warn!("told again to stop: leaving now"),
        }
        logs::finish();
        exit(1);
    });
    Ok(async move {
        // An error means that the watcher is gone, and the process with it.
        let _ = stop.wait_for(|stopping| *stopping).await;
    })
}

/// Reads tokens, keys, certificates and passwords anew at each SIGHUP.
fn watch_for_hangup(access: Access, sessions: Sessions) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match timeout(RELOAD_WAIT, read_anew()).await {
                Ok(Ok(new)) => adopt(&new, &access, &sessions),
                Ok(Err(why)) => {
                    warn!("SIGHUP: the old tokens, keys and certificates stay: {why}");
                }
                Err(_) => warn!(
                    "SIGHUP: the old tokens, keys and certificates stay: the files took more than \
                     {RELOAD_WAIT:?} to read"
                ),
            }
        }
    });
    Ok(())
}

/// Reads the configuration as it is now. What comes of it after the caller has given up is dropped.
///
/// # Errors
/// The fault of the configuration.
async fn read_anew() -> Result<Box<Config>, String> {
    let (told, read) = oneshot::channel();
    // A read may hang for good (a FIFO, a network's disk). A thread of its own keeps neither the runtime's end
    // waiting nor a place among the threads that look up names.
    let reader = thread::Builder::new().name("reload".into()).spawn(move || {
        let task = config::load(env::args_os().collect(), &|name| env::var_os(name));
        let _ = told.send(match task {
            Ok(Task::Serve(new)) => Ok(new),
            Ok(Task::Check | Task::HealthCheck(_)) | Err(Stop::Answer(_)) => {
                Err("the arguments ask for no service".to_owned())
            }
            Err(Stop::Wrong(why)) => Err(why),
        });
    });
    if let Err(error) = reader {
        return Err(error.to_string());
    }
    read.await
        .unwrap_or_else(|_| Err("the reader broke off".to_owned()))
}

/// Takes out of the new configuration what can change while the service runs.
fn adopt(new: &Config, access: &Access, sessions: &Sessions) {
    match access.replace(&new.access) {
        Ok(changes) => info!("SIGHUP: {changes}"),
        Err(why) => warn!("SIGHUP: the old tokens and keys stay: {why}"),
    }
    match sessions.adopt(&new.database.sessions) {
        Ok(()) => info!(
            "SIGHUP: new connections to the database use its certificates and passwords as they are now"
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
