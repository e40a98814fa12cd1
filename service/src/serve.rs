//! Takes connections and serves requests on them, until told to stop.
//!
//! A connection costs memory and a file, so it has to earn them: whoever is slow to send a request's
//! head, to take in an answer, or to ask again, is cut off.

mod activity;

use std::{
    future::{Future, poll_fn},
    io::{self, Write},
    net::SocketAddr,
    pin::pin,
    sync::{Arc, LazyLock},
    task::{Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body};
use futures_util::FutureExt;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{self, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::coop::unconstrained,
    time::{Instant, sleep, sleep_until},
};
use tower_service::Service;
use tracing::{debug, error, info, warn};

use self::activity::{Activity, Alarm, Watched};
use crate::{error::Error, problem, telemetry::metrics::metrics};

/// How long to wait before the next connection is taken where taking one failed: most likely files
/// have run out, and will for a moment.
const BREATH: Duration = Duration::from_millis(100);

/// How much of an answer the system takes ahead of what it can send to the client. Without a limit it
/// takes megabytes, and more only when a third of them has left: a client that is slow but not idle would
/// seem to take in nothing meanwhile, and one that takes in nothing would cost all that memory.
const AHEAD: u32 = 128 * 1024;

/// What connections are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most connections at a time.
    pub connections: usize,
    /// How long a request's head may take, from its first byte, or from the connection's beginning.
    pub header_timeout: Duration,
    /// How long a connection may be idle between requests.
    pub idle_timeout: Duration,
    /// How long the client may take in nothing of an answer.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            header_timeout: Duration::from_secs(10),
            // Longer than load balancers keep theirs: the one that closes should be the one that sends.
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(10),
        }
    }
}

/// Who asks, and on which connection: an extension of every request that is served here.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The other end of the connection.
    pub address: SocketAddr,
    activity: Arc<Activity>,
}

impl Peer {
    /// What comes of `future`, which is to be awaited by the peer's request; none if that takes
    /// longer than `limit` from when the request's head was there. Without a peer there is nobody
    /// who could be kept waiting.
    ///
    /// A connection has one alarm for all that it waits for: a `tokio::time::timeout` for each limit
    /// of each request can be seen in a profile.
    pub async fn within<F: Future>(
        peer: Option<&Self>,
        limit: Duration,
        future: F,
    ) -> Option<F::Output> {
        match peer {
            Some(peer) => peer.activity.within(limit, future).await,
            None => Some(future.await),
        }
    }
}

/// How many tasks a thread runs between two looks at what has come in. Until the next, the database's
/// answer for a whole lane lies unseen, behind as many requests: Tokio's own 61 cost refusals 6 to 8 %.
const EVENT_INTERVAL: u32 = 8;

/// What connections, lanes and all else run on.
///
/// # Errors
/// When the system has no threads or files for it.
pub fn runtime(threads: usize) -> io::Result<Runtime> {
    runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()
}

/// Files that the process needs besides those of connections: the database's, libraries', logs.
const OTHER_FILES: usize = 256;

/// Lets the process have a file for each of so many connections, as far as the system allows: most start
/// programs with room for a thousand, and let them ask for more.
pub fn make_room(connections: usize, database_connections: usize) {
    let wanted = (connections + database_connections + OTHER_FILES) as u64;
    let limit = getrlimit(Resource::Nofile);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|files| files >= wanted);
    if is_enough(limit.current) {
        return;
    }
    let raised = Rlimit {
        current: limit
            .maximum
            .map_or(Some(wanted), |most| Some(most.min(wanted))),
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!("cannot raise the limit of open files: {error}");
    }
    let limit = getrlimit(Resource::Nofile).current;
    if is_enough(limit) {
        return;
    }
    let files = limit.unwrap_or_default();
    let room = files.saturating_sub(wanted - connections as u64);
    if files < connections as u64 {
        warn!(
            "the system lets this process open {files} files, too few for CONNECTION_LIMIT={connections}: \
             raise the limit (ulimit -n, LimitNOFILE=), or set CONNECTION_LIMIT to {room}"
        );
    } else {
        info!("the system lets this process open {files} files, enough for {room} connections");
    }
}

/// Serves `router` on `listener` until `stop` completes, then finishes the requests under way.
///
/// This is what `axum::serve` does, with bounds, and with settings that it hides: no part of an answer
/// waits for the one before to be acknowledged, and the system takes little ahead. Head and body leave in
/// one write, without being copied together.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    // The connections inherit it.
    if let Err(error) = SockRef::from(&listener).set_tcp_notsent_lowat(AHEAD) {
        warn!("no TCP_NOTSENT_LOWAT: {error}");
    }
    let connections = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(
        limits.connections.min(Semaphore::MAX_PERMITS),
    ));
    let mut was_full = false;
    let mut stop = pin!(stop);
    loop {
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            () = &mut stop => break,
        };
        match taken {
            Ok((stream, peer)) => match Arc::clone(&room).try_acquire_owned() {
                Ok(place) => {
                    was_full = false;
                    answer(stream, peer, router.clone(), limits, place, &connections);
                }
                Err(_) => {
                    if !was_full {
                        warn!(
                            "{} connections are open: no more are taken",
                            limits.connections
                        );
                        was_full = true;
                    }
                    turn_away(stream);
                }
            },
            Err(error) if is_of_one_connection(&error) => debug!("a connection broke: {error}"),
            Err(error) => {
                error!("cannot take connections: {error}");
                sleep(BREATH).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

fn answer(
    stream: TcpStream,
    address: SocketAddr,
    router: Router,
    limits: Limits,
    place: OwnedSemaphorePermit,
    connections: &GracefulShutdown,
) {
    if let Err(error) = stream.set_nodelay(true) {
        warn!("no TCP_NODELAY: {error}");
    }
    let activity = Arc::new(Activity::new(limits));
    let requests = Arc::clone(&activity);
    let service = service_fn(move |mut request: Request<Incoming>| {
        requests.asked();
        request.extensions_mut().insert(Peer {
            address,
            activity: Arc::clone(&requests),
        });
        let answered = Arc::clone(&requests);
        // A router is always ready.
        router
            .clone()
            .call(request)
            .inspect(move |_: &Result<axum::response::Response<Body>, _>| answered.answered())
    });
    let stream = Watched::new(stream, Arc::clone(&activity));
    let connection = http1::Builder::new()
        .writev(true)
        .serve_connection(TokioIo::new(stream), service);
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        let _place = place;
        let mut connection = pin!(connection);
        // Set anew only when it rings or must ring earlier, so most requests never touch it.
        let mut alarm = pin!(sleep_until(activity.due().unwrap_or_else(Instant::now)));
        let mut is_set = false;
        let ended = poll_fn(|context| {
            if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                return Poll::Ready(Ok(ended));
            }
            loop {
                let due = activity.due();
                if let Some(due) = due
                    && due < alarm.deadline()
                {
                    alarm.as_mut().reset(due);
                    is_set = false;
                }
                // All of this is one task and has one waker: to tell the alarm once is enough.
                if is_set && !alarm.is_elapsed() {
                    return Poll::Pending;
                }
                is_set = true;
                // Tokio's budget for the task must not keep the alarm from being told.
                ready!(pin!(unconstrained(alarm.as_mut())).poll(context));
                match activity.ring() {
                    cut @ (Alarm::Silent | Alarm::TakesNothing) => return Poll::Ready(Err(cut)),
                    Alarm::Answer => {
                        if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                            return Poll::Ready(Ok(ended));
                        }
                    }
                    Alarm::Early => {}
                }
                let next = activity.due();
                alarm
                    .as_mut()
                    .reset(next.unwrap_or_else(|| Instant::now() + limits.idle_timeout));
                is_set = false;
            }
        })
        .await;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!("a connection broke: {error}"),
            Err(Alarm::TakesNothing) => {
                metrics().connection_cut_off();
                let waited = limits.write_timeout;
                warn!("{address} took in nothing of an answer for {waited:?} and is cut off");
            }
            Err(_) => debug!("{address} has said nothing for too long and is cut off"),
        }
    });
}

/// Answers a connection that there is no room for, without reading from it.
fn turn_away(stream: TcpStream) {
    static ANSWER: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let body = problem::body(&Error::TooManyConnections, "-");
        let head = format!(
            "HTTP/1.1 503 Service Unavailable\r\n\
             content-type: application/problem+json\r\n\
             content-length: {}\r\n\
             cache-control: no-store\r\n\
             retry-after: 1\r\n\
             x-request-id: -\r\n\
             connection: close\r\n\r\n",
            body.len()
        );
        [head.into_bytes(), body].concat()
    });
    // It fits into any new socket's buffer: nobody waits. Whoever is gone already misses nothing.
    let _ = stream
        .into_std()
        .and_then(|mut stream| stream.write_all(&ANSWER));
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}
