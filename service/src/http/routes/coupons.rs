//! Coupons: created and listed at `/api/coupons`, shown and deleted at `/api/coupons/{name}`.

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
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{NO_STORE, count, coupon_name, coupon_path, invalid, stock};
use crate::{
    database::{Claimants, Coupon, Database},
    error::Error,
    http::{
        extract::{
            body::{NoFields, Received},
            caller::{Admin, Reader},
            fields::{self, Field},
            page::{self, PageQuery},
        },
        openapi::problem_type,
        state::AppState,
    },
    outcome::{Operation, Outcome},
    shards::Shards,
};

/// The routes of coupons.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(show, stock::update, delete))
}

/// Coupon to be created.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
// Without a window: the example's coupon can be claimed at once.
#[schema(example = json!({"name": "PROMO_SUPER", "amount": 100}))]
pub(crate) struct NewCoupon<'a> {
    /// Unique name; not `.` or `..`.
    #[serde(borrow)]
    #[schema(value_type = String, required, min_length = 1, max_length = 255,
             pattern = "^(?!\\.{1,2}$)[^\\u0000]*$", example = "PROMO_SUPER")]
    name: Field<'a>,
    /// Total stock, in pieces.
    #[serde(borrow)]
    #[schema(value_type = i32, required, minimum = 1, maximum = 2147483647, example = 100)]
    amount: Field<'a>,
    /// First moment at which it can be claimed, with an offset; missing or null: from its creation on.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, format = DateTime, required = false,
             example = "2026-01-31T12:00:00Z")]
    starts_at: Field<'a>,
    /// First moment at which it can no longer be claimed, after `starts_at`; missing or null: no end.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, format = DateTime, required = false,
             example = "2026-01-31T14:00:00+01:00")]
    ends_at: Field<'a>,
}

/// Answer to a coupon that was created.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CouponCreated<'a> {
    #[schema(example = "coupon created")]
    message: &'a str,
    #[schema(example = "PROMO_SUPER")]
    name: &'a str,
}

/// Page of coupons.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CouponList {
    /// In the order of creation.
    coupons: Vec<Coupon>,
}

/// Coupon with its claimants.
#[derive(ToSchema)]
#[allow(dead_code, reason = "it may be long, so it is written piece by piece")]
pub(crate) struct CouponDetail {
    #[schema(example = "PROMO_SUPER")]
    name: String,
    /// Total stock, in pieces.
    #[schema(example = 100)]
    amount: i32,
    /// Stock that can still be claimed.
    #[schema(example = 98)]
    remaining_amount: i32,
    /// Users who have claimed, in claim order, of the same moment.
    #[schema(example = json!(["user_12345", "user_67890"]))]
    claimed_by: Vec<String>,
}

problem_type! {
    /// Problems of creating a coupon.
    CouponCreateProblems:
    invalid(),
    Error::ForeignOrigin,
    Error::BodyTimeout,
    Error::CouponExists,
    Error::BodyTooLarge,
    Error::OutcomeUnknown(anyhow!("")),
}

problem_type! {
    /// Problems of deleting a coupon.
    CouponDeleteProblems:
    invalid(),
    Error::ForeignOrigin,
    Error::BodyTimeout,
    Error::BodyTooLarge,
    Error::OutcomeUnknown(anyhow!("")),
    Error::ExtensionOutdated,
    ; Operation::Delete.refusals().map(Error::Refused)
}

problem_type! {
    /// Problems of reading a page of coupons.
    CouponListProblems: invalid()
}

problem_type! {
    /// Problems of reading a coupon.
    CouponShowProblems: Error::COUPON_NOT_FOUND, Error::TooManyLists
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
        (status = 201, description = "The coupon is created", body = CouponCreated,
         headers(("Location" = String, description = "Path of the coupon")),
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
        CouponCreateProblems,
    ),
    security(("bearer" = ["admin"])),
)]
pub(crate) async fn create(
    admin: Admin,
    State(databases): State<Shards<Database>>,
    Received(body, _permit): Received,
) -> Result<Response, Error> {
    let coupon: NewCoupon = fields::parse(&body)?;
    let name = fields::text("name", coupon.name)?;
    let amount = fields::count("amount", coupon.amount)?;
    let starts_at = fields::timestamp("starts_at", coupon.starts_at)?;
    let ends_at = fields::timestamp("ends_at", coupon.ends_at)?;
    // The extension accepts these names, but URLs cannot: clients and proxies read them as steps in a path, escaped
    // or not, so the coupon's own path would lead elsewhere.
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
    if !databases
        .of(&name)
        .create_coupon(&name, amount, starts_at, ends_at, &admin.label())
        .await?
    {
        return Err(Error::CouponExists);
    }
    let location = coupon_path(&name);
    let created = CouponCreated {
        message: "coupon created",
        name: &name,
    };
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(created)).into_response())
}

/// List the coupons
///
/// In the order of creation, page by page: `Link` leads to the next page, if there is one.
#[utoipa::path(
    get,
    path = "/api/coupons",
    operation_id = "list_coupons",
    tag = "coupons",
    params(PageQuery),
    responses(
        (status = 200, description = "A page of coupons", body = CouponList,
         headers(("Link" = String, description = "The next page, with rel=\"next\"; absent on the last one"))),
        CouponListProblems,
    ),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn list(
    _: Reader,
    State(databases): State<Shards<Database>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    let page = PageQuery::from_query(query.as_deref())?;
    let mut coupons = databases.list_coupons(page.after, page.rows()).await?;
    let link = page.cut(&mut coupons, |coupon| coupon.id, "/api/coupons")?;
    Ok((NO_STORE, link, Json(CouponList { coupons })).into_response())
}

/// Show a coupon and its claimants
///
/// The list is complete, of one moment, and streamed. To read a part of it, list the coupon's claims.
#[utoipa::path(
    get,
    path = "/api/coupons/{name}",
    operation_id = "show_coupon",
    tag = "coupons",
    params(("name" = String, Path, description = "Name of the coupon", example = "PROMO_SUPER")),
    responses((status = 200, description = "The coupon", body = CouponDetail), CouponShowProblems),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn show(
    _: Reader,
    State(databases): State<Shards<Database>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    show_named(&databases, &coupon_name(name)?).await
}

/// Show the coupon named "claim"
///
/// Like any other coupon; claims are made at this path, too.
#[utoipa::path(
    get,
    path = "/api/coupons/claim",
    operation_id = "show_coupon_named_claim",
    tag = "coupons",
    responses((status = 200, description = "The coupon", body = CouponDetail), CouponShowProblems),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn show_named_claim(
    _: Reader,
    State(databases): State<Shards<Database>>,
) -> Result<Response, Error> {
    show_named(&databases, "claim").await
}

/// Delete a coupon
///
/// A coupon that has claims or live holds is deleted only with `claims=true`, and they with it. Its name is free again
/// then.
#[utoipa::path(
    delete,
    path = "/api/coupons/{name}",
    operation_id = "delete_coupon",
    tag = "coupons",
    params(
        ("name" = String, Path, description = "Name of the coupon", example = "PROMO_SUPER"),
        ("claims" = Option<bool>, Query,
         description = "True to delete its claims and holds as well; default: false"),
    ),
    responses((status = 204, description = "The coupon is deleted"), CouponDeleteProblems),
    security(("bearer" = ["admin"])),
)]
pub(crate) async fn delete(
    admin: Admin,
    State(databases): State<Shards<Database>>,
    name: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    _: NoFields,
) -> Result<StatusCode, Error> {
    let with_claims = with_claims(query.as_deref())?;
    delete_named(&databases, &coupon_name(name)?, with_claims, &admin).await
}

/// Delete the coupon named "claim"
///
/// Like any other coupon.
#[utoipa::path(
    delete,
    path = "/api/coupons/claim",
    operation_id = "delete_coupon_named_claim",
    tag = "coupons",
    params(("claims" = Option<bool>, Query,
            description = "True to delete its claims and holds as well; default: false")),
    responses((status = 204, description = "The coupon is deleted"), CouponDeleteProblems),
    security(("bearer" = ["admin"])),
)]
pub(crate) async fn delete_named_claim(
    admin: Admin,
    State(databases): State<Shards<Database>>,
    RawQuery(query): RawQuery,
    _: NoFields,
) -> Result<StatusCode, Error> {
    delete_named(&databases, "claim", with_claims(query.as_deref())?, &admin).await
}

async fn delete_named(
    databases: &Shards<Database>,
    name: &str,
    with_claims: bool,
    admin: &Admin,
) -> Result<StatusCode, Error> {
    let deleted = databases
        .of(name)
        .delete_coupon(name, with_claims, &admin.label())
        .await;
    match count(Operation::Delete, deleted, |outcome| *outcome)? {
        Outcome::Deleted => Ok(StatusCode::NO_CONTENT),
        refusal => Err(Error::Refused(refusal)),
    }
}

/// Parses the query of a deletion.
fn with_claims(query: Option<&str>) -> Result<bool, Error> {
    let [claims] = page::parameters(query, ["claims"])?;
    match claims.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Error::Invalid("claims must be true or false".into())),
    }
}

async fn show_named(databases: &Shards<Database>, name: &str) -> Result<Response, Error> {
    let (coupon, users, rest) = databases
        .of(name)
        .read_coupon(name)
        .await?
        .ok_or(Error::COUPON_NOT_FOUND)?;
    let mut first = format!(
        r#"{{"name":{},"amount":{},"remaining_amount":{},"claimed_by":["#,
        json(&coupon.name)?,
        coupon.amount,
        coupon.remaining_amount
    );
    for (index, user) in users.iter().enumerate() {
        if index > 0 {
            first.push(',');
        }
        first.push_str(&json(user)?);
    }
    let body = match rest {
        // Most lists are short: the answer is complete and has a length.
        None => Body::from(first + LIST_END),
        Some(claimants) => {
            let rest = stream::try_unfold(Some(claimants), next_chunk);
            Body::from_stream(stream::once(ready(Ok(first.into()))).chain(rest))
        }
    };
    Ok((NO_STORE, [(CONTENT_TYPE, "application/json")], body).into_response())
}

/// Ends the list and the coupon.
const LIST_END: &str = "]}";

/// Reads the next piece of a list, if there is one. The status has been sent, so an error can only break off the body.
async fn next_chunk(
    claimants: Option<Claimants>,
) -> Result<Option<(Bytes, Option<Claimants>)>, Error> {
    let Some(mut claimants) = claimants else {
        return Ok(None);
    };
    match claimants.next_page().await? {
        None => Ok(Some((Bytes::from_static(LIST_END.as_bytes()), None))),
        Some(users) => {
            let mut chunk = String::new();
            for user in &users {
                chunk.push(',');
                chunk.push_str(&json(user)?);
            }
            Ok(Some((chunk.into(), Some(claimants))))
        }
    }
}

fn json(text: &str) -> Result<String, Error> {
    serde_json::to_string(text).map_err(|error| Error::Internal(error.into()))
}
