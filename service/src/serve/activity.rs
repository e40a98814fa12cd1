//! What a connection is doing, and until when it may.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
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

/// Not a moment: nothing is awaited.
const NEVER: u64 = u64::MAX;

/// Not a moment either: a time that begins when the connection next has to wait.
const SOON: u64 = NEVER - 1;

/// A connection's state, in which moments are milliseconds from its beginning. Atomic only because it
/// is shared within one task that may move between threads: no request pays for more than plain loads
/// and stores and two looks at the clock.
#[derive(Debug)]
pub(super) struct Activity {
    limits: Limits,
    since: Instant,
    /// Whether no request is under way and none has begun to come in.
    idle: AtomicBool,
    /// Until when the client must have sent the rest of a head, or anything at all if it is idle.
    receive: AtomicU64,
    /// Until when it must have taken in something, where nothing more fits.
    send: AtomicU64,
    /// When the last head was there.
    asked: AtomicU64,
    /// Until when something must have happened that the request's answer waits for.
    answer: AtomicU64,
    /// When that was last too late.
    rang: AtomicU64,
}

/// What to do with a connection whose alarm rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    /// Nothing: its time is not over.
    Early,
    /// Close it: the client has nothing more to say, or is too slow to say it.
    Silent,
    /// Close it: the client takes in nothing of an answer.
    TakesNothing,
    /// Poll it: its request need not wait any longer.
    Answer,
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
            asked: AtomicU64::new(0),
            answer: AtomicU64::new(NEVER),
            rang: AtomicU64::new(0),
        }
    }

    /// When the alarm must ring, if nothing happens until then. To be asked whenever the connection
    /// has to wait.
    pub fn due(&self) -> Option<Instant> {
        let mut receive = self.receive.load(Relaxed);
        if receive == SOON {
            receive = self.after(if self.idle.load(Relaxed) {
                self.limits.idle_timeout
            } else {
                self.limits.header_timeout
            });
            self.receive.store(receive, Relaxed);
        }
        let due = receive
            .min(self.send.load(Relaxed))
            .min(self.answer.load(Relaxed));
        (due != NEVER).then(|| self.since + Duration::from_millis(due))
    }

    /// The alarm rings.
    pub fn ring(&self) -> Alarm {
        let now = self.after(Duration::ZERO);
        if self.send.load(Relaxed) <= now {
            return Alarm::TakesNothing;
        }
        if self.receive.load(Relaxed) <= now {
            return Alarm::Silent;
        }
        if self.answer.load(Relaxed) <= now {
            self.rang.store(now, Relaxed);
            self.answer.store(NEVER, Relaxed);
            return Alarm::Answer;
        }
        Alarm::Early
    }

    /// A request's head is there: what follows takes as long as its route allows.
    pub fn asked(&self) {
        self.asked.store(self.after(Duration::ZERO), Relaxed);
        self.idle.store(false, Relaxed);
        self.receive.store(NEVER, Relaxed);
    }

    /// Its answer is about to leave.
    pub fn answered(&self) {
        self.idle.store(true, Relaxed);
    }

    /// What comes of `future`; none if that takes longer than `limit` from when the request's head
    /// was there. To be awaited by the request, in the connection's task.
    pub async fn within<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        let due = self.asked.load(Relaxed).saturating_add(millis(limit));
        let outer = self.answer.load(Relaxed);
        self.answer.store(due.min(outer), Relaxed);
        let mut future = pin!(future);
        let outcome = poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending if self.rang.load(Relaxed) >= due => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await;
        self.answer.store(outer, Relaxed);
        outcome
    }

    fn received(&self) {
        if self.idle.load(Relaxed) {
            self.idle.store(false, Relaxed);
            self.receive.store(SOON, Relaxed);
        }
    }

    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(_) => self.sent(),
            Poll::Pending => self.stuck(),
        }
    }

    fn sent(&self) {
        self.send.store(NEVER, Relaxed);
        if self.idle.load(Relaxed) {
            self.receive.store(SOON, Relaxed);
        }
    }

    fn stuck(&self) {
        if self.send.load(Relaxed) == NEVER {
            self.send
                .store(self.after(self.limits.write_timeout), Relaxed);
        }
        // An answer is under way: that the client says nothing is not idleness.
        if self.idle.load(Relaxed) {
            self.receive.store(NEVER, Relaxed);
        }
    }

    fn after(&self, time: Duration) -> u64 {
        millis(self.since.elapsed() + time)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).map_or(SOON - 1, |millis| millis.min(SOON - 1))
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
        self.activity.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.activity.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
