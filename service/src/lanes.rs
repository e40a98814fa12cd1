//! Lanes: the claims on one coupon gather while the batch before them is under way.
//!
//! One lane per coupon that is being claimed, one batch per lane in flight. No timer holds a claim
//! back: on a quiet coupon it leaves at once and alone, and under load the batches grow by
//! themselves. Lanes share nothing but the pool of connections, so one whose coupon somebody has
//! locked delays no other, and a lane that has nothing to do is gone.

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
    db::{Database, Outcome},
    error::Error,
    problem::Failure,
    telemetry::{
        metrics::metrics,
        traces::{self, BatchSpan},
    },
};

/// How much the lanes take on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most claims in one batch; the database takes 10,000.
    pub batch: usize,
    /// The most claims waiting in one lane.
    pub lane: usize,
    /// The most claims waiting in all lanes together.
    pub total: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // A batch of this size takes the database a few milliseconds, during which it keeps one
        // coupon to itself.
        Self {
            batch: 1_000,
            lane: 10_000,
            total: 50_000,
        }
    }
}

/// How many claims wait, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depths {
    /// Lanes that are open.
    pub lanes: usize,
    /// Claims that wait in them.
    pub waiting: usize,
    /// Claims that wait in the lane in which most do.
    pub deepest: usize,
}

/// The way of every claim to the database. Clones share the lanes.
#[derive(Clone, Debug)]
pub struct Lanes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    database: Database,
    limits: Limits,
    /// The claims that wait in each lane. A coupon has a lane here as long as its task runs.
    waiting: Mutex<Waiting>,
    /// How many of them there are.
    total: AtomicUsize,
    /// How many clients went away while they waited, since that was last looked for.
    departed: AtomicUsize,
    /// The tasks of the open lanes.
    tasks: TaskTracker,
}

/// The claims that wait, by coupon.
type Waiting = HashMap<Arc<str>, VecDeque<Claim>>;

/// A claim that waits for its batch.
#[derive(Debug)]
struct Claim {
    user_id: String,
    reply: oneshot::Sender<Result<Outcome, Failure>>,
    entered: Instant,
    /// The request's span, where spans are exported.
    span: Option<Box<SpanContext>>,
}

impl Lanes {
    /// Lanes to `database`, none of them open yet.
    pub fn new(database: Database, limits: Limits) -> Self {
        Self(Arc::new(Shared {
            database,
            limits,
            waiting: Mutex::default(),
            total: AtomicUsize::new(0),
            departed: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
        }))
    }

    /// Claims `coupon_name` for `user_id` in the coupon's next batch. The answer comes after the
    /// batch has committed; whoever drops the future while it waits is left out of the batch.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once where too many wait already; else what became of the batch.
    pub async fn claim(&self, user_id: String, coupon_name: &str) -> Result<Outcome, Failure> {
        let departure = Departure(&self.0.departed);
        let (reply, answer) = oneshot::channel();
        let claim = Claim {
            user_id,
            reply,
            entered: Instant::now(),
            span: traces::current(),
        };
        let told = match self.enter(coupon_name, claim) {
            Ok(()) => answer.await.unwrap_or_else(|_| {
                Err(Error::Internal(anyhow!("a lane ended without an answer")).into())
            }),
            Err(error) => {
                metrics().claim_turned_away();
                Err(error.into())
            }
        };
        mem::forget(departure);
        told
    }

    /// Waits until no lane is open: whatever was on its way to the database has come back, also for
    /// those who did not wait for it.
    pub async fn drained(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// How full the lanes are.
    pub fn depths(&self) -> Depths {
        let waiting = self.0.waiting();
        Depths {
            lanes: waiting.len(),
            waiting: waiting.values().map(VecDeque::len).sum(),
            deepest: waiting.values().map(VecDeque::len).max().unwrap_or(0),
        }
    }

    fn enter(&self, coupon_name: &str, claim: Claim) -> Result<(), Error> {
        let mut waiting = self.0.waiting();
        if !self.0.has_room(&waiting, coupon_name) {
            self.0.let_departed_go(&mut waiting);
            if !self.0.has_room(&waiting, coupon_name) {
                return Err(Error::Overloaded);
            }
        }
        match waiting.get_mut(coupon_name) {
            Some(claims) => claims.push_back(claim),
            None => {
                let coupon_name: Arc<str> = coupon_name.into();
                waiting.insert(Arc::clone(&coupon_name), VecDeque::from([claim]));
                let shared = Arc::clone(&self.0);
                self.0.tasks.spawn(run(Lane {
                    shared,
                    coupon_name,
                    closed: false,
                }));
            }
        }
        self.0.total.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // No claim is half entered or half taken at any point that could panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, waiting: &Waiting, coupon_name: &str) -> bool {
        self.total.load(Ordering::Relaxed) < self.limits.total
            && waiting
                .get(coupon_name)
                .is_none_or(|claims| claims.len() < self.limits.lane)
    }

    /// Gives the places of clients who went away to others; only when there is no other place left,
    /// for it goes through all that wait.
    fn let_departed_go(&self, waiting: &mut Waiting) {
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

/// Counts a client as gone if it is dropped.
struct Departure<'a>(&'a AtomicUsize);

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// An open lane.
struct Lane {
    shared: Arc<Shared>,
    coupon_name: Arc<str>,
    /// Whether this lane is closed, so that its entry, if there is one, is another's.
    closed: bool,
}

/// Carries out a lane's claims until none waits.
async fn run(mut lane: Lane) {
    while let Some(batch) = lane.next_batch() {
        lane.carry_out(batch).await;
    }
}

impl Lane {
    /// The next batch: those who came first and still wait. Closes the lane and returns nothing
    /// where nobody does.
    fn next_batch(&mut self) -> Option<Vec<Claim>> {
        let mut waiting = self.shared.waiting();
        let claims = waiting.get_mut(&self.coupon_name)?;
        let entered = claims.len();
        let mut batch = Vec::with_capacity(entered.min(self.shared.limits.batch));
        while batch.len() < self.shared.limits.batch
            && let Some(claim) = claims.pop_front()
        {
            if !claim.reply.is_closed() {
                batch.push(claim);
            }
        }
        self.shared
            .total
            .fetch_sub(entered - claims.len(), Ordering::Relaxed);
        if batch.is_empty() {
            waiting.remove(&self.coupon_name);
            self.closed = true;
            return None;
        }
        Some(batch)
    }

    /// Carries out a batch and answers its claims. What the database refuses as a whole it may refuse for
    /// the sake of one claim: then each half is tried by itself, the one that came first before the other.
    /// So one such claim among n costs about 2 log n calls, and the others still share theirs.
    async fn carry_out(&self, batch: Vec<Claim>) {
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
                    let failure = Failure::from(error);
                    for claim in part {
                        answer(claim, Err(failure.clone()));
                    }
                }
            }
            next = later.pop();
        }
    }

    async fn claim_batch(&self, batch: &[Claim]) -> Result<Vec<Outcome>, Error> {
        let begun = Instant::now();
        let span = BatchSpan::begin(
            batch.len(),
            batch.iter().filter_map(|claim| claim.span.as_deref()),
        );
        let outcomes = self.call(batch).await;
        metrics().batch_done(begun.elapsed());
        outcomes.inspect_err(|error| span.fail(error))
    }

    async fn call(&self, batch: &[Claim]) -> Result<Vec<Outcome>, Error> {
        let user_ids: Vec<&str> = batch.iter().map(|claim| claim.user_id.as_str()).collect();
        let outcomes = self
            .shared
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
            // The task broke off: whoever waits learns it by the loss of the reply.
            let mut waiting = self.shared.waiting();
            let left = waiting
                .remove(&self.coupon_name)
                .map_or(0, |claims| claims.len());
            self.shared.total.fetch_sub(left, Ordering::Relaxed);
        }
    }
}

fn answer(claim: Claim, outcome: Result<Outcome, Failure>) {
    match &outcome {
        Ok(outcome) => metrics().claimed(*outcome),
        Err(_) => metrics().claim_failed(),
    }
    // Whoever went away meanwhile finds the outcome by asking again.
    let _ = claim.reply.send(outcome);
}

fn miscount() -> Error {
    Error::Internal(anyhow!("a batch and its outcomes differ in number"))
}
