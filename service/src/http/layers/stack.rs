//! The stack of layers around every route: the headers of CORS, the request log, and inside it admission.
//!
//! They are one service, without `axum::middleware`: each further layer costs every request two or three
//! allocations, which a profile shows at this rate.

use std::{
    convert::Infallible,
    future::ready,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    extract::Request,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    admission::{Admission, Admitted},
    request_log::LoggedRequest,
};
use crate::http::server::Within;

/// The stack as a layer.
#[derive(Clone, Debug)]
pub(crate) struct Stack(pub Admission);

/// A service inside the stack.
#[derive(Clone, Debug)]
pub(crate) struct Stacked<S> {
    admission: Admission,
    inner: S,
}

pin_project! {
    /// An admitted request and its route. An `async` block would have room for the route twice.
    struct Routed<F> {
        #[pin]
        route: Within<F>,
        request: Option<(LoggedRequest, Admitted, HeaderMap)>,
    }
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
        let cors = self.admission.cors_headers(&request);
        match self.admission.admit(&mut request) {
            Ok(mut admitted) => Box::pin(Routed {
                route: admitted.limit(self.inner.call(request)),
                request: Some((logged, admitted, cors)),
            }),
            Err(refusal) => {
                let response = logged.finish(refusal.into_response());
                Box::pin(ready(Ok(with_headers(response, cors))))
            }
        }
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Routed<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = {
            let _entered = this.request.as_ref().and_then(|(it, ..)| it.enter());
            ready!(this.route.poll(context)).map(|Ok(response)| response)
        };
        match this.request.take() {
            Some((logged, admitted, cors)) => {
                let response = logged.finish(admitted.answer(answer));
                Poll::Ready(Ok(with_headers(response, cors)))
            }
            // Polled after its end.
            None => Poll::Pending,
        }
    }
}

/// Adds headers to an answer, which may have a `Vary` of its own.
fn with_headers(mut response: Response, further: HeaderMap) -> Response {
    for (name, value) in &further {
        response.headers_mut().append(name, value.clone());
    }
    response
}
