//! Lanes: claims on one coupon gather while the batch before them is in progress.
//!
//! There is one lane for each coupon that is being claimed, with at most one batch in progress. No timer delays a
//! claim: on a quiet coupon it leaves immediately and alone, and under load batches grow. Lanes share only the
//! pool of connections, so a coupon that another session has locked delays no other coupon. A lane without claims
//! closes.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::anyhow;
use opentelemetry::trace::SpanContext;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::{
    database::Database,
    error::{Error, SharedError},
    outcome::Outcome,
    telemetry::{
        metrics::{LaneDepths, metrics},
        traces::{self, BatchSpan},
    },
};

/// Limits of the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// The most claims in one batch; the extension accepts 10,000.
    pub batch: usize,
    /// The most claims waiting in one lane.
    pub lane: usize,
    /// The most claims waiting in all lanes together.
    pub total: usize,
}

impl Default for LaneLimits {
    fn default() -> Self {
        // A batch of this size holds its coupon for a few milliseconds.
        Self {
            batch: 1_000,
            lane: 10_000,
            total: 50_000,
        }
    }
}

/// All lanes. Clones share them.
#[derive(Clone, Debug)]
pub struct Lanes(Arc<LanesInner>);

#[derive(Debug)]
struct LanesInner {
    database: Database,
    limits: LaneLimits,
    /// The claims waiting in each lane. A coupon has an entry as long as the task of its lane runs.
    waiting: Mutex<Waiting>,
    /// Number of waiting claims.
    total: AtomicUsize,
    /// Number of clients that disconnected while they waited, since their claims were last removed.
    departed: AtomicUsize,
    /// The tasks of the open lanes.
    tasks: TaskTracker,
}

/// Waiting claims by coupon.
type Waiting = HashMap<Arc<str>, VecDeque<WaitingClaim>>;

/// A claim that waits for its batch.
#[derive(Debug)]
struct WaitingClaim {
    user_id: String,
    reply: oneshot::Sender<Result<Outcome, SharedError>>,
    entered: Instant,
    /// Span of the request, if spans are exported.
    span: Option<Box<SpanContext>>,
}

impl Lanes {
    /// Makes lanes to `database`. None is open yet.
    pub fn new(database: Database, limits: LaneLimits) -> Self {
        Self(Arc::new(LanesInner {
            database,
            limits,
            waiting: Mutex::default(),
            total: AtomicUsize::new(0),
            departed: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
        }))
    }

    /// Claims `coupon_name` for `user_id` in the coupon's next batch. Completes after the batch has committed. A
    /// claim whose future is dropped while it waits is left out of the batch.
    ///
    /// # Errors
    /// [`Error::Overloaded`] immediately if too many claims are waiting; otherwise the error of the batch.
    pub async fn claim(&self, user_id: String, coupon_name: &str) -> Result<Outcome, SharedError> {
        let departure = Departure(&self.0.departed);
        let (reply, answer) = oneshot::channel();
        let claim = WaitingClaim {
            user_id,
            reply,
            entered: Instant::now(),
            span: traces::current(),
        };
        let outcome = match self.enter(coupon_name, claim) {
            Ok(()) => answer.await.unwrap_or_else(|_| {
                Err(Error::Internal(anyhow!("a lane ended without an answer")).into())
            }),
            Err(error) => {
                metrics().claim_overloaded();
                Err(error.into())
            }
        };
        mem::forget(departure);
        outcome
    }

    /// Waits until no lane is open: then every batch has been answered, also those whose clients have
    /// disconnected.
    pub async fn drained(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Counts the waiting claims.
    pub fn depths(&self) -> LaneDepths {
        let waiting = self.0.waiting();
        LaneDepths {
            lanes: waiting.len(),
            waiting: waiting.values().map(VecDeque::len).sum(),
            deepest: waiting.values().map(VecDeque::len).max().unwrap_or(0),
        }
    }

    fn enter(&self, coupon_name: &str, claim: WaitingClaim) -> Result<(), Error> {
        let mut waiting = self.0.waiting();
        if !self.0.has_room(&waiting, coupon_name) {
            self.0.remove_departed(&mut waiting);
            if !self.0.has_room(&waiting, coupon_name) {
                return Err(Error::Overloaded);
            }
        }
        match waiting.get_mut(coupon_name) {
            Some(claims) => claims.push_back(claim),
            None => {
                let coupon_name: Arc<str> = coupon_name.into();
                waiting.insert(Arc::clone(&coupon_name), VecDeque::from([claim]));
                let lanes = Arc::clone(&self.0);
                self.0.tasks.spawn(run(Lane {
                    lanes,
                    coupon_name,
                    closed: false,
                }));
            }
        }
        self.0.total.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl LanesInner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every claim is entered or taken completely at any point that could panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, waiting: &Waiting, coupon_name: &str) -> bool {
        self.total.load(Ordering::Relaxed) < self.limits.total
            && waiting
                .get(coupon_name)
                .is_none_or(|claims| claims.len() < self.limits.lane)
    }

    /// Removes the claims of clients that have disconnected. It looks at all waiting claims, so it is only called
    /// when there is no room left.
    fn remove_departed(&self, waiting: &mut Waiting) {
        if self.departed.swap(0, Ordering::Relaxed) == 0 {
            return;
        }
        for claims in waiting.values_mut() {
            let entered = claims.len();
            claims.retain(|claim| !claim.reply.is_closed());
            self.total
                .fetch_sub(entered - claims.len(), Ordering::Relaxed);
        }
    }
}

/// Counts a client as departed if this is dropped.
struct Departure<'a>(&'a AtomicUsize);

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// An open lane.
struct Lane {
    lanes: Arc<LanesInner>,
    coupon_name: Arc<str>,
    /// True if this lane is closed. Then an entry of its coupon belongs to another lane.
    closed: bool,
}

/// Carries out the claims of a lane until none is waiting.
async fn run(mut lane: Lane) {
    while let Some(batch) = lane.next_batch() {
        lane.carry_out(batch).await;
    }
}

impl Lane {
    /// Takes the next batch: the oldest claims whose clients still wait. Closes the lane and returns nothing if
    /// there are none.
    fn next_batch(&mut self) -> Option<Vec<WaitingClaim>> {
        let mut waiting = self.lanes.waiting();
        let claims = waiting.get_mut(&self.coupon_name)?;
        let entered = claims.len();
        let mut batch = Vec::with_capacity(entered.min(self.lanes.limits.batch));
        while batch.len() < self.lanes.limits.batch
            && let Some(claim) = claims.pop_front()
        {
            if !claim.reply.is_closed() {
                batch.push(claim);
            }
        }
        self.lanes
            .total
            .fetch_sub(entered - claims.len(), Ordering::Relaxed);
        if batch.is_empty() {
            waiting.remove(&self.coupon_name);
            self.closed = true;
            return None;
        }
        Some(batch)
    }

    /// Carries out a batch and answers its claims. The database may reject a whole batch because of one claim:
    /// then each half is tried separately, the older one first. One such claim among n costs about 2 log n calls,
    /// and the others still share theirs.
    async fn carry_out(&self, batch: Vec<WaitingClaim>) {
        let now = Instant::now();
        metrics().batch(batch.iter().map(|claim| now - claim.entered));
        let mut later = Vec::new();
        let mut next = Some(batch);
        while let Some(mut part) = next {
            match self.claim_batch(&part).await {
                Ok(outcomes) => {
                    for (claim, outcome) in part.into_iter().zip(outcomes) {
                        answer(claim, Ok(outcome));
                    }
                }
                Err(error) if error.may_concern_one_claim() && part.len() > 1 => {
                    later.push(part.split_off(part.len() / 2));
                    next = Some(part);
                    continue;
                }
                Err(error) => {
                    let error = SharedError::from(error);
                    for claim in part {
                        answer(claim, Err(error.clone()));
                    }
                }
            }
            next = later.pop();
        }
    }

    async fn claim_batch(&self, batch: &[WaitingClaim]) -> Result<Vec<Outcome>, Error> {
        let begun = Instant::now();
        let span = BatchSpan::start(
            batch.len(),
            batch.iter().filter_map(|claim| claim.span.as_deref()),
        );
        let outcomes = self.call(batch).await;
        metrics().batch_done(begun.elapsed());
        outcomes.inspect_err(|error| span.fail(error))
    }

    async fn call(&self, batch: &[WaitingClaim]) -> Result<Vec<Outcome>, Error> {
        let user_ids: Vec<&str> = batch.iter().map(|claim| claim.user_id.as_str()).collect();
        let outcomes = self
            .lanes
            .database
            .claim_batch(&self.coupon_name, &user_ids)
            .await?;
        if outcomes.len() == batch.len() {
            Ok(outcomes)
        } else {
            Err(miscount())
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if !self.closed {
            // The task panicked: its waiting claims end with an error, because their senders are dropped.
            let mut waiting = self.lanes.waiting();
            let left = waiting
                .remove(&self.coupon_name)
                .map_or(0, |claims| claims.len());
            self.lanes.total.fetch_sub(left, Ordering::Relaxed);
        }
    }
}

fn answer(claim: WaitingClaim, outcome: Result<Outcome, SharedError>) {
    match &outcome {
        Ok(outcome) => metrics().claimed(*outcome),
        Err(_) => metrics().claim_failed(),
    }
    // A client that has disconnected finds the outcome by claiming again.
    let _ = claim.reply.send(outcome);
}

fn miscount() -> Error {
    Error::Internal(anyhow!("a batch and its outcomes differ in number"))
}
