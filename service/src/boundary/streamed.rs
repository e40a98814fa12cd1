//! An answer that leaves piece by piece, watched to its end: when its status goes out, and its line into
//! the log, that is still to come.

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

/// The body of such an answer.
#[derive(Debug)]
pub(super) struct Streamed {
    pub body: Body,
    pub request_id: HeaderValue,
    pub trace_id: Option<TraceId>,
    pub client: Option<IpAddr>,
    /// The bytes that were taken from the body.
    pub bytes: u64,
    /// Set when the body has come to an end, good or bad.
    pub has_ended: bool,
}

impl Streamed {
    fn breaks_off(&mut self, why: &str) {
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

impl HttpBody for Streamed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => self.bytes += frame.data_ref().map_or(0, Bytes::len) as u64,
            Some(Err(error)) => self.breaks_off(&error.to_string()),
            None => self.has_ended = true,
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if !self.has_ended {
            self.breaks_off("the client left or was cut off");
        }
    }
}
