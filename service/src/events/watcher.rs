//! Watchers: one for each stream and shard. A watcher that is slow takes no memory for what it has not received.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::body::Bytes;
use tokio::{sync::watch, time::sleep};

use super::{
    Hub,
    feed::{Feed, Topic},
    frame::{self, COMMENT, EventFrame},
};
use crate::{
    error::Error,
    telemetry::metrics::{Delivery, metrics},
};

/// The most events that are read from the database at once. They are in memory until the client has taken them.
const PAGE: i32 = 20;

/// Attempts to find events that were there before: those of all coupons are listed only up to the first that a
/// transaction in progress may still write, and that limit can go back a little when a transaction begins.
const ATTEMPTS: u32 = 5;

/// Pause between these attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// The events of one shard, as one stream sends them.
#[derive(Debug)]
pub(super) struct Watcher {
    hub: Arc<Hub>,
    topic: Topic,
    feed: watch::Receiver<Feed>,
    /// Number of the stream.
    number: u32,
    /// Id of the last event that was sent, or one before the next.
    after: i64,
    stock_changes: u64,
    comments: u64,
    losses: u64,
    /// Frames to be sent. They are no more than a feed or a page has.
    ready: VecDeque<Bytes>,
    /// True if the stream ends after them.
    is_over: bool,
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
    /// Starts a watcher.
    ///
    /// # Arguments
    /// `feed`: a known one. `after`: id of the last event that the client has received, if it resumes a stream.
    /// `number`: number of the stream.
    ///
    /// # Errors
    /// Those of the database.
    pub(super) async fn start(
        hub: Arc<Hub>,
        topic: Topic,
        feed: watch::Receiver<Feed>,
        after: Option<i64>,
        number: u32,
    ) -> Result<Self, Error> {
        let has_event;
        let mut watcher = {
            let current = feed.borrow();
            has_event = after.is_none_or(|id| id == 0 || current.has(id));
            Self {
                hub,
                topic,
                feed: feed.clone(),
                number,
                after: after.unwrap_or(current.position),
                stock_changes: 0,
                comments: current.comments,
                losses: current.losses,
                ready: VecDeque::new(),
                is_over: current.is_over,
            }
        };
        if watcher.is_over {
            return Ok(watcher);
        }
        if has_event || watcher.is_in_database(watcher.after).await? {
            watcher.ready.push_back(frame::position(watcher.after));
        } else {
            // It was purged, perhaps with others after it, or a failover has lost it.
            watcher.reset_to_present();
        }
        Ok(watcher)
    }

    /// Id after which the client would resume.
    pub fn position(&self) -> i64 {
        self.after
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
                    if !self.feed.borrow().is_over {
                        sleep(self.hub.streams.delay(self.number)).await;
                    }
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
        if self.losses != feed.losses {
            self.losses = feed.losses;
            let floor = feed.floor;
            drop(feed);
            // There may be later events already.
            self.reset(floor);
            return Looked::Ready;
        }
        if self.after < feed.floor {
            return Looked::Behind;
        }
        for event in feed.events.iter().filter(|event| event.id > self.after) {
            self.ready.push_back(event.text.clone());
            metrics().delivered(Delivery::Event);
            if feed.ends_with(event) {
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
        for _ in 0..ATTEMPTS {
            let position = self.feed.borrow().position;
            let coupon_name = self.topic.coupon_name();
            let database = &self.hub.database;
            let events = database
                .list_missed_events(self.after, PAGE, coupon_name)
                .await?;
            // Looked for after they were read: if it was purged before that, so were perhaps others after it.
            if self.after != 0 && !self.is_in_database(self.after).await? {
                break;
            }
            for event in &events {
                let event =
                    EventFrame::new(event).map_err(|error| Error::Internal(error.into()))?;
                self.after = event.id;
                self.is_over = self.feed.borrow().ends_with(&event);
                self.ready.push_back(event.text);
                metrics().delivered(Delivery::Event);
                if self.is_over {
                    return Ok(());
                }
            }
            if coupon_name.is_some() && events.len() < PAGE as usize {
                // These were all of the coupon's, and the poller had read all up to there before.
                self.after = self.after.max(position);
                return Ok(());
            }
            if !events.is_empty() {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
        // They were purged before they could be sent.
        self.reset_to_present();
        Ok(())
    }

    /// Goes on with the next event that happens.
    fn reset_to_present(&mut self) {
        let position = self.feed.borrow().position;
        self.reset(position);
    }

    /// Goes on with the events after this id, and says that others may be missing.
    fn reset(&mut self, after: i64) {
        self.after = after;
        self.ready.push_back(frame::reset(after));
        metrics().delivered(Delivery::Reset);
    }

    /// Returns true if the event is in the database.
    async fn is_in_database(&self, id: i64) -> Result<bool, Error> {
        let coupon_name = self.topic.coupon_name();
        for _ in 0..ATTEMPTS {
            // A coupon's events are listed without regard to transactions in progress, but it may be another's.
            if coupon_name.is_some() && self.first_from(id, coupon_name).await? == Some(id) {
                return Ok(true);
            }
            if let Some(first) = self.first_from(id, None).await? {
                return Ok(first == id);
            }
            sleep(PAUSE).await;
        }
        Ok(false)
    }

    /// Id of the first event from `id` on, of this coupon or of all.
    async fn first_from(&self, id: i64, coupon_name: Option<&str>) -> Result<Option<i64>, Error> {
        let database = &self.hub.database;
        let events = database.list_missed_events(id - 1, 1, coupon_name).await?;
        Ok(events.first().map(|event| event.id))
    }
}
