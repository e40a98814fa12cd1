//! The HTTP interface: the routers, and the state that the routes share.

mod assets;
mod extract;
mod layers;
mod openapi;
pub(crate) mod problem;
mod routes;
mod server;
mod state;

use std::time::Duration;

use axum::{
    Router,
    extract::FromRef,
    http::{Method, StatusCode},
};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use self::{
    extract::body::{BodyTimeout, LargeBodies},
    layers::{admission::Admission, permits::RequestPermits, stack::Stack},
    state::{AppState, HoldTtl, Parts},
};
pub use self::{
    layers::{
        admission::RequestLimits,
        client_address::TrustedProxies,
        origins::AllowedOrigins,
        rate_limit::{Rate, RateLimit, RateLimitKey},
    },
    server::{ConnectionLimits, check_queue_limit, listen, raise_file_limit, runtime, serve},
};
use crate::{
    auth::Policy, database::Database, error::Error, events::Events, health::Health, lanes::Lanes,
    shards::Shards, telemetry::metrics::metrics,
};

/// The parts behind the HTTP interface.
#[derive(Debug)]
pub struct App {
    /// Databases, for everything that takes no lane.
    pub databases: Shards<Database>,
    /// Lanes, for claims, holds and releases.
    pub lanes: Shards<Lanes>,
    /// Events, for streams.
    pub events: Events,
    /// Health of the shards.
    pub health: Shards<Health>,
    /// Accepted tokens.
    pub policy: Policy,
    /// Time for which a piece is held if the request names none.
    pub hold_ttl: Duration,
    /// Limits of requests.
    pub limits: RequestLimits,
    /// Origins of web pages that may use the API.
    pub origins: AllowedOrigins,
    /// True if `/metrics` is among the routes.
    pub metrics: bool,
}

/// Makes the router of the whole interface.
///
/// # Errors
/// The description cannot be written, which is a defect.
pub fn router(app: App) -> anyhow::Result<Router> {
    let App {
        databases,
        lanes,
        events,
        health,
        policy,
        hold_ttl,
        limits,
        origins,
        metrics: has_metrics,
    } = app;
    let permits = RequestPermits::new(limits.in_progress);
    let state = AppState::from(Parts {
        databases,
        lanes,
        events,
        health,
        policy: policy.clone(),
        hold_ttl: HoldTtl(hold_ttl),
        body_timeout: BodyTimeout(limits.body_timeout),
        large_bodies: LargeBodies::default(),
        permits: permits.clone(),
    });
    let (mut router, mut document) = described();
    openapi::finish(&mut document, policy.is_open(), limits.rate_limit.is_some());
    for (route, method, status) in openapi::answers(&document) {
        metrics().preset(route, &method, status);
    }
    let cors = origins.cors(openapi::methods(&document));
    if has_metrics {
        router = router.merge(routes::metrics::routes());
    }
    let admission = Admission::new(policy, origins, limits, permits);
    let router = with_stack(router.merge(assets::routes(&document)?), admission).with_state(state);
    Ok(match cors {
        Some(cors) => router.layer(cors),
        None => router,
    })
}

/// Makes the router of `/metrics` alone.
pub fn metrics_router(databases: Shards<Database>, lanes: Shards<Lanes>) -> Router {
    #[derive(Clone, FromRef)]
    struct MetricsState {
        databases: Shards<Database>,
        lanes: Shards<Lanes>,
    }
    let limits = RequestLimits::default();
    let permits = RequestPermits::new(limits.in_progress);
    let admission = Admission::new(
        Policy::default(),
        AllowedOrigins::default(),
        limits,
        permits,
    );
    with_stack(routes::metrics::routes(), admission).with_state(MetricsState { databases, lanes })
}

/// Makes the router of the API without layers, to measure their cost.
pub fn bare_router(app: App) -> Router {
    described().0.with_state(AppState::from(Parts {
        databases: app.databases,
        lanes: app.lanes,
        events: app.events,
        health: app.health,
        policy: app.policy,
        hold_ttl: HoldTtl(app.hold_ttl),
        body_timeout: BodyTimeout(app.limits.body_timeout),
        large_bodies: LargeBodies::default(),
        permits: RequestPermits::new(app.limits.in_progress),
    }))
}

/// The routes of the API, with their description, and those of health.
fn described() -> (Router<AppState>, OpenApi) {
    let (router, document) = OpenApiRouter::with_openapi(openapi::base())
        .merge(routes::coupons::routes())
        .merge(routes::stock::routes())
        .merge(routes::claims::routes())
        .merge(routes::events::routes())
        .merge(routes::holds::routes())
        .merge(routes::users::routes())
        .split_for_parts();
    (router.merge(routes::health::routes()), document)
}

/// Adds the answers to unknown paths and methods, and the layers around all routes.
fn with_stack<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    admission: Admission,
) -> Router<S> {
    router
        .fallback(async || Error::RouteNotFound)
        .method_not_allowed_fallback(other_method)
        .layer(Stack(admission))
}

/// Answers a method that the path does not take. The router adds `Allow`.
async fn other_method(method: Method) -> Result<StatusCode, Error> {
    if method == Method::OPTIONS {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Error::MethodNotAllowed)
    }
}
