//! Activity of a connection, and the deadlines that follow from it.

use std::{
    io::{self, IoSlice},
    mem,
    pin::Pin,
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

use super::ConnectionLimits;
use crate::lanes::LaneClient;

/// Stands for no deadline: nothing is awaited.
const NEVER: u64 = u64::MAX;

/// Stands for a deadline that is set when the connection next has to wait.
const SOON: u64 = NEVER - 1;

/// Longest wait for an answer by a client that has closed its side. Then it counts as disconnected, and its request gives
/// up its permit and its place in a lane. Also the longest wait for a client's input during the shutdown, unless it is the
/// body of a request.
const HALF_CLOSED: Duration = Duration::from_secs(1);

/// State of a connection. Deadlines are milliseconds from its beginning. It is atomic only because it is shared within
/// one task that may move between threads: a request costs plain loads and stores and two looks at the clock.
#[derive(Debug)]
pub(super) struct Activity {
    limits: ConnectionLimits,
    /// The client as lanes know it.
    pub lane_client: LaneClient,
    since: Instant,
    /// True if the service is shutting down.
    is_over: Arc<AtomicBool>,
    /// True if the answer has no end of its own.
    endless: AtomicBool,
    /// True from the arrival of a request's head to the end of its answer.
    in_progress: AtomicBool,
    /// True if the body of that request, or of the last one, has not been received completely.
    unread: AtomicBool,
    /// True if a part of the next request has arrived.
    begun: AtomicBool,
    /// Deadline for the rest of a head, or for any input on an idle connection. While a request is in progress: for its
    /// answer, because the client may have disconnected.
    receive: AtomicU64,
    /// Deadline for progress in sending, if nothing more fits into the buffers.
    send: AtomicU64,
    /// Arrival of the last head; `NEVER` before the first.
    head: AtomicU64,
    /// Deadline of an operation of the request.
    answer: AtomicU64,
    /// Last time at which that deadline had passed.
    rang: AtomicU64,
}

/// Deadline of an operation of the request, and the one around it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    due: u64,
    outer: u64,
}

/// Consequence of an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    /// None: no deadline has passed.
    Early,
    /// Close the connection: the client sends nothing, or too slowly.
    Silent,
    /// Close the connection: the client receives nothing of an answer.
    Stuck,
    /// Poll the connection: an operation of its request has taken too long.
    Answer,
}

impl Activity {
    /// Starts observing a connection.
    ///
    /// # Arguments
    /// `is_over`: true from the moment when the service is shutting down. Connections are polled then.
    pub fn new(limits: ConnectionLimits, is_over: Arc<AtomicBool>) -> Self {
        Self {
            limits,
            lane_client: LaneClient::default(),
            since: Instant::now(),
            is_over,
            endless: AtomicBool::new(false),
            in_progress: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            receive: AtomicU64::new(millis(limits.header_timeout)),
            send: AtomicU64::new(NEVER),
            head: AtomicU64::new(NEVER),
            answer: AtomicU64::new(NEVER),
            rang: AtomicU64::new(0),
        }
    }

    /// Shortens the wait for the rest of a head, or for the end of the client's input: the service is shutting down, and
    /// nothing is owed to a client that has sent no whole request.
    pub fn shutdown_begun(&self) {
        if !self.in_progress.load(Relaxed) {
            self.receive.fetch_min(self.after(HALF_CLOSED), Relaxed);
        }
    }

    /// Returns true if the service is shutting down.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Time at which the alarm must ring. To be called whenever the connection has to wait.
    pub fn due(&self) -> Option<Instant> {
        let due = self.client_deadline().min(self.answer.load(Relaxed));
        (due != NEVER).then(|| self.since + Duration::from_millis(due))
    }

    /// Deadline of the client. It need not send while it is still receiving an answer.
    fn client_deadline(&self) -> u64 {
        let send = self.send.load(Relaxed);
        if send != NEVER {
            // Nothing is owed to the watcher of a stream, who would delay the exit.
            let is_left = self.endless.load(Relaxed) && self.is_over();
            return if is_left { 0 } else { send };
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

    /// Handles an alarm.
    pub fn ring(&self) -> Alarm {
        let now = self.after(Duration::ZERO);
        if self.client_deadline() <= now {
            return if self.send.load(Relaxed) == NEVER {
                Alarm::Silent
            } else {
                Alarm::Stuck
            };
        }
        if self.answer.load(Relaxed) <= now {
            self.rang.store(now, Relaxed);
            self.answer.store(NEVER, Relaxed);
            return Alarm::Answer;
        }
        Alarm::Early
    }

    /// Records a request's head.
    ///
    /// # Arguments
    /// `now`: time of its arrival. `complete`: the request has no body.
    pub fn head_received(&self, now: Instant, complete: bool) {
        self.head.store(millis(now - self.since), Relaxed);
        self.in_progress.store(true, Relaxed);
        self.unread.store(!complete, Relaxed);
        self.begun.store(false, Relaxed);
        self.receive.store(NEVER, Relaxed);
    }

    /// Records the end of the request's body.
    pub fn body_received(&self) {
        self.unread.store(false, Relaxed);
    }

    /// Returns true if the request has a body that was not received to its end.
    pub fn is_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }

    /// Records the beginning of an answer.
    ///
    /// # Arguments
    /// `endless`: it has no end of its own.
    pub fn answer_begun(&self, endless: bool) {
        self.endless.store(endless, Relaxed);
    }

    /// Records that the last part of the answer is ready to be sent.
    pub fn answered(&self) {
        self.in_progress.store(false, Relaxed);
        self.receive.store(SOON, Relaxed);
    }

    /// Begins an operation that must end within `limit` from the arrival of the request's head.
    pub fn limit(&self, limit: Duration) -> Limit {
        let due = self.head.load(Relaxed).saturating_add(millis(limit));
        let outer = self.answer.load(Relaxed);
        self.answer.store(due.min(outer), Relaxed);
        Limit { due, outer }
    }

    /// Returns true if the time of the operation is over. To be asked after the operation was polled.
    pub fn is_exceeded(&self, limit: Limit) -> bool {
        self.rang.load(Relaxed) >= limit.due
    }

    /// Ends the operation.
    pub fn lift(&self, limit: Limit) {
        self.answer.store(limit.outer, Relaxed);
    }

    fn received(&self) {
        let in_progress = self.in_progress.load(Relaxed);
        if self.begun.load(Relaxed) || (in_progress && self.unread.load(Relaxed)) {
            return;
        }
        self.begun.store(true, Relaxed);
        // The time of an early head begins after the answer before it, that of a connection's first at its beginning.
        if !in_progress && self.head.load(Relaxed) != NEVER {
            self.receive.store(SOON, Relaxed);
        }
    }

    /// Returns true if the end of the client's input must be withheld until its request is answered: the client may only
    /// have closed its side of the connection. A client that has disconnected looks the same.
    fn holds_end(&self) -> bool {
        // A finished answer may still have to be sent.
        let holds = self.in_progress.load(Relaxed) || self.send.load(Relaxed) != NEVER;
        if holds && self.receive.load(Relaxed) == NEVER {
            self.receive.store(self.after(HALF_CLOSED), Relaxed);
        }
        holds
    }

    /// Records that the service has closed its side. Returns true if the client may have sent more than was read, and
    /// might lose its answer for that.
    fn finished(&self) -> bool {
        self.in_progress.store(false, Relaxed);
        self.send.store(NEVER, Relaxed);
        let is_over = self.is_over();
        let limit = if is_over {
            HALF_CLOSED
        } else {
            self.limits.header_timeout
        };
        self.receive.store(self.after(limit), Relaxed);
        // Nothing is owed to the watcher of a stream then.
        let is_left = is_over && self.endless.load(Relaxed);
        !is_left && (self.unread.load(Relaxed) || self.begun.load(Relaxed))
    }

    fn sent(&self) {
        self.send.store(NEVER, Relaxed);
        let waits = !self.in_progress.load(Relaxed);
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

/// A stream that records its activity.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
    /// True if the end of the client's input has been read and is withheld.
    holds_end: bool,
    /// Kind of the connection's end, once the service has closed its side.
    end: Option<End>,
}

/// End of a connection after its last answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Close immediately.
    Close,
    /// Read until the client closes its side, or its time is over. Closing while it still sends would reset the
    /// connection, and the client might lose its answer.
    Drain,
}

impl Watched {
    /// Makes `stream` record its activity.
    pub fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self {
            stream,
            activity,
            holds_end: false,
            end: None,
        }
    }

    /// Looks if the client has closed its side while it waits for an answer. hyper would have to read for that, and would
    /// take a new buffer of 8 KiB for each request, because the request still has the old one.
    ///
    /// # Errors
    /// The client has reset the connection.
    fn look_for_end(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.holds_end || !self.activity.in_progress.load(Relaxed) {
            return Ok(());
        }
        let mut byte = [0];
        if let Poll::Ready(peeked) = self.stream.poll_peek(context, &mut ReadBuf::new(&mut byte)) {
            if peeked? == 0 {
                // The answer or the alarm ends this wait.
                self.holds_end = self.activity.holds_end();
            } else {
                self.activity.received();
            }
        }
        Ok(())
    }

    /// Records the result of a write.
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

/// The longest output that is copied together, in bytes. Most answers to claims fit, with their heads.
const TOGETHER: usize = 1024;

/// Copies pieces together if they fit: to send one piece costs less than to send several.
fn together<'a>(pieces: &[IoSlice<'_>], room: &'a mut [u8; TOGETHER]) -> Option<&'a [u8]> {
    let mut length = 0;
    for piece in pieces {
        let end = length + piece.len();
        room.get_mut(length..end)?.copy_from_slice(piece);
        length = end;
    }
    room.get(..length)
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
            // The answer or the alarm ends this wait.
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
        let mut room = [0; TOGETHER];
        let written = match together(pieces, &mut room) {
            Some(bytes) => Pin::new(&mut self.stream).poll_write(context, bytes),
            None => Pin::new(&mut self.stream).poll_write_vectored(context, pieces),
        };
        self.wrote(context, &written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    // hyper flushes at the end of each poll.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        Poll::Ready(self.look_for_end(context))
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
