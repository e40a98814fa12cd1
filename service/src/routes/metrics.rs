//! `/metrics`: what Prometheus reads.

use anyhow::Context;
use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};

use crate::{
    db::Database,
    error::Error,
    lanes::Lanes,
    telemetry::metrics::{self, metrics},
};

/// `GET /metrics`.
pub(crate) async fn show(
    State(database): State<Database>,
    State(lanes): State<Lanes>,
) -> Result<Response, Error> {
    let text = metrics()
        .scrape(&database.pools(), &lanes.depths())
        .context("the metrics could not be written")
        .map_err(Error::Internal)?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
