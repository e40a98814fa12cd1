//! The server: accepts connections and serves requests on them until shutdown.
//!
//! A connection costs memory and a file, so a client that is slow to send a request's head, to receive an answer, or to
//! send the next request, is cut off.

mod activity;
mod connection;
mod files;
mod listen;
mod peer;
mod waker;

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{extract::Request, response::Response};
use tokio::{
    net::TcpListener,
    runtime::{self, Runtime},
    sync::{Semaphore, watch},
    task::AbortHandle,
    time::sleep,
};
use tower_service::Service;
use tracing::{debug, error, warn};

use crate::telemetry::throttle::{Admitted, Throttle};

pub(crate) use self::peer::{Peer, Within};
pub use self::{
    files::raise_file_limit,
    listen::{check_queue_limit, listen},
    waker::RequestBody,
};

/// Pause after accepting a connection failed: most likely there are no files left for a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Without files, each attempt fails for as long as clients keep theirs.
static NOT_ACCEPTED: Throttle = Throttle::new();

/// Number of the newest connections beyond the limit that are kept. A request for health arrives before so many others
/// have come, even in a rush.
const BEYOND: usize = 1000;

/// Limits of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// The most open connections. Further ones may only request health and metrics.
    pub connections: usize,
    /// Longest time for receiving a request's head, from its first byte, or from the connection's beginning.
    pub header_timeout: Duration,
    /// Longest time between requests.
    pub idle_timeout: Duration,
    /// Longest time without progress in sending an answer.
    pub write_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            header_timeout: Duration::from_secs(10),
            // Longer than load balancers keep connections: the side that sends requests should close them.
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(10),
        }
    }
}

/// Extension of an answer that has no end of its own: it is not broken off when its client leaves, and nothing of it is owed
/// when the service shuts down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endless;

/// Number of tasks that a thread runs between two checks for input. Each check is a call of the system, which refusals feel
/// if there are many. Meanwhile the database's answer for a whole lane waits behind as many requests, so this is less than
/// Tokio's default of 61, with which refusals are no faster.
const EVENT_INTERVAL: u32 = 32;

/// Makes the runtime of the service.
///
/// # Errors
/// The system has no threads or files for it.
pub fn runtime(threads: usize) -> io::Result<Runtime> {
    runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()
}

/// A service that answers requests, and is always ready to.
pub trait HttpService:
    Service<Request<RequestBody>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> HttpService for S where
    S: Service<Request<RequestBody>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// Serves `routes` on `listener`, which [`listen`] has made, until `stop` completes, then finishes the requests in
/// progress.
///
/// It replaces `axum::serve`, which has no limits and hides settings: here no part of an answer waits for the
/// acknowledgement of the one before, the system buffers little, and head and body are sent in one write, without being
/// copied together if they are long.
pub async fn serve(
    listener: TcpListener,
    routes: impl HttpService,
    limits: ConnectionLimits,
    stop: impl Future<Output = ()>,
) {
    let (shutdown, _) = watch::channel(());
    let permits = Arc::new(Semaphore::new(
        limits.connections.min(Semaphore::MAX_PERMITS),
    ));
    let is_over = Arc::new(AtomicBool::new(false));
    let mut was_full = false;
    let mut beyond = Beyond::default();
    let mut stop = pin!(stop);
    loop {
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            () = &mut stop => break,
        };
        match taken {
            Ok((stream, peer)) => {
                let permit = Arc::clone(&permits).try_acquire_owned().ok();
                let is_full = permit.is_none();
                if is_full && !was_full {
                    warn!(
                        "{} connections are open: further ones may only request health and metrics",
                        limits.connections
                    );
                }
                was_full = is_full;
                let routes = routes.clone();
                let task =
                    connection::spawn(stream, peer, routes, limits, permit, &shutdown, &is_over);
                if is_full {
                    beyond.add(task);
                }
            }
            Err(error) if is_of_one_connection(&error) => debug!("a connection broke: {error}"),
            Err(error) => {
                if let Some(Admitted { left_out }) = NOT_ACCEPTED.admit() {
                    error!(left_out, "cannot accept connections: {error}");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // Before the connections are woken, which look at it.
    is_over.store(true, Relaxed);
    shutdown.send_replace(());
    shutdown.closed().await;
}

/// The newest connections beyond the limit, oldest first.
#[derive(Default)]
struct Beyond(VecDeque<AbortHandle>);

impl Beyond {
    /// Adds a connection, and closes the oldest if there are too many, so that idle connections cannot keep out later ones.
    fn add(&mut self, connection: AbortHandle) {
        if self.0.len() >= BEYOND {
            self.0.retain(|connection| !connection.is_finished());
        }
        if self.0.len() >= BEYOND
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(connection);
    }
}

/// Returns true if the error concerns the new connection only.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}
