//! Bodies of requests: received within a size and a time. The content type is ignored.

use std::{error::Error as _, time::Duration};

use axum::{
    body::{Bytes, HttpBody, to_bytes},
    extract::{FromRef, FromRequest, Request},
};
use http_body_util::LengthLimitError;

use crate::{
    error::Error,
    http::{
        layers::permits::{RequestPermit, RequestPermits},
        server::Peer,
    },
};

/// The largest body, in bytes.
const BODY_LIMIT: usize = 64 * 1024;

/// Longest time for receiving a body.
#[derive(Clone, Copy, Debug)]
pub struct BodyTimeout(pub Duration);

/// A complete body, and the permit that its request has from then on.
pub(crate) struct Received(pub Bytes, pub RequestPermit);

impl<S: Send + Sync> FromRequest<S> for Received
where
    BodyTimeout: FromRef<S>,
    RequestPermits: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        // Before a client that waits for `100 Continue` gets it.
        if request.body().size_hint().lower() > BODY_LIMIT as u64 {
            return Err(Error::BodyTooLarge);
        }
        let BodyTimeout(limit) = BodyTimeout::from_ref(state);
        // From the head to the last byte: a limit between bytes would let a body take for ever.
        let peer = request.extensions().get::<Peer>().cloned();
        let body = to_bytes(request.into_body(), BODY_LIMIT);
        match Peer::within(peer.as_ref(), limit, body).await {
            Some(Ok(body)) => {
                if let Some(peer) = &peer {
                    peer.body_received();
                }
                Ok(Self(body, RequestPermits::from_ref(state).take()?))
            }
            Some(Err(error))
                if error
                    .source()
                    .is_some_and(|cause| cause.is::<LengthLimitError>()) =>
            {
                Err(Error::BodyTooLarge)
            }
            Some(Err(_)) => Err(Error::Invalid("the body could not be received".into())),
            None => Err(Error::BodyTimeout),
        }
    }
}
