//! Users: the claims of one user, at `/api/users/{user_id}/claims`.

use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{NO_STORE, invalid, segment};
use crate::{
    database::{Database, UserClaim},
    error::Error,
    http::{
        extract::{caller::ClaimReader, fields, page::PageQuery},
        openapi::problem_type,
        state::AppState,
    },
    shards::Shards,
};

/// The routes of users.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_claims))
}

/// Page of a user's claims.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UserClaimList {
    /// In the order of their coupons' ids.
    claims: Vec<UserClaim>,
}

problem_type! {
    /// Problems of reading a page of a user's claims.
    UserClaimProblems: invalid(), Error::ExtensionOutdated
}

/// List a user's claims
///
/// On all coupons, in the order of the coupons' ids, page by page: `Link` leads to the next page, if there is one, and
/// `after` is a `coupon_id`. The list of a user without claims is empty. A JSON Web Token with the scope `claim` is enough
/// for its own subject's claims.
#[utoipa::path(
    get,
    path = "/api/users/{user_id}/claims",
    operation_id = "list_user_claims",
    tag = "claims",
    params(("user_id" = String, Path, description = "The user", example = "user_12345"), PageQuery),
    responses(
        (status = 200, description = "A page of claims", body = UserClaimList,
         headers(("Link" = String, description = "The next page, with rel=\"next\"; absent on the last one"))),
        UserClaimProblems,
    ),
    security(("bearer" = ["read"])),
)]
pub(crate) async fn list_claims(
    reader: ClaimReader,
    State(databases): State<Shards<Database>>,
    user_id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    // Else a client with the wrong encoding would read that the user has no claims.
    let Ok(Path(user_id)) = user_id else {
        reader.sees_all()?;
        return Err(Error::Invalid("user_id must be valid UTF-8".into()));
    };
    reader.sees(&user_id)?;
    let page = PageQuery::from_query(query.as_deref())?;
    let mut claims = if fields::fault(&user_id).is_some() {
        Vec::new()
    } else {
        databases
            .list_user_claims(&user_id, page.after, page.rows())
            .await?
    };
    let path = format!("/api/users/{}/claims", segment(&user_id));
    let link = page.cut(&mut claims, |claim| claim.coupon_id, &path)?;
    Ok((NO_STORE, link, Json(UserClaimList { claims })).into_response())
}
