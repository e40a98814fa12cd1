//! `/health`: for supervisors and load balancers.

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderName, HeaderValue},
    routing::get,
};
use serde::Serialize;

use super::NO_STORE;
use crate::{error::Error, health::Health, http::state::AppState, shards::Shards};

/// The routes of health.
pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
}

/// Health of the service.
#[derive(Debug, Serialize)]
pub(crate) struct HealthStatus {
    status: &'static str,
}

/// `GET /health/live`: the process works. It ignores the database, because a restart of the service would not repair
/// it.
async fn live() -> ([(HeaderName, HeaderValue); 1], Json<HealthStatus>) {
    (NO_STORE, Json(HealthStatus { status: "live" }))
}

/// `GET /health/ready`: requests are served.
async fn ready(
    State(health): State<Shards<Health>>,
) -> Result<([(HeaderName, HeaderValue); 1], Json<HealthStatus>), Error> {
    health.check()?;
    Ok((NO_STORE, Json(HealthStatus { status: "ready" })))
}
