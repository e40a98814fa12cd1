//! Bodies of requests: received within a size and a time. The content type is ignored.

use std::{error::Error as _, pin::pin, sync::Arc, time::Duration};

use axum::{
    body::{Bytes, HttpBody, to_bytes},
    extract::{FromRef, FromRequest, Request},
};
use futures_util::FutureExt;
use http_body_util::LengthLimitError;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::fields;
use crate::{
    error::Error,
    http::{
        layers::permits::{RequestPermit, RequestPermits},
        server::Peer,
    },
};

/// The largest body, in bytes, of all requests but batches.
const BODY_LIMIT: usize = 64 * 1024;

/// The largest body of a batch, in bytes: 10,000 users of up to 100 characters.
const BATCH_BODY_LIMIT: usize = 1024 * 1024;

/// The most bodies above [`BODY_LIMIT`] that are received or in use at a time: they bound the memory for them.
const LARGE_BODIES: usize = 64;

/// Longest time for receiving a body.
#[derive(Clone, Copy, Debug)]
pub struct BodyTimeout(pub Duration);

/// Permits of large bodies. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct LargeBodies(Arc<Semaphore>);

impl Default for LargeBodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LARGE_BODIES)))
    }
}

/// A complete body, and the permit that its request has from then on.
pub(crate) struct Received(pub Bytes, pub RequestPermit);

impl<S: Send + Sync> FromRequest<S> for Received
where
    BodyTimeout: FromRef<S>,
    RequestPermits: FromRef<S>,
{
    type Rejection = Error;

    // An `async fn` would have room for the request and the body twice, and copy them, for each claim.
    fn from_request(
        request: Request,
        state: &S,
    ) -> impl Future<Output = Result<Self, Error>> + Send {
        let permits = RequestPermits::from_ref(state);
        receive(request, BodyTimeout::from_ref(state), BODY_LIMIT)
            .map(move |body| Ok(Self(body?, permits.take()?)))
    }
}

/// The complete body of a batch, and the permits that its request has.
pub(crate) struct ReceivedBatch {
    pub body: Bytes,
    _permit: RequestPermit,
    _large: Option<OwnedSemaphorePermit>,
}

impl<S: Send + Sync> FromRequest<S> for ReceivedBatch
where
    BodyTimeout: FromRef<S>,
    RequestPermits: FromRef<S>,
    LargeBodies: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        // A body without a length may become large.
        let longest = request.body().size_hint().upper();
        let large = if longest.is_some_and(|length| length <= BODY_LIMIT as u64) {
            None
        } else {
            let LargeBodies(permits) = LargeBodies::from_ref(state);
            let permit = permits.try_acquire_owned();
            Some(permit.map_err(|_| Error::TooManyRequests)?)
        };
        let body = receive(request, BodyTimeout::from_ref(state), BATCH_BODY_LIMIT).await?;
        Ok(Self {
            body,
            _permit: RequestPermits::from_ref(state).take()?,
            _large: large,
        })
    }
}

/// The body of a request that has no fields: none, or an empty JSON object.
pub(crate) struct NoFields {
    /// The permit, unless the request has no body: then it has one from its head on.
    _permit: Option<RequestPermit>,
}

impl<S: Send + Sync> FromRequest<S> for NoFields
where
    BodyTimeout: FromRef<S>,
    RequestPermits: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Nothing {}

        if request.body().is_end_stream() {
            return Ok(Self { _permit: None });
        }
        let Received(body, permit) = Received::from_request(request, state).await?;
        if !body.is_empty() {
            let Nothing {} = fields::parse(&body)?;
        }
        Ok(Self {
            _permit: Some(permit),
        })
    }
}

/// Receives a body.
///
/// # Arguments
/// `timeout`: longest time. `limit`: largest size, in bytes.
fn receive(
    request: Request,
    BodyTimeout(timeout): BodyTimeout,
    limit: usize,
) -> impl Future<Output = Result<Bytes, Error>> + Send {
    let peer = request.extensions().get::<Peer>().cloned();
    let body = request.into_body();
    async move {
        // Before a client that waits for `100 Continue` gets it.
        if body.size_hint().lower() > limit as u64 {
            return Err(Error::BodyTooLarge);
        }
        let body = pin!(to_bytes(body, limit));
        // From the head to the last byte: a limit between bytes would let a body take for ever.
        match Peer::within(peer.clone(), timeout, body).await {
            Some(Ok(body)) => {
                if let Some(peer) = &peer {
                    peer.body_received();
                }
                Ok(body)
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
