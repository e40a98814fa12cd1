//! The fast path: claims come to their route without the router.
//!
//! A router looks up, clones and boxes for each request, and a layer inside it clones and boxes once more. For a claim
//! that took longer than all that the layers do.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use axum::{
    Router, body::Body, extract::Request, http::Method, response::Response,
    routing::future::RouteFuture,
};
use futures_util::future::Either;
use tower_service::Service;

use super::{routes::claims::CLAIM_PATH, server::RequestBody};

/// All routes.
#[derive(Clone, Debug)]
pub(super) struct FastPath<C> {
    /// The route of claims.
    pub claim: C,
    /// All routes, also that of claims: it describes them, and knows the other methods of their path.
    pub router: Router,
}

impl<C> Service<Request<RequestBody>> for FastPath<C>
where
    C: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<C::Future, RouteFuture<Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Like every route and router of axum.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        if request.method() == Method::POST && request.uri().path() == CLAIM_PATH {
            Either::Left(self.claim.call(request.map(Body::new)))
        } else {
            Either::Right(self.router.call(request))
        }
    }
}
