//! What a connection is doing, and until when it may.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    mem,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
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

/// How long a client that sends no more may wait for its answer before it counts as gone. Its place in a lane
/// and among the requests is somebody else's then.
const HALF_CLOSED: Duration = Duration::from_secs(1);

/// A connection's state, in which moments are milliseconds from its beginning. Atomic only because it
/// is shared within one task that may move between threads: no request pays for more than plain loads
/// and stores and two looks at the clock.
#[derive(Debug)]
pub(super) struct Activity {
    limits: Limits,
    since: Instant,
    /// Whether a request's head was there and its answer is not done.
    under_way: AtomicBool,
    /// Whether that request's body, the last one's where none is under way, was not read to its end.
    unread: AtomicBool,
    /// Whether something of the next request has come in.
    begun: AtomicBool,
    /// Until when the client must have sent the rest of a head, or anything at all if it is idle. While a
    /// request is under way: until when it must be answered because the client may be gone.
    receive: AtomicU64,
    /// Until when it must have taken in something, where nothing more fits.
    send: AtomicU64,
    /// When the last head was there; `NEVER` before the first.
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
            under_way: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            receive: AtomicU64::new(millis(limits.header_timeout)),
            send: AtomicU64::new(NEVER),
            asked: AtomicU64::new(NEVER),
            answer: AtomicU64::new(NEVER),
            rang: AtomicU64::new(0),
        }
    }

    /// When the alarm must ring, if nothing happens until then. To be asked whenever the connection
    /// has to wait.
    pub fn due(&self) -> Option<Instant> {
        let due = self.patience().min(self.answer.load(Relaxed));
        (due != NEVER).then(|| self.since + Duration::from_millis(due))
    }

    /// Until when the client must have done something. It need not send while it has yet to take in an answer.
    fn patience(&self) -> u64 {
        let send = self.send.load(Relaxed);
        if send != NEVER {
            return send;
        }
        let receive = self.receive.load(Relaxed);
        if receive != SOON {
            return receive;
        }
        let receive = self.after(if self.begun.load(Relaxed) {
            self.limits.header_timeout
        } else {
            self.limits.idle_timeout
        });
        self.receive.store(receive, Relaxed);
        receive
    }

    /// The alarm rings.
    pub fn ring(&self) -> Alarm {
        let now = self.after(Duration::ZERO);
        if self.patience() <= now {
            return if self.send.load(Relaxed) == NEVER {
                Alarm::Silent
            } else {
                Alarm::TakesNothing
            };
        }
        if self.answer.load(Relaxed) <= now {
            self.rang.store(now, Relaxed);
            self.answer.store(NEVER, Relaxed);
            return Alarm::Answer;
        }
        Alarm::Early
    }

    /// A request's head is there: what follows takes as long as its route allows. `whole`: it has no body.
    pub fn asked(&self, whole: bool) {
        self.asked.store(self.after(Duration::ZERO), Relaxed);
        self.under_way.store(true, Relaxed);
        self.unread.store(!whole, Relaxed);
        self.begun.store(false, Relaxed);
        self.receive.store(NEVER, Relaxed);
    }

    /// Its body was read to its end.
    pub fn completed(&self) {
        self.unread.store(false, Relaxed);
    }

    /// The last of its answer is about to leave.
    pub fn answered(&self) {
        self.under_way.store(false, Relaxed);
        self.receive.store(SOON, Relaxed);
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
        let under_way = self.under_way.load(Relaxed);
        if self.begun.load(Relaxed) || (under_way && self.unread.load(Relaxed)) {
            return;
        }
        self.begun.store(true, Relaxed);
        // A head that comes early has its time when its turn comes, and a connection's first from its beginning.
        if !under_way && self.asked.load(Relaxed) != NEVER {
            self.receive.store(SOON, Relaxed);
        }
    }

    /// Whether the end of what the client sends must wait until its request is answered. It may only have
    /// ended its own half of the connection, and a client that is gone looks the same.
    fn holds_end(&self) -> bool {
        // An answer that is done may still have to leave.
        let holds = self.under_way.load(Relaxed) || self.send.load(Relaxed) != NEVER;
        if holds && self.receive.load(Relaxed) == NEVER {
            self.receive.store(self.after(HALF_CLOSED), Relaxed);
        }
        holds
    }

    /// The client is told that nothing more comes; whether it may have sent what was not read.
    fn finished(&self) -> bool {
        self.under_way.store(false, Relaxed);
        self.send.store(NEVER, Relaxed);
        self.receive
            .store(self.after(self.limits.header_timeout), Relaxed);
        self.unread.load(Relaxed) || self.begun.load(Relaxed)
    }

    fn sent(&self) {
        self.send.store(NEVER, Relaxed);
        let waits = !self.under_way.load(Relaxed);
        self.receive
            .store(if waits { SOON } else { NEVER }, Relaxed);
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
    u64::try_from(time.as_millis()).map_or(SOON - 1, |millis| millis.min(SOON - 1))
}

/// A stream that tells what is going on on it.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
    /// Whether the end of what the client sends was seen and is kept back.
    holds_end: bool,
    /// What to do once nothing more is sent, when that has happened.
    end: Option<End>,
}

/// How a connection ends after its last answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// At once.
    Close,
    /// When the client has ended it, or its time is over. To close while it still sends would have the system
    /// reset the connection, and the client might never see its answer.
    Drain,
}

impl Watched {
    /// Watches `stream` for `activity`.
    pub fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self {
            stream,
            activity,
            holds_end: false,
            end: None,
        }
    }

    /// Notes what became of a write.
    fn wrote(&mut self, context: &Context<'_>, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(_) => {
                self.activity.sent();
                if mem::take(&mut self.holds_end) {
                    context.waker().wake_by_ref();
                }
            }
            Poll::Pending => self.activity.stuck(),
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.activity.received();
        } else if self.activity.holds_end() {
            // The answer wakes us from this, or the alarm.
            self.holds_end = true;
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(context, &written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.wrote(context, &written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = match self.end {
            Some(end) => end,
            None => {
                ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
                let end = if self.activity.finished() {
                    End::Drain
                } else {
                    End::Close
                };
                *self.end.insert(end)
            }
        };
        if end == End::Drain {
            let mut unread = [0; 4096];
            loop {
                let mut buffer = ReadBuf::new(&mut unread);
                let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
                if read.is_err() || buffer.filled().is_empty() {
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
