//! The sessions of a sequence, and the record of what they did.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use honcho_tests::Database;
use tokio::task::{JoinHandle, yield_now};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::calls::{Call, Element, End, Item, Transaction};

pub type Row = Vec<Option<String>>;

/// Rows, or the SQLSTATE of an error.
pub type Answer = Result<Vec<Row>, String>;

/// The time between a statement and its answer, in microseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub from: i64,
    pub to: i64,
}

/// What a session did and was told.
#[derive(Debug)]
pub enum Deed {
    /// One of the operations of a call, with the row that answers it.
    Element(Element, Row),
    Call(Call, Answer),
    Savepoint,
    RollbackToSavepoint,
    ReleaseSavepoint,
    Commit,
    Rollback,
}

/// The deeds of one session, in their order.
pub type Record = Vec<(Deed, Span)>;

/// The rows of one coupon, as other sessions see them.
#[derive(Debug)]
pub struct Rows {
    /// The coupon; its claims; its holds.
    pub rows: [String; 3],
    /// Invariants that do not hold.
    pub broken: String,
    /// Events since the last look: their kinds and details.
    pub events: Vec<(String, String)>,
}

/// As many sessions as a step needs, and one that looks and moves time.
pub struct Sessions {
    pub watch: Client,
    clients: Vec<Arc<Client>>,
    pids: Vec<String>,
    last_event: i64,
}

impl Sessions {
    pub async fn open(database: &Database, count: usize) -> Result<Self> {
        let watch = database.connect().await?;
        watch.batch_execute("set timezone = 'UTC'").await?;
        let (mut clients, mut pids) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let client = database.connect_as_caller().await?;
            // Only a fault waits as long.
            client
                .batch_execute("set timezone = 'UTC'; set lock_timeout = '20s'")
                .await?;
            let pid = client.query_one("select pg_backend_pid()", &[]).await?;
            pids.push(pid.get::<_, i32>(0).to_string());
            clients.push(Arc::new(client));
        }
        let last_event = watch
            .query_one("select coalesce(max(id), 0) from coupon_events", &[])
            .await?
            .get(0);
        Ok(Self {
            watch,
            clients,
            pids,
            last_event,
        })
    }

    /// Carries out these transactions, each in a session of its own. If `behind`, the first one ends when all
    /// others have ended or wait for a lock.
    pub async fn run(
        &mut self,
        coupon: &str,
        transactions: &[Transaction],
        behind: bool,
    ) -> Result<Vec<Record>> {
        let (first, others) = transactions.split_first().context("no transaction")?;
        let (lead, others) = if behind || others.is_empty() {
            (Some(&*self.clients[0]), others)
        } else {
            (None, transactions)
        };
        let mut records = Vec::new();
        let mut leader = match lead {
            Some(client) => Some(Block::begin(client, coupon, first).await),
            None => None,
        };
        let running: Vec<JoinHandle<Record>> = others
            .iter()
            .zip(&self.clients[usize::from(lead.is_some())..])
            .map(|(transaction, client)| {
                let client = Arc::clone(client);
                let (coupon, transaction) = (coupon.to_owned(), transaction.clone());
                tokio::spawn(async move {
                    let mut block = Block::begin(&client, &coupon, &transaction).await;
                    block.end(transaction.end).await;
                    block.record
                })
            })
            .collect();
        if let Some(mut leader) = leader.take() {
            self.until_waiting(&running).await?;
            leader.end(first.end).await;
            records.push(leader.record);
        }
        for task in running {
            records.push(task.await?);
        }
        Ok(records)
    }

    /// Waits until each of these tasks, which have all sessions but the first, has ended or waits for a lock.
    async fn until_waiting(&self, running: &[JoinHandle<Record>]) -> Result<()> {
        if running.is_empty() {
            return Ok(());
        }
        let pids = self.pids[1..=running.len()].join(", ");
        let waiting = format!(
            "select count(*) from pg_stat_activity where pid in ({pids}) and wait_event_type = 'Lock'"
        );
        loop {
            // Counted before the look: a task that ends meanwhile is not counted twice.
            let ended = running.iter().filter(|task| task.is_finished()).count();
            let rows = query(&self.watch, &waiting).await;
            let rows = rows.map_err(anyhow::Error::msg)?;
            let waiting: usize = rows[0][0].as_deref().unwrap_or_default().parse()?;
            if ended + waiting >= running.len() {
                return Ok(());
            }
            yield_now().await;
        }
    }

    /// Looks at the rows of `coupon`.
    pub async fn rows(&mut self, coupon: &str) -> Result<Rows> {
        let sql = format!(
            "select (select concat_ws(' ', amount, remaining_amount, held_amount, coalesce(starts_at::text, '-'),
                                      coalesce(ends_at::text, '-'), paused,
                                      coalesce((extract(epoch from next_expiry) * 1000000)::bigint::text, '-'))
                       from coupons where name = '{coupon}'),
                    (select string_agg(concat_ws(' ', user_id, coalesce(request_key, '-')), ', ' order by id)
                       from claims where coupon_name = '{coupon}'),
                    (select string_agg(concat_ws(' ', user_id, (extract(epoch from expires_at) * 1000000)::bigint,
                                                 coalesce(request_key, '-')), ', ' order by user_id)
                       from holds where coupon_name = '{coupon}'),
                    (select string_agg(concat_ws(' ', invariant, detail), ', ')
                       from honcho_verify('{coupon}') where holds is not true),
                    (select max(id) from coupon_events where coupon_name = '{coupon}'),
                    (select string_agg(concat(kind, ' ', case kind
                                when 'created' then details->>'amount'
                                when 'restocked' then concat_ws(' ', details->>'delta', details->>'amount')
                                when 'released' then details->>'user_id'
                                when 'expired' then details->>'count'
                                when 'deleted' then details->>'claims'
                            end), ',' order by id)
                       from coupon_events where coupon_name = '{coupon}' and id > {})",
            self.last_event
        );
        let rows = query(&self.watch, &sql).await.map_err(anyhow::Error::msg)?;
        let mut columns = rows.into_iter().next().context("no row")?.into_iter();
        let mut next = || columns.next().flatten().unwrap_or_default();
        let rows = [next(), next(), next()];
        let broken = next();
        if let Ok(last_event) = next().parse() {
            self.last_event = last_event;
        }
        let events = next();
        let events = events.split(',').filter_map(|event| event.split_once(' '));
        Ok(Rows {
            rows,
            broken,
            events: events
                .map(|(kind, detail)| (kind.to_owned(), detail.to_owned()))
                .collect(),
        })
    }
}

/// A transaction of which all but the end is done.
struct Block<'a> {
    client: &'a Client,
    coupon: &'a str,
    record: Record,
    failed: bool,
}

impl<'a> Block<'a> {
    async fn begin(client: &'a Client, coupon: &'a str, transaction: &Transaction) -> Self {
        let mut block = Self {
            client,
            coupon,
            record: Vec::new(),
            failed: false,
        };
        if transaction.end != End::Automatic {
            block.failed = block.say("begin").await.0.is_err();
        }
        for item in &transaction.items {
            match item {
                Item::Call(call) => block.call(call, Deed::Rollback).await,
                Item::Attempt { calls, keep } => block.attempt(calls, *keep).await,
            }
            if block.failed {
                break;
            }
        }
        block
    }

    /// Makes a call. If it fails, all is undone at that moment, which is the deed `undone`.
    async fn call(&mut self, call: &Call, undone: Deed) {
        let (answer, span) = self.say(&call.sql(self.coupon)).await;
        self.failed = answer.is_err();
        match (call.elements(), answer) {
            (Some(elements), Ok(rows)) if elements.len() == rows.len() => {
                let deeds = elements.into_iter().zip(rows);
                let deeds = deeds.map(|(element, row)| (Deed::Element(element, row), span));
                self.record.extend(deeds);
            }
            (_, answer) => self.record.push((Deed::Call(call.clone(), answer), span)),
        }
        if self.failed {
            self.record.push((undone, span));
        }
    }

    /// Makes calls after a savepoint. A failure does not reach further than that.
    async fn attempt(&mut self, calls: &[Call], keep: bool) {
        let (_, span) = self.say("savepoint s").await;
        self.record.push((Deed::Savepoint, span));
        for call in calls {
            self.call(call, Deed::RollbackToSavepoint).await;
            if self.failed {
                let _ = self.say("rollback to s").await;
                self.failed = false;
                return;
            }
        }
        let (sql, deed) = if keep {
            ("release s", Deed::ReleaseSavepoint)
        } else {
            ("rollback to s", Deed::RollbackToSavepoint)
        };
        let (_, span) = self.say(sql).await;
        self.record.push((deed, span));
    }

    async fn end(&mut self, end: End) {
        if self.failed {
            if end != End::Automatic {
                let _ = self.say("rollback").await;
            }
            return;
        }
        let (deed, span) = match end {
            End::Automatic => (Deed::Commit, self.last_span()),
            End::Commit => (Deed::Commit, self.say("commit").await.1),
            End::Rollback => (Deed::Rollback, self.say("rollback").await.1),
        };
        self.record.push((deed, span));
    }

    fn last_span(&self) -> Span {
        let none = Span {
            from: 0,
            to: i64::MAX,
        };
        self.record.last().map_or(none, |(_, span)| *span)
    }

    async fn say(&self, sql: &str) -> (Answer, Span) {
        let from = micros();
        let answer = query(self.client, sql).await;
        (answer, Span { from, to: micros() })
    }
}

async fn query(client: &Client, sql: &str) -> Answer {
    let messages = client.simple_query(sql).await.map_err(|error| {
        let code = error.code().map(|code| code.code().to_owned());
        code.unwrap_or_else(|| error.to_string())
    })?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let columns = (0..row.len()).map(|n| row.get(n).map(str::to_owned));
            Some(columns.collect())
        }
        _ => None,
    });
    Ok(rows.collect())
}

fn micros() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(now.unwrap_or_default().as_micros()).unwrap_or(i64::MAX)
}
