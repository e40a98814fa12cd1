//! The waker of a connection, which a request's body does not wake in vain.
//!
//! When a request's body is read, hyper wakes the connection's task, so that it receives the next part. It does so after the
//! last part, too. Most requests come in one piece and are read while the task runs, so each of them would be polled once
//! more for nothing.

use std::{
    cell::Cell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};

thread_local! {
    /// State of this thread's read of a body.
    static READ: Cell<Read> = const { Cell::new(Read::None) };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// It reads none.
    None,
    /// It is reading one.
    Running,
    /// It is reading one, which has woken a connection: its own.
    HasWoken,
}

/// A read of a body by this thread, until it is dropped.
struct Reading;

impl Reading {
    fn begin() -> Self {
        READ.set(Read::Running);
        Self
    }

    fn has_woken(&self) -> bool {
        READ.get() == Read::HasWoken
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        READ.set(Read::None);
    }
}

/// The waker of a connection.
#[derive(Debug)]
struct ConnectionWaker(Waker);

/// Wraps the waker of a connection's task.
pub(super) fn of_connection(task: &Waker) -> Waker {
    Arc::new(ConnectionWaker(task.clone())).into()
}

impl Wake for ConnectionWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if READ.get() == Read::None {
            self.0.wake_by_ref();
        } else {
            READ.set(Read::HasWoken);
        }
    }
}

/// Body of a request. To be polled in the connection's task.
#[derive(Debug)]
pub struct RequestBody(pub(super) Incoming);

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let reading = Reading::begin();
        let frame = Pin::new(&mut self.0).poll_frame(context);
        let has_woken = reading.has_woken();
        drop(reading);
        // Not yet at its end: the next part must be received.
        if has_woken && !self.0.is_end_stream() {
            context.waker().wake_by_ref();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
