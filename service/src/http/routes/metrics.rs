//! `/metrics`: for Prometheus.

use anyhow::Context;
use axum::{
    Router,
    extract::{FromRef, State},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{
    database::Database,
    error::Error,
    lanes::Lanes,
    telemetry::metrics::{self, metrics},
};

/// The route of metrics.
pub(crate) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Database: FromRef<S>,
    Lanes: FromRef<S>,
{
    Router::new().route("/metrics", get(show))
}

/// `GET /metrics`.
async fn show(
    State(database): State<Database>,
    State(lanes): State<Lanes>,
) -> Result<Response, Error> {
    let text = metrics()
        .scrape(&database.pools(), &lanes.depths())
        .context("the metrics could not be written")
        .map_err(Error::Internal)?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
