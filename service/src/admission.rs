//! Admission: what a request must pass before its route.
//!
//! In this order: there is room for it, its address may ask again, its caller is known, the caller may
//! ask again. Then the route has so long to answer.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::anyhow;
use axum::{
    extract::Request,
    http::Method,
    response::{IntoResponse, Response},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    access::{Access, Caller},
    address::Proxies,
    error::Error,
    rate_limit::{Key, RateLimit, Usage},
    serve::Peer,
};

/// What lies under this path needs a token, where there are tokens.
const API: &str = "/api/";

/// What machines ask every few seconds. It needs no admission: it must answer when nothing else does.
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

/// The door. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    access: Access,
    bounds: Bounds,
    room: Arc<Semaphore>,
}

/// What a request has that was let in.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Its place among those under way; none for what needs no admission.
    place: Option<Place>,
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
struct Place {
    _held: OwnedSemaphorePermit,
    peer: Option<Peer>,
    /// How long the route may take.
    patience: Duration,
    /// Whether the route changes nothing.
    is_safe: bool,
}

impl Door {
    pub fn new(access: Access, bounds: Bounds) -> Self {
        let room = Semaphore::new(bounds.requests.min(Semaphore::MAX_PERMITS));
        Self(Arc::new(Inner {
            access,
            bounds,
            room: Arc::new(room),
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
        if PROBES.contains(&request.uri().path()) {
            return Ok(Admission {
                place: None,
                usage: None,
            });
        }
        let Inner { bounds, room, .. } = &*self.0;
        let Ok(held) = Arc::clone(room).try_acquire_owned() else {
            return Err(Refusal {
                error: Error::TooManyRequests,
                usage: None,
            });
        };
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
        let place = Place {
            _held: held,
            peer: request.extensions().get().cloned(),
            patience: bounds.request_timeout,
            is_safe: matches!(
                *request.method(),
                Method::GET | Method::HEAD | Method::OPTIONS
            ),
        };
        Ok(Admission {
            place: Some(place),
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
        let mut response = match self.place {
            None => route.await,
            Some(place) => match Peer::within(place.peer.as_ref(), place.patience, route).await {
                Some(response) => response,
                None if place.is_safe => Error::Timeout(anyhow!(LATE)).into_response(),
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

/// Tells the caller what is left of its limit.
fn tell(usage: Option<&(Door, Usage)>, response: &mut Response) {
    if let Some((door, usage)) = usage
        && let Some(rate_limit) = &door.0.bounds.rate_limit
    {
        rate_limit.tell(usage, response.headers_mut());
    }
}
