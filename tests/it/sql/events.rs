//! Events for readers that pass the last id on: nothing is missed, whatever commits late.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use honcho_tests::{Cluster, ClusterOptions, Database, eventually};
use tokio::task::JoinSet;
use tokio_postgres::{Client, error::SqlState};

async fn room() -> Result<(Cluster, Database)> {
    let cluster = ClusterOptions::default()
        .setting("fsync", "off")
        .setting("max_prepared_transactions", "20")
        .start()?;
    let database = Database::create(&cluster).await?;
    for coupon in COUPONS {
        database.create_coupon(coupon, 1_000_000).await?;
    }
    Ok((cluster, database))
}

const COUPONS: [&str; 4] = ["A", "B", "C", "D"];

/// A reader of all events, or of one coupon's.
struct Reader {
    client: Client,
    coupon: Option<&'static str>,
    last: i64,
    ids: Vec<i64>,
}

impl Reader {
    async fn new(database: &Database, coupon: Option<&'static str>) -> Result<Self> {
        Ok(Self {
            client: database.connect_as_caller().await?,
            coupon,
            last: 0,
            ids: Vec::new(),
        })
    }

    /// Reads the next page.
    async fn read(&mut self) -> Result<usize> {
        let sql = "select id from honcho_list_events($1, 50, $2)";
        let rows = self.client.query(sql, &[&self.last, &self.coupon]).await?;
        for row in &rows {
            let id: i64 = row.get(0);
            ensure!(id > self.last, "{id} after {}", self.last);
            self.last = id;
            self.ids.push(id);
        }
        Ok(rows.len())
    }

    /// Reads until all events are read; fails if one was missed.
    async fn until_complete(&mut self, owner: &Client) -> Result<()> {
        let sql = "select array(select id from coupon_events
                                 where coupon_name = coalesce($1, coupon_name) order by id)";
        let all: Vec<i64> = owner.query_one(sql, &[&self.coupon]).await?.get(0);
        let last = all.last().copied().unwrap_or_default();
        eventually("the last event", async || {
            self.read().await?;
            Ok((self.last >= last).then_some(()))
        })
        .await?;
        let missed: Vec<i64> = all
            .iter()
            .filter(|id| !self.ids.contains(id))
            .copied()
            .collect();
        ensure!(missed.is_empty(), "missed {missed:?} for {:?}", self.coupon);
        ensure!(self.ids == all, "events that are not there");
        Ok(())
    }
}

/// Writes events in transactions that end late, in every way.
async fn write(client: Client, mut rng: Rng, n: u64, end: Instant) -> Result<()> {
    let mut count = 0;
    while Instant::now() < end {
        // In the order of their ids, so that writers do not deadlock.
        let one = rng.usize(..COUPONS.len());
        let two = rng.usize(one..COUPONS.len());
        let (one, two) = (COUPONS[one], COUPONS[two]);
        let pause = format!("select pg_sleep({})", f64::from(rng.u8(..20)) / 1000.0);
        let name = format!("{n} {count}");
        count += 1;
        let sql = match rng.u8(..6) {
            0 => format!("select honcho_restock('{one}', 1)"),
            1 => format!("begin; select honcho_restock('{one}', 1); {pause}; commit"),
            2 => format!("begin; select honcho_restock('{one}', 1); {pause}; rollback"),
            3 => format!(
                "begin; savepoint s; select honcho_restock('{one}', 1); rollback to s;
                 {pause}; select honcho_restock('{two}', 1); commit"
            ),
            4 => format!(
                "begin; savepoint s; select honcho_restock('{one}', 1); release s;
                 {pause}; select honcho_claim('{name}', '{two}'), honcho_release('{name}', '{two}'); commit"
            ),
            _ => {
                let end = ["commit", "rollback"][rng.usize(..2)];
                let prepare = format!(
                    "begin; select honcho_restock('{one}', 1); prepare transaction '{name}'"
                );
                client.batch_execute(&prepare).await?;
                client.batch_execute(&pause).await?;
                format!("{end} prepared '{name}'")
            }
        };
        client
            .batch_execute(&sql)
            .await
            .with_context(|| sql.clone())?;
    }
    Ok(())
}

#[tokio::test]
async fn reader_misses_no_event_of_transactions_that_commit_late() -> Result<()> {
    let (_cluster, database) = room().await?;
    let owner = database.connect().await?;
    let end = Instant::now() + Duration::from_secs(5);
    let seed = fastrand::u64(..u64::MAX / 2);
    let mut writers = JoinSet::new();
    for n in 0..8 {
        let client = database.connect_as_caller().await?;
        writers.spawn(write(client, Rng::with_seed(seed + n), n, end));
    }
    let mut readers = Vec::new();
    for coupon in [None, Some("A"), Some("D")] {
        readers.push(Reader::new(&database, coupon).await?);
    }
    let mut pages = 0;
    while !writers.is_empty() {
        for reader in &mut readers {
            pages += usize::from(reader.read().await? > 0);
        }
        if let Some(writer) = writers.try_join_next() {
            writer?.with_context(|| format!("seed {seed}"))?;
        }
    }
    for reader in &mut readers {
        reader.until_complete(&owner).await?;
    }
    ensure!(pages > 20, "only {pages} pages while events were written");
    database.books().await
}

/// A purge, and ids that were never used, are no gap to wait for.
#[tokio::test]
async fn reader_goes_on_after_a_purge_and_after_lost_ids() -> Result<()> {
    let (_cluster, database) = room().await?;
    let owner = database.connect().await?;
    let mut reader = Reader::new(&database, None).await?;
    reader.until_complete(&owner).await?;
    owner
        .batch_execute(
            "begin; select honcho_restock('A', 1), honcho_restock('B', 1); rollback;
             select honcho_purge_events(clock_timestamp());
             select honcho_restock('C', 1);
             select nextval('coupon_events_id_seq');
             select honcho_restock('D', 1)",
        )
        .await?;
    // The last event stays.
    reader.ids.drain(..reader.ids.len() - 1);
    reader.until_complete(&owner).await?;
    assert_eq!(reader.ids.len(), 3);
    // A reader that starts from the beginning gets what is left.
    let mut another = Reader::new(&database, None).await?;
    another.until_complete(&owner).await?;
    assert_eq!(another.ids, reader.ids);
    database.books().await
}

/// A transaction that may still write an event holds back those behind it, and only while it lasts.
#[tokio::test]
async fn events_behind_an_open_one_come_when_it_ends() -> Result<()> {
    let (_cluster, database) = room().await?;
    let owner = database.connect().await?;
    let late = database.connect().await?;
    let mut reader = Reader::new(&database, None).await?;
    reader.until_complete(&owner).await?;
    let before = reader.ids.len();
    for (end, count) in [
        ("commit", 2),
        ("rollback", 1),
        ("prepare transaction 'p'; commit prepared 'p'", 2),
        ("prepare transaction 'p'; rollback prepared 'p'", 1),
    ] {
        let seen = reader.ids.len();
        late.batch_execute("begin; select honcho_restock('A', 1)")
            .await?;
        owner.batch_execute("select honcho_restock('B', 1)").await?;
        reader.read().await?;
        assert_eq!(reader.ids.len(), seen, "the second event before the first");
        for sql in end.split("; ") {
            late.batch_execute(sql).await?;
        }
        reader.until_complete(&owner).await?;
        assert_eq!(reader.ids.len(), seen + count, "{end}");
    }
    ensure!(reader.ids.len() > before);
    // Reading holds back nobody, and a reader needs a view of what is committed now.
    let strict = database.connect_as_caller().await?;
    for level in ["repeatable read", "serializable"] {
        let sql = format!("begin isolation level {level}; select from honcho_list_events()");
        let error = strict.batch_execute(&sql).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED));
        strict.batch_execute("rollback").await?;
    }
    database.books().await
}
