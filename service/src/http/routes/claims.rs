//! Claims: made at `/api/coupons/claim`, one by one, and at `/api/coupons/{name}/claims`, in batches; read and released
//! there.

use anyhow::anyhow;
use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Done, NO_STORE, answer, coupon_name, coupon_path, coupons, invalid, operands, stock};
use crate::{
    auth::Denied,
    database::{Claim, Database, UserOperation},
    error::{Error, SharedError},
    http::{
        extract::{
            body::{NoFields, Received, ReceivedBatch},
            caller::{ClaimReader, Claimer, Reader},
            fields::{self, Field},
            key::{REPLAYED, RequestKey},
            lanes::ClientLanes,
            page::PageQuery,
        },
        openapi::problem_type,
        state::AppState,
    },
    outcome::{Operation, Outcome},
    shards::Shards,
    telemetry::metrics::metrics,
};

/// The most users of a batch: the extension accepts no more.
const BATCH: usize = 10_000;

/// Path of the route that claims.
pub(crate) const CLAIM_PATH: &str = "/api/coupons/claim";

/// The routes of claims.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        // A coupon may be named "claim".
        .routes(routes!(
            claim,
            coupons::show_named_claim,
            stock::update_named_claim,
            coupons::delete_named_claim
        ))
        .routes(routes!(list, claim_batch))
        .routes(routes!(show, release))
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

/// Claims to be made together.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchRequest<'a> {
    /// Users who claim, 1 to 10,000: the first ones get what is left.
    #[serde(borrow)]
    #[schema(value_type = Vec<UserId>, required, min_items = 1, max_items = 10000,
             example = json!(["user_12345", "user_67890"]))]
    user_ids: Field<'a>,
}

/// Id of a user: up to 255 characters.
#[derive(ToSchema)]
#[schema(
    min_length = 1,
    max_length = 255,
    pattern = "^[^\\u0000]*$",
    example = "user_12345"
)]
#[allow(
    dead_code,
    reason = "ids in a list are parsed as texts; this describes them"
)]
pub(crate) struct UserId(String);

/// Outcomes of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchOutcomes<'a> {
    /// One for each user, in the order of the request.
    outcomes: Vec<UserOutcome<'a>>,
}

/// Outcome of one user's claim in a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UserOutcome<'a> {
    #[schema(example = "user_12345")]
    user_id: &'a str,
    /// `claimed`, or why it was refused.
    #[schema(
        example = "claimed",
        pattern = "^(claimed|already_claimed|sold_out|not_started|ended|paused|all_held)$"
    )]
    outcome: &'static str,
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
    Error::ExtensionOutdated,
    ; Operation::Claim.refusals().map(Error::Refused)
}

problem_type! {
    /// Problems of a batch of claims.
    BatchProblems:
    invalid(),
    Denied::ForeignSubject.into(),
    Error::ForeignOrigin,
    Error::BodyTimeout,
    Error::COUPON_NOT_FOUND,
    Error::BodyTooLarge,
    Error::OutcomeUnknown(anyhow!("")),
}

problem_type! {
    /// Problems of a release.
    ReleaseProblems:
    invalid(),
    Denied::ForeignSubject.into(),
    Error::ForeignOrigin,
    Error::BodyTimeout,
    Error::BodyTooLarge,
    Error::Overloaded,
    Error::OutcomeUnknown(anyhow!("")),
    Error::ExtensionOutdated,
    ; Operation::Release.refusals().map(Error::Refused)
}

problem_type! {
    /// Problems of reading a page of claims.
    ClaimListProblems: invalid(), Error::COUPON_NOT_FOUND
}

problem_type! {
    /// Problems of reading a claim.
    ClaimShowProblems: Error::COUPON_NOT_FOUND, Error::CLAIM_NOT_FOUND
}

/// Claim a coupon
///
/// Claims on one coupon are served first come, first served. The answer comes when the claim is durable: a claim
/// answered with 200 is never lost. After `outcome_unknown`, claim again to learn the outcome: with the same
/// `Idempotency-Key`, the answer to a claim that was made is 200 again.
#[utoipa::path(
    post,
    path = CLAIM_PATH,
    operation_id = "claim",
    tag = "claims",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
            pattern = "^[!-~]+$",
            description = "Key by which a repeated request is recognized: visible ASCII characters",
            example = "8e03978e-40d5-43dd-bc93-6894a57f9324")),
    request_body = ClaimRequest,
    responses(
        (status = 200, description = "The coupon is the user's", body = Done,
         headers(("Idempotency-Replayed" = String,
                  description = "`true` if an earlier request with this key made the claim; absent otherwise")),
         links(
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
    RequestKey(key): RequestKey,
    lanes: ClientLanes,
    Received(body, _permit): Received,
) -> Result<Response, SharedError> {
    let claim: ClaimRequest = fields::parse(&body)?;
    let user_id = fields::text("user_id", claim.user_id)?;
    let coupon_name = fields::text("coupon_name", claim.coupon_name)?;
    claimer.claims_for(&user_id).map_err(Error::from)?;
    let operation = UserOperation::claim(user_id.to_string(), key);
    let applied = lanes.carry_out(&coupon_name, operation).await?;
    let made = Done {
        message: "coupon claimed",
        user_id: &user_id,
        coupon_name: &coupon_name,
    };
    let mut response = answer(&applied, Outcome::Claimed, &made)?;
    if applied.is_replay {
        response.headers_mut().extend(REPLAYED);
    }
    Ok(response)
}

/// Claim a coupon for many users
///
/// All claims are made in one transaction, in the order of the list. A user who is named twice has claimed it the second
/// time.
#[utoipa::path(
    post,
    path = "/api/coupons/{name}/claims",
    operation_id = "claim_batch",
    tag = "claims",
    params(("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER")),
    request_body = BatchRequest,
    responses(
        (status = 200, description = "The outcomes", body = BatchOutcomes),
        BatchProblems,
    ),
    security(("bearer" = ["claim"])),
)]
pub(crate) async fn claim_batch(
    claimer: Claimer,
    State(databases): State<Shards<Database>>,
    name: Result<Path<String>, PathRejection>,
    received: ReceivedBatch,
) -> Result<Response, Error> {
    let batch: BatchRequest = fields::parse(&received.body)?;
    let users = fields::texts("user_ids", batch.user_ids, BATCH)?;
    for user_id in &users {
        claimer.claims_for(user_id)?;
    }
    let name = coupon_name(name)?;
    let user_ids = users.iter().map(|user_id| user_id.to_string()).collect();
    let outcomes = match databases
        .of(&name)
        .claim_client_batch(&name, user_ids)
        .await
    {
        Ok(outcomes) if outcomes.len() == users.len() => outcomes,
        Ok(_) => {
            let why = anyhow!("a batch and its outcomes differ in number");
            return Err(Error::Internal(why));
        }
        Err(error) => {
            users
                .iter()
                .for_each(|_| metrics().failed(Operation::Claim));
            return Err(error);
        }
    };
    for outcome in &outcomes {
        metrics().carried_out(Operation::Claim, *outcome);
    }
    // All of them, then: one turn decides the whole batch.
    if outcomes.first() == Some(&Outcome::NotFound) {
        return Err(Error::COUPON_NOT_FOUND);
    }
    let outcomes = users
        .iter()
        .zip(outcomes)
        .map(|(user_id, outcome)| UserOutcome {
            user_id,
            outcome: outcome.label(),
        });
    let outcomes = BatchOutcomes {
        outcomes: outcomes.collect(),
    };
    Ok(Json(outcomes).into_response())
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
    State(databases): State<Shards<Database>>,
    name: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    let page = PageQuery::from_query(query.as_deref())?;
    let name = coupon_name(name)?;
    let mut claims = databases
        .of(&name)
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
    State(databases): State<Shards<Database>>,
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
        return Err(Error::CLAIM_NOT_FOUND);
    }
    let claim = databases
        .of(&name)
        .get_claim(&user_id, &name)
        .await?
        .ok_or(Error::COUPON_NOT_FOUND)?
        .pop()
        .ok_or(Error::CLAIM_NOT_FOUND)?;
    Ok((NO_STORE, Json(claim)).into_response())
}

/// Release one user's claim
///
/// The claim is gone and its piece is stock again: the user, or another one, may claim it. The second of two releases is
/// a 404: there is nothing left to release. The key of the claim's request is forgotten with it.
#[utoipa::path(
    delete,
    path = "/api/coupons/{name}/claims/{user_id}",
    operation_id = "release_claim",
    tag = "claims",
    params(
        ("name" = String, Path, description = "The coupon's name", example = "PROMO_SUPER"),
        ("user_id" = String, Path, description = "User who has claimed", example = "user_12345"),
    ),
    responses(
        (status = 200, description = "The claim is released", body = Done,
         example = json!({"message": "claim released", "user_id": "user_12345", "coupon_name": "PROMO_SUPER"})),
        ReleaseProblems,
    ),
    security(("bearer" = ["claim"])),
)]
pub(crate) async fn release(
    claimer: Claimer,
    lanes: ClientLanes,
    names: Result<Path<(String, String)>, PathRejection>,
    _: NoFields,
) -> Result<Response, SharedError> {
    let (name, user_id) = operands(&claimer, names, Outcome::NotClaimed)?;
    let operation = UserOperation::release(user_id.clone(), claimer.label());
    let applied = lanes.carry_out(&name, operation).await?;
    let released = Done {
        message: "claim released",
        user_id: &user_id,
        coupon_name: &name,
    };
    Ok(answer(&applied, Outcome::Released, &released)?)
}
