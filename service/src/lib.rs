//! HTTP for the honcho extension: maps requests to its functions and their outcomes to answers,
//! and holds no rules of its own.
#![forbid(unsafe_code)]

pub mod config;
mod crowd;
pub mod db;
pub mod error;
pub mod health;
pub mod lanes;
pub mod libpq;
mod passfile;
pub mod probe;
pub mod problem;
mod routes;
pub mod serve;
pub mod target;
mod tls;

use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRef},
    middleware,
    routing::get,
    routing::post,
};

use crate::{
    db::Database,
    error::Error,
    health::Health,
    lanes::Lanes,
    routes::{claims, coupons},
};

/// The largest request body that is read, in bytes.
pub const BODY_LIMIT: usize = 64 * 1024;

/// What the routes work with.
#[derive(Clone, FromRef)]
pub struct App {
    /// The database, for all but claims.
    pub database: Database,
    /// The way of claims to the database.
    pub lanes: Lanes,
    /// Whether requests can be served at present.
    pub health: Health,
}

/// The whole HTTP interface.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/api/coupons", post(coupons::create))
        // A coupon may be called "claim".
        .route(
            "/api/coupons/claim",
            post(claims::claim).get(coupons::show_named_claim),
        )
        .route("/api/coupons/{name}", get(coupons::show))
        .route("/health/live", get(routes::health::live))
        .route("/health/ready", get(routes::health::ready))
        .fallback(async || Error::RouteNotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        // Together, for each call of `layer` costs every request another box.
        .layer((
            middleware::from_fn(problem::answer),
            DefaultBodyLimit::max(BODY_LIMIT),
        ))
        .with_state(app)
}
