//! Calls of the lanes: the batches that wait while enough calls are in progress share the next one, and travel in one
//! commit.
//!
//! Many coupons at once would otherwise be many small transactions, each with its commit and its turn on a processor. No
//! timer holds anything back: the more lanes wait, the more share the next call, and one that waits by itself calls
//! alone. A coupon that another session is changing is left out of a shared call; its batch comes again with a later one,
//! until it gets a connection of its own on which to wait. A batch that makes a shared call fail goes on alone.
//!
//! Several shards have these calls for themselves, and a limit in common: with more calls in progress, fewer lanes share
//! each. A call counts for a short time only, so that a shard that does not answer does not hold up the others.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use super::{WaitingOperation, check_count};
use crate::{
    database::{Connection, Database},
    error::{Error, SharedError},
    outcome::Outcome,
    telemetry::{metrics::metrics, traces::BatchSpan},
};

/// The most lanes that share a call. Each of their coupons is held until its commit.
const LANES: usize = 128;

/// The longest time for which a call counts, if it takes longer.
const COUNTED: Duration = Duration::from_millis(10);

/// The limit of calls in progress on all shards. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct CallLimit(Arc<Semaphore>);

/// A call that counts until this is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    _held: Option<OwnedSemaphorePermit>,
    /// Permit of a lane that calls alone, which may have to wait for its coupon.
    _alone: Option<OwnedSemaphorePermit>,
}

impl CallLimit {
    /// As many calls as one database may have in progress.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(calls(1))))
    }

    fn try_count(&self) -> Option<Counted> {
        let held = Arc::clone(&self.0).try_acquire_owned().ok()?;
        Some(Counted {
            _held: Some(held),
            _alone: None,
        })
    }

    async fn count(&self) -> Counted {
        // Never closed.
        let held = Arc::clone(&self.0).acquire_owned().await.ok();
        Counted {
            _held: held,
            _alone: None,
        }
    }
}

impl Counted {
    /// Completes with `call`, which counts at most for [`COUNTED`].
    pub async fn bounded<T>(self, call: impl Future<Output = T>) -> T {
        let mut call = pin!(call);
        if let Ok(result) = timeout(COUNTED, call.as_mut()).await {
            return result;
        }
        drop(self);
        call.await
    }
}

/// The most calls of one of so many shards: two for each processor, for one waits for its flush while another runs. With
/// more calls in progress, fewer lanes share each, and a claim costs more.
fn calls(shards: usize) -> usize {
    let processors = thread::available_parallelism().map_or(2, usize::from);
    2 * processors.div_ceil(shards)
}

/// Calls that lanes share.
#[derive(Debug)]
pub(super) struct SharedCalls {
    database: Database,
    limit: CallLimit,
    /// The most claims in one call.
    claims: usize,
    /// Permits of the calls in progress.
    permits: Arc<Semaphore>,
    room: Mutex<Room>,
}

/// The batches that wait for the next shared call.
#[derive(Debug, Default)]
struct Room {
    waiting: VecDeque<SharedBatch>,
    /// True while a task waits for its permit and connection.
    is_attended: bool,
}

/// A lane's batch of claims without keys, which waits for a shared call.
#[derive(Debug)]
struct SharedBatch {
    coupon_name: Arc<str>,
    batch: Vec<WaitingOperation>,
    /// True if it was left out of a call before. Then its lane does not call alone, which would wait for the coupon.
    was_busy: bool,
    reply: oneshot::Sender<(Vec<WaitingOperation>, Shared)>,
}

/// Result of a shared call for one of its batches.
#[derive(Debug)]
pub(super) enum Shared {
    /// The outcomes of its claims.
    Outcomes(Vec<Outcome>),
    /// No other batch waits: the lane may call by itself.
    Alone(Counted),
    /// Nothing was changed, because another session was changing the coupon.
    Busy,
    /// Nothing was changed: the lane must call by itself.
    Apart,
    /// The error of the call, which concerns all.
    Failed(SharedError),
}

impl SharedCalls {
    /// Makes the shared calls of one of so many shards, each of at most so many claims.
    pub fn new(database: Database, limit: CallLimit, shards: usize, claims: usize) -> Arc<Self> {
        Arc::new(Self {
            database,
            limit,
            claims,
            permits: Arc::new(Semaphore::new(calls(shards))),
            room: Mutex::default(),
        })
    }

    /// Counts the call of a lane that is the only one open; none if too many calls are in progress.
    pub fn count_alone(&self) -> Option<Counted> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        let counted = self.limit.try_count()?;
        Some(Counted {
            _alone: Some(permit),
            ..counted
        })
    }

    /// Claims for a lane's batch together with others, and returns the batch.
    ///
    /// # Arguments
    /// `was_busy`: another session was changing the coupon a moment ago.
    ///
    /// # Errors
    /// The call has ended without an answer, which is a defect.
    pub async fn claim(
        self: &Arc<Self>,
        coupon_name: Arc<str>,
        batch: Vec<WaitingOperation>,
        was_busy: bool,
    ) -> Result<(Vec<WaitingOperation>, Shared), Error> {
        let (reply, answer) = oneshot::channel();
        {
            let mut room = self.room();
            room.waiting.push_back(SharedBatch {
                coupon_name,
                batch,
                was_busy,
                reply,
            });
            if !room.is_attended {
                room.is_attended = true;
                tokio::spawn(Arc::clone(self).attend());
            }
        }
        let answer = answer.await;
        answer.map_err(|_| Error::Internal(anyhow!("a shared call ended without an answer")))
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        // A batch is entered or taken completely at any point that could panic.
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what waits whenever there are a permit and a connection, until nothing waits.
    async fn attend(self: Arc<Self>) {
        loop {
            // Never closed.
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
                return;
            };
            // While this waits for a connection, other batches come.
            let connection = self.database.connection().await;
            if connection.is_ok()
                && let Some((batch, counted)) = self.next_alone()
            {
                drop(connection);
                batch.answer(Shared::Alone(Counted {
                    _alone: Some(permit),
                    ..counted
                }));
                return;
            }
            let counted = match connection {
                Ok(_) => Some(self.limit.count().await),
                Err(_) => None,
            };
            let (group, is_last) = self.next_group();
            match (connection, counted) {
                (Ok(connection), Some(counted)) if !group.is_empty() => {
                    let calls = Arc::clone(&self);
                    tokio::spawn(async move {
                        counted.bounded(calls.carry_out(group, connection)).await;
                        drop(permit);
                    });
                }
                (Ok(_), _) => {}
                (Err(error), _) => {
                    let error = SharedError::from(error);
                    for batch in group {
                        batch.answer(Shared::Failed(error.clone()));
                    }
                }
            }
            if is_last {
                return;
            }
        }
    }

    /// Takes the only batch that waits, and counts its call; none if several wait, if it was left out before, or if too many
    /// calls are in progress on all shards.
    fn next_alone(&self) -> Option<(SharedBatch, Counted)> {
        let mut room = self.room();
        if room.waiting.len() != 1 || room.waiting[0].was_busy {
            return None;
        }
        let counted = self.limit.try_count()?;
        room.is_attended = false;
        room.waiting.pop_front().zip(Some(counted))
    }

    /// Takes the batches for the next call, the oldest first. Also returns true if no others wait.
    fn next_group(&self) -> (Vec<SharedBatch>, bool) {
        let mut room = self.room();
        let mut group = Vec::with_capacity(room.waiting.len().min(LANES));
        let mut claims = 0;
        while group.len() < LANES
            && let Some(next) = room.waiting.front()
            && (group.is_empty() || claims + next.batch.len() <= self.claims)
        {
            claims += next.batch.len();
            group.extend(room.waiting.pop_front());
        }
        room.is_attended = !room.waiting.is_empty();
        (group, !room.is_attended)
    }

    /// Carries out a shared call. If one of the batches makes it fail, each half is tried separately. After an error that may
    /// pass, the lanes repeat their calls by themselves.
    async fn carry_out(&self, group: Vec<SharedBatch>, connection: Connection) {
        let mut connection = Some(connection);
        let mut later = Vec::new();
        let mut next = Some(group);
        while let Some(mut part) = next {
            match self.call(&part, connection.take()).await {
                Ok(outcomes) => {
                    for (batch, outcomes) in part.into_iter().zip(outcomes) {
                        batch.answer(outcomes.map_or(Shared::Busy, Shared::Outcomes));
                    }
                }
                Err(error) if error.may_concern_one_operation() && part.len() > 1 => {
                    later.push(part.split_off(part.len() / 2));
                    next = Some(part);
                    continue;
                }
                // A lock on a table, for example.
                Err(Error::Locked(_)) => {
                    for batch in part {
                        batch.answer(Shared::Busy);
                    }
                }
                Err(error) if error.may_concern_one_operation() || error.may_be_repeated() => {
                    for batch in part {
                        batch.answer(Shared::Apart);
                    }
                }
                Err(error) => {
                    let error = SharedError::from(error);
                    for batch in part {
                        batch.answer(Shared::Failed(error.clone()));
                    }
                }
            }
            next = later.pop();
        }
    }

    /// Calls the database for these batches, and returns the outcomes of each; none for a batch that was left out.
    async fn call(
        &self,
        group: &[SharedBatch],
        connection: Option<Connection>,
    ) -> Result<Vec<Option<Vec<Outcome>>>, Error> {
        let claims = || {
            group.iter().flat_map(|batch| {
                let coupon_name = &*batch.coupon_name;
                batch.batch.iter().map(move |claim| (coupon_name, claim))
            })
        };
        let coupons: Vec<&str> = claims().map(|(coupon_name, _)| coupon_name).collect();
        let users: Vec<&str> = claims().map(|(_, it)| it.operation.user_id()).collect();
        let traced = claims().filter_map(|(_, claim)| claim.span.as_deref());
        let span = BatchSpan::start("honcho_claim_many", users.len(), traced);
        let begun = Instant::now();
        let outcomes = self.database.claim_many(&users, &coupons, connection).await;
        metrics().batch_done(begun.elapsed());
        let outcomes = outcomes.inspect_err(|error| span.fail(error))?;
        check_count(users.len(), outcomes.len())?;
        let lengths = group.iter().map(|batch| batch.batch.len());
        Ok(outcomes_of_each(lengths, &outcomes))
    }
}

/// Splits the outcomes of a shared call among its batches; none for a batch that was left out, even in part.
fn outcomes_of_each(
    lengths: impl Iterator<Item = usize>,
    mut outcomes: &[Option<Outcome>],
) -> Vec<Option<Vec<Outcome>>> {
    lengths
        .map(|length| {
            let (of_batch, rest) = outcomes.split_at(length);
            outcomes = rest;
            of_batch.iter().copied().collect()
        })
        .collect()
}

impl SharedBatch {
    fn answer(self, shared: Shared) {
        // An error means that the task of the lane has panicked.
        let _ = self.reply.send((self.batch, shared));
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[test]
    fn batch_that_was_left_out_takes_no_outcome_of_another() {
        let [claimed, sold_out] = [Outcome::Claimed, Outcome::SoldOut].map(Some);
        let outcomes = [None, None, None, claimed, sold_out, None, claimed];
        let lengths = [3, 1, 1, 1, 1];
        let split = outcomes_of_each(lengths.into_iter(), &outcomes);
        let expected = [None, claimed, sold_out, None, claimed];
        assert_eq!(split, expected.map(|outcome| Some(vec![outcome?])));
    }

    #[tokio::test]
    async fn calls_without_an_answer_leave_room_for_others() {
        let limit = CallLimit::new();
        while let Some(counted) = limit.try_count() {
            tokio::spawn(counted.bounded(pending::<()>()));
        }
        let counted = timeout(Duration::from_secs(10), limit.count()).await;
        assert!(counted.is_ok(), "the calls count for ever");
    }

    #[tokio::test]
    async fn ended_call_makes_room() {
        let limit = CallLimit::new();
        let first = limit.count().await;
        let others: Vec<_> = std::iter::from_fn(|| limit.try_count()).collect();
        assert!(limit.try_count().is_none());
        first.bounded(async {}).await;
        assert!(limit.try_count().is_some());
        drop(others);
    }
}
