//! The poller: one task that reads a shard's events and stock for all watchers, and ends when there are none.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::body::Bytes;
use tokio::time::{Instant, interval, sleep_until};
use tracing::warn;

use super::{
    Hub, PER_STREAM,
    feed::Topic,
    frame::{self, EventFrame},
};
use crate::{
    database::CouponEvent,
    error::{Error, SharedError},
    telemetry::{
        metrics::metrics,
        throttle::{Admitted, Throttle},
    },
};

/// Shortest time between two polls that watchers wait for: a stock is sent at most four times a second.
const INTERVAL: Duration = Duration::from_millis(250);

/// A poll is followed by so many times its own duration without one, up to a limit: it may have waited for a database
/// that did not answer.
const REST: u32 = 9;
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Shortest time between two polls for new streams, which do not wait for the others' poll.
const NEW_STREAMS: Duration = Duration::from_millis(10);

/// Time after a failed poll.
const RETRY: Duration = Duration::from_secs(1);

/// The most events that are read at once.
const EVENTS: i32 = 1000;

/// The most coupons whose stock is read at once.
const STOCKS: usize = 100;

static FAILED: Throttle = Throttle::new();

/// Polls until there are no watchers.
pub(super) async fn run(hub: Arc<Hub>) {
    let mut poller = Poller {
        hub,
        position: None,
        last: None,
        has_ended: false,
    };
    let hub = Arc::clone(&poller.hub);
    tokio::select! {
        () = poller.poll_while_watched() => {}
        () = comment(&hub) => {}
    }
}

/// Sends comments for ever, also while a poll waits for the database.
async fn comment(hub: &Hub) {
    let mut interval = interval(hub.streams.options.heartbeat);
    interval.tick().await;
    loop {
        interval.tick().await;
        for feed in hub.topics().feeds.values() {
            feed.send_modify(|feed| feed.comments += 1);
        }
    }
}

/// An event with the name of its coupon.
type NamedFrame = (String, EventFrame);

struct Poller {
    hub: Arc<Hub>,
    /// All events up to this id have been read; none before the first poll.
    position: Option<i64>,
    /// The event of this id, with its coupon's name; none if it has not been read.
    last: Option<NamedFrame>,
    has_ended: bool,
}

impl Poller {
    async fn poll_while_watched(&mut self) {
        let mut next = Instant::now();
        loop {
            let begun = Instant::now();
            let is_due = begun >= next;
            let Some((poll, coupons)) = self.begin(is_due) else {
                return;
            };
            let polled = self.poll(poll, &coupons).await;
            metrics().polled();
            if let Err(error) = polled {
                self.report(poll, &error.into());
                next = begun + RETRY;
            } else if is_due {
                next = begun + self.pause(begun.elapsed());
            }
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.hub.has_new.notified() => sleep_until(begun + NEW_STREAMS).await,
            }
        }
    }

    /// Begins a poll: returns its number and the coupons whose stock is to be read, all or those of new streams. Returns
    /// none if there are no watchers.
    fn begin(&mut self, of_all: bool) -> Option<(u64, Vec<Arc<str>>)> {
        let mut topics = self.hub.topics();
        topics.feeds.retain(|_, feed| feed.receiver_count() > 0);
        if topics.feeds.is_empty() {
            topics.is_polling = false;
            self.has_ended = true;
            return None;
        }
        topics.polls += 1;
        let poll = topics.polls;
        let coupons = topics.feeds.iter().filter_map(|(topic, feed)| match topic {
            Topic::Coupon(name) if of_all || feed.borrow().is_awaited(poll) => Some(name.clone()),
            _ => None,
        });
        Some((poll, coupons.collect()))
    }

    /// Reads what is new, and passes it on.
    async fn poll(&mut self, poll: u64, coupons: &[Arc<str>]) -> Result<(), Error> {
        let database = self.hub.database.clone();
        let mut position = match self.position {
            Some(position) => position,
            None => database.last_event_id(i64::MAX).await?,
        };
        loop {
            // From the last one on, which shows that those after it are the next ones.
            let events = database.list_events((position - 1).max(0), EVENTS).await?;
            let is_last_page = events.len() < EVENTS as usize;
            let mut named = Vec::with_capacity(events.len());
            for event in events {
                named.push(named_frame(event)?);
            }
            if self.is_last_lost(named.first()).await? {
                position = self.go_back(position).await?;
                continue;
            }
            let known = position;
            position = named.last().map_or(position, |(_, event)| event.id);
            self.position = Some(position);
            for (topic, feed) in &self.hub.topics().feeds {
                feed.send_if_modified(|feed| {
                    let new = named
                        .iter()
                        .filter(|(name, event)| event.id > known && topic.includes(name));
                    let has_new = feed.add_events(new.map(|(_, event)| event.clone()), position);
                    has_new | (*topic == Topic::All && is_last_page && feed.set_live(poll))
                });
            }
            self.last = named.pop().or(self.last.take());
            if is_last_page {
                break;
            }
        }
        for coupons in coupons.chunks(STOCKS) {
            let stocks = database.list_stocks(coupons).await?;
            let mut frames: HashMap<&str, Bytes> = HashMap::with_capacity(stocks.len());
            for stock in &stocks {
                frames.insert(&stock.name, frame::stock(stock).map_err(defect)?);
            }
            let topics = self.hub.topics();
            for name in coupons {
                if let Some(feed) = topics.feeds.get(&Topic::Coupon(name.clone())) {
                    let stock = frames.remove(&**name);
                    feed.send_if_modified(|feed| feed.set_stock(poll, stock));
                }
            }
        }
        Ok(())
    }

    /// Returns true if the last event that was read is no longer there. Then a failover has lost it, perhaps with others,
    /// or it was purged, perhaps with others after it.
    ///
    /// # Arguments
    /// `first`: the first event from its id on, if one is listed.
    async fn is_last_lost(&self, first: Option<&NamedFrame>) -> Result<bool, Error> {
        let Some((name, last)) = &self.last else {
            return Ok(false);
        };
        if let Some((_, first)) = first {
            return Ok(first.text != last.text);
        }
        // A transaction that has begun since may end the list before it for a while, but not that of its coupon.
        let database = &self.hub.database;
        let of_coupon = database.list_missed_events(last.id - 1, 1, Some(name));
        match of_coupon.await?.pop() {
            Some(first) => Ok(named_frame(first)?.1.text != last.text),
            None => Ok(true),
        }
    }

    /// Goes back from `position`, whose event is lost, to the last one before it. Returns the id of that.
    async fn go_back(&mut self, position: i64) -> Result<i64, Error> {
        let kept = self.hub.database.last_event_id(position - 1).await?;
        for feed in self.hub.topics().feeds.values() {
            feed.send_modify(|feed| feed.go_back(kept));
        }
        self.position = Some(kept);
        self.last = None;
        Ok(kept)
    }

    /// Time from the beginning of a poll, which took this long, to the next one.
    fn pause(&self, took: Duration) -> Duration {
        let of_streams = PER_STREAM * self.hub.streams.count();
        let of_poll = took + (took * REST).min(LONGEST_REST);
        INTERVAL.max(of_streams).max(of_poll)
    }

    /// Fails the streams that have not begun. The others wait for a poll that succeeds.
    fn report(&self, poll: u64, error: &SharedError) {
        for feed in self.hub.topics().feeds.values() {
            feed.send_if_modified(|feed| feed.set_failed(poll, error));
        }
        if let Some(Admitted { left_out }) = FAILED.admit() {
            warn!(
                shard = self.hub.database.shard(),
                error = error.get().cause().map(|cause| format!("{cause:#}")),
                left_out,
                "event streams have no news, retrying: {error}"
            );
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        if !self.has_ended {
            // The task panicked: its streams end, and the next one starts another task.
            let mut topics = self.hub.topics();
            topics.feeds.clear();
            topics.is_polling = false;
        }
    }
}

fn named_frame(event: CouponEvent) -> Result<NamedFrame, Error> {
    let frame = EventFrame::new(&event).map_err(defect)?;
    Ok((event.coupon_name, frame))
}

fn defect(error: serde_json::Error) -> Error {
    Error::Internal(error.into())
}
