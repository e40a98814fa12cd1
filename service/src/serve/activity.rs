//! What a connection is doing, and until when it may.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use super::Limits;

/// Not a moment: nothing is awaited of the client.
const NEVER: u64 = u64::MAX;

/// A connection's state. Atomic only because it is shared within one task that may move between
/// threads; no request pays for more than a few plain loads and stores and two looks at the clock.
#[derive(Debug)]
pub(super) struct Activity {
    limits: Limits,
    since: Instant,
    /// Whether no request is under way and none has begun to come in.
    idle: AtomicBool,
    /// Until when the client must have sent the rest of a head, or anything at all if it is idle; in
    /// milliseconds from `since`.
    receive: AtomicU64,
    /// Until when it must have taken in something, where nothing more fits.
    send: AtomicU64,
}

impl Activity {
    /// A connection that begins now.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            since: Instant::now(),
            idle: AtomicBool::new(false),
            receive: AtomicU64::new(millis(limits.header_timeout)),
            send: AtomicU64::new(NEVER),
        }
    }

    /// When the client will have been too slow, if nothing happens until then.
    pub fn due(&self) -> Option<Instant> {
        let due = self.receive.load(Relaxed).min(self.send.load(Relaxed));
        (due != NEVER).then(|| self.since + Duration::from_millis(due))
    }

    /// A request's head is there: what follows takes as long as its route allows.
    pub fn asked(&self) {
        self.idle.store(false, Relaxed);
        self.receive.store(NEVER, Relaxed);
    }

    /// Its answer is about to leave.
    pub fn answered(&self) {
        self.idle.store(true, Relaxed);
        self.receive
            .store(self.after(self.limits.idle_timeout), Relaxed);
    }

    fn received(&self) {
        if self.idle.load(Relaxed) {
            self.idle.store(false, Relaxed);
            self.receive
                .store(self.after(self.limits.header_timeout), Relaxed);
        }
    }

    fn sent(&self) {
        self.send.store(NEVER, Relaxed);
        if self.idle.load(Relaxed) {
            self.receive
                .store(self.after(self.limits.idle_timeout), Relaxed);
        }
    }

    fn stuck(&self) {
        if self.send.load(Relaxed) == NEVER {
            self.send
                .store(self.after(self.limits.write_timeout), Relaxed);
        }
    }

    fn after(&self, time: Duration) -> u64 {
        millis(self.since.elapsed() + time)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NEVER - 1)
}

/// A stream that tells what is going on on it.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl Watched {
    /// Watches `stream` for `activity`.
    pub fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.received();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        match written {
            Poll::Ready(_) => self.activity.sent(),
            Poll::Pending => self.activity.stuck(),
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
