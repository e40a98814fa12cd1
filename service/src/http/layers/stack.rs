//! The stack of layers around every route: the headers of CORS, the request log, and inside it admission.
//!
//! They are one service, without `axum::middleware`: each further layer costs every request two or three
//! allocations, which a profile shows at this rate. A router has the stack around each of its routes; that of claims,
//! which has no router, has it as well.

use std::{
    convert::Infallible,
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
pub(crate) struct Stack {
    admission: Admission,
    /// Path of the route inside, if it is one.
    path: Option<&'static str>,
}

impl Stack {
    /// The stack around all routes of a router.
    pub fn of_router(admission: Admission) -> Self {
        Self {
            admission,
            path: None,
        }
    }

    /// The stack around one route with this path.
    pub fn of_route(admission: Admission, path: &'static str) -> Self {
        Self {
            admission,
            path: Some(path),
        }
    }
}

/// A service inside the stack.
#[derive(Clone, Debug)]
pub(crate) struct Stacked<S> {
    stack: Stack,
    inner: S,
}

pin_project! {
    /// A request in progress. An `async` block would have room for the route twice.
    #[project = InProgress]
    pub(crate) enum StackedFuture<F> {
        Admitted {
            #[pin]
            route: Within<F>,
            request: Option<(LoggedRequest, Admitted, HeaderMap)>,
        },
        Refused {
            answer: Option<Response>,
        },
    }
}

impl<S> Layer<S> for Stack {
    type Service = Stacked<S>;

    fn layer(&self, inner: S) -> Stacked<S> {
        Stacked {
            stack: self.clone(),
            inner,
        }
    }
}

impl<S> Service<Request> for Stacked<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = StackedFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let Stack { admission, path } = &self.stack;
        let logged = LoggedRequest::begin(&request, *path, admission.client(&request));
        let cors = admission.cors_headers(&request);
        match admission.admit(&mut request) {
            Ok(mut admitted) => StackedFuture::Admitted {
                route: admitted.limit(self.inner.call(request)),
                request: Some((logged, admitted, cors)),
            },
            Err(refusal) => {
                let answer = logged.finish(refusal.into_response());
                StackedFuture::Refused {
                    answer: Some(with_headers(answer, cors)),
                }
            }
        }
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for StackedFuture<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match self.project() {
            InProgress::Admitted { route, request } => {
                let answer = {
                    let _entered = request.as_ref().and_then(|(it, ..)| it.enter());
                    ready!(route.poll(context)).map(|Ok(response)| response)
                };
                request.take().map(|(logged, admitted, cors)| {
                    let response = logged.finish(admitted.answer(answer));
                    with_headers(response, cors)
                })
            }
            InProgress::Refused { answer } => answer.take(),
        };
        // None if this is polled after its end.
        answer.map_or(Poll::Pending, |answer| Poll::Ready(Ok(answer)))
    }
}

/// Adds headers to an answer, which may have a `Vary` of its own.
fn with_headers(mut response: Response, further: HeaderMap) -> Response {
    for (name, value) in &further {
        response.headers_mut().append(name, value.clone());
    }
    response
}
