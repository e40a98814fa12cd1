//! Lanes: operations on one coupon gather while the batch before them is in progress.
//!
//! Claims, reservations, confirmations, cancellations and releases go through the lane of their coupon, in the order of
//! their arrival. There is one lane for each coupon in use, with at most one batch in progress. No timer delays an
//! operation: on a quiet coupon it leaves immediately and alone, and under load batches grow. Lanes share only the
//! pool of connections, so a coupon that another session has locked delays no other coupon; batches that wait for one take
//! at most a part of the connections. A lane without operations closes.
//!
//! Most operations are claims without a request key. A batch of these alone takes a shorter way, and shares its call with
//! other lanes that wait for one.

mod calls;

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::anyhow;
use opentelemetry::trace::SpanContext;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use self::calls::{CallLimit, Counted, Shared, SharedCalls};
use crate::{
    database::{Applied, Connection, Database, UserOperation, Wait},
    error::{Error, SharedError},
    outcome::Outcome,
    shards::Shards,
    telemetry::{
        metrics::{LaneDepths, metrics},
        traces::{self, BatchSpan},
    },
};

/// Limits of the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// The most operations in one batch; the extension accepts 10,000.
    pub batch: usize,
    /// The most operations waiting in one lane.
    pub lane: usize,
    /// The most operations waiting in all lanes together.
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

/// Time for which the first expiry of a coupon's holds is not read again.
const EXPIRY_AGE: Duration = Duration::from_secs(1);

/// The lanes of one shard. Clones share them.
#[derive(Clone, Debug)]
pub struct Lanes(Arc<LanesInner>);

#[derive(Debug)]
struct LanesInner {
    database: Database,
    shared: Arc<SharedCalls>,
    limits: LaneLimits,
    /// The operations waiting in each lane. A coupon has an entry as long as the task of its lane runs.
    waiting: Mutex<Waiting>,
    /// Number of waiting operations.
    total: AtomicUsize,
    /// Number of clients that disconnected while they waited, since their operations were last removed.
    departed: AtomicUsize,
    /// The tasks of the open lanes.
    tasks: TaskTracker,
}

/// Waiting operations by coupon.
type Waiting = HashMap<Arc<str>, VecDeque<WaitingOperation>>;

/// A client of the lanes. Clones are the same client.
///
/// If an operation makes its batch fail, the next ones of its client do not travel with those of others: one client whose
/// claims a trigger refuses would take every batch apart.
#[derive(Clone, Debug, Default)]
pub struct LaneClient {
    /// True if its last operation has made a batch fail.
    has_failed: Arc<AtomicBool>,
}

/// An operation that waits for its batch.
#[derive(Debug)]
struct WaitingOperation {
    operation: UserOperation,
    client: LaneClient,
    /// True if the last operation of its client has made a batch fail.
    is_apart: bool,
    reply: oneshot::Sender<Result<Applied, SharedError>>,
    entered: Instant,
    /// Span of the request, if spans are exported.
    span: Option<Box<SpanContext>>,
}

impl Lanes {
    /// Makes the lanes of each shard. None is open yet.
    pub fn of(databases: &Shards<Database>, limits: LaneLimits) -> Shards<Self> {
        let calls = CallLimit::new();
        databases.map(|database| {
            let shards = databases.count();
            Self(Arc::new(LanesInner {
                shared: SharedCalls::new(database.clone(), calls.clone(), shards, limits.batch),
                database: database.clone(),
                limits,
                waiting: Mutex::default(),
                total: AtomicUsize::new(0),
                departed: AtomicUsize::new(0),
                tasks: TaskTracker::new(),
            }))
        })
    }

    /// Carries out an operation on `coupon_name` in the coupon's next batch. Completes after the batch has committed.
    /// An operation whose future is dropped while it waits is left out of the batch.
    ///
    /// # Errors
    /// [`Error::Overloaded`] immediately if too many operations are waiting; otherwise the error of the batch.
    pub async fn carry_out(
        &self,
        coupon_name: &str,
        operation: UserOperation,
        client: LaneClient,
    ) -> Result<Applied, SharedError> {
        let departure = Departure(&self.0.departed);
        let (reply, answer) = oneshot::channel();
        let kind = operation.operation();
        let waiting = WaitingOperation {
            operation,
            is_apart: client.has_failed.load(Ordering::Relaxed),
            client,
            reply,
            entered: Instant::now(),
            span: traces::current(),
        };
        let outcome = match self.enter(coupon_name, waiting) {
            Ok(()) => answer.await.unwrap_or_else(|_| {
                Err(Error::Internal(anyhow!("a lane ended without an answer")).into())
            }),
            Err(error) => {
                metrics().overloaded(kind);
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

    /// Counts the waiting operations.
    fn depths(&self) -> LaneDepths {
        let waiting = self.0.waiting();
        LaneDepths {
            lanes: waiting.len(),
            waiting: waiting.values().map(VecDeque::len).sum(),
            deepest: waiting.values().map(VecDeque::len).max().unwrap_or(0),
        }
    }

    fn enter(&self, coupon_name: &str, operation: WaitingOperation) -> Result<(), Error> {
        let mut waiting = self.0.waiting();
        let Err(operation) = self.push(&mut waiting, coupon_name, operation) else {
            return Ok(());
        };
        self.0.remove_departed(&mut waiting);
        self.push(&mut waiting, coupon_name, operation)
            .map_err(|_| Error::Overloaded)
    }

    /// Adds an operation to the lane of its coupon, and opens it if it is not open.
    ///
    /// # Errors
    /// There is no room for the operation, which is returned.
    fn push(
        &self,
        waiting: &mut Waiting,
        coupon_name: &str,
        operation: WaitingOperation,
    ) -> Result<(), WaitingOperation> {
        let LanesInner { limits, total, .. } = &*self.0;
        if total.load(Ordering::Relaxed) >= limits.total {
            return Err(operation);
        }
        match waiting.get_mut(coupon_name) {
            Some(operations) if operations.len() >= limits.lane => return Err(operation),
            Some(operations) => operations.push_back(operation),
            None => {
                let coupon_name: Arc<str> = coupon_name.into();
                waiting.insert(Arc::clone(&coupon_name), VecDeque::from([operation]));
                let lanes = Arc::clone(&self.0);
                self.0.tasks.spawn(run(Lane {
                    lanes,
                    coupon_name,
                    is_only: false,
                    first_expiry: None,
                    closed: false,
                }));
            }
        }
        total.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Shards<Lanes> {
    /// Counts the waiting operations.
    pub fn depths(&self) -> LaneDepths {
        let mut sum = LaneDepths::default();
        for depths in self.iter().map(Lanes::depths) {
            sum.lanes += depths.lanes;
            sum.waiting += depths.waiting;
            sum.deepest = sum.deepest.max(depths.deepest);
        }
        sum
    }
}

impl LanesInner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every operation is entered or taken completely at any point that could panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the operations of clients that have disconnected. It looks at all waiting operations, so it is only
    /// called when there is no room left.
    fn remove_departed(&self, waiting: &mut Waiting) {
        if self.departed.swap(0, Ordering::Relaxed) == 0 {
            return;
        }
        for operations in waiting.values_mut() {
            let entered = operations.len();
            operations.retain(|operation| !operation.reply.is_closed());
            self.total
                .fetch_sub(entered - operations.len(), Ordering::Relaxed);
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
    /// True if it was the only open lane as its last batch was taken.
    is_only: bool,
    /// Time at which the first hold expires, and when this was read.
    first_expiry: Option<(Instant, Instant)>,
    /// True if this lane is closed. Then an entry of its coupon belongs to another lane.
    closed: bool,
}

/// Carries out the operations of a lane until none is waiting.
async fn run(mut lane: Lane) {
    while let Some(mut batch) = lane.next_batch() {
        let apart: Vec<_> = batch.extract_if(.., |it| it.is_apart).collect();
        for part in [batch, apart] {
            if !part.is_empty() {
                lane.carry_out(part).await;
            }
        }
    }
}

impl Lane {
    /// Takes the next batch: the oldest operations whose clients still wait. Closes the lane and returns nothing if
    /// there are none.
    fn next_batch(&mut self) -> Option<Vec<WaitingOperation>> {
        let mut waiting = self.lanes.waiting();
        self.is_only = waiting.len() == 1;
        let operations = waiting.get_mut(&self.coupon_name)?;
        let entered = operations.len();
        let mut batch = Vec::with_capacity(entered.min(self.lanes.limits.batch));
        while batch.len() < self.lanes.limits.batch
            && let Some(operation) = operations.pop_front()
        {
            if !operation.reply.is_closed() {
                batch.push(operation);
            }
        }
        self.lanes
            .total
            .fetch_sub(entered - operations.len(), Ordering::Relaxed);
        if batch.is_empty() {
            waiting.remove(&self.coupon_name);
            self.closed = true;
            return None;
        }
        Some(batch)
    }

    /// Carries out a batch and answers its operations. The database may reject a whole batch because of one of them:
    /// then each half is tried separately, the older one first. One such operation among n costs about 2 log n calls,
    /// and the others still share theirs.
    async fn carry_out(&mut self, batch: Vec<WaitingOperation>) {
        let now = Instant::now();
        metrics().batch(batch.iter().map(|operation| now - operation.entered));
        let mut later = Vec::new();
        let (mut next, mut call) = self.share(batch).await;
        while let Some(mut part) = next {
            let waited_shortly = matches!(call, OwnCall::Counted(_));
            // In a box: with many coupons, a lane is opened for each claim, and most never call by themselves.
            match Box::pin(self.apply(&part, mem::take(&mut call))).await {
                Ok(Answers::Outcomes(outcomes)) => {
                    self.answer_claims(part, outcomes).await;
                }
                Ok(Answers::Applied(answers)) => {
                    for (operation, applied) in part.into_iter().zip(answers) {
                        answer(operation, Ok(applied));
                    }
                }
                Err(error) if error.may_concern_one_operation() && part.len() > 1 => {
                    later.push(part.split_off(part.len() / 2));
                    next = Some(part);
                    continue;
                }
                Err(Error::Locked(_)) if waited_shortly => {
                    (next, call) = Box::pin(self.share_again(part)).await;
                    continue;
                }
                Err(error) => fail(part, error.into()),
            }
            next = later.pop();
        }
    }

    /// Carries out a batch in a call that it shares with other lanes that wait, if it is one of plain claims. Returns it if
    /// the lane must call by itself, and how.
    async fn share(
        &mut self,
        batch: Vec<WaitingOperation>,
    ) -> (Option<Vec<WaitingOperation>>, OwnCall) {
        let is_apart = batch.iter().any(|operation| operation.is_apart);
        if is_apart || !is_plain(&batch) || self.lanes.database.is_outdated() {
            return (Some(batch), OwnCall::Uncounted);
        }
        if self.is_only
            && let Some(counted) = self.lanes.shared.count_alone()
        {
            return (Some(batch), OwnCall::Counted(counted));
        }
        match self.share_once(batch, false).await {
            Step::Done => (None, OwnCall::Uncounted),
            Step::Own(batch, call) => (Some(batch), call),
            Step::Busy(batch) => Box::pin(self.share_again(batch)).await,
        }
    }

    /// Carries out a batch that another session holds up in a later shared call, or returns it with a connection on which to
    /// wait for the coupon, if one is free. So hundreds of such batches leave the connections to others.
    async fn share_again(
        &mut self,
        mut batch: Vec<WaitingOperation>,
    ) -> (Option<Vec<WaitingOperation>>, OwnCall) {
        let mut patience = self.lanes.database.patience();
        loop {
            let database = &self.lanes.database;
            let error = match database.waiting_connection().await {
                Ok(Some(connection)) => return (Some(batch), OwnCall::Waiting(connection)),
                Ok(None) => patience.pause().await.err(),
                Err(error) => Some(error),
            };
            if let Some(error) = error {
                fail(batch, error.into());
                return (None, OwnCall::Uncounted);
            }
            match self.share_once(batch, true).await {
                Step::Done => return (None, OwnCall::Uncounted),
                Step::Own(batch, call) => return (Some(batch), call),
                Step::Busy(returned) => batch = returned,
            }
        }
    }

    async fn share_once(&mut self, batch: Vec<WaitingOperation>, was_busy: bool) -> Step {
        let coupon_name = Arc::clone(&self.coupon_name);
        let shared = Arc::clone(&self.lanes.shared);
        // Without an answer the batch is lost, and its senders with it: that is an error for each of them.
        let Ok((batch, result)) = shared.claim(coupon_name, batch, was_busy).await else {
            return Step::Done;
        };
        match result {
            Shared::Outcomes(outcomes) => self.answer_claims(batch, outcomes).await,
            Shared::Alone(counted) => return Step::Own(batch, OwnCall::Counted(counted)),
            Shared::Busy => return Step::Busy(batch),
            Shared::Apart => return Step::Own(batch, OwnCall::Uncounted),
            Shared::Failed(error) => {
                for operation in batch {
                    answer(operation, Err(error.clone()));
                }
            }
        }
        Step::Done
    }

    async fn apply(&self, batch: &[WaitingOperation], call: OwnCall) -> Result<Answers, Error> {
        let is_plain = is_plain(batch);
        let function = if is_plain {
            "honcho_claim_batch"
        } else {
            "honcho_apply"
        };
        let traced = batch.iter().filter_map(|waiting| waiting.span.as_deref());
        let begun = Instant::now();
        let span = BatchSpan::start(function, batch.len(), traced);
        let answers = if is_plain {
            self.claim_batch(batch, call).await
        } else {
            self.apply_mixed(batch).await
        };
        metrics().batch_done(begun.elapsed());
        answers.inspect_err(|error| span.fail(error))
    }

    async fn claim_batch(
        &self,
        batch: &[WaitingOperation],
        call: OwnCall,
    ) -> Result<Answers, Error> {
        let users = batch.iter().map(|claim| claim.operation.user_id());
        let users: Vec<&str> = users.collect();
        let database = &self.lanes.database;
        let name = &self.coupon_name;
        let outcomes = match call {
            OwnCall::Counted(counted) => {
                let claims = database.claim_batch(name, &users, Wait::Short);
                counted.bounded(claims).await
            }
            OwnCall::Uncounted => database.claim_batch(name, &users, Wait::Long).await,
            OwnCall::Waiting(connection) => {
                let wait = Wait::On(connection);
                database.claim_batch(name, &users, wait).await
            }
        }?;
        check_count(batch.len(), outcomes.len())?;
        Ok(Answers::Outcomes(outcomes))
    }

    async fn apply_mixed(&self, batch: &[WaitingOperation]) -> Result<Answers, Error> {
        let operations = batch.iter().map(|waiting| &waiting.operation);
        let database = &self.lanes.database;
        let applied = database.apply(&self.coupon_name, operations).await?;
        check_count(batch.len(), applied.len())?;
        Ok(Answers::Applied(applied))
    }

    /// Answers a batch of plain claims. Those that find all stock held come last, because the time until the first hold
    /// expires takes a call of its own.
    async fn answer_claims(&mut self, batch: Vec<WaitingOperation>, outcomes: Vec<Outcome>) {
        let mut without_stock = Vec::new();
        for (claim, outcome) in batch.into_iter().zip(outcomes) {
            if outcome == Outcome::AllHeld {
                without_stock.push(claim);
            } else {
                answer(claim, Ok(outcome.into()));
            }
        }
        if without_stock.is_empty() {
            return;
        }
        let first_expiry = Box::pin(self.time_to_first_expiry()).await;
        for claim in without_stock {
            let applied = Applied {
                first_expiry,
                ..Outcome::AllHeld.into()
            };
            answer(claim, Ok(applied));
        }
    }

    /// Time until the first hold of the coupon expires, read at most once in [`EXPIRY_AGE`]; none if it cannot be
    /// read.
    async fn time_to_first_expiry(&mut self) -> Option<Duration> {
        let expires = match self.first_expiry {
            Some((expires, read)) if read.elapsed() < EXPIRY_AGE => expires,
            _ => {
                let first_expiry = self.lanes.database.first_expiry(&self.coupon_name).await;
                let read = Instant::now();
                let expires = read + first_expiry.ok().flatten()?;
                self.first_expiry = Some((expires, read));
                expires
            }
        };
        Some(expires.saturating_duration_since(Instant::now()))
    }
}

/// A call that a lane makes by itself.
#[derive(Default)]
enum OwnCall {
    /// It counts among the calls in progress, and waits only a moment if another session holds the coupon.
    Counted(Counted),
    /// It waits as long as it may.
    #[default]
    Uncounted,
    /// It waits on this connection, in a box: most lanes never have one.
    Waiting(Box<Connection>),
}

/// Result of a shared call for the lane's batch.
enum Step {
    /// It is answered.
    Done,
    /// The lane must call by itself.
    Own(Vec<WaitingOperation>, OwnCall),
    /// Another session was changing the coupon.
    Busy(Vec<WaitingOperation>),
}

/// Answers to a batch, in the order of its operations.
enum Answers {
    /// To a batch of plain claims.
    Outcomes(Vec<Outcome>),
    /// To any other.
    Applied(Vec<Applied>),
}

impl Drop for Lane {
    fn drop(&mut self) {
        if !self.closed {
            // The task panicked: its waiting operations end with an error, because their senders are dropped.
            let mut waiting = self.lanes.waiting();
            let left = waiting
                .remove(&self.coupon_name)
                .map_or(0, |operations| operations.len());
            self.lanes.total.fetch_sub(left, Ordering::Relaxed);
        }
    }
}

/// Answers a batch that has failed.
fn fail(batch: Vec<WaitingOperation>, error: SharedError) {
    let has_failed = error.get().may_concern_one_operation();
    for operation in batch {
        let client = &operation.client;
        client.has_failed.store(has_failed, Ordering::Relaxed);
        answer(operation, Err(error.clone()));
    }
}

fn answer(waiting: WaitingOperation, applied: Result<Applied, SharedError>) {
    let operation = waiting.operation.operation();
    if waiting.is_apart && applied.is_ok() {
        waiting.client.has_failed.store(false, Ordering::Relaxed);
    }
    match &applied {
        Ok(applied) if applied.is_replay => metrics().replayed(operation),
        Ok(applied) => metrics().carried_out(operation, applied.outcome),
        Err(_) => metrics().failed(operation),
    }
    // A client that has disconnected finds the outcome by repeating the request.
    let _ = waiting.reply.send(applied);
}

/// Returns true if these are all claims without a request key.
fn is_plain(batch: &[WaitingOperation]) -> bool {
    batch
        .iter()
        .all(|waiting| waiting.operation.is_plain_claim())
}

fn check_count(operations: usize, answers: usize) -> Result<(), Error> {
    if operations == answers {
        Ok(())
    } else {
        let why = anyhow!("a batch and its outcomes differ in number");
        Err(Error::Internal(why))
    }
}
