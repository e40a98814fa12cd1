//! Events of coupons for the watchers of streams.
//!
//! One poller asks a shard's database for all of them, and only while there are some. It passes what is new to a feed for
//! each topic, in the form in which it is sent, and the watchers of the topic share its bytes. A stream of all coupons has
//! a watcher for each shard.

mod feed;
mod frame;
mod poller;
mod stream;
mod watcher;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::anyhow;
use futures_util::future::try_join_all;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

pub use self::stream::Stream;
use self::{
    feed::{Feed, State, Topic},
    watcher::Watcher,
};
use crate::{
    database::Database,
    error::{Error, SharedError},
    shards::Shards,
    telemetry::metrics::metrics,
};

/// Time between two polls for each stream, if there are so many that the shortest time is not enough. A change is a write
/// for each, and a thousand of them a second cost claims a few per cent.
const PER_STREAM: Duration = Duration::from_millis(1);

/// Options of streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// The most open streams.
    pub streams: usize,
    /// Time between two comments.
    pub heartbeat: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            streams: 2_000,
            heartbeat: Duration::from_secs(15),
        }
    }
}

/// The events of coupons. Clones share the pollers.
#[derive(Clone, Debug)]
pub struct Events {
    hubs: Shards<Arc<Hub>>,
    streams: Arc<OpenStreams>,
}

/// The events of one shard's coupons.
#[derive(Debug)]
struct Hub {
    database: Database,
    streams: Arc<OpenStreams>,
    topics: Mutex<Topics>,
    /// Wakes the poller for new streams.
    has_new: Notify,
}

/// The open streams of all shards.
#[derive(Debug)]
struct OpenStreams {
    options: StreamOptions,
    permits: Arc<Semaphore>,
    /// Number of streams that have begun.
    begun: AtomicU32,
}

/// The topics that are watched.
#[derive(Debug, Default)]
struct Topics {
    feeds: HashMap<Topic, watch::Sender<Feed>>,
    /// Number of polls that have begun.
    polls: u64,
    /// True while the poller runs.
    is_polling: bool,
    /// True if the service is shutting down.
    is_over: bool,
}

/// The permit of a stream, returned when dropped.
#[derive(Debug)]
struct StreamPermit {
    /// Number of the stream.
    number: u32,
    _held: OwnedSemaphorePermit,
}

impl Events {
    /// Makes the events of the shards. Nothing is polled yet.
    pub fn new(databases: &Shards<Database>, options: StreamOptions) -> Self {
        let permits = options.streams.min(Semaphore::MAX_PERMITS);
        let streams = Arc::new(OpenStreams {
            options,
            permits: Arc::new(Semaphore::new(permits)),
            begun: AtomicU32::new(0),
        });
        let hubs = databases.map(|database| {
            Arc::new(Hub {
                database: database.clone(),
                streams: Arc::clone(&streams),
                topics: Mutex::default(),
                has_new: Notify::new(),
            })
        });
        Self { hubs, streams }
    }

    /// Time between two comments.
    pub fn heartbeat(&self) -> Duration {
        self.streams.options.heartbeat
    }

    /// Number of shards, and of ids from which a stream of all coupons resumes.
    pub fn shard_count(&self) -> usize {
        self.hubs.count()
    }

    /// Starts the stream of a coupon.
    ///
    /// # Arguments
    /// `after`: id of the last event that the client has received, if it resumes a stream.
    ///
    /// # Errors
    /// [`Error::TooManyStreams`]; [`Error::COUPON_NOT_FOUND`]; those of the database.
    pub async fn watch_coupon(
        &self,
        name: &str,
        after: Option<i64>,
    ) -> Result<Stream, SharedError> {
        let permit = self.streams.permit()?;
        let hub = self.hubs.of(name);
        let watcher = hub.watch(Topic::Coupon(name.into()), after, permit.number);
        Ok(Stream::of_one(watcher.await?, permit))
    }

    /// Starts a stream of all coupons.
    ///
    /// # Arguments
    /// `after`: ids of the last events that the client has received, as many as there are shards, if it resumes a stream.
    ///
    /// # Errors
    /// [`Error::TooManyStreams`]; those of any database.
    pub async fn watch_all(&self, after: Option<Vec<i64>>) -> Result<Stream, SharedError> {
        let permit = self.streams.permit()?;
        let mut resumed = after.iter().flatten().copied();
        let watchers = self
            .hubs
            .iter()
            .map(|hub| hub.watch(Topic::All, resumed.next(), permit.number));
        let watchers = try_join_all(watchers).await?;
        Ok(Stream::of_all(watchers, after, permit))
    }

    /// Ends all streams, and those that begin from now on: the service is shutting down.
    pub fn stop(&self) {
        for hub in self.hubs.iter() {
            let mut topics = hub.topics();
            topics.is_over = true;
            for feed in topics.feeds.values() {
                feed.send_modify(|feed| feed.is_over = true);
            }
        }
    }
}

impl OpenStreams {
    fn permit(&self) -> Result<StreamPermit, Error> {
        let held = Arc::clone(&self.permits).try_acquire_owned();
        let held = held.map_err(|_| Error::TooManyStreams)?;
        metrics().stream_begun();
        Ok(StreamPermit {
            number: self.begun.fetch_add(1, Ordering::Relaxed),
            _held: held,
        })
    }

    fn count(&self) -> u32 {
        let free = self.permits.available_permits();
        u32::try_from(self.options.streams.saturating_sub(free)).unwrap_or(u32::MAX)
    }

    /// Time for which a stream waits before it sends what is new. If all were sent at once, claims would wait meanwhile.
    ///
    /// # Arguments
    /// `number`: number of the stream.
    fn delay(&self, number: u32) -> Duration {
        PER_STREAM / 2 * (number % self.count().max(1))
    }
}

impl Hub {
    fn topics(&self) -> MutexGuard<'_, Topics> {
        // Each feed is changed completely at any point that could panic.
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a watcher of a topic for the stream of this number.
    async fn watch(
        self: &Arc<Self>,
        topic: Topic,
        after: Option<i64>,
        number: u32,
    ) -> Result<Watcher, SharedError> {
        let (mut feed, poll) = self.subscribe(&topic);
        let mut answer = None;
        let answered = feed.wait_for(|feed| {
            answer = feed.answer(poll);
            answer.is_some()
        });
        // An error means that the poller has panicked.
        let _ = answered.await;
        match answer.ok_or_else(|| Error::Internal(anyhow!("the poller has ended")))?? {
            State::Live | State::Unknown => {}
            State::Missing(_) => return Err(Error::COUPON_NOT_FOUND.into()),
        }
        let hub = Arc::clone(self);
        Ok(Watcher::start(hub, topic, feed, after, number).await?)
    }

    /// Returns the feed of a topic, and the number of the poll that a new stream must wait for: 0 if it must not wait.
    fn subscribe(self: &Arc<Self>, topic: &Topic) -> (watch::Receiver<Feed>, u64) {
        let mut topics = self.topics();
        let next_poll = topics.polls + 1;
        if topics.is_over {
            return (watch::channel(Feed::over(topic)).1, 0);
        }
        // The coupon of a feed that is over is gone, and slow watchers may still hold the feed. A new coupon may have the
        // name by now.
        if let Some(feed) = topics.feeds.get(topic)
            && feed.borrow().is_over
        {
            topics.feeds.remove(topic);
        }
        let feed = topics
            .feeds
            .entry(topic.clone())
            .or_insert_with(|| watch::Sender::new(Feed::new(topic)));
        let awaited = if feed.borrow().is_up_to_date() {
            0
        } else {
            feed.send_if_modified(|feed| {
                feed.await_poll(next_poll);
                false
            });
            self.has_new.notify_one();
            next_poll
        };
        let feed = feed.subscribe();
        if !topics.is_polling {
            topics.is_polling = true;
            tokio::spawn(poller::run(Arc::clone(self)));
        }
        (feed, awaited)
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        metrics().stream_ended();
    }
}
