//! `/api/coupons`: coupons are made, listed and shown.

use std::future::ready;

use anyhow::anyhow;
use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Path, RawQuery, State, rejection::PathRejection},
    http::{
        StatusCode,
        header::{CONTENT_TYPE, LOCATION},
    },
    response::{IntoResponse, Response},
};
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    access::{Admin, Reader},
    db::{CouponRow, Database, Reading},
    error::Error,
    openapi::problem_type,
    routes::{
        NO_STORE,
        body::{self, Field, Received},
        coupon_path, invalid,
        page::Page,
    },
};

/// A coupon to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
// Without a window: the example's coupon can be claimed at once.
#[schema(example = json!({"name": "PROMO_SUPER", "amount": 100}))]
pub(crate) struct NewCoupon<'a> {
    /// What claims will name; not `.` or `..`.
    #[serde(borrow)]
    #[schema(value_type = String, required, min_length = 1, max_length = 255,
             pattern = "^(?!\\.{1,2}$)[^\\u0000]*$", example = "PROMO_SUPER")]
    name: Field<'a>,
    /// How many can be claimed.
    #[serde(borrow)]
    #[schema(value_type = i32, required, minimum = 1, maximum = 2147483647, example = 100)]
    amount: Field<'a>,
    /// First moment at which it can be claimed, with an offset; without it, or null: at once.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, format = DateTime, required = false,
             example = "2026-01-31T12:00:00Z")]
    starts_at: Field<'a>,
    /// First moment at which it no longer can, after `starts_at`; without it, or null: never.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, format = DateTime, required = false,
             example = "2026-01-31T14:00:00+01:00")]
    ends_at: Field<'a>,
}

/// The answer to a coupon that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Created<'a> {
    #[schema(example = "coupon created")]
    message: &'a str,
    #[schema(example = "PROMO_SUPER")]
    name: &'a str,
}

/// A page of coupons.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CouponList {
    /// In the order of their creation.
    coupons: Vec<CouponRow>,
}

/// A coupon and who has it.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "it is written out piece by piece, for it may be long"
)]
pub(crate) struct Shown {
    #[schema(example = "PROMO_SUPER")]
    name: String,
    /// How many there are in all.
    #[schema(example = 100)]
    amount: i32,
    /// How many are left.
    #[schema(example = 98)]
    remaining_amount: i32,
    /// In claim order, from the same moment.
    #[schema(example = json!(["user_12345", "user_67890"]))]
    claimed_by: Vec<String>,
}

problem_type! {
    /// How making a coupon can fail.
    CreateProblems:
    invalid(),
    Error::ForeignOrigin,
    Error::BodyTimeout,
    Error::CouponExists,
    Error::BodyTooLarge,
    Error::OutcomeUnknown(anyhow!("")),
}

problem_type! {
    /// How reading a page of coupons can fail.
    ListProblems: invalid()
}

problem_type! {
    /// How reading a coupon can fail.
    ShowProblems: Error::CouponNotFound, Error::TooManyLists
}

/// Create a coupon
///
/// It can be claimed from `starts_at` until just before `ends_at`.
#[utoipa::path(
    post,
    path = "/api/coupons",
    operation_id = "create_coupon",
    tag = "coupons",
    request_body = NewCoupon,
    responses(
        (status = 201, description = "The coupon is there", body = Created,
         headers(("Location" = String, description = "Where it is")),
         links(
            ("the coupon" = (
                operation_id = "show_coupon",
                parameters(("name" = "$response.body#/name")),
            )),
            ("its claims" = (
                operation_id = "list_claims",
                parameters(("name" = "$response.body#/name")),
            )),
         )),
        CreateProblems,
    ),
    security(("bearer" = ["admin"])),
)]
pub(crate) async fn create(
    _: Admin,
    State(database): State<Database>,
    Received(body, _place): Received,
) -> Result<Response, Error> {
    let coupon: NewCoupon = body::fields(&body)?;
    let name = body::text("name", coupon.name)?;
    let amount = body::count("amount", coupon.amount)?;
    let starts_at = body::moment("starts_at", coupon.starts_at)?;
    let ends_at = body::moment("ends_at", coupon.ends_at)?;
    // The extension takes these names: it is URLs that cannot hold them. To clients and proxies they are steps
    // in a path, escaped or not, so the coupon's own path would lead elsewhere.
    if matches!(&*name, "." | "..") {
        let why = "name must not be . or .., which no URL can name";
        return Err(Error::Invalid(why.into()));
    }
    if starts_at
        .zip(ends_at)
        .is_some_and(|(start, end)| end <= start)
    {
        return Err(Error::Invalid("ends_at must be after starts_at".into()));
    }
    if !database
        .create_coupon(&name, amount, starts_at, ends_at)
        .await?
    {
        return Err(Error::CouponExists);
    }
    let location = coupon_path(&name);
    let created = Created {
        message: "coupon created",
        name: &name,
    };
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(created)).into_response())
}

/// List the coupons
///
/// In the order of their creation, page by page: `Link` leads to the next page, if there is one.
#[utoipa::path(
    get,
    path = "/api/coupons",
    operation_id = "list_coupons",
    tag = "coupons",
    params(Page),
    responses(
        (status = 200, description = "A page of coupons", body = CouponList,
         headers(("Link" = String, description = "The next page, with rel=\"next\"; absent on the last one"))),
        ListProblems,
    ),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn list(
    _: Reader,
    State(database): State<Database>,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    let page = Page::from_query(query.as_deref())?;
    let mut coupons = database.list_coupons(page.after, page.rows()).await?;
    let link = page.cut(&mut coupons, |coupon| coupon.id, "/api/coupons")?;
    Ok((NO_STORE, link, Json(CouponList { coupons })).into_response())
}

/// Show a coupon and who has it
///
/// The list is complete, however long, and as of one moment; it is streamed. For a part of it, list the
/// coupon's claims.
#[utoipa::path(
    get,
    path = "/api/coupons/{name}",
    operation_id = "show_coupon",
    tag = "coupons",
    params(("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER")),
    responses((status = 200, description = "The coupon", body = Shown), ShowProblems),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn show(
    _: Reader,
    State(database): State<Database>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    // What is not a text is nobody's name.
    let Path(name) = name.map_err(|_| Error::CouponNotFound)?;
    show_named(&database, &name).await
}

/// Show the coupon called "claim"
///
/// Like any other coupon: this path is where claims are made, too.
#[utoipa::path(
    get,
    path = "/api/coupons/claim",
    operation_id = "show_coupon_named_claim",
    tag = "coupons",
    responses((status = 200, description = "The coupon", body = Shown), ShowProblems),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn show_named_claim(
    _: Reader,
    State(database): State<Database>,
) -> Result<Response, Error> {
    show_named(&database, "claim").await
}

async fn show_named(database: &Database, name: &str) -> Result<Response, Error> {
    if body::fault(name).is_some() {
        return Err(Error::CouponNotFound);
    }
    let (coupon, users, rest) = database
        .read_coupon(name)
        .await?
        .ok_or(Error::CouponNotFound)?;
    let mut first = format!(
        r#"{{"name":{},"amount":{},"remaining_amount":{},"claimed_by":["#,
        json(&coupon.name)?,
        coupon.amount,
        coupon.remaining_amount
    );
    for (position, user) in users.iter().enumerate() {
        if position > 0 {
            first.push(',');
        }
        first.push_str(&json(user)?);
    }
    let body = match rest {
        // Most lists are short: the answer is whole, and has a length.
        None => Body::from(first + LIST_END),
        Some(reading) => {
            let rest = stream::try_unfold(Some(reading), next_chunk);
            Body::from_stream(stream::once(ready(Ok(first.into()))).chain(rest))
        }
    };
    Ok((NO_STORE, [(CONTENT_TYPE, "application/json")], body).into_response())
}

/// Ends the list and the coupon.
const LIST_END: &str = "]}";

/// The next piece of a list that has begun, if there is one. The status is out: to break the body off is
/// all that is left to tell the client of an error.
async fn next_chunk(reading: Option<Reading>) -> Result<Option<(Bytes, Option<Reading>)>, Error> {
    let Some(mut reading) = reading else {
        return Ok(None);
    };
    match reading.next_page().await? {
        None => Ok(Some((Bytes::from_static(LIST_END.as_bytes()), None))),
        Some(users) => {
            let mut chunk = String::new();
            for user in &users {
                chunk.push(',');
                chunk.push_str(&json(user)?);
            }
            Ok(Some((chunk.into(), Some(reading))))
        }
    }
}

fn json(text: &str) -> Result<String, Error> {
    serde_json::to_string(text).map_err(|error| Error::Internal(error.into()))
}
