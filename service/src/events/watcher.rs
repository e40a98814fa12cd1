//! Watchers: one for each stream. A watcher that is slow takes no memory for what it has not received.

use std::{collections::VecDeque, sync::Arc};

use axum::body::Bytes;
use tokio::sync::watch;

use super::{
    Hub, StreamPermit,
    feed::{Feed, Topic},
    frame::{self, COMMENT, EventFrame},
};
use crate::{
    error::Error,
    telemetry::metrics::{Delivery, metrics},
};

/// The most events that are read from the database at once.
const PAGE: i32 = 100;

/// A stream of events.
#[derive(Debug)]
pub struct Watcher {
    hub: Arc<Hub>,
    topic: Topic,
    feed: watch::Receiver<Feed>,
    /// Id of the last event that was sent, or one before the next.
    after: i64,
    stock_changes: u64,
    comments: u64,
    /// Frames to be sent. They are no more than a feed or a page has.
    ready: VecDeque<Bytes>,
    /// True if the stream ends after them.
    is_over: bool,
    _permit: StreamPermit,
}

/// State of a watcher after a look into its feed.
enum Looked {
    /// There are frames to be sent, or the stream ends.
    Ready,
    /// There is nothing new.
    UpToDate,
    /// The feed no longer has the next events.
    Behind,
}

impl Watcher {
    /// Starts a stream.
    ///
    /// # Arguments
    /// `feed`: a known one. `after`: id of the last event that the client has received, if it resumes a stream.
    ///
    /// # Errors
    /// Those of the database.
    pub(super) async fn start(
        hub: Arc<Hub>,
        topic: Topic,
        feed: watch::Receiver<Feed>,
        after: Option<i64>,
        permit: StreamPermit,
    ) -> Result<Self, Error> {
        let (is_over, position, has_event, comments) = {
            let feed = feed.borrow();
            let has_event = after.is_none_or(|id| id == 0 || feed.has(id));
            (feed.is_over, feed.position, has_event, feed.comments)
        };
        let mut watcher = Self {
            hub,
            topic,
            feed,
            after: after.unwrap_or(position),
            stock_changes: 0,
            comments,
            ready: VecDeque::new(),
            is_over,
            _permit: permit,
        };
        if is_over {
            return Ok(watcher);
        }
        if has_event || watcher.is_in_database(watcher.after).await? {
            watcher.ready.push_back(frame::position(watcher.after));
        } else {
            // It was purged, perhaps with others after it, or a failover has lost it.
            watcher.after = position;
            watcher.ready.push_back(frame::reset(position));
            metrics().delivered(Delivery::Reset);
        }
        Ok(watcher)
    }

    /// Waits for the next frame; none at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            if self.is_over {
                return None;
            }
            match self.look() {
                Looked::Ready => {}
                Looked::UpToDate => {
                    // An error means that the poller has panicked. The client can come back.
                    self.feed.changed().await.ok()?;
                }
                Looked::Behind => {
                    let mut feed = self.feed.clone();
                    tokio::select! {
                        biased;
                        _ = feed.wait_for(|feed| feed.is_over) => return None,
                        // The status has been sent. The client can come back for the rest.
                        read = self.catch_up() => read.ok()?,
                    }
                }
            }
        }
    }

    /// Takes what is new in the feed.
    fn look(&mut self) -> Looked {
        let feed = self.feed.borrow_and_update();
        if feed.is_over {
            self.is_over = true;
            return Looked::Ready;
        }
        if self.after < feed.floor {
            return Looked::Behind;
        }
        for event in feed.events.iter().filter(|event| event.id > self.after) {
            self.ready.push_back(event.text.clone());
            metrics().delivered(Delivery::Event);
            if is_last(event, &self.topic) {
                self.is_over = true;
                return Looked::Ready;
            }
        }
        self.after = self.after.max(feed.position);
        if self.stock_changes != feed.stock_changes
            && let Some(stock) = &feed.stock
        {
            self.stock_changes = feed.stock_changes;
            self.ready.push_back(stock.clone());
            metrics().delivered(Delivery::Stock);
        }
        if self.comments != feed.comments {
            self.comments = feed.comments;
            self.ready.push_back(COMMENT);
        }
        if self.ready.is_empty() {
            Looked::UpToDate
        } else {
            Looked::Ready
        }
    }

    /// Reads the next events that the feed no longer has.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let position = self.feed.borrow().position;
        let coupon_name = self.topic.coupon_name();
        let events = self
            .hub
            .database
            .list_missed_events(self.after, PAGE, coupon_name)
            .await?;
        let is_last_page = events.len() < PAGE as usize;
        for event in &events {
            let event = EventFrame::new(event).map_err(|error| Error::Internal(error.into()))?;
            self.after = event.id;
            self.is_over = is_last(&event, &self.topic);
            self.ready.push_back(event.text);
            metrics().delivered(Delivery::Event);
            if self.is_over {
                return Ok(());
            }
        }
        if is_last_page {
            // The poller had read all of them up to there before this page was.
            self.after = self.after.max(position);
        }
        Ok(())
    }

    /// Returns true if the event is in the database.
    async fn is_in_database(&self, id: i64) -> Result<bool, Error> {
        let database = &self.hub.database;
        let events = database.list_missed_events(id - 1, 1, None).await?;
        Ok(events.first().is_some_and(|event| event.id == id))
    }
}

/// Returns true if a stream ends after this event: a coupon that is made later under the same name is another one.
fn is_last(event: &EventFrame, topic: &Topic) -> bool {
    event.is_last && matches!(topic, Topic::Coupon(_))
}
