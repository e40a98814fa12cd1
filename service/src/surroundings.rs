//! What surrounds every route: the boundary, and in it the door.
//!
//! One service for both, and none of `axum::middleware`: each further layer costs every request two or
//! three allocations, which at this rate can be seen.

use std::{
    convert::Infallible,
    future::ready,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tower_layer::Layer;
use tower_service::Service;

use crate::{admission::Door, boundary::Crossing};

/// Puts a service into its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings(pub Door);

/// A service in its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Surrounded<S> {
    door: Door,
    inner: S,
}

impl<S> Layer<S> for Surroundings {
    type Service = Surrounded<S>;

    fn layer(&self, inner: S) -> Surrounded<S> {
        Surrounded {
            door: self.0.clone(),
            inner,
        }
    }
}

impl<S> Service<Request> for Surrounded<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let crossing = Crossing::begin(&request, self.door.client(&request));
        match self.door.admit(&mut request) {
            Ok(admission) => {
                let route = self.inner.call(request);
                Box::pin(async move {
                    // Pinned one by one: to hand them on would copy each into the next.
                    let route = pin!(route.map(|Ok(response)| response));
                    let answer = pin!(admission.hold(route));
                    Ok(crossing.conclude(answer).await)
                })
            }
            Err(refusal) => {
                let refusal = ready(refusal.into_response());
                Box::pin(async move { Ok(crossing.conclude(refusal).await) })
            }
        }
    }
}
