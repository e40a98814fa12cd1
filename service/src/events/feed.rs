//! Feeds: what the watchers of one topic have in common. A watcher keeps only its place in the feed.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::body::Bytes;

use super::frame::EventFrame;
use crate::error::SharedError;

/// The most events of a feed. A watcher that is further behind reads them from the database.
const EVENTS: usize = 256;

/// Age up to which the stock of a coupon is sent to a new stream. With an older one it waits for a poll.
const FRESH: Duration = Duration::from_secs(1);

/// Time after which the streams of a missing coupon end, if no event has said that it is deleted.
const MISSING: Duration = Duration::from_secs(5);

/// Subject of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    /// The events of all coupons.
    All,
    /// The events and the stock of this coupon.
    Coupon(Arc<str>),
}

impl Topic {
    /// Name of the coupon; none for all.
    pub fn coupon_name(&self) -> Option<&str> {
        match self {
            Self::All => None,
            Self::Coupon(name) => Some(name),
        }
    }

    /// Returns true if this coupon's events belong to the topic.
    pub fn includes(&self, coupon_name: &str) -> bool {
        self.coupon_name().is_none_or(|name| name == coupon_name)
    }
}

/// A feed: the latest events of a topic, and its stock.
#[derive(Debug)]
pub(super) struct Feed {
    /// True if it is the feed of a coupon.
    is_of_coupon: bool,
    pub state: State,
    /// Number of the poll that last found the state, and its time.
    checked: u64,
    checked_at: Instant,
    /// Number of the last poll that failed, and its error.
    failed: Option<(u64, SharedError)>,
    /// Number of the last poll for which a new stream waits.
    awaited: u64,
    /// The events that are not in the feed have ids up to this one.
    pub floor: i64,
    /// All events up to this id have been read.
    pub position: i64,
    pub events: VecDeque<EventFrame>,
    pub stock: Option<Bytes>,
    /// Number of changes of the stock.
    pub stock_changes: u64,
    /// Number of comments.
    pub comments: u64,
    /// Number of times at which events were lost.
    pub losses: u64,
    /// True if its streams must end.
    pub is_over: bool,
}

/// State of a feed.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// No poll has succeeded yet.
    Unknown,
    /// There has been no such coupon since then.
    Missing(Instant),
    /// It is kept up to date.
    Live,
}

impl Feed {
    /// A feed that waits for its first poll.
    pub fn new(topic: &Topic) -> Self {
        Self {
            is_of_coupon: matches!(topic, Topic::Coupon(_)),
            state: State::Unknown,
            checked: 0,
            checked_at: Instant::now(),
            failed: None,
            awaited: 0,
            floor: 0,
            position: 0,
            events: VecDeque::new(),
            stock: None,
            stock_changes: 0,
            comments: 0,
            losses: 0,
            is_over: false,
        }
    }

    /// A feed whose streams end when they begin.
    pub fn over(topic: &Topic) -> Self {
        Self {
            state: State::Live,
            is_over: true,
            ..Self::new(topic)
        }
    }

    /// Returns true if a new stream need not wait for a poll.
    pub fn is_up_to_date(&self) -> bool {
        // Events are never too old for a new stream: it goes on with the next ones.
        let is_fresh = !self.is_of_coupon || self.checked_at.elapsed() < FRESH;
        matches!(self.state, State::Live) && is_fresh
    }

    /// Returns true if a new stream waits for this poll.
    pub fn is_awaited(&self, poll: u64) -> bool {
        poll <= self.awaited && self.checked < self.awaited
    }

    /// Makes this poll wake those who wait for what it finds.
    pub fn await_poll(&mut self, poll: u64) {
        self.awaited = poll;
    }

    /// The answer to a new stream that waits for this poll; none if it must go on waiting.
    pub fn answer(&self, poll: u64) -> Option<Result<State, SharedError>> {
        if self.is_over || self.checked >= poll {
            return Some(Ok(self.state));
        }
        let (failed, error) = self.failed.as_ref()?;
        (*failed >= poll).then(|| Err(error.clone()))
    }

    /// Returns true if a stream can go on after this event without a look into the database.
    pub fn has(&self, id: i64) -> bool {
        id == self.position || self.events.iter().any(|event| event.id == id)
    }

    /// Returns true if a stream ends after this event: a coupon that is made later under the same name is another one.
    pub fn ends_with(&self, event: &EventFrame) -> bool {
        event.is_last && self.is_of_coupon
    }

    // Each of the following returns true if watchers must look.

    /// Adds the events that a poll has found, all up to `position`.
    pub fn add_events(&mut self, new: impl Iterator<Item = EventFrame>, position: i64) -> bool {
        if self.is_new() {
            self.floor = position;
            self.position = position;
            return false;
        }
        self.position = position;
        let before = self.events.len();
        self.events.extend(new);
        let has_new = self.events.len() > before;
        if self
            .events
            .range(before..)
            .any(|event| self.ends_with(event))
        {
            // A new stream needs a new look at the coupon, which may be another one by now.
            self.state = State::Missing(Instant::now());
        }
        while self.events.len() > EVENTS {
            if let Some(dropped) = self.events.pop_front() {
                self.floor = dropped.id;
            }
        }
        has_new
    }

    /// Goes back to `position`: later events are lost, and their ids may be given to others.
    pub fn go_back(&mut self, position: i64) {
        self.events.clear();
        self.floor = position;
        self.position = position;
        self.losses += 1;
    }

    /// Notes that the events of all coupons are up to date.
    pub fn set_live(&mut self, poll: u64) -> bool {
        let was_new = self.is_new();
        self.state = State::Live;
        self.set_checked(poll);
        was_new || poll <= self.awaited
    }

    /// Sets the stock; none if there is no such coupon.
    pub fn set_stock(&mut self, poll: u64, stock: Option<Bytes>) -> bool {
        self.set_checked(poll);
        match (self.state, stock) {
            (State::Live, Some(stock)) if self.stock.as_ref() == Some(&stock) => {
                return poll <= self.awaited;
            }
            (_, Some(stock)) => {
                self.state = State::Live;
                self.stock = Some(stock);
                self.stock_changes += 1;
            }
            (State::Missing(since), None) => self.is_over |= since.elapsed() > MISSING,
            (_, None) => self.state = State::Missing(Instant::now()),
        }
        true
    }

    /// Notes that a poll has failed. What is known stays.
    pub fn set_failed(&mut self, poll: u64, error: &SharedError) -> bool {
        self.failed = Some((poll, error.clone()));
        poll <= self.awaited
    }

    fn set_checked(&mut self, poll: u64) {
        self.checked = poll;
        self.checked_at = Instant::now();
    }

    fn is_new(&self) -> bool {
        matches!(self.state, State::Unknown)
    }
}
