//! `/health`: for whoever starts, stops and routes to the service.

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue},
};
use serde::Serialize;

use super::NO_STORE;
use crate::{error::Error, health::Health};

/// How the service is.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    status: &'static str,
}

/// `GET /health/live`: the process works. Says nothing about the database, whose absence no restart of
/// ours would mend.
pub(crate) async fn live() -> ([(HeaderName, HeaderValue); 1], Json<Status>) {
    (NO_STORE, Json(Status { status: "live" }))
}

/// `GET /health/ready`: requests are served.
pub(crate) async fn ready(
    State(health): State<Health>,
) -> Result<([(HeaderName, HeaderValue); 1], Json<Status>), Error> {
    health.check()?;
    Ok((NO_STORE, Json(Status { status: "ready" })))
}
