//! Claims: made at `/api/coupons/claim`, read at `/api/coupons/{name}/claims`.

use anyhow::anyhow;
use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{NO_STORE, coupon_path, coupons, invalid};
use crate::{
    auth::Denied,
    database::{Claim, Database},
    error::{Error, SharedError},
    http::{
        extract::{
            body::Received,
            caller::{ClaimReader, Claimer, Reader},
            fields::{self, Field},
            page::PageQuery,
        },
        openapi::problem_type,
        state::AppState,
    },
    lanes::Lanes,
    outcome::Outcome,
};

/// The routes of claims.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        // A coupon may be named "claim".
        .routes(routes!(claim, coupons::show_named_claim))
        .routes(routes!(list))
        .routes(routes!(show))
}

/// Claim to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClaimRequest<'a> {
    /// User who claims: up to 255 characters.
    #[serde(borrow)]
    #[schema(value_type = String, required, min_length = 1, max_length = 255,
             pattern = "^[^\\u0000]*$", example = "user_12345")]
    user_id: Field<'a>,
    /// Name of the coupon.
    #[serde(borrow)]
    #[schema(value_type = String, required, min_length = 1, max_length = 255,
             pattern = "^[^\\u0000]*$", example = "PROMO_SUPER")]
    coupon_name: Field<'a>,
}

/// Answer to a claim that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClaimMade<'a> {
    #[schema(example = "coupon claimed")]
    message: &'a str,
    #[schema(example = "user_12345")]
    user_id: &'a str,
    #[schema(example = "PROMO_SUPER")]
    coupon_name: &'a str,
}

/// Page of claims.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClaimList {
    /// In claim order.
    claims: Vec<Claim>,
}

problem_type! {
    /// Problems of a claim.
    ClaimProblems:
    invalid(),
    Denied::ForeignSubject.into(),
    Error::ForeignOrigin,
    Error::BodyTimeout,
    Error::BodyTooLarge,
    Error::Overloaded,
    Error::OutcomeUnknown(anyhow!("")),
    ; Outcome::refusals().map(Error::Refused)
}

problem_type! {
    /// Problems of reading a page of claims.
    ClaimListProblems: invalid(), Error::COUPON_NOT_FOUND
}

problem_type! {
    /// Problems of reading a claim.
    ClaimShowProblems: Error::COUPON_NOT_FOUND, Error::ClaimNotFound
}

/// Claim a coupon
///
/// Claims on one coupon are served first come, first served. The answer comes when the claim is durable: a claim
/// answered with 200 is never lost. After `outcome_unknown`, claim again to learn the outcome.
#[utoipa::path(
    post,
    path = "/api/coupons/claim",
    operation_id = "claim",
    tag = "claims",
    request_body = ClaimRequest,
    responses(
        (status = 200, description = "The coupon is the user's", body = ClaimMade, links(
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
    Received(body, _permit): Received,
) -> Result<Response, SharedError> {
    let claim: ClaimRequest = fields::parse(&body)?;
    let user_id = fields::text("user_id", claim.user_id)?;
    let coupon_name = fields::text("coupon_name", claim.coupon_name)?;
    claimer.claims_for(&user_id).map_err(Error::from)?;
    match lanes.claim(user_id.to_string(), &coupon_name).await? {
        Outcome::Claimed => {
            let made = ClaimMade {
                message: "coupon claimed",
                user_id: &user_id,
                coupon_name: &coupon_name,
            };
            Ok(Json(made).into_response())
        }
        refusal => Err(Error::Refused(refusal).into()),
    }
}

/// List a coupon's claims
///
/// In claim order, page by page: `Link` leads to the next page, if there is one.
#[utoipa::path(
    get,
    path = "/api/coupons/{name}/claims",
    operation_id = "list_claims",
    tag = "claims",
    params(("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER"), PageQuery),
    responses(
        (status = 200, description = "A page of claims", body = ClaimList,
         headers(("Link" = String, description = "The next page, with rel=\"next\"; absent on the last one"))),
        ClaimListProblems,
    ),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn list(
    _: Reader,
    State(database): State<Database>,
    name: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    let page = PageQuery::from_query(query.as_deref())?;
    let Ok(Path(name)) = name else {
        return Err(Error::COUPON_NOT_FOUND);
    };
    if fields::fault(&name).is_some() {
        return Err(Error::COUPON_NOT_FOUND);
    }
    let mut claims = database
        .list_claims(&name, page.after, page.rows())
        .await?
        .ok_or(Error::COUPON_NOT_FOUND)?;
    let path = format!("{}/claims", coupon_path(&name));
    let link = page.cut(&mut claims, |claim| claim.id, &path)?;
    Ok((NO_STORE, link, Json(ClaimList { claims })).into_response())
}

/// Show one user's claim
///
/// A JSON Web Token with the scope `claim` is enough for its own subject's claim.
#[utoipa::path(
    get,
    path = "/api/coupons/{name}/claims/{user_id}",
    operation_id = "show_claim",
    tag = "claims",
    params(
        ("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER"),
        ("user_id" = String, Path, description = "User who has claimed", example = "user_12345"),
    ),
    responses((status = 200, description = "The claim", body = Claim), ClaimShowProblems),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn show(
    reader: ClaimReader,
    State(database): State<Database>,
    names: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, Error> {
    // A segment that is not UTF-8 names nothing; it does not matter which of the two it is.
    let Ok(Path((name, user_id))) = names else {
        reader.sees_all()?;
        return Err(Error::COUPON_NOT_FOUND);
    };
    reader.sees(&user_id)?;
    if fields::fault(&name).is_some() {
        return Err(Error::COUPON_NOT_FOUND);
    }
    if fields::fault(&user_id).is_some() {
        return Err(Error::ClaimNotFound);
    }
    let claim = database
        .get_claim(&user_id, &name)
        .await?
        .ok_or(Error::COUPON_NOT_FOUND)?
        .pop()
        .ok_or(Error::ClaimNotFound)?;
    Ok((NO_STORE, Json(claim)).into_response())
}
