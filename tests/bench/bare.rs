//! The service's routes without their layers, served in the same way, so that the benchmark can measure the
//! cost of the layers. Configured like the service, by its environment.
#![forbid(unsafe_code)]

use std::{env, future::pending};

use anyhow::{Result, bail};
use honcho_service::{
    config::{self, Task},
    database::Database,
    events::Events,
    health::Health,
    http::{App, bare_routes, listen, runtime, serve},
    lanes::Lanes,
};
use mimalloc::MiMalloc;

// The same allocator as in the service.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> Result<()> {
    let arguments = vec!["bare".into()];
    let config = match config::load(arguments, &|name| env::var_os(name)) {
        Ok(Task::Serve(config)) => config,
        other => bail!("not configured: {other:?}"),
    };
    let runtime = runtime(config.listen.worker_threads)?;
    runtime.block_on(runtime.spawn(async move {
        let databases = config
            .databases
            .try_map(|_, options| Database::new(options))?;
        let lanes = Lanes::of(&databases, config.lanes);
        let listener = listen("127.0.0.1", 0).await?;
        eprintln!("listening on http://{}", listener.local_addr()?);
        let routes = bare_routes(App {
            events: Events::new(&databases, config.streams),
            health: databases.map(|database| Health::new(database.shard())),
            databases,
            lanes,
            policy: config.policy,
            hold_ttl: config.hold_ttl,
            limits: config.requests,
            origins: config.origins,
            metrics: false,
        });
        serve(listener, routes, config.connections, pending()).await;
        Ok(())
    }))?
}
