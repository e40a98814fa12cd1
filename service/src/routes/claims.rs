//! Claims: made at `/api/coupons/claim`, which is what the service exists for, and read at
//! `/api/coupons/{name}/claims`.

use anyhow::anyhow;
use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    access::{ClaimReader, Claimer, Reader},
    db::{ClaimRow, Database, Outcome},
    error::Error,
    lanes::Lanes,
    openapi::problem_type,
    problem::Failure,
    routes::{
        NO_STORE,
        body::{self, Field, Received},
        coupon_path, invalid,
        page::Page,
    },
};

/// Who claims what.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claim<'a> {
    /// Who claims: up to 255 characters.
    #[serde(borrow)]
    #[schema(value_type = String, required, min_length = 1, max_length = 255,
             pattern = "^[^\\u0000]*$", example = "user_12345")]
    user_id: Field<'a>,
    /// The coupon's name.
    #[serde(borrow)]
    #[schema(value_type = String, required, min_length = 1, max_length = 255,
             pattern = "^[^\\u0000]*$", example = "PROMO_SUPER")]
    coupon_name: Field<'a>,
}

/// The answer to a claim that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Claimed<'a> {
    #[schema(example = "coupon claimed")]
    message: &'a str,
    #[schema(example = "user_12345")]
    user_id: &'a str,
    #[schema(example = "PROMO_SUPER")]
    coupon_name: &'a str,
}

/// A page of claims.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClaimList {
    /// In claim order.
    claims: Vec<ClaimRow>,
}

problem_type! {
    /// How a claim can fail.
    ClaimProblems:
    invalid(),
    Error::ForeignSubject,
    Error::ForeignOrigin,
    Error::CouponNotFound,
    Error::BodyTimeout,
    Error::AlreadyClaimed,
    Error::SoldOut,
    Error::NotStarted,
    Error::Ended,
    Error::Paused,
    Error::BodyTooLarge,
    Error::Overloaded,
    Error::OutcomeUnknown(anyhow!("")),
}

problem_type! {
    /// How reading a page of claims can fail.
    ListProblems: invalid(), Error::CouponNotFound
}

problem_type! {
    /// How reading a claim can fail.
    ShowProblems: Error::CouponNotFound, Error::ClaimNotFound
}

/// Claim a coupon
///
/// Claims on one coupon that have to wait are served in the order in which they came. The answer comes
/// when the claim is durable: whoever is told 200 keeps it. After `outcome_unknown`, claim again to learn
/// the outcome.
#[utoipa::path(
    post,
    path = "/api/coupons/claim",
    operation_id = "claim",
    tag = "claims",
    request_body = Claim,
    responses(
        (status = 200, description = "The coupon is the user's", body = Claimed, links(
            ("the claim" = (
                operation_id = "show_claim",
                parameters(
                    ("name" = "$response.body#/coupon_name"),
                    ("user_id" = "$response.body#/user_id"),
                ),
            )),
            ("the coupon" = (
                operation_id = "show_coupon",
                parameters(("name" = "$response.body#/coupon_name")),
            )),
        )),
        ClaimProblems,
    ),
    security(("bearer" = ["claim"])),
)]
pub(crate) async fn claim(
    claimer: Claimer,
    State(lanes): State<Lanes>,
    Received(body, _place): Received,
) -> Result<Response, Failure> {
    let claim: Claim = body::fields(&body)?;
    let user_id = body::text("user_id", claim.user_id)?;
    let coupon_name = body::text("coupon_name", claim.coupon_name)?;
    claimer.claims_for(&user_id)?;
    let refusal = match lanes.claim(user_id.to_string(), &coupon_name).await? {
        Outcome::Claimed => {
            let claimed = Claimed {
                message: "coupon claimed",
                user_id: &user_id,
                coupon_name: &coupon_name,
            };
            return Ok(Json(claimed).into_response());
        }
        Outcome::AlreadyClaimed => Error::AlreadyClaimed,
        Outcome::SoldOut => Error::SoldOut,
        Outcome::NotFound => Error::CouponNotFound,
        Outcome::NotStarted => Error::NotStarted,
        Outcome::Ended => Error::Ended,
        Outcome::Paused => Error::Paused,
    };
    Err(refusal.into())
}

/// List a coupon's claims
///
/// In claim order, page by page: `Link` leads to the next page, if there is one.
#[utoipa::path(
    get,
    path = "/api/coupons/{name}/claims",
    operation_id = "list_claims",
    tag = "claims",
    params(("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER"), Page),
    responses(
        (status = 200, description = "A page of claims", body = ClaimList,
         headers(("Link" = String, description = "The next page, with rel=\"next\"; absent on the last one"))),
        ListProblems,
    ),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn list(
    _: Reader,
    State(database): State<Database>,
    name: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    let page = Page::from_query(query.as_deref())?;
    let Ok(Path(name)) = name else {
        return Err(Error::CouponNotFound);
    };
    if body::fault(&name).is_some() {
        return Err(Error::CouponNotFound);
    }
    let mut claims = database
        .list_claims(&name, page.after, page.rows())
        .await?
        .ok_or(Error::CouponNotFound)?;
    let path = format!("{}/claims", coupon_path(&name));
    let link = page.cut(&mut claims, |claim| claim.id, &path)?;
    Ok((NO_STORE, link, Json(ClaimList { claims })).into_response())
}

/// Show one user's claim
///
/// A JSON Web Token with the scope `claim` shows its own subject's.
#[utoipa::path(
    get,
    path = "/api/coupons/{name}/claims/{user_id}",
    operation_id = "show_claim",
    tag = "claims",
    params(
        ("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER"),
        ("user_id" = String, Path, description = "Who claimed", example = "user_12345"),
    ),
    responses((status = 200, description = "The claim", body = ClaimRow), ShowProblems),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn show(
    reader: ClaimReader,
    State(database): State<Database>,
    names: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, Error> {
    // What is not a text is nobody's name; which of the two it was does not matter.
    let Ok(Path((name, user_id))) = names else {
        reader.sees_all()?;
        return Err(Error::CouponNotFound);
    };
    reader.sees(&user_id)?;
    if body::fault(&name).is_some() {
        return Err(Error::CouponNotFound);
    }
    if body::fault(&user_id).is_some() {
        return Err(Error::ClaimNotFound);
    }
    let claim = database
        .get_claim(&user_id, &name)
        .await?
        .ok_or(Error::CouponNotFound)?
        .pop()
        .ok_or(Error::ClaimNotFound)?;
    Ok((NO_STORE, Json(claim)).into_response())
}
