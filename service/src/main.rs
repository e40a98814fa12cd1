//! Reads the configuration, starts, and stops when told to.
#![forbid(unsafe_code)]

use std::{
    env,
    future::{Future, pending},
    process::{ExitCode, exit},
};

use anyhow::{Context, Result};
use honcho_service::{
    App,
    config::{self, Config, Listen, Shutdown, Task},
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
    sync::watch,
    time::sleep,
};
use tracing::{info, warn};

// A claim is taken in on one thread and answered on another, which costs glibc's allocator a fifth of
// the service's time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

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
    // What is still under way may have something to say.
    drop(runtime);
    telemetry::finish();
    served
}

async fn run(config: Config) -> Result<()> {
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
    info!("listening on http://{}", listener.local_addr()?);
    if is_open {
        warn!("no tokens are configured: whoever reaches this address may create, claim and read");
    }
    tokio::spawn(health.keep(database.clone(), config.database.sessions.brisk));
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

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
