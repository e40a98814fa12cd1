//! Long random sequences of all operations, from several sessions at once, against a model in plain Rust.
//!
//! After each step, every answer, the rows of the coupon, its events and `honcho_verify` are compared with the
//! model. Sessions that act at the same time must have an order in which the model gives the same. Time passes by
//! moving windows and expiries.
//!
//! `HONCHO_TEST_SEQUENCES` sets the number of sequences. A failure prints its seed; `HONCHO_TEST_SEED` repeats the
//! sequence, many times, because sessions that act at the same time do not always meet in the same order.

mod calls;
mod coupon;
mod order;
mod sessions;

use std::{
    env,
    str::FromStr,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    thread,
};

use anyhow::{Result, anyhow};
use honcho_tests::Database;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};
use tokio::runtime::{Builder, Runtime};

use calls::{Bound, Call, End, Item, Step, Transaction};
use coupon::State;
use order::Search;
use sessions::{Rows, Sessions};

/// Sequences in a run.
const SEQUENCES: u64 = 1_000;

/// Repetitions of a sequence whose seed is given.
const REPETITIONS: u64 = 50;

/// Sequences at the same time, each in a database of its own.
const WORKERS: u64 = 2;

/// The most sessions that act at the same time.
const SESSIONS: usize = 3;

fn from_environment<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

#[test]
fn model_gives_the_same_answers_and_books() {
    let replayed: Option<u64> = from_environment("HONCHO_TEST_SEED");
    let first = replayed.unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    let sequences = from_environment("HONCHO_TEST_SEQUENCES").unwrap_or(SEQUENCES);
    let count = if replayed.is_some() {
        REPETITIONS
    } else {
        sequences
    };
    let next = AtomicU64::new(0);
    let failures: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let mut worker = Worker::new()?;
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= count {
                            return worker.runtime.block_on(worker.database.books());
                        }
                        let seed = if replayed.is_some() { first } else { first + n };
                        if let Err(error) = worker.sequence(seed) {
                            // The other workers need not go on.
                            next.store(count, Ordering::Relaxed);
                            return Err(error);
                        }
                    }
                })
            })
            .collect();
        let ends = workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker"));
        ends.filter_map(|end| end.err().map(|error| format!("{error:#}")))
            .collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// A database and sessions for one sequence after another.
struct Worker {
    runtime: Runtime,
    database: Database,
    sessions: Sessions,
}

impl Worker {
    fn new() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let database = runtime.block_on(crate::database())?;
        let sessions = runtime.block_on(Sessions::open(&database, SESSIONS))?;
        Ok(Self {
            runtime,
            database,
            sessions,
        })
    }

    /// Tries the sequence of this seed.
    ///
    /// # Errors
    /// The seed and the shortest sequence that fails.
    fn sequence(&mut self, seed: u64) -> Result<()> {
        let config = Config {
            cases: 1,
            failure_persistence: None,
            max_shrink_iters: 5_000,
            max_shrink_time: 60_000,
            ..Config::default()
        };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(config, rng);
        // Shorter sequences are found by leaving steps out.
        let steps = vec((prop::bool::weighted(0.97), calls::step()), 20..=40);
        let steps = steps.prop_map(|steps| {
            let kept = steps.into_iter().filter(|(keeps, _)| *keeps);
            kept.map(|(_, step)| step).collect::<Vec<Step>>()
        });
        let worker = std::cell::RefCell::new(self);
        runner
            .run(&(1..4, steps), |(amount, steps)| {
                let worker = &mut **worker.borrow_mut();
                worker.try_steps(amount, &steps)
            })
            .map_err(|error| match error {
                TestError::Fail(reason, (amount, steps)) => {
                    let steps: Vec<String> =
                        steps.iter().map(|step| format!("{step:?}")).collect();
                    anyhow!(
                        "HONCHO_TEST_SEED={seed} repeats this: {reason}\nwith an amount of {amount}:\n{}",
                        steps.join("\n")
                    )
                }
                TestError::Abort(reason) => anyhow!("seed {seed}: {reason}"),
            })
    }

    fn try_steps(&mut self, amount: i32, steps: &[Step]) -> Result<(), TestCaseError> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("C{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let Self {
            runtime,
            database,
            sessions,
        } = self;
        let tried = runtime.block_on(async {
            let mut sequence = Sequence {
                name: &name,
                sessions,
                state: State::default(),
                in_stock: false,
            };
            sequence.run(amount, steps).await
        });
        if let Err(error) = tried {
            // A failed sequence leaves transactions and rows behind.
            let cleaned = runtime.block_on(async {
                if sessions.rollback().await.is_err() {
                    *sessions = Sessions::open(database, SESSIONS).await?;
                }
                let sql = format!(
                    "set session_replication_role = replica;
                     delete from claims where coupon_name = '{name}';
                     delete from holds where coupon_name = '{name}';
                     delete from coupons where name = '{name}';
                     reset session_replication_role"
                );
                Ok::<_, anyhow::Error>(sessions.watch.batch_execute(&sql).await?)
            });
            cleaned.map_err(|error| TestCaseError::reject(format!("{error:#}")))?;
            return Err(TestCaseError::fail(format!("{error:#}")));
        }
        Ok(())
    }
}

/// One sequence on one coupon.
struct Sequence<'a> {
    name: &'a str,
    sessions: &'a mut Sessions,
    state: State,
    /// The stock by the events: they say when it is used up, and when there is some again.
    in_stock: bool,
}

fn alone(call: Call) -> Step {
    Step::Together(vec![Transaction {
        items: vec![Item::Call(call)],
        end: End::Automatic,
    }])
}

impl Sequence<'_> {
    async fn run(&mut self, amount: i32, steps: &[Step]) -> Result<()> {
        let create = alone(Call::Create {
            amount,
            starts: Bound::None,
            ends: Bound::None,
        });
        let delete = alone(Call::Delete { with_claims: true });
        for step in [&create].into_iter().chain(steps).chain([&delete]) {
            self.step(step)
                .await
                .map_err(|error| anyhow!("{error:#}, in {step:?}"))?;
        }
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Together(transactions) => self.transactions(transactions, false).await,
            Step::Behind(transactions) => self.transactions(transactions, true).await,
            Step::Purge => {
                let purge = "select honcho_purge_events(clock_timestamp(), 1000000)";
                self.sessions.watch.batch_execute(purge).await?;
                // The last event of all stays.
                let left = format!(
                    "select count(*) from coupon_events
                      where coupon_name = '{}' and id < (select max(id) from coupon_events)",
                    self.name
                );
                let left: i64 = self.sessions.watch.query_one(&left, &[]).await?.get(0);
                anyhow::ensure!(left == 0, "{left} events were not purged");
                Ok(())
            }
            Step::Lapse(users) => {
                const LAPSE: i64 = 2 * 24 * 3_600_000_000;
                let Some(coupon) = &mut self.state.coupon else {
                    return Ok(());
                };
                let users: std::collections::BTreeSet<_> = users.iter().copied().collect();
                for (user, hold) in &mut coupon.holds {
                    if users.contains(user) {
                        hold.expires_at -= LAPSE;
                    }
                }
                let users: Vec<String> = users.into_iter().map(calls::user_id).collect();
                let lapse = format!(
                    "update holds set expires_at = expires_at - interval '48 hours'
                      where coupon_name = '{0}' and user_id in ('{1}');
                     update coupons set next_expiry = (select min(expires_at) from holds
                                                        where coupon_name = name)
                      where name = '{0}'",
                    self.name,
                    users.join("', '")
                );
                self.sessions.watch.batch_execute(&lapse).await?;
                self.compare().await
            }
            Step::Window { starts, ends } => {
                let Some(coupon) = &mut self.state.coupon else {
                    return Ok(());
                };
                (coupon.starts, coupon.ends) = (*starts, *ends);
                let window = format!(
                    "update coupons set starts_at = nullif('{}'::timestamptz, '-infinity'),
                                        ends_at = nullif('{}'::timestamptz, 'infinity')
                      where name = '{}'",
                    starts.starts_at(),
                    ends.ends_at(),
                    self.name
                );
                self.sessions.watch.batch_execute(&window).await?;
                self.compare().await
            }
        }
    }

    async fn transactions(&mut self, transactions: &[Transaction], behind: bool) -> Result<()> {
        let records = self.sessions.run(self.name, transactions, behind).await?;
        let rows = self.sessions.rows(self.name).await?;
        let search = Search {
            name: self.name,
            records: &records,
            rows: &rows,
        };
        self.state = search
            .from(&self.state)
            .map_err(|text| anyhow!("{text}\nby {records:?}"))?;
        self.check(&rows)
    }

    async fn compare(&mut self) -> Result<()> {
        let rows = self.sessions.rows(self.name).await?;
        let expected = self.state.rows();
        anyhow::ensure!(rows.rows == expected, "{rows:?} are not {expected:?}");
        self.check(&rows)
    }

    /// Fails unless the books are right and the events say whether there is stock.
    fn check(&mut self, rows: &Rows) -> Result<()> {
        anyhow::ensure!(
            rows.broken.is_empty(),
            "the books are broken: {}",
            rows.broken
        );
        for (kind, _) in &rows.events {
            match (kind.as_str(), self.in_stock) {
                ("created", _) => self.in_stock = true,
                ("sold_out", true) => self.in_stock = false,
                ("available_again", false) => self.in_stock = true,
                ("sold_out" | "available_again", _) => {
                    anyhow::bail!("{kind} comes twice: {:?}", rows.events);
                }
                _ => {}
            }
        }
        if let Some(remaining) = self.state.remaining() {
            anyhow::ensure!(
                self.in_stock == (remaining > 0),
                "{remaining} remain after {:?}",
                rows.events
            );
        }
        Ok(())
    }
}
