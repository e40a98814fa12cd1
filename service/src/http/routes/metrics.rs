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
    shards::Shards,
    telemetry::metrics::{self, metrics},
};

/// The route of metrics.
pub(crate) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Shards<Database>: FromRef<S>,
    Shards<Lanes>: FromRef<S>,
{
    Router::new().route("/metrics", get(show))
}

/// `GET /metrics`.
async fn show(
    State(databases): State<Shards<Database>>,
    State(lanes): State<Shards<Lanes>>,
) -> Result<Response, Error> {
    let pools = databases.iter().map(|it| (it.shard(), it.pools()));
    let text = metrics()
        .scrape(pools, &lanes.depths())
        .context("the metrics could not be written")
        .map_err(Error::Internal)?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
