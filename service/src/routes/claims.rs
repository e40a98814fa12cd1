//! `/api/coupons/claim`: what the service exists for.

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
};
use serde::{Deserialize, Serialize};

use crate::{
    db::{Database, Outcome},
    error::Error,
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
    State(database): State<Database>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Claimed>, Error> {
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
    match database.claim(&user_id, &coupon_name).await? {
        Outcome::Claimed => Ok(Json(Claimed {
            message: "coupon claimed",
            user_id,
            coupon_name,
        })),
        Outcome::AlreadyClaimed => Err(Error::AlreadyClaimed),
        Outcome::SoldOut => Err(Error::SoldOut),
        Outcome::NotFound => Err(Error::CouponNotFound),
        Outcome::NotStarted => Err(Error::NotStarted),
        Outcome::Ended => Err(Error::Ended),
        Outcome::Paused => Err(Error::Paused),
    }
}
