//! Takes connections and serves requests on them, until told to stop.
//!
//! A connection costs memory and a file, so it has to earn them: whoever is slow to send a request's
//! head, to take in an answer, or to ask again, is cut off.

mod activity;

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    http::StatusCode,
    response::Response,
};
use futures_util::FutureExt;
use hyper::{
    Request,
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{self, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{AbortHandle, coop::unconstrained},
    time::{Instant, sleep, sleep_until},
};
use tower_service::Service;
use tracing::{debug, error, info, warn};

use self::activity::{Activity, Alarm, Watched};
use crate::{boundary, telemetry::metrics::metrics};

/// How long to wait before the next connection is taken where taking one failed: most likely files
/// have run out, and will for a moment.
const BREATH: Duration = Duration::from_millis(100);

/// How much of an answer the system takes ahead of what it can send to the client. Without a limit it
/// takes megabytes, and more only when a third of them has left: a client that is slow but not idle would
/// seem to take in nothing meanwhile, and one that takes in nothing would cost all that memory. The system
/// takes more when half of this has left, so this is also the measure of progress within `WRITE_TIMEOUT`: a
/// client that takes in some kilobytes in that time stays.
const AHEAD: u32 = 16 * 1024;

/// The largest head of a request, in bytes. What a client sends of it is kept until it is complete.
const HEAD_LIMIT: usize = 64 * 1024;

/// How many of the newest connections beyond the limit are listened to. A question about health is here before
/// so many more have come, even in a rush.
const BEYOND: usize = 1000;

/// What connections are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most connections at a time. Those beyond may ask about health and nothing else.
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
    /// Whether the connection is one more than are allowed.
    pub is_beyond_limit: bool,
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

    /// Notes that the request's body has been read to its end.
    pub fn has_sent_all(&self) {
        self.activity.completed();
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
    let wanted = (connections + BEYOND + database_connections + OTHER_FILES) as u64;
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
    let mut beyond = Beyond::default();
    let mut stop = pin!(stop);
    loop {
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            () = &mut stop => break,
        };
        match taken {
            Ok((stream, peer)) => {
                let place = Arc::clone(&room).try_acquire_owned().ok();
                let is_full = place.is_none();
                if is_full && !was_full {
                    warn!(
                        "{} connections are open: others may ask for health and metrics alone",
                        limits.connections
                    );
                }
                was_full = is_full;
                let task = answer(stream, peer, router.clone(), limits, place, &connections);
                if is_full {
                    beyond.add(task);
                }
            }
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

/// The newest connections beyond the limit, in the order in which they came.
#[derive(Default)]
struct Beyond(VecDeque<AbortHandle>);

impl Beyond {
    /// Adds one; the oldest ends if there are too many. Connections that ask nothing cannot keep out those
    /// that come after them.
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

/// Serves a connection in a task of its own. Without a `place` it is one beyond the limit.
fn answer(
    stream: TcpStream,
    address: SocketAddr,
    router: Router,
    limits: Limits,
    place: Option<OwnedSemaphorePermit>,
    connections: &GracefulShutdown,
) -> AbortHandle {
    if let Err(error) = stream.set_nodelay(true) {
        warn!("no TCP_NODELAY: {error}");
    }
    let activity = Arc::new(Activity::new(limits));
    let requests = Arc::clone(&activity);
    let is_beyond_limit = place.is_none();
    let service = service_fn(move |mut request: Request<Incoming>| {
        requests.asked(request.body().is_end_stream());
        request.extensions_mut().insert(Peer {
            address,
            is_beyond_limit,
            activity: Arc::clone(&requests),
        });
        let requests = Arc::clone(&requests);
        // A router is always ready.
        router
            .clone()
            .call(request)
            .map(move |Ok(response)| Ok::<_, Infallible>(answered(response, requests)))
    });
    let stream = Watched::new(stream, Arc::clone(&activity));
    let connection = http1::Builder::new()
        .writev(true)
        .max_buf_size(HEAD_LIMIT)
        // A place beyond the limit is for one question.
        .keep_alive(!is_beyond_limit)
        .serve_connection(TokioIo::new(stream), service);
    let connection = connections.watch(connection);
    let task = tokio::spawn(async move {
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
            // hyper has answered what is no request, by itself: it has no way to let us do so.
            Ok(Err(error)) if error.is_parse() && !error.is_parse_version_h2() => {
                let status = if error.is_parse_too_large() {
                    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
                } else {
                    StatusCode::BAD_REQUEST
                };
                boundary::no_request(address.ip(), status, &error);
            }
            Ok(Err(error)) => debug!("a connection broke: {error}"),
            Err(Alarm::TakesNothing) => {
                metrics().connection_cut_off();
                let waited = limits.write_timeout;
                warn!("{address} took in nothing of an answer for {waited:?} and is cut off");
            }
            Err(_) => debug!("{address} has said nothing for too long and is cut off"),
        }
    });
    task.abort_handle()
}

/// Has the connection know when the answer is on its way. A whole one leaves at once; of others, the body tells.
fn answered(response: Response, activity: Arc<Activity>) -> Response {
    if response.body().size_hint().exact().is_some() {
        activity.answered();
        return response;
    }
    response.map(|body| Body::new(Streamed { body, activity }))
}

/// A body of many parts, whose end the connection is told of.
struct Streamed {
    body: Body,
    activity: Arc<Activity>,
}

impl HttpBody for Streamed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.activity.answered();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}
