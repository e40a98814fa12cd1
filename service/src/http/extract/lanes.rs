//! The lanes, as the client of a request uses them.

use std::convert::Infallible;

use axum::{
    extract::{FromRef, FromRequestParts},
    http::request::Parts,
};

use crate::{
    database::{Applied, UserOperation},
    error::SharedError,
    http::server::Peer,
    lanes::{LaneClient, Lanes},
    shards::Shards,
};

/// The lanes, and the client of the request.
#[derive(Debug)]
pub(crate) struct ClientLanes {
    lanes: Shards<Lanes>,
    client: LaneClient,
}

impl ClientLanes {
    /// Carries out an operation of the client: see [`Lanes::carry_out`].
    ///
    /// # Errors
    /// Those of the lanes.
    pub async fn carry_out(
        self,
        coupon_name: &str,
        operation: UserOperation,
    ) -> Result<Applied, SharedError> {
        self.lanes
            .of(coupon_name)
            .carry_out(coupon_name, operation, self.client)
            .await
    }
}

impl<S: Sync> FromRequestParts<S> for ClientLanes
where
    Shards<Lanes>: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<Peer>();
        Ok(Self {
            lanes: Shards::from_ref(state),
            client: peer.map(Peer::lane_client).unwrap_or_default(),
        })
    }
}
