//! Events of coupons as server-sent events: of all at `/api/events`, of one at `/api/coupons/{name}/events`.

use std::{convert::Infallible, time::Instant};

use axum::{
    body::Body,
    extract::{Path, RawQuery, State, rejection::PathRejection},
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use futures_util::stream::unfold;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::invalid;
use crate::{
    error::{Error, SharedError},
    events::{Events, Stream},
    http::{
        extract::{
            caller::LastingReader,
            fields,
            resume::{last_event_id, last_event_ids},
        },
        openapi::problem_type,
        server::Endless,
        state::AppState,
    },
};

/// The routes of events.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(watch_all))
        .routes(routes!(watch_coupon))
}

/// Headers of a stream. nginx would collect it otherwise, and send nothing for a long time.
const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    ),
];

problem_type! {
    /// Problems of a stream of all events.
    EventListProblems: invalid(), Error::TooManyStreams, Error::ExtensionOutdated
}

problem_type! {
    /// Problems of a stream of a coupon's events.
    CouponEventProblems:
    invalid(),
    Error::COUPON_NOT_FOUND,
    Error::TooManyStreams,
    Error::ExtensionOutdated,
}

/// Watch all coupons
///
/// A stream of events: `created`, `updated`, `paused`, `resumed`, `restocked`, `sold_out`, `available_again`, `released`,
/// `expired`, `deleted`. It begins with the next event, or after the one of `Last-Event-ID`. The event `reset` says that
/// this one is no longer known, so that others may have been missed.
#[utoipa::path(
    get,
    path = "/api/events",
    operation_id = "watch_all",
    tag = "events",
    params(
        ("after" = Option<i64>, Query, minimum = 0, maximum = 9223372036854775807_i64,
         description = "As `Last-Event-ID`, for clients that cannot set it"),
        ("Last-Event-ID" = Option<i64>, Header, minimum = 0, maximum = 9223372036854775807_i64,
         description = "`id` of the last event that the client has received; with several databases it has a number \
                        for each, joined by hyphens"),
    ),
    responses(
        (status = 200, description = "The stream, which ends when the service does", body = String,
         content_type = "text/event-stream",
         example = "id: 17\nevent: sold_out\ndata: {\"coupon_name\":\"PROMO_SUPER\",\"kind\":\"sold_out\",\
                    \"at\":\"2026-01-31T12:00:01.123456Z\",\"actor\":\"honcho_service\",\"details\":{\"held\": 0}}\n\n"),
        EventListProblems,
    ),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn watch_all(
    reader: LastingReader,
    State(events): State<Events>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, SharedError> {
    let after = last_event_ids(&headers, query.as_deref(), events.shard_count())?;
    let stream = events.watch_all(after).await?;
    Ok(answer(&events, stream, reader))
}

/// Watch a coupon
///
/// The stream of the coupon's events, and of its `stock`: at the beginning and when it has changed, at most four times a
/// second. It ends after the event `deleted`.
#[utoipa::path(
    get,
    path = "/api/coupons/{name}/events",
    operation_id = "watch_coupon",
    tag = "events",
    params(
        ("name" = String, Path, description = "Name of the coupon", example = "PROMO_SUPER"),
        ("after" = Option<i64>, Query, minimum = 0, maximum = 9223372036854775807_i64,
         description = "As `Last-Event-ID`, for clients that cannot set it"),
        ("Last-Event-ID" = Option<i64>, Header, minimum = 0, maximum = 9223372036854775807_i64,
         description = "`id` of the last event that the client has received"),
    ),
    responses(
        (status = 200, description = "The stream", body = String, content_type = "text/event-stream",
         example = "event: stock\ndata: {\"name\":\"PROMO_SUPER\",\"amount\":100,\"remaining_amount\":58,\
                    \"held_amount\":0,\"starts_at\":null,\"ends_at\":null,\"paused\":false,\"state\":\"open\"}\n\n"),
        CouponEventProblems,
    ),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn watch_coupon(
    reader: LastingReader,
    State(events): State<Events>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, SharedError> {
    let after = last_event_id(&headers, query.as_deref())?;
    let Ok(Path(name)) = name else {
        return Err(Error::COUPON_NOT_FOUND.into());
    };
    if fields::fault(&name).is_some() {
        return Err(Error::COUPON_NOT_FOUND.into());
    }
    let stream = events.watch_coupon(&name, after).await?;
    Ok(answer(&events, stream, reader))
}

/// Makes the answer of a stream, which also ends when the client's token is no longer accepted.
fn answer(events: &Events, stream: Stream, reader: LastingReader) -> Response {
    let interval = events.heartbeat();
    let checked = Instant::now();
    let frames = unfold(
        (stream, reader, checked),
        move |(mut stream, reader, mut checked)| async move {
            let frame = stream.next().await?;
            if checked.elapsed() >= interval {
                if !reader.is_accepted() {
                    return None;
                }
                checked = Instant::now();
            }
            Some((Ok::<_, Infallible>(frame), (stream, reader, checked)))
        },
    );
    let mut response = (HEADERS, Body::from_stream(frames)).into_response();
    response.extensions_mut().insert(Endless);
    response
}
