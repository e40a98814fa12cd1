//! Admission: what a request to the API must pass before its route.
//!
//! In this order: there is room for it, its address may ask again, its caller is known, the caller may
//! ask again. Then the route has so long to answer.

use std::{
    convert::Infallible,
    mem,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::anyhow;
use axum::{
    extract::{ConnectInfo, Request},
    http::Method,
    response::{IntoResponse, Response},
};
use tokio::{sync::Semaphore, time::timeout};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    access::Access,
    address::Proxies,
    error::Error,
    rate_limit::{Key, RateLimit},
};

/// What lies under this path needs admission. Health, metrics and documentation do not: they must answer
/// when nothing else does.
const API: &str = "/api/";

/// How much is let in, and for how long.
#[derive(Debug)]
pub struct Bounds {
    /// The most requests under way.
    pub requests: usize,
    /// How long a route may take to answer.
    pub request_timeout: Duration,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How often a caller may ask, if that is limited.
    pub rate_limit: Option<RateLimit>,
    /// Whose word on a client's address is taken.
    pub proxies: Proxies,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            requests: 15_000,
            request_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(10),
            rate_limit: None,
            proxies: Proxies::default(),
        }
    }
}

/// The door. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    access: Access,
    bounds: Bounds,
    room: Semaphore,
}

impl Door {
    pub fn new(access: Access, bounds: Bounds) -> Self {
        let room = Semaphore::new(bounds.requests.min(Semaphore::MAX_PERMITS));
        Self(Arc::new(Inner {
            access,
            bounds,
            room,
        }))
    }
}

/// The service behind the door. A type of its own, because a `from_fn` costs every request two more
/// boxes.
#[derive(Clone, Debug)]
pub(crate) struct Admission<S> {
    door: Door,
    inner: S,
}

impl<S> Layer<S> for Door {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission {
            door: self.clone(),
            inner,
        }
    }
}

impl<S> Service<Request> for Admission<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // The one that is ready is the one to call.
        let later = self.inner.clone();
        let ready = mem::replace(&mut self.inner, later);
        let door = self.door.clone();
        Box::pin(async move { Ok(admit(&door, request, Next(ready)).await) })
    }
}

/// What comes after the door.
struct Next<S>(S);

impl<S> Next<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    async fn run(mut self, request: Request) -> Response {
        match self.0.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// Lets a request in, or turns it away.
async fn admit<S>(door: &Door, request: Request, next: Next<S>) -> Response
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    if !request.uri().path().starts_with(API) {
        return next.run(request).await;
    }
    let Inner {
        access,
        bounds,
        room,
    } = &*door.0;
    let Ok(_place) = room.try_acquire() else {
        return Error::TooManyRequests.into_response();
    };
    match &bounds.rate_limit {
        None => match access.identify(request.headers()) {
            Ok(None) => answer(request, next, bounds).await,
            Ok(Some(caller)) => {
                let mut request = request;
                request.extensions_mut().insert(caller);
                answer(request, next, bounds).await
            }
            Err(error) => error.into_response(),
        },
        Some(rate_limit) => limited(rate_limit, access, bounds, request, next).await,
    }
}

async fn limited<S>(
    rate_limit: &RateLimit,
    access: &Access,
    bounds: &Bounds,
    mut request: Request,
    next: Next<S>,
) -> Response
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let address = peer.map(|peer| bounds.proxies.client(peer.0.ip(), request.headers()));
    let by_address = || address.map_or(Key::Unknown, Key::address);
    let (caller, usage) = if rate_limit.is_by_token() {
        let caller = access.identify(request.headers());
        // Who shows no token is told apart by address: guessing is limited, too.
        let key = match &caller {
            Ok(Some(caller)) => Key::Caller(caller.identity.clone()),
            Ok(None) | Err(_) => by_address(),
        };
        (caller, rate_limit.count(key))
    } else {
        // Before the token is looked at, for that costs more than a request should that is too many.
        let usage = rate_limit.count(by_address());
        (access.identify(request.headers()), usage)
    };
    let mut response = if let Some(wait) = usage.wait() {
        Error::RateLimited(wait).into_response()
    } else {
        match caller {
            Ok(caller) => {
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                answer(request, next, bounds).await
            }
            Err(error) => error.into_response(),
        }
    };
    rate_limit.tell(&usage, response.headers_mut());
    response
}

async fn answer<S>(request: Request, next: Next<S>, bounds: &Bounds) -> Response
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    let is_safe = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    match timeout(bounds.request_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(late) if is_safe => Error::Timeout(late.into()).into_response(),
        // What a lane or the database has begun is not undone by our giving up.
        Err(_) => Error::OutcomeUnknown(anyhow!("the request took too long")).into_response(),
    }
}
