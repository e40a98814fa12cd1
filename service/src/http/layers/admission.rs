//! Admission: the checks before a request reaches its route.
//!
//! In this order: the `Host` header, the limit of connections, the origin of the web page, the limit of requests,
//! the rate limit by address, authentication (not of preflights), the rate limit by token. Then the route has a
//! limited time to answer.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::anyhow;
use axum::{
    body::HttpBody,
    extract::Request,
    http::{
        HeaderMap, HeaderValue, Method, Version,
        header::{AUTHORIZATION, HOST},
    },
    response::{IntoResponse, Response},
};

use super::{
    client_address::TrustedProxies,
    origins::Cors,
    permits::{RequestPermit, RequestPermits},
    rate_limit::{CallerKey, RateLimit, Usage},
};
use crate::{
    auth::{Caller, Policy},
    error::Error,
    http::server::{Peer, Within},
};

/// Paths under this one need a token, unless the service is open.
const API: &str = "/api/";

/// Paths that machines request every few seconds. They pass without checks, also on connections beyond the limit:
/// they must answer when nothing else does.
pub(crate) const PROBES: [&str; 3] = ["/health/live", "/health/ready", "/metrics"];

/// Cause of an error in the log.
const LATE: &str = "the request took too long";

/// Limits of requests.
#[derive(Debug)]
pub struct RequestLimits {
    /// The most requests in progress.
    pub in_progress: usize,
    /// Longest time for a request.
    pub request_timeout: Duration,
    /// Longest time for receiving a body.
    pub body_timeout: Duration,
    /// Rate limit of each caller, if there is one.
    pub rate_limit: Option<RateLimit>,
    /// Proxies whose `X-Forwarded-For` is trusted.
    pub proxies: TrustedProxies,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            in_progress: 15_000,
            request_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(10),
            rate_limit: None,
            proxies: TrustedProxies::default(),
        }
    }
}

/// The checks. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Admission(Arc<Checks>);

#[derive(Debug)]
struct Checks {
    policy: Policy,
    cors: Cors,
    limits: RequestLimits,
    permits: RequestPermits,
}

/// An admitted request.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// Its limits; none for a probe.
    bound: Option<Bound>,
    /// Use of the rate limit, if there is one.
    usage: Option<(Admission, Usage)>,
}

/// A refused request.
#[derive(Debug)]
pub(crate) struct Refusal {
    error: Error,
    usage: Option<(Admission, Usage)>,
}

#[derive(Debug)]
struct Bound {
    /// Its permit. An unsafe request with a body takes one when the body has arrived.
    _permit: Option<RequestPermit>,
    /// Until the route has begun.
    peer: Option<Peer>,
    /// Longest time for the request.
    timeout: Duration,
    /// True if the route changes nothing.
    is_safe: bool,
}

impl Admission {
    pub fn new(policy: Policy, cors: Cors, limits: RequestLimits, permits: RequestPermits) -> Self {
        Self(Arc::new(Checks {
            policy,
            cors,
            limits,
            permits,
        }))
    }

    /// Address of the request's client.
    pub fn client(&self, request: &Request) -> Option<IpAddr> {
        let peer = request.extensions().get::<Peer>()?;
        let proxies = &self.0.limits.proxies;
        Some(proxies.client(peer.address.ip(), request.headers()))
    }

    /// Headers of the answer for the browser of the request's page.
    pub fn cors_headers(&self, request: &Request) -> HeaderMap {
        self.0.cors.headers(request)
    }

    /// Checks a request, and adds its caller to its extensions.
    ///
    /// # Errors
    /// The check that it does not pass.
    pub fn admit(&self, request: &mut Request) -> Result<Admitted, Refusal> {
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
            return Ok(Admitted {
                bound: None,
                usage: None,
            });
        }
        let Checks {
            policy,
            cors,
            limits,
            permits,
        } = &*self.0;
        let is_safe = matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS
        );
        if !is_safe && !cors.origins.admit(request.headers(), policy.is_open()) {
            return refuse(Error::ForeignOrigin);
        }
        // A safe request is served from its head on: no route reads the body that it may have.
        let permit = if is_safe || request.body().is_end_stream() {
            match permits.clone().take() {
                Ok(permit) => Some(permit),
                Err(error) => return refuse(error),
            }
        } else if permits.are_exhausted() {
            return refuse(Error::TooManyRequests);
        } else {
            // Heads alone must not take the permits of requests that can be served.
            None
        };
        let peer = peer.cloned();
        // Preflights have no token, and many callers with one each may share an address.
        let limit = limits.rate_limit.as_ref();
        let limit = limit.filter(|limit| !(limit.is_by_token() && cors.is_preflight(request)));
        let (caller, usage) = match limit {
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
            _permit: permit,
            peer,
            timeout: limits.request_timeout,
            is_safe,
        };
        Ok(Admitted {
            bound: Some(bound),
            usage,
        })
    }

    fn identify(&self, request: &Request) -> Result<Option<Caller>, Error> {
        // A browser sends no token with a preflight, and learns only the methods.
        if request.uri().path().starts_with(API) && !self.0.cors.is_preflight(request) {
            let authorization = request.headers().get_all(AUTHORIZATION).iter();
            let values = authorization.map(HeaderValue::as_bytes);
            Ok(self.0.policy.identify(values)?)
        } else {
            Ok(None)
        }
    }

    /// Counts a request for its caller, and refuses it if it exceeds the rate limit.
    fn count(
        &self,
        rate_limit: &RateLimit,
        request: &Request,
    ) -> (Result<Option<Caller>, Error>, Usage) {
        let address = self.client(request);
        let by_address = || address.map_or(CallerKey::Unknown, CallerKey::address);
        let (caller, usage) = if rate_limit.is_by_token() {
            let caller = self.identify(request);
            // Requests without an accepted token count by address, so that guessing is limited too.
            let key = match &caller {
                Ok(Some(caller)) => CallerKey::Caller(caller.id().clone()),
                Ok(None) | Err(_) => by_address(),
            };
            (caller, rate_limit.count(&key))
        } else {
            // Before authentication, which costs more than a refused request should.
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

impl Admitted {
    /// Limits the time of its route.
    pub fn limit<F>(&mut self, route: F) -> Within<F> {
        match &mut self.bound {
            Some(bound) => Peer::within(bound.peer.take(), bound.timeout, route),
            None => Peer::within(None, Duration::MAX, route),
        }
    }

    /// Returns the route's answer, or an error if there is none because that took too long.
    pub fn answer(self, answer: Option<Response>) -> Response {
        let is_safe = self.bound.as_ref().is_none_or(|bound| bound.is_safe);
        let mut response = match answer {
            Some(response) => response,
            None if is_safe => Error::Timeout(anyhow!(LATE)).into_response(),
            // A lane or the database may have begun the change.
            None => Error::OutcomeUnknown(anyhow!(LATE)).into_response(),
        };
        write_usage(self.usage.as_ref(), &mut response);
        response
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.error.into_response();
        write_usage(self.usage.as_ref(), &mut response);
        response
    }
}

/// Returns true if the request has one valid `Host` header (RFC 9112): a proxy before the service may have used
/// another one than the service would.
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

/// Writes the headers of the rate limit.
fn write_usage(usage: Option<&(Admission, Usage)>, response: &mut Response) {
    if let Some((admission, usage)) = usage
        && let Some(rate_limit) = &admission.0.limits.rate_limit
    {
        rate_limit.write(usage, response.headers_mut());
    }
}
