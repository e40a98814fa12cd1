//! HTTP for the honcho extension: maps requests to its functions and their outcomes to answers,
//! and holds no rules of its own.
#![forbid(unsafe_code)]

pub mod config;
pub mod db;
pub mod error;
mod routes;

use axum::{Router, extract::DefaultBodyLimit, middleware, routing::get, routing::post};

use crate::{
    db::Database,
    error::Error,
    routes::{claims, coupons},
};

/// The largest request body that is read, in bytes.
pub const BODY_LIMIT: usize = 64 * 1024;

/// The whole HTTP interface over one database.
pub fn app(database: Database) -> Router {
    Router::new()
        .route("/api/coupons", post(coupons::create))
        // A coupon may be called "claim".
        .route(
            "/api/coupons/claim",
            post(claims::claim).get(coupons::show_named_claim),
        )
        .route("/api/coupons/{name}", get(coupons::show))
        .fallback(async || Error::RouteNotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn(error::answer))
        .with_state(database)
}
