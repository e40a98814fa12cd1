//! Admission: what a request must pass before its route.
//!
//! In this order: it names one host, its connection is not one too many, it may come from the page that sends
//! it, there is room for it, its address may ask again, its caller is known, the caller may ask again. Then the route has so long to answer.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::anyhow;
use axum::{
    body::HttpBody,
    extract::Request,
    http::{Method, Version, header::HOST},
    response::{IntoResponse, Response},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    access::{Access, Caller},
    address::Proxies,
    error::Error,
    origin::Origins,
    rate_limit::{Key, RateLimit, Usage},
    serve::Peer,
};

/// What lies under this path needs a token, where there are tokens.
const API: &str = "/api/";

/// What machines ask every few seconds. It needs no admission, and is answered on connections beyond the
/// limit, too: it must answer when nothing else does.
pub(crate) const PROBES: [&str; 3] = ["/health/live", "/health/ready", "/metrics"];

/// What the log says of a route that took too long.
const LATE: &str = "the request took too long";

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

/// The places of requests under way. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<Semaphore>);

/// A place among the requests under way, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Room {
    /// Room for so many.
    pub fn new(requests: usize) -> Self {
        Self(Arc::new(Semaphore::new(
            requests.min(Semaphore::MAX_PERMITS),
        )))
    }

    /// Takes a place.
    ///
    /// # Errors
    /// [`Error::TooManyRequests`] if there is none.
    pub fn take(&self) -> Result<Place, Error> {
        match Arc::clone(&self.0).try_acquire_owned() {
            Ok(permit) => Ok(Place { _permit: permit }),
            Err(_) => Err(Error::TooManyRequests),
        }
    }

    fn is_full(&self) -> bool {
        self.0.available_permits() == 0
    }
}

/// The door. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    access: Access,
    origins: Origins,
    bounds: Bounds,
    room: Room,
}

/// What a request has that was let in.
#[derive(Debug)]
pub(crate) struct Admission {
    /// What bounds it; none for what needs no admission.
    bound: Option<Bound>,
    /// What its caller has asked, where that is limited.
    usage: Option<(Door, Usage)>,
}

/// What a request has that was turned away.
#[derive(Debug)]
pub(crate) struct Refusal {
    error: Error,
    usage: Option<(Door, Usage)>,
}

#[derive(Debug)]
struct Bound {
    /// Its place among those under way. A request that is not safe and has a body takes one when the body is there.
    _place: Option<Place>,
    peer: Option<Peer>,
    /// How long the route may take.
    patience: Duration,
    /// Whether the route changes nothing.
    is_safe: bool,
}

impl Door {
    pub fn new(access: Access, origins: Origins, bounds: Bounds, room: Room) -> Self {
        Self(Arc::new(Inner {
            access,
            origins,
            bounds,
            room,
        }))
    }

    /// The address that a request comes from: the peer's, or the one that trusted proxies tell.
    pub fn client(&self, request: &Request) -> Option<IpAddr> {
        let peer = request.extensions().get::<Peer>()?;
        let proxies = &self.0.bounds.proxies;
        Some(proxies.client(peer.address.ip(), request.headers()))
    }

    /// Lets a request in, which then has its caller among its extensions, or turns it away.
    ///
    /// # Errors
    /// Why it is turned away.
    pub fn admit(&self, request: &mut Request) -> Result<Admission, Refusal> {
        let refuse = |error| Err(Refusal { error, usage: None });
        if !has_one_host(request) {
            let why = "the Host header must be there once, and hold a host";
            return refuse(Error::Invalid(why.into()));
        }
        let peer = request.extensions().get::<Peer>();
        let path = request.uri().path();
        if peer.is_some_and(|peer| peer.is_beyond_limit) && !PROBES.contains(&path) {
            return refuse(Error::TooManyConnections);
        }
        if PROBES.contains(&path) {
            return Ok(Admission {
                bound: None,
                usage: None,
            });
        }
        let Inner {
            access,
            origins,
            bounds,
            room,
        } = &*self.0;
        let is_safe = matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS
        );
        if !is_safe && !origins.admit(request.headers(), access.is_open()) {
            return refuse(Error::ForeignOrigin);
        }
        // A safe request is served from its head on: no route reads the body that it may announce.
        let place = if is_safe || request.body().is_end_stream() {
            match room.take() {
                Ok(place) => Some(place),
                Err(error) => return refuse(error),
            }
        } else if room.is_full() {
            return refuse(Error::TooManyRequests);
        } else {
            // Heads alone must not take the places of requests that can be served.
            None
        };
        let peer = peer.cloned();
        let (caller, usage) = match &bounds.rate_limit {
            None => (self.identify(request), None),
            Some(rate_limit) => {
                let (caller, usage) = self.count(rate_limit, request);
                (caller, Some((self.clone(), usage)))
            }
        };
        match caller {
            Ok(None) => {}
            Ok(Some(caller)) => {
                request.extensions_mut().insert(caller);
            }
            Err(error) => return Err(Refusal { error, usage }),
        }
        let bound = Bound {
            _place: place,
            peer,
            patience: bounds.request_timeout,
            is_safe,
        };
        Ok(Admission {
            bound: Some(bound),
            usage,
        })
    }

    fn identify(&self, request: &Request) -> Result<Option<Caller>, Error> {
        if request.uri().path().starts_with(API) {
            self.0.access.identify(request.headers())
        } else {
            Ok(None)
        }
    }

    /// Counts a request for its caller, who is told to wait where there were too many.
    fn count(
        &self,
        rate_limit: &RateLimit,
        request: &Request,
    ) -> (Result<Option<Caller>, Error>, Usage) {
        let address = self.client(request);
        let by_address = || address.map_or(Key::Unknown, Key::address);
        let (caller, usage) = if rate_limit.is_by_token() {
            let caller = self.identify(request);
            // Who shows no token is told apart by address: guessing is limited, too.
            let key = match &caller {
                Ok(Some(caller)) => Key::Caller(caller.identity.clone()),
                Ok(None) | Err(_) => by_address(),
            };
            (caller, rate_limit.count(&key))
        } else {
            // Before the token is looked at, for that costs more than a request should that is too
            // many.
            let usage = rate_limit.count(&by_address());
            if usage.wait().is_some() {
                (Ok(None), usage)
            } else {
                (self.identify(request), usage)
            }
        };
        match usage.wait() {
            Some(wait) => (Err(Error::RateLimited(wait)), usage),
            None => (caller, usage),
        }
    }
}

impl Admission {
    /// The route's answer, if it comes in time.
    pub async fn hold(self, route: impl Future<Output = Response>) -> Response {
        let mut response = match self.bound {
            None => route.await,
            Some(bound) => match Peer::within(bound.peer.as_ref(), bound.patience, route).await {
                Some(response) => response,
                None if bound.is_safe => Error::Timeout(anyhow!(LATE)).into_response(),
                // What a lane or the database has begun is not undone by our giving up.
                None => Error::OutcomeUnknown(anyhow!(LATE)).into_response(),
            },
        };
        tell(self.usage.as_ref(), &mut response);
        response
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.error.into_response();
        tell(self.usage.as_ref(), &mut response);
        response
    }
}

/// Whether the request names the host that it is for, as RFC 9112 has it: proxies before us may have gone by
/// another `Host` than we would.
fn has_one_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.as_bytes().iter().all(|byte| {
            !matches!(
                byte,
                b' ' | b'\t'
                    | b'"'
                    | b','
                    | b'/'
                    | b'<'
                    | b'>'
                    | b'?'
                    | b'#'
                    | b'@'
                    | b'\\'
                    | 0x7f..
            )
        }),
        (None, _) => request.version() < Version::HTTP_11,
        (Some(_), Some(_)) => false,
    }
}

/// Tells the caller what is left of its limit.
fn tell(usage: Option<&(Door, Usage)>, response: &mut Response) {
    if let Some((door, usage)) = usage
        && let Some(rate_limit) = &door.0.bounds.rate_limit
    {
        rate_limit.tell(usage, response.headers_mut());
    }
}
