//! A body that is sent piece by piece, observed to its end, which comes after the request's line in the log.

use std::{
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    Error,
    body::{Body, Bytes, HttpBody},
    http::HeaderValue,
};
use hyper::body::{Frame, SizeHint};
use opentelemetry::trace::TraceId;
use tracing::warn;

use crate::telemetry::metrics::metrics;

/// A streamed body that logs and counts its early end.
#[derive(Debug)]
pub(super) struct LoggedBody {
    pub body: Body,
    pub request_id: HeaderValue,
    pub trace_id: Option<TraceId>,
    pub client: Option<IpAddr>,
    /// Bytes taken from the body.
    pub bytes: u64,
    /// True after the body's end or error.
    pub has_ended: bool,
}

impl LoggedBody {
    fn break_off(&mut self, why: &str) {
        self.has_ended = true;
        metrics().answer_broken_off();
        warn!(
            request_id = self.request_id.to_str().unwrap_or_default(),
            trace_id = self.trace_id.map(display),
            client = self.client.map(display),
            bytes = self.bytes,
            "an answer broke off: {why}"
        );
    }
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => self.bytes += frame.data_ref().map_or(0, Bytes::len) as u64,
            Some(Err(error)) => self.break_off(&error.to_string()),
            None => self.has_ended = true,
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LoggedBody {
    fn drop(&mut self) {
        if !self.has_ended {
            self.break_off("the client left or was cut off");
        }
    }
}
