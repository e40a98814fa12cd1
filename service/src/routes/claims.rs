//! `/api/coupons/claim`: what the service exists for.

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
};
use serde::{Deserialize, Serialize};

use crate::{
    db::Outcome,
    error::Error,
    lanes::Lanes,
    problem::Failure,
    routes::body::{self, Field},
};

/// The answer to a claim that was made.
#[derive(Debug, Serialize)]
pub(crate) struct Claimed {
    message: &'static str,
    user_id: String,
    coupon_name: String,
}

/// `POST /api/coupons/claim`.
pub(crate) async fn claim(
    State(lanes): State<Lanes>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Claimed>, Failure> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow)]
        user_id: Field<'a>,
        #[serde(borrow)]
        coupon_name: Field<'a>,
    }
    let body = body::received(body)?;
    let fields: Fields = body::fields(&body)?;
    let user_id = body::text("user_id", fields.user_id)?;
    let coupon_name = body::text("coupon_name", fields.coupon_name)?;
    let refusal = match lanes.claim(user_id.clone(), &coupon_name).await? {
        Outcome::Claimed => {
            return Ok(Json(Claimed {
                message: "coupon claimed",
                user_id,
                coupon_name,
            }));
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
