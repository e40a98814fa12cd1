//! Holds: made and listed at `/api/coupons/{name}/holds`, shown, confirmed and cancelled one by one below it.

use anyhow::anyhow;
use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
    http::{StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Done, NO_STORE, answer, coupon_name, coupon_path, invalid, operands, refused, segment,
};
use crate::{
    auth::Denied,
    database::{Database, Hold, UserOperation},
    error::{Error, SharedError},
    http::{
        extract::{
            body::{NoFields, Received},
            caller::{ClaimReader, Claimer, Reader},
            fields::{self, Field},
            key::RequestKey,
            lanes::ClientLanes,
            page::UserPageQuery,
        },
        openapi::problem_type,
        state::{AppState, HoldTtl},
    },
    outcome::{Operation, Outcome},
    shards::Shards,
};

/// The routes of holds.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, reserve))
        .routes(routes!(show, cancel))
        .routes(routes!(confirm))
}

/// Hold to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HoldRequest<'a> {
    /// User for whom a piece is held: up to 255 characters.
    #[serde(borrow)]
    #[schema(value_type = String, required, min_length = 1, max_length = 255,
             pattern = "^[^\\u0000]*$", example = "user_12345")]
    user_id: Field<'a>,
    /// Time for which it is held, in seconds, up to a day; missing or null: the service's setting.
    #[serde(borrow)]
    #[schema(value_type = Option<i32>, required = false, minimum = 1, maximum = 86400, example = 600)]
    ttl: Field<'a>,
}

/// Answer to a reservation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HoldMade<'a> {
    #[schema(example = "coupon held")]
    message: &'a str,
    #[schema(example = "user_12345")]
    user_id: &'a str,
    #[schema(example = "PROMO_SUPER")]
    coupon_name: &'a str,
    /// First moment at which it is no longer held.
    #[schema(format = DateTime, example = "2026-01-31T12:05:00.123456Z")]
    expires_at: &'a str,
}

/// Page of holds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HoldList {
    /// In the order of the users' ids, byte by byte.
    holds: Vec<Hold>,
}

problem_type! {
    /// Problems of a reservation.
    ReserveProblems:
    invalid(),
    Denied::ForeignSubject.into(),
    Error::ForeignOrigin,
    Error::BodyTimeout,
    Error::BodyTooLarge,
    Error::Overloaded,
    Error::OutcomeUnknown(anyhow!("")),
    Error::ExtensionOutdated,
    ; Operation::Reserve.refusals().map(Error::Refused)
}

problem_type! {
    /// Problems of ending a hold.
    HoldEndProblems:
    invalid(),
    Denied::ForeignSubject.into(),
    Error::ForeignOrigin,
    Error::BodyTimeout,
    Error::BodyTooLarge,
    Error::Overloaded,
    Error::OutcomeUnknown(anyhow!("")),
    Error::ExtensionOutdated,
    ; Operation::Confirm.refusals().map(Error::Refused)
}

problem_type! {
    /// Problems of reading a page of holds.
    HoldListProblems: invalid(), Error::COUPON_NOT_FOUND, Error::ExtensionOutdated
}

problem_type! {
    /// Problems of reading a hold.
    HoldShowProblems: Error::COUPON_NOT_FOUND, Error::HoldNotFound, Error::ExtensionOutdated
}

/// Hold a coupon
///
/// A piece is the user's until `expires_at`, to be confirmed or cancelled; then it is stock again. A user who holds one
/// already keeps that hold, with its `expires_at`: a hold cannot be prolonged.
#[utoipa::path(
    post,
    path = "/api/coupons/{name}/holds",
    operation_id = "reserve",
    tag = "holds",
    params(
        ("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
         pattern = "^[!-~]+$",
         description = "Key that the claim has after the hold is confirmed: visible ASCII characters",
         example = "8e03978e-40d5-43dd-bc93-6894a57f9324"),
    ),
    request_body = HoldRequest,
    responses(
        (status = 201, description = "A piece is held for the user", body = HoldMade,
         headers(("Location" = String, description = "Path of the hold")),
         links(
            ("the hold" = (
                operation_id = "show_hold",
                parameters(
                    ("name" = "$response.body#/coupon_name"),
                    ("user_id" = "$response.body#/user_id"),
                ),
            )),
            ("confirm it" = (
                operation_id = "confirm_hold",
                parameters(
                    ("name" = "$response.body#/coupon_name"),
                    ("user_id" = "$response.body#/user_id"),
                ),
            )),
            ("cancel it" = (
                operation_id = "cancel_hold",
                parameters(
                    ("name" = "$response.body#/coupon_name"),
                    ("user_id" = "$response.body#/user_id"),
                ),
            )),
         )),
        ReserveProblems,
    ),
    security(("bearer" = ["claim"])),
)]
pub(crate) async fn reserve(
    claimer: Claimer,
    RequestKey(request_key): RequestKey,
    lanes: ClientLanes,
    State(HoldTtl(default_ttl)): State<HoldTtl>,
    name: Result<Path<String>, PathRejection>,
    Received(body, _permit): Received,
) -> Result<Response, SharedError> {
    let hold: HoldRequest = fields::parse(&body)?;
    let user_id = fields::text("user_id", hold.user_id)?;
    let ttl = fields::seconds("ttl", hold.ttl)?.unwrap_or(default_ttl);
    claimer.claims_for(&user_id).map_err(Error::from)?;
    let name = coupon_name(name)?;
    let operation = UserOperation::reserve(user_id.to_string(), ttl, request_key);
    let applied = lanes.carry_out(&name, operation).await?;
    let (Outcome::Held, Some(expires_at)) = (applied.outcome, &applied.expires_at) else {
        return Err(refused(&applied).into());
    };
    let made = Json(HoldMade {
        message: "coupon held",
        user_id: &user_id,
        coupon_name: &name,
        expires_at,
    });
    let location = format!("{}/holds/{}", coupon_path(&name), segment(&user_id));
    Ok((StatusCode::CREATED, [(LOCATION, location)], made).into_response())
}

/// Confirm a hold
///
/// The hold becomes the user's claim, also while the coupon is paused or after its end. The answer to a repeated
/// confirmation is the same. After `expires_at` it is a 409 `not_held`, even if the piece is still there.
#[utoipa::path(
    post,
    path = "/api/coupons/{name}/holds/{user_id}/confirm",
    operation_id = "confirm_hold",
    tag = "holds",
    params(
        ("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER"),
        ("user_id" = String, Path, description = "User who holds it", example = "user_12345"),
    ),
    responses(
        (status = 200, description = "The coupon is the user's", body = Done, links(
            ("the claim" = (
                operation_id = "show_claim",
                parameters(
                    ("name" = "$response.body#/coupon_name"),
                    ("user_id" = "$response.body#/user_id"),
                ),
            )),
        )),
        HoldEndProblems,
    ),
    security(("bearer" = ["claim"])),
)]
pub(crate) async fn confirm(
    claimer: Claimer,
    lanes: ClientLanes,
    names: Result<Path<(String, String)>, PathRejection>,
    _: NoFields,
) -> Result<Response, SharedError> {
    let (name, user_id) = operands(&claimer, names, Outcome::NotHeld)?;
    let operation = UserOperation::confirm(user_id.clone());
    let applied = lanes.carry_out(&name, operation).await?;
    let confirmed = Done {
        message: "coupon claimed",
        user_id: &user_id,
        coupon_name: &name,
    };
    Ok(answer(&applied, Outcome::Claimed, &confirmed)?)
}

/// Cancel a hold
///
/// The piece is stock again at once. The second of two cancellations is a 409 `not_held`.
#[utoipa::path(
    delete,
    path = "/api/coupons/{name}/holds/{user_id}",
    operation_id = "cancel_hold",
    tag = "holds",
    params(
        ("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER"),
        ("user_id" = String, Path, description = "User who holds it", example = "user_12345"),
    ),
    responses(
        (status = 200, description = "The hold is cancelled", body = Done,
         example = json!({"message": "hold cancelled", "user_id": "user_12345", "coupon_name": "PROMO_SUPER"})),
        HoldEndProblems,
    ),
    security(("bearer" = ["claim"])),
)]
pub(crate) async fn cancel(
    claimer: Claimer,
    lanes: ClientLanes,
    names: Result<Path<(String, String)>, PathRejection>,
    _: NoFields,
) -> Result<Response, SharedError> {
    let (name, user_id) = operands(&claimer, names, Outcome::NotHeld)?;
    let operation = UserOperation::cancel(user_id.clone());
    let applied = lanes.carry_out(&name, operation).await?;
    let cancelled = Done {
        message: "hold cancelled",
        user_id: &user_id,
        coupon_name: &name,
    };
    Ok(answer(&applied, Outcome::Cancelled, &cancelled)?)
}

/// List a coupon's holds
///
/// Those that have not expired, in the order of the users' ids, page by page: `Link` leads to the next page, if there is
/// one.
#[utoipa::path(
    get,
    path = "/api/coupons/{name}/holds",
    operation_id = "list_holds",
    tag = "holds",
    params(("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER"), UserPageQuery),
    responses(
        (status = 200, description = "A page of holds", body = HoldList,
         headers(("Link" = String, description = "The next page, with rel=\"next\"; absent on the last one"))),
        HoldListProblems,
    ),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn list(
    _: Reader,
    State(databases): State<Shards<Database>>,
    name: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    let page = UserPageQuery::from_query(query.as_deref())?;
    let name = coupon_name(name)?;
    let mut holds = databases
        .of(&name)
        .list_holds(&name, &page.after, page.rows())
        .await?
        .ok_or(Error::COUPON_NOT_FOUND)?;
    let path = format!("{}/holds", coupon_path(&name));
    let link = page.cut(&mut holds, |hold| &hold.user_id, &path)?;
    Ok((NO_STORE, link, Json(HoldList { holds })).into_response())
}

/// Show one user's hold
///
/// A JSON Web Token with the scope `claim` is enough for its own subject's hold.
#[utoipa::path(
    get,
    path = "/api/coupons/{name}/holds/{user_id}",
    operation_id = "show_hold",
    tag = "holds",
    params(
        ("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER"),
        ("user_id" = String, Path, description = "User who holds it", example = "user_12345"),
    ),
    responses((status = 200, description = "The hold", body = Hold), HoldShowProblems),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn show(
    reader: ClaimReader,
    State(databases): State<Shards<Database>>,
    names: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, Error> {
    // A segment that is not UTF-8 names nothing.
    let (name, user_id) = names.map_or_else(|_| Default::default(), |Path(names)| names);
    reader.sees(&user_id)?;
    if fields::fault(&name).is_some() {
        return Err(Error::COUPON_NOT_FOUND);
    }
    if fields::fault(&user_id).is_some() {
        return Err(Error::HoldNotFound);
    }
    let hold = databases
        .of(&name)
        .get_hold(&user_id, &name)
        .await?
        .ok_or(Error::COUPON_NOT_FOUND)?
        .pop()
        .ok_or(Error::HoldNotFound)?;
    Ok((NO_STORE, Json(hold)).into_response())
}
