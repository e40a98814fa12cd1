//! HTTP for the honcho extension: maps requests to its functions and their outcomes to answers,
//! and holds no rules of its own.
#![forbid(unsafe_code)]

pub mod access;
pub mod address;
pub mod admission;
mod boundary;
pub mod config;
mod crowd;
pub mod db;
pub mod error;
pub mod health;
pub mod lanes;
pub mod libpq;
mod openapi;
pub mod origin;
mod passfile;
pub mod probe;
pub mod problem;
pub mod rate_limit;
mod routes;
pub mod serve;
mod session;
mod surroundings;
mod symptoms;
pub mod target;
pub mod telemetry;
mod tls;

use std::sync::Arc;

use axum::{
    Router,
    extract::FromRef,
    http::{Method, StatusCode},
    routing::get,
};
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    access::Access,
    admission::{Bounds, Door, Room},
    db::Database,
    error::Error,
    health::Health,
    lanes::Lanes,
    origin::Origins,
    routes::{body::BodyTimeout, claims, coupons},
    surroundings::Surroundings,
};

/// The largest request body that is read, in bytes.
pub const BODY_LIMIT: usize = 64 * 1024;

/// What the interface is made of.
#[derive(Debug)]
pub struct App {
    /// The database, for all but claims.
    pub database: Database,
    /// The way of claims to the database.
    pub lanes: Lanes,
    /// Whether requests can be served at present.
    pub health: Health,
    /// Who may do what.
    pub access: Access,
    /// How much is let in.
    pub bounds: Bounds,
    /// The web pages of other sites that may use it.
    pub origins: Origins,
    /// Whether `/metrics` is among the routes.
    pub metrics: bool,
}

/// What the routes work with. Behind one pointer, for the router clones it for every request.
#[derive(Clone, Debug)]
struct State(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    database: Database,
    lanes: Lanes,
    health: Health,
    access: Access,
    body_timeout: BodyTimeout,
    room: Room,
}

/// Lets routes ask for a part.
macro_rules! part {
    ($field:ident: $Part:ty) => {
        impl FromRef<State> for $Part {
            fn from_ref(State(parts): &State) -> Self {
                parts.$field.clone()
            }
        }
    };
}

part!(database: Database);
part!(lanes: Lanes);
part!(health: Health);
part!(access: Access);
part!(body_timeout: BodyTimeout);
part!(room: Room);

/// The whole HTTP interface.
///
/// # Errors
/// Where its description cannot be written, which is a defect.
pub fn router(app: App) -> anyhow::Result<Router> {
    let App {
        database,
        lanes,
        health,
        access,
        bounds,
        origins,
        metrics,
    } = app;
    let room = Room::new(bounds.requests);
    let state = State(Arc::new(Parts {
        database,
        lanes,
        health,
        access: access.clone(),
        body_timeout: BodyTimeout(bounds.body_timeout),
        room: room.clone(),
    }));
    let limited = bounds.rate_limit.is_some();
    let cors = origins.cors();
    let (mut router, mut document) = described();
    openapi::finish(&mut document, access.is_open(), limited);
    for (route, method, status) in openapi::answers(&document) {
        telemetry::metrics::metrics().foresee(route, &method, status);
    }
    if metrics {
        router = router.route("/metrics", get(routes::metrics::show));
    }
    let router = router
        .merge(openapi::pages(&document)?)
        .fallback(async || Error::RouteNotFound)
        .method_not_allowed_fallback(other_method)
        .layer(Surroundings(Door::new(access, origins, bounds, room)))
        .with_state(state);
    Ok(match cors {
        Some(cors) => router.layer(cors),
        None => router,
    })
}

/// `/metrics` and nothing else.
pub fn metrics_router(database: Database, lanes: Lanes) -> Router {
    let bounds = Bounds::default();
    let room = Room::new(bounds.requests);
    #[derive(Clone, FromRef)]
    struct State {
        database: Database,
        lanes: Lanes,
    }
    Router::new()
        .route("/metrics", get(routes::metrics::show))
        .fallback(async || Error::RouteNotFound)
        .method_not_allowed_fallback(other_method)
        .layer(Surroundings(Door::new(
            Access::default(),
            Origins::default(),
            bounds,
            room,
        )))
        .with_state(State { database, lanes })
}

/// The routes with nothing around them, for measuring what that costs.
pub fn bare_router(app: App) -> Router {
    described().0.with_state(State(Arc::new(Parts {
        database: app.database,
        lanes: app.lanes,
        health: app.health,
        access: app.access,
        body_timeout: BodyTimeout(app.bounds.body_timeout),
        room: Room::new(app.bounds.requests),
    })))
}

/// The routes of the API and their description.
fn described() -> (Router<State>, OpenApi) {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(coupons::create, coupons::list))
        // A coupon may be called "claim".
        .routes(routes!(claims::claim, coupons::show_named_claim))
        .routes(routes!(coupons::show))
        .routes(routes!(claims::list))
        .routes(routes!(claims::show))
        .route("/health/live", get(routes::health::live))
        .route("/health/ready", get(routes::health::ready))
        .split_for_parts()
}

/// Tells the methods of a path: the router adds `Allow` to either answer.
async fn other_method(method: Method) -> Result<StatusCode, Error> {
    if method == Method::OPTIONS {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Error::MethodNotAllowed)
    }
}
