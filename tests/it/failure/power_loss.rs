//! The power goes: nothing that anybody was told about a claim may be undone by it.
//!
//! The server runs with power_loss.c preloaded, is killed whole, and what it had written to the WAL
//! but not flushed is taken back before it starts again.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use honcho_tests::{Cluster, ClusterOptions, Database, Stop, books, eventually};
use tokio::{task::JoinSet, time::Instant};
use tokio_postgres::Client;

use crate::fixtures::preloaded::Library;

/// Longer than anything else that a test does between two looks.
pub const SLOW: Duration = Duration::from_millis(400);

/// A cluster that can lose its power.
pub struct Machine {
    pub cluster: Cluster,
    _library: Library,
}

impl Machine {
    pub async fn start() -> Result<Self> {
        let library = Library::compile("power_loss", include_str!("power_loss.c"))?;
        let cluster = ClusterOptions::default()
            .environment("LD_PRELOAD", library.path())
            .setting("max_connections", "60")
            .setting("max_prepared_transactions", "5")
            // Leaves flushing to those who must wait for it.
            .setting("wal_writer_delay", "10s")
            .start()?;
        Ok(Self {
            cluster,
            _library: library,
        })
    }

    /// Puts off each flush from now on by so much.
    pub fn delay_flushes(&self, delay: Duration) -> Result<()> {
        Ok(fs::write(
            self.file("delay"),
            delay.as_micros().to_string(),
        )?)
    }

    /// Takes the power away, and gives it back.
    pub fn lose_power(&mut self) -> Result<()> {
        self.cluster.stop(Stop::Kill)?;
        let undone = self.undo()?;
        // Without something to undo, this is a mere crash.
        if fs::exists(self.file("delay"))? {
            fs::remove_file(self.file("delay"))?;
        }
        eprintln!("{undone} bytes of WAL were written and not flushed");
        self.cluster.start()
    }

    /// Takes back, newest first, what was written to the WAL since its last flush.
    fn undo(&self) -> Result<usize> {
        const HEADER: usize = 1024 + 8 + 8;
        let log = match fs::read(self.file("undo")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            log => log?,
        };
        let mut entries = Vec::new();
        let mut rest = log.as_slice();
        while rest.len() >= HEADER {
            let (header, tail) = rest.split_at(HEADER);
            let path = header[..1024].split(|byte| *byte == 0).next().unwrap();
            let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
            let length = number(1032) as usize;
            // Killed in the middle of keeping: the write itself had not begun.
            let Some(replaced) = tail.get(..length) else {
                break;
            };
            entries.push((PathBuf::from(str::from_utf8(path)?), number(1024), replaced));
            rest = &tail[length..];
        }
        for (path, offset, replaced) in entries.iter().rev() {
            let file = File::options().write(true).open(path)?;
            file.write_all_at(replaced, *offset)?;
        }
        fs::write(self.file("undo"), [])?;
        Ok(entries.iter().map(|(.., replaced)| replaced.len()).sum())
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.cluster.directory().join(format!("power_loss.{kind}"))
    }
}

async fn claim(client: &Client, user_id: &str) -> Result<String> {
    let row = client
        .query_one("select honcho_claim($1, 'PROMO')::text", &[&user_id])
        .await?;
    Ok(row.get(0))
}

async fn is_claimed(client: &Client, user_id: &str) -> Result<bool> {
    let sql = "select exists (select from honcho_get_claim($1, 'PROMO'))";
    Ok(client.query_one(sql, &[&user_id]).await?.get(0))
}

/// Starts a claim whose flush takes long, and waits until others see it.
async fn claim_in_the_background(
    machine: &Machine,
    database: &Database,
) -> Result<tokio::task::JoinHandle<Result<String>>> {
    let claimer = database.connect().await?;
    let watcher = database.connect().await?;
    machine.delay_flushes(SLOW)?;
    let told = tokio::spawn(async move { claim(&claimer, "ann").await });
    eventually("the claim to be seen", async || {
        Ok(is_claimed(&watcher, "ann").await?.then_some(()))
    })
    .await?;
    Ok(told)
}

#[tokio::test]
async fn a_claim_is_seen_before_it_is_durable_and_told_after() -> Result<()> {
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", 1).await?;

    let told = claim_in_the_background(&machine, &database).await?;
    assert!(
        !told.is_finished(),
        "the claim was told before it was flushed"
    );
    machine.lose_power()?;
    // Never told, and gone.
    assert!(told.await?.is_err());
    assert!(!is_claimed(&database.connect().await?, "ann").await?);
    database.books().await?;

    let told = claim_in_the_background(&machine, &database).await?;
    assert_eq!(told.await??, "claimed");
    machine.lose_power()?;
    assert!(is_claimed(&database.connect().await?, "ann").await?);
    database.books().await
}

#[tokio::test]
async fn a_refusal_waits_until_what_it_rests_on_is_durable() -> Result<()> {
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", 1).await?;
    for (user_id, refusal) in [("bob", "sold_out"), ("ann", "already_claimed")] {
        let buyer = database.connect().await?;
        let told = claim_in_the_background(&machine, &database).await?;
        assert!(!told.is_finished(), "nothing is left to wait for");
        let outcome = claim(&buyer, user_id).await?;
        machine.lose_power()?;
        assert_eq!(outcome, refusal);
        let client = database.connect().await?;
        assert!(
            is_claimed(&client, "ann").await?,
            "{refusal} was told of a claim that is lost"
        );
        // For the next round.
        client
            .batch_execute("delete from claims; update coupons set remaining_amount = 1")
            .await?;
    }
    database.books().await
}

#[tokio::test]
async fn without_early_lock_release_a_claim_is_seen_when_it_is_durable() -> Result<()> {
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", 1).await?;
    let claimer = database.connect().await?;
    claimer
        .batch_execute("set honcho.early_lock_release = off")
        .await?;
    let watcher = database.connect().await?;
    machine.delay_flushes(SLOW)?;
    let told = tokio::spawn(async move { claim(&claimer, "ann").await });
    eventually("the claim to be seen", async || {
        Ok(is_claimed(&watcher, "ann").await?.then_some(()))
    })
    .await?;
    machine.lose_power()?;
    let _ = told.await?;
    assert!(is_claimed(&database.connect().await?, "ann").await?);
    database.books().await
}

/// What clients were told, and what is left of it after the power went.
#[derive(Default)]
struct Told {
    claimed: Vec<String>,
    sold_out: bool,
}

/// How clients claim until the power goes.
struct Sale {
    settings: &'static str,
    stock: i32,
    claims_per_user: usize,
    flush: Duration,
}

/// Lets clients claim until the power goes, and returns how many claims were told and then lost.
async fn lost_after_a_sale(sale: Sale) -> Result<usize> {
    let Sale {
        settings,
        stock,
        claims_per_user,
        flush,
    } = sale;
    let mut machine = Machine::start().await?;
    let database = Database::create(&machine.cluster).await?;
    database.create_coupon("PROMO", stock).await?;
    let told = Arc::new(Mutex::new(Told::default()));
    let mut clients = JoinSet::new();
    for n in 0..24 {
        let client = database.connect().await?;
        client.batch_execute(settings).await?;
        let told = Arc::clone(&told);
        clients.spawn(async move {
            // Until the connection is gone.
            for i in 0.. {
                let user_id = format!("user {n} {}", i / claims_per_user);
                let Ok(outcome) = claim(&client, &user_id).await else {
                    return;
                };
                let mut told = told.lock().unwrap();
                match outcome.as_str() {
                    "claimed" | "already_claimed" => told.claimed.push(user_id),
                    "sold_out" => told.sold_out = true,
                    other => panic!("{other}"),
                }
            }
        });
    }
    machine.delay_flushes(flush)?;
    let start = Instant::now();
    eventually("a sale to be under way", async || {
        let told = told.lock().unwrap();
        let enough = told.claimed.len() >= 300 || told.sold_out;
        Ok((enough && start.elapsed() > Duration::from_millis(300)).then_some(()))
    })
    .await?;
    machine.lose_power()?;
    clients.join_all().await;

    let client = database.connect().await?;
    books(&client).await?;
    let told = std::mem::take(&mut *told.lock().unwrap());
    let kept: HashMap<String, ()> = client
        .query("select user_id::text from claims", &[])
        .await?
        .iter()
        .map(|row| (row.get(0), ()))
        .collect();
    let left: i32 = client
        .query_one("select remaining_amount from coupons", &[])
        .await?
        .get(0);
    let lost = told
        .claimed
        .iter()
        .filter(|user_id| !kept.contains_key(*user_id))
        .count();
    ensure!(!told.claimed.is_empty(), "nobody was told anything");
    Ok(lost + usize::from(told.sold_out && left > 0))
}

#[tokio::test]
async fn no_told_outcome_is_lost_with_the_power() -> Result<()> {
    for stock in [1_000_000, 150, 40] {
        let lost = lost_after_a_sale(Sale {
            settings: "set honcho.early_lock_release = on",
            stock,
            claims_per_user: 2,
            flush: Duration::from_millis(5),
        })
        .await?;
        assert_eq!(lost, 0, "of a stock of {stock}");
    }
    Ok(())
}

/// The test above can fail: answers that are given before the flush are lost.
#[tokio::test]
async fn an_outcome_told_before_the_flush_is_found_lost() -> Result<()> {
    let lost = lost_after_a_sale(Sale {
        settings: "set synchronous_commit = off",
        stock: 1_000_000,
        // A second claim would be refused, and wait for the flush as a refusal does.
        claims_per_user: 1,
        // No flush ends before the power does.
        flush: Duration::from_secs(5),
    })
    .await
    .context("the sale without flushes")?;
    assert!(lost > 0);
    Ok(())
}
