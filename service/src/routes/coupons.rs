//! `/api/coupons`: coupons are made and shown.

use std::future::ready;

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{
        Path, State,
        rejection::{BytesRejection, PathRejection},
    },
    http::{
        StatusCode,
        header::{CONTENT_TYPE, LOCATION},
    },
    response::{IntoResponse, Response},
};
use futures_util::stream::{self, StreamExt};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    db::{Database, Reading},
    error::Error,
    routes::body::{self, Field},
};

/// All but the unreserved characters of RFC 3986.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// `POST /api/coupons`.
pub(crate) async fn create(
    State(database): State<Database>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Error> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow)]
        name: Field<'a>,
        #[serde(borrow)]
        amount: Field<'a>,
    }
    #[derive(Serialize)]
    struct Created {
        message: &'static str,
        name: String,
    }
    let body = body::received(body)?;
    let fields: Fields = body::fields(&body)?;
    let name = body::text("name", fields.name)?;
    let amount = body::count("amount", fields.amount)?;
    if !database.create_coupon(&name, amount).await? {
        return Err(Error::CouponExists);
    }
    let location = format!("/api/coupons/{}", utf8_percent_encode(&name, PATH_SEGMENT));
    let created = Created {
        message: "coupon created",
        name,
    };
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(created)).into_response())
}

/// `GET /api/coupons/{name}`.
pub(crate) async fn show(
    State(database): State<Database>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    // What is not a text is nobody's name.
    let Path(name) = name.map_err(|_| Error::CouponNotFound)?;
    show_named(&database, &name).await
}

/// `GET /api/coupons/claim`.
pub(crate) async fn show_named_claim(State(database): State<Database>) -> Result<Response, Error> {
    show_named(&database, "claim").await
}

async fn show_named(database: &Database, name: &str) -> Result<Response, Error> {
    if body::fault(name).is_some() {
        return Err(Error::CouponNotFound);
    }
    let mut reading = database
        .read_coupon(name)
        .await?
        .ok_or(Error::CouponNotFound)?;
    // The first page belongs to the first chunk: until it is there, an error still has a status,
    // and most lists end with it.
    let first = first_chunk(&mut reading).await?;
    let body = if reading.is_complete() {
        Body::from(first)
    } else {
        let rest = stream::try_unfold(reading, next_chunk);
        Body::from_stream(stream::once(ready(Ok(first))).chain(rest))
    };
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

async fn first_chunk(reading: &mut Reading) -> Result<Bytes, Error> {
    let coupon = &reading.coupon;
    let mut chunk = format!(
        r#"{{"name":{},"amount":{},"remaining_amount":{},"claimed_by":["#,
        json(&coupon.name)?,
        coupon.amount,
        coupon.remaining_amount
    );
    for (position, user) in reading.next_page().await?.iter().flatten().enumerate() {
        if position > 0 {
            chunk.push(',');
        }
        chunk.push_str(&json(user)?);
    }
    Ok(ended(chunk, reading))
}

async fn next_chunk(mut reading: Reading) -> Result<Option<(Bytes, Reading)>, Error> {
    // The status is out: breaking the body off is all that is left to tell the client.
    let page = reading
        .next_page()
        .await
        .inspect_err(|error| warn!("a list broke off: {error}"))?;
    let Some(users) = page else { return Ok(None) };
    let mut chunk = String::new();
    for user in &users {
        chunk.push(',');
        chunk.push_str(&json(user)?);
    }
    Ok(Some((ended(chunk, &reading), reading)))
}

fn ended(mut chunk: String, reading: &Reading) -> Bytes {
    if reading.is_complete() {
        chunk.push_str("]}");
    }
    chunk.into()
}

fn json(text: &str) -> Result<String, Error> {
    serde_json::to_string(text).map_err(|error| Error::Internal(error.into()))
}
