//! The stock of a coupon: shown at `/api/coupons/{name}/stock`, changed by a patch of the coupon and at
//! `/api/coupons/{name}/restock`.

use anyhow::anyhow;
use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{NO_STORE, count, coupon_name, invalid};
use crate::{
    database::{Bound, CouponChange, Database, Stock},
    error::Error,
    http::{
        extract::{
            body::Received,
            caller::{Admin, Reader},
            fields::{self, Field},
        },
        openapi::problem_type,
        state::AppState,
    },
    outcome::{Operation, Outcome},
    shards::Shards,
};

/// The routes of stocks. The patch is among the coupons' routes, because it has their path.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(show))
        .routes(routes!(restock))
}

/// Change of a coupon (JSON merge patch, RFC 7396): what is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"ends_at": "2099-01-31T14:00:00+01:00", "paused": false}))]
pub(crate) struct CouponPatch<'a> {
    /// New total stock, in pieces, from what is claimed and held on. What remains changes by the same number.
    #[serde(borrow, default, deserialize_with = "fields::with_null")]
    #[schema(value_type = i32, required = false, minimum = 0, maximum = 2147483647, example = 150)]
    amount: Field<'a>,
    /// First moment at which it can be claimed, with an offset; null: from its creation on.
    #[serde(borrow, default, deserialize_with = "fields::with_null")]
    #[schema(value_type = Option<String>, format = DateTime, required = false,
             example = "2026-01-31T12:00:00Z")]
    starts_at: Field<'a>,
    /// First moment at which it can no longer be claimed, after `starts_at`; null: no end.
    #[serde(borrow, default, deserialize_with = "fields::with_null")]
    #[schema(value_type = Option<String>, format = DateTime, required = false,
             example = "2099-01-31T14:00:00+01:00")]
    ends_at: Field<'a>,
    /// True to refuse claims for now, false to resume.
    #[serde(borrow, default, deserialize_with = "fields::with_null")]
    #[schema(value_type = bool, required = false, example = false)]
    paused: Field<'a>,
}

/// Stock to be added or taken away.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestockRequest<'a> {
    /// Pieces to add; negative to take some away, at most what remains.
    #[serde(borrow)]
    #[schema(value_type = i32, required, minimum = -2147483647, maximum = 2147483647, example = 50)]
    delta: Field<'a>,
}

problem_type! {
    /// Problems of reading a stock.
    StockProblems: Error::COUPON_NOT_FOUND, Error::ExtensionOutdated
}

problem_type! {
    /// Problems of changing a coupon.
    StockChangeProblems:
    invalid(),
    Error::ForeignOrigin,
    Error::BodyTimeout,
    Error::BodyTooLarge,
    Error::OutcomeUnknown(anyhow!("")),
    Error::ExtensionOutdated,
    ; Operation::Update.refusals().map(Error::Refused)
}

/// Show a coupon's stock
///
/// The coupon without its claims, at one moment, and what a claim would meet now.
#[utoipa::path(
    get,
    path = "/api/coupons/{name}/stock",
    operation_id = "show_stock",
    tag = "coupons",
    params(("name" = String, Path, description = "Name of the coupon", example = "PROMO_SUPER")),
    responses((status = 200, description = "The stock", body = Stock), StockProblems),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn show(
    _: Reader,
    State(databases): State<Shards<Database>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let name = coupon_name(name)?;
    let stock = databases.of(&name).get_stock(&name).await?;
    let stock = stock.ok_or(Error::COUPON_NOT_FOUND)?;
    Ok((NO_STORE, Json(stock)).into_response())
}

/// Change a coupon
///
/// A JSON merge patch: absent fields stay, null removes a bound of the window. A pause or an earlier end holds from the
/// answer on: no later claim is made. What users hold can still be confirmed.
#[utoipa::path(
    patch,
    path = "/api/coupons/{name}",
    operation_id = "update_coupon",
    tag = "coupons",
    params(("name" = String, Path, description = "Name of the coupon", example = "PROMO_SUPER")),
    request_body(content(
        (CouponPatch = "application/merge-patch+json"),
        (CouponPatch = "application/json"),
    )),
    responses((status = 200, description = "The changed coupon", body = Stock), StockChangeProblems),
    security(("bearer" = ["admin"])),
)]
pub(crate) async fn update(
    admin: Admin,
    State(databases): State<Shards<Database>>,
    name: Result<Path<String>, PathRejection>,
    Received(body, _permit): Received,
) -> Result<Response, Error> {
    let change = change(&body)?;
    update_named(&databases, &coupon_name(name)?, change, &admin).await
}

/// Change the coupon named "claim"
///
/// Like any other coupon.
#[utoipa::path(
    patch,
    path = "/api/coupons/claim",
    operation_id = "update_coupon_named_claim",
    tag = "coupons",
    request_body(content(
        (CouponPatch = "application/merge-patch+json"),
        (CouponPatch = "application/json"),
    )),
    responses((status = 200, description = "The changed coupon", body = Stock), StockChangeProblems),
    security(("bearer" = ["admin"])),
)]
pub(crate) async fn update_named_claim(
    admin: Admin,
    State(databases): State<Shards<Database>>,
    Received(body, _permit): Received,
) -> Result<Response, Error> {
    update_named(&databases, "claim", change(&body)?, &admin).await
}

/// Add stock to a coupon
///
/// Changes the amount, and what remains, by a difference. It is not safe to repeat: after `outcome_unknown`, look at the
/// stock first.
#[utoipa::path(
    post,
    path = "/api/coupons/{name}/restock",
    operation_id = "restock_coupon",
    tag = "coupons",
    params(("name" = String, Path, description = "Name of the coupon", example = "PROMO_SUPER")),
    request_body = RestockRequest,
    responses((status = 200, description = "The changed coupon", body = Stock), StockChangeProblems),
    security(("bearer" = ["admin"])),
)]
pub(crate) async fn restock(
    admin: Admin,
    State(databases): State<Shards<Database>>,
    name: Result<Path<String>, PathRejection>,
    Received(body, _permit): Received,
) -> Result<Response, Error> {
    let restock: RestockRequest = fields::parse(&body)?;
    let delta = fields::number("delta", restock.delta, -i32::MAX..=i32::MAX)?;
    let name = coupon_name(name)?;
    let changed = databases
        .of(&name)
        .restock(&name, delta, &admin.label())
        .await;
    changed_stock(
        count(Operation::Restock, changed, outcome).map_err(|error| {
            // All that is left to refuse.
            explained(error, "delta would make the amount larger than 2147483647")
        })?,
    )
}

/// Parses a patch.
fn change(body: &[u8]) -> Result<CouponChange, Error> {
    let patch: CouponPatch = fields::parse(body)?;
    let change = CouponChange {
        amount: match patch.amount {
            None => None,
            amount => Some(fields::number("amount", amount, 0..=i32::MAX)?),
        },
        starts_at: fields::bound("starts_at", patch.starts_at)?,
        ends_at: fields::bound("ends_at", patch.ends_at)?,
        paused: match patch.paused {
            None => None,
            paused => Some(fields::flag("paused", paused)?),
        },
    };
    match (change.starts_at, change.ends_at) {
        (Some(Bound::At(start)), Some(Bound::At(end))) if end <= start => {
            Err(Error::Invalid(WRONG_WINDOW.into()))
        }
        _ => Ok(change),
    }
}

const WRONG_WINDOW: &str = "ends_at must be after starts_at";

async fn update_named(
    databases: &Shards<Database>,
    name: &str,
    change: CouponChange,
    admin: &Admin,
) -> Result<Response, Error> {
    let changed = databases
        .of(name)
        .update_coupon(name, change, &admin.label())
        .await;
    // One bound is the coupon's own, or the database would not have been asked.
    let changed = count(Operation::Update, changed, outcome)
        .map_err(|error| explained(error, WRONG_WINDOW))?;
    changed_stock(changed)
}

fn outcome((outcome, _): &(Outcome, Option<Stock>)) -> Outcome {
    *outcome
}

/// Names the reason why the database refused an argument that passed our checks.
fn explained(error: Error, reason: &'static str) -> Error {
    match error {
        Error::Argument(_) => Error::Invalid(reason.into()),
        other => other,
    }
}

/// Answers a change with the stock after it, or with its refusal.
fn changed_stock((outcome, stock): (Outcome, Option<Stock>)) -> Result<Response, Error> {
    match (outcome, stock) {
        (Outcome::Updated, Some(stock)) => Ok(Json(stock).into_response()),
        (refusal, _) => Err(Error::Refused(refusal)),
    }
}
