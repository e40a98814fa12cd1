//! Serves one connection.

use std::{
    cell::RefCell,
    convert::Infallible,
    error::Error,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::{HeaderValue, Method, StatusCode, header::CONNECTION},
    response::Response,
};
use futures_util::FutureExt;
use hyper::{
    Request,
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{rt::TokioIo, server::graceful::GracefulConnection};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, watch},
    task::{AbortHandle, coop::unconstrained},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    ConnectionLimits, Endless, HttpService,
    activity::{Activity, Alarm, Watched},
    peer::Peer,
    waker::{self, RequestBody},
};
use crate::telemetry::metrics::{UNMATCHED, metrics};

/// The largest head of a request, in bytes. It is buffered until it is complete.
const HEAD_LIMIT: usize = 64 * 1024;

/// The size in bytes up to which a body arrives with its head. hyper takes it off the connection even if the answer does
/// not need it, and keeps the connection open.
const SMALL_BODY: u64 = 1024;

/// Serves a connection in a task of its own.
///
/// # Arguments
/// `permit`: without one, it is beyond the limit of connections. `shutdown`: wakes the connection when the service shuts
/// down, and has a receiver as long as the connection is open. `is_over`: true from then on.
pub(super) fn spawn(
    stream: TcpStream,
    address: SocketAddr,
    routes: impl HttpService,
    limits: ConnectionLimits,
    permit: Option<OwnedSemaphorePermit>,
    shutdown: &watch::Sender<()>,
    is_over: &Arc<AtomicBool>,
) -> AbortHandle {
    let activity = Arc::new(Activity::new(limits, Arc::clone(is_over)));
    let requests = Arc::clone(&activity);
    let is_beyond_limit = permit.is_none();
    // Not cloned for each request: the routes' parts are counted, and all threads share the counts.
    let routes = RefCell::new(routes);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let received = Instant::now();
        requests.head_received(received, request.body().is_end_stream());
        let is_small = (request.body().size_hint().exact()).is_some_and(|size| size <= SMALL_BODY);
        request.extensions_mut().insert(Peer {
            address,
            is_beyond_limit,
            received: received.into_std(),
            activity: Arc::clone(&requests),
        });
        let requests = Arc::clone(&requests);
        routes
            .borrow_mut()
            .call(request.map(RequestBody))
            .map(move |Ok(mut response)| {
                if !is_small && requests.is_unread() {
                    // hyper will not read it, and closes the connection.
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(observed(response, requests))
            })
    });
    let stream = Watched::new(stream, Arc::clone(&activity));
    let connection = http1::Builder::new()
        .writev(true)
        // `Watched` looks for the end of a client's input while a request is in progress.
        .half_close(true)
        .max_buf_size(HEAD_LIMIT)
        // A connection beyond the limit serves one request.
        .keep_alive(!is_beyond_limit)
        .serve_connection(TokioIo::new(stream), service);
    let mut shutdown = shutdown.subscribe();
    let task = tokio::spawn(async move {
        let _permit = permit;
        // Pinned here: moving it into the next future would store it twice. It lives to the end of the task, so that its
        // end is logged before it closes, and before the shutdown counts it as ended.
        let mut connection = pin!(connection);
        let ended = run(connection.as_mut(), &activity, limits, shutdown.changed()).await;
        log_end(ended, address, limits);
    });
    task.abort_handle()
}

/// Runs a connection to its end.
///
/// # Arguments
/// `shutdown`: completes when the service shuts down.
///
/// # Errors
/// The alarm that cuts the client off.
async fn run<C: GracefulConnection>(
    mut connection: Pin<&mut C>,
    activity: &Activity,
    limits: ConnectionLimits,
    shutdown: impl Future,
) -> Result<C::Output, Alarm> {
    // Reset only when it rings or must ring earlier, so most requests never touch it.
    let mut alarm = pin!(sleep_until(activity.due().unwrap_or_else(Instant::now)));
    let mut is_set = false;
    // The connection is one task with one waker, so registering it once is enough, with the shutdown and with the alarm. Each
    // registration takes a lock that connections share.
    let mut shutdown = pin!(shutdown);
    let mut is_registered = false;
    let mut is_ending = false;
    let mut own_waker = None;
    poll_fn(|context| {
        let waker = own_waker.get_or_insert_with(|| waker::of_connection(context.waker()));
        let context = &mut Context::from_waker(waker);
        if !is_registered {
            is_registered = true;
            // Its result is `is_over`, without the lock. Tokio's budget for the task must not prevent the registration.
            let _ = pin!(unconstrained(shutdown.as_mut())).poll(context);
        }
        if !is_ending && activity.is_over() {
            is_ending = true;
            activity.shutdown_begun();
            connection.as_mut().graceful_shutdown();
        }
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
            if is_set && !alarm.is_elapsed() {
                return Poll::Pending;
            }
            is_set = true;
            ready!(pin!(unconstrained(alarm.as_mut())).poll(context));
            match activity.ring() {
                cut @ (Alarm::Silent | Alarm::Stuck) => return Poll::Ready(Err(cut)),
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
    .await
}

/// Logs the end of a connection, unless it is an ordinary one.
fn log_end(ended: Result<hyper::Result<()>, Alarm>, address: SocketAddr, limits: ConnectionLimits) {
    match ended {
        Ok(Ok(())) => {}
        // hyper has answered an unparsable request itself, and cannot leave that to the service.
        Ok(Err(error)) if error.is_parse() && !error.is_parse_version_h2() => {
            let status = if error.is_parse_too_large() {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            } else {
                StatusCode::BAD_REQUEST
            };
            log_unparsable(address.ip(), status, &error);
        }
        Ok(Err(error)) => debug!("a connection broke: {error}"),
        Err(Alarm::Stuck) => {
            metrics().connection_cut_off();
            let waited = limits.write_timeout;
            warn!("{address} received nothing of an answer for {waited:?} and is cut off");
        }
        Err(_) => debug!("{address} sent nothing for too long and is cut off"),
    }
}

/// Counts and logs a request that could not be parsed, and that hyper has answered with `status`.
fn log_unparsable(client: IpAddr, status: StatusCode, reason: &dyn Error) {
    let method = Method::from_bytes(b"OTHER").unwrap_or_default();
    metrics()
        .begin(Instant::now().into_std())
        .finish(UNMATCHED, &method, status);
    info!(
        target: "http",
        message = "no request",
        route = UNMATCHED,
        status = status.as_u16(),
        reason = reason.to_string(),
        client = display(client),
    );
}

/// Reports the beginning and the end of an answer to the connection: the end immediately if the answer is complete, otherwise when its body ends.
fn observed(mut response: Response, activity: Arc<Activity>) -> Response {
    let endless = response.extensions_mut().remove::<Endless>();
    activity.answer_begun(endless.is_some());
    if response.body().size_hint().exact().is_some() {
        activity.answered();
        return response;
    }
    response.map(|body| Body::new(ObservedBody { body, activity }))
}

/// A streamed body that reports its end to the connection.
struct ObservedBody {
    body: Body,
    activity: Arc<Activity>,
}

impl HttpBody for ObservedBody {
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
