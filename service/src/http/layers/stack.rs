//! The stack of layers around every route: the request log, and inside it admission.
//!
//! Both are one service, without `axum::middleware`: each further layer costs every request two or three
//! allocations, which a profile shows at this rate.

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

use super::{admission::Admission, request_log::LoggedRequest};

/// The stack as a layer.
#[derive(Clone, Debug)]
pub(crate) struct Stack(pub Admission);

/// A service inside the stack.
#[derive(Clone, Debug)]
pub(crate) struct Stacked<S> {
    admission: Admission,
    inner: S,
}

impl<S> Layer<S> for Stack {
    type Service = Stacked<S>;

    fn layer(&self, inner: S) -> Stacked<S> {
        Stacked {
            admission: self.0.clone(),
            inner,
        }
    }
}

impl<S> Service<Request> for Stacked<S>
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
        let logged = LoggedRequest::begin(&request, self.admission.client(&request));
        match self.admission.admit(&mut request) {
            Ok(admitted) => {
                let route = self.inner.call(request);
                Box::pin(async move {
                    // Pinned one by one: passing them on would copy each into the next.
                    let route = pin!(route.map(|Ok(response)| response));
                    let answer = pin!(admitted.answer(route));
                    Ok(logged.finish(answer).await)
                })
            }
            Err(refusal) => {
                let refusal = ready(refusal.into_response());
                Box::pin(async move { Ok(logged.finish(refusal).await) })
            }
        }
    }
}
