//! The load generators: pgbench, tokio-postgres, wrk.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    ops::RangeInclusive,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use honcho_tests::{Cluster, PATIENCE, connect};
use tokio::{process::Command, sync::Barrier, task::JoinSet};
use tokio_postgres::{Client, Statement};

use crate::{
    case::{Figures, Scene, Subject},
    machine::percentile,
};

/// Totals of the clients' answers.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Answers of any kind.
    pub answers: u64,
    /// Claims that succeeded.
    pub claims: u64,
    /// The largest possible number of requests in flight when the load generator stopped.
    pub in_flight: u64,
    /// Answers with a status of 400 or more.
    pub refused: u64,
    /// Answers with the expected status and with others, if they were counted.
    pub wanted: u64,
    pub unwanted: u64,
    /// Claims and holds that there would be if every request of a mixture had its effect.
    pub sought: (u64, u64),
    pub figures: Figures,
}

impl Tally {
    /// All claims succeeded, and none is in flight.
    fn claimed(claims: u64, figures: Figures) -> Self {
        Self {
            answers: claims,
            claims,
            in_flight: 0,
            refused: 0,
            wanted: 0,
            unwanted: 0,
            sought: (0, 0),
            figures,
        }
    }

    /// The rate.
    pub fn per_second(&self) -> Result<f64> {
        match self.figures {
            Figures::Rate { per_second, .. } => Ok(per_second),
            _ => bail!("no rate"),
        }
    }

    /// The numbers of successful claims that fit the answers: some may be in flight.
    pub fn done(&self) -> RangeInclusive<u64> {
        self.claims..=self.claims + self.in_flight
    }
}

/// The pgbench script of one subject.
pub fn script(scene: Scene, subject: Subject) -> Result<&'static str> {
    match (scene, subject) {
        (Scene::SqlReserve, Subject::Honcho) => Ok(include_str!("reserve.pgbench")),
        (Scene::SqlConfirm, Subject::Honcho) => Ok(include_str!("confirm.pgbench")),
        (_, Subject::Honcho | Subject::Before) => Ok(include_str!("honcho.pgbench")),
        (_, Subject::Prior) => Ok(include_str!("prior.pgbench")),
        (_, Subject::PriorFunction) => Ok(include_str!("prior_function.pgbench")),
        (_, Subject::Units) => Ok(include_str!("units.pgbench")),
        (_, Subject::SqlInQueue) => Ok(include_str!("sql_in_queue.pgbench")),
        _ => bail!("{subject} has no SQL"),
    }
}

/// Looks the coupon up.
pub const GET_COUPON: &str = include_str!("get_coupon.pgbench");

/// Single transactions with prepared statements, without pauses. The script's variables have these values.
pub async fn pgbench(
    cluster: &Cluster,
    url: &str,
    script: &str,
    variables: &[(&str, &str)],
    clients: u32,
    seconds: u32,
) -> Result<Tally> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("claim.pgbench");
    fs::write(&file, script)?;
    let threads = threads(clients)?;
    let all_seconds = warm_up(clients) + seconds;
    let output = Command::new(cluster.bindir().join("pgbench"))
        .args([
            "--no-vacuum",
            "--protocol=prepared",
            "--log",
            "--log-prefix=latency",
        ])
        .args([
            "--client",
            &clients.to_string(),
            "--jobs",
            &threads.to_string(),
        ])
        .args(["--time", &all_seconds.to_string()])
        .args(
            variables
                .iter()
                .map(|(name, value)| format!("--define={name}={value}")),
        )
        .arg("--file")
        .args([file.as_os_str(), url.as_ref()])
        .current_dir(home.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("pgbench does not run")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "pgbench: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let number = |label: &str| -> Result<&str> {
        said.lines()
            .find_map(|line| line.strip_prefix(label))
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("pgbench does not tell its '{label}'"))
    };
    let claims: u64 = number("number of transactions actually processed:")?.parse()?;
    let failed: u64 = number("number of failed transactions:")?.parse()?;
    ensure!(failed == 0, "{failed} transactions failed");
    let logged = pgbench_logs(home.path())?;
    ensure!(
        u64::try_from(logged.len())? == claims,
        "pgbench logged {} transactions of {claims}",
        logged.len()
    );
    let warm_up = Duration::from_secs(warm_up(clients).into());
    let counted = Duration::from_secs(seconds.into());
    let begun = logged.iter().map(|&(ended, took)| ended - took);
    let (first, last) = (begun.clone().min(), begun.max());
    let from = first.context("no claims")? + warm_up;
    // pgbench's time includes that of connecting, so it may be over before.
    let until = (from + counted).min(last.context("no claims")?);
    let mut latencies: Vec<_> = logged
        .iter()
        .filter_map(|&(ended, took)| (ended > from && ended <= until).then_some(took))
        .collect();
    let figures = rate(until.saturating_sub(from), 1, &mut latencies)?;
    Ok(Tally::claimed(claims, figures))
}

/// The end of each transaction in pgbench's logs (one for each thread) by the system's clock, and its
/// duration.
fn pgbench_logs(directory: &Path) -> Result<Vec<(Duration, Duration)>> {
    let mut transactions = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("latency.") {
            continue;
        }
        for line in fs::read_to_string(entry.path())?.lines() {
            // Fields: client, its transactions so far, duration in microseconds, script, and the end in
            // seconds and microseconds.
            let columns: Vec<&str> = line.split(' ').collect();
            let &[_, _, took, _, seconds, microseconds, ..] = columns.as_slice() else {
                bail!("an unknown line in a pgbench log: {line}");
            };
            let ended = Duration::from_secs(seconds.parse()?)
                + Duration::from_micros(microseconds.parse()?);
            transactions.push((ended, Duration::from_micros(took.parse()?)));
        }
    }
    Ok(transactions)
}

/// Statements through tokio-postgres.
#[derive(Clone, Copy, Debug)]
pub enum Claimant {
    /// `honcho_claim`.
    Honcho,
    /// The prior system's transaction.
    Prior,
    /// `honcho_claim_batch` of this many users.
    Batch(u32),
}

/// Claims from `clients` connections in this process, without pauses.
pub async fn drive(
    url: &str,
    claimant: Claimant,
    coupon: &str,
    clients: u32,
    seconds: u32,
) -> Result<Tally> {
    let warm_up = Duration::from_secs(warm_up(clients).into());
    let counted = Duration::from_secs(seconds.into());
    let start = Arc::new(Barrier::new(clients.try_into()?));
    let mut sessions = JoinSet::new();
    for number in 0..clients {
        let mut session = Session::open(url, claimant, coupon, number).await?;
        let start = Arc::clone(&start);
        sessions.spawn(async move {
            start.wait().await;
            let started = Instant::now();
            let mut calls = 0;
            let mut latencies = Vec::new();
            while started.elapsed() < warm_up + counted {
                let asked = Instant::now();
                session.claim().await?;
                calls += 1;
                let now = started.elapsed();
                if now > warm_up && now <= warm_up + counted {
                    latencies.push(asked.elapsed());
                }
            }
            anyhow::Ok((calls, latencies))
        });
    }
    let mut calls = 0u64;
    let mut latencies = Vec::new();
    while let Some(session) = sessions.join_next().await {
        let (calls_of_one, of_one) = session??;
        calls += calls_of_one;
        latencies.extend(of_one);
    }
    let at_once = match claimant {
        Claimant::Batch(users) => u64::from(users),
        Claimant::Honcho | Claimant::Prior => 1,
    };
    let figures = rate(counted, at_once, &mut latencies)?;
    Ok(Tally::claimed(calls * at_once, figures))
}

/// One connection with its prepared statements.
struct Session {
    client: Client,
    statements: Statements,
    coupon: String,
    number: u32,
    serial: u32,
}

enum Statements {
    Honcho {
        claim: Statement,
    },
    Prior {
        select: Statement,
        insert: Statement,
        update: Statement,
    },
    Batch {
        claim: Statement,
        users: u32,
    },
}

impl Session {
    async fn open(url: &str, claimant: Claimant, coupon: &str, number: u32) -> Result<Self> {
        let client = connect(url).await?;
        let statements = match claimant {
            Claimant::Honcho => Statements::Honcho {
                claim: client.prepare("select honcho_claim($1, $2)::text").await?,
            },
            Claimant::Prior => Statements::Prior {
                select: client.prepare(crate::peer_service::SELECT).await?,
                insert: client.prepare(crate::peer_service::INSERT).await?,
                update: client.prepare(crate::peer_service::UPDATE).await?,
            },
            Claimant::Batch(users) => Statements::Batch {
                claim: client
                    .prepare(
                        "select outcome::text from honcho_claim_batch($1, $2) order by ordinal",
                    )
                    .await?,
                users,
            },
        };
        Ok(Self {
            client,
            statements,
            coupon: coupon.to_owned(),
            number,
            serial: 0,
        })
    }

    fn next_user(&mut self) -> String {
        self.serial += 1;
        format!("user_{}_{:09}", self.number, self.serial)
    }

    async fn claim(&mut self) -> Result<()> {
        if let &Statements::Batch { users, .. } = &self.statements {
            let users: Vec<String> = (0..users).map(|_| self.next_user()).collect();
            return self.claim_batch(&users).await;
        }
        let user = self.next_user();
        match &self.statements {
            Statements::Honcho { claim } => {
                let row = self.client.query_one(claim, &[&user, &self.coupon]).await?;
                let outcome: &str = row.get(0);
                ensure!(outcome == "claimed", "a claim was answered {outcome}");
            }
            Statements::Prior {
                select,
                insert,
                update,
            } => {
                let transaction = self.client.transaction().await?;
                let row = transaction.query_one(select, &[&self.coupon]).await?;
                let remaining: i32 = row.get(3);
                ensure!(remaining > 0, "a claim found the coupon sold out");
                transaction.execute(insert, &[&user, &self.coupon]).await?;
                transaction.execute(update, &[&self.coupon]).await?;
                transaction.commit().await?;
            }
            Statements::Batch { .. } => {}
        }
        Ok(())
    }

    async fn claim_batch(&self, users: &[String]) -> Result<()> {
        let Statements::Batch { claim, .. } = &self.statements else {
            bail!("no batch")
        };
        let rows = self.client.query(claim, &[&self.coupon, &users]).await?;
        ensure!(
            rows.len() == users.len(),
            "{} outcomes for {} users",
            rows.len(),
            users.len()
        );
        let refused = rows
            .iter()
            .filter(|row| row.get::<_, &str>(0) != "claimed")
            .count();
        ensure!(refused == 0, "{refused} claims of a batch were refused");
        Ok(())
    }
}

/// The claims that wrk sends.
pub struct Http<'a> {
    pub coupon: &'a str,
    /// Part of the users' names that is unique to this run.
    pub tag: &'a str,
    /// Number of users; 0 for a new one in every request.
    pub users: u32,
    /// Number of coupons whose names begin with `coupon`; 0 for just that one.
    pub coupons: u32,
    /// Counts the answers with this status, which slows wrk down.
    pub audit: Option<u16>,
}

/// POSTs of claims over this many connections.
pub async fn wrk(url: &str, http: &Http<'_>, connections: u32, seconds: u32) -> Result<Tally> {
    let arguments = [
        http.coupon,
        http.tag,
        &http.users.to_string(),
        &http.coupons.to_string(),
        &http.audit.unwrap_or(0).to_string(),
    ];
    run_wrk(
        include_str!("claim_wrk.lua"),
        url,
        &arguments,
        connections,
        seconds,
    )
    .await
}

/// Operations on one coupon that wrk sends.
#[derive(Clone, Copy, Debug)]
pub enum Operations {
    /// Reservations by new users.
    Reserve,
    /// Confirmations of the holds of [`wrk_users`].
    Confirm,
    /// Claims, and for every tenth request another operation.
    Mixed,
}

/// Requests of these operations over this many connections. The URL's path is of no matter.
pub async fn wrk_operations(
    url: &str,
    operations: Operations,
    coupon: &str,
    connections: u32,
    seconds: u32,
) -> Result<Tally> {
    let operations = match operations {
        Operations::Reserve => "reserve",
        Operations::Confirm => "confirm",
        Operations::Mixed => "mixed",
    };
    run_wrk(
        include_str!("operations_wrk.lua"),
        url,
        &[operations, coupon],
        connections,
        seconds,
    )
    .await
}

/// The users whose holds wrk confirms, at least `count` of them: each of its threads has its own.
pub fn wrk_users(connections: u32, count: u32) -> Result<Vec<String>> {
    let threads = threads(connections)?;
    let each = count.div_ceil(threads.try_into()?);
    Ok((1..=threads)
        .flat_map(|thread| {
            (1..=each).map(move |serial| format!("user_{thread}_{}", 100_000_000 + serial))
        })
        .collect())
}

/// GETs over this many connections.
pub async fn wrk_get(url: &str, connections: u32, seconds: u32) -> Result<Tally> {
    run_wrk("", url, &[], connections, seconds).await
}

async fn run_wrk(
    script: &str,
    url: &str,
    arguments: &[&str],
    connections: u32,
    seconds: u32,
) -> Result<Tally> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("claim.lua");
    fs::write(&file, [include_str!("tally_wrk.lua"), script].concat())?;
    let output = Command::new("wrk")
        .args(["--threads", &threads(connections)?.to_string()])
        .args(["--connections", &connections.to_string()])
        .args([
            "--duration",
            &format!("{seconds}s"),
            "--timeout",
            "10s",
            "--script",
        ])
        .arg(&file)
        .args([url, "--"])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("wrk does not run")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "wrk: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let line = said.lines().find_map(|line| line.strip_prefix("tally "));
    let line = line.with_context(|| format!("wrk gives no tally:\n{said}"))?;
    let number = |label: &str| -> Result<u64> {
        line.split(' ')
            .find_map(|field| field.strip_prefix(label)?.strip_prefix('='))
            .with_context(|| format!("no {label} in wrk's tally"))?
            .parse()
            .with_context(|| format!("{label} in wrk's tally is no number"))
    };
    let (answers, refused, broken) = (number("requests")?, number("refused")?, number("broken")?);
    ensure!(
        broken == 0,
        "{broken} connections broke or waited over 10 s"
    );
    ensure!(answers > 0, "no answers");
    let took = Duration::from_micros(number("duration")?);
    let figures = Figures::Rate {
        per_second: answers as f64 / took.as_secs_f64(),
        p50: Duration::from_micros(number("p50")?),
        p99: Duration::from_micros(number("p99")?),
    };
    Ok(Tally {
        answers,
        claims: answers - refused,
        in_flight: connections.into(),
        refused,
        wanted: number("wanted")?,
        unwanted: number("unwanted")?,
        sought: (number("claims")?, number("holds")?),
        figures,
    })
}

/// Threads of a load generator: the machine's cores, but no more than there are clients.
fn threads(clients: u32) -> Result<usize> {
    Ok(std::thread::available_parallelism()?
        .get()
        .min(clients.try_into()?))
}

/// Seconds of warm-up: one for each hundred clients, rounded. Each client has a session that takes about 10
/// ms of a processor to load libraries and fill caches; for 200 clients, that is as long as a measurement.
pub fn warm_up(clients: u32) -> u32 {
    (clients + 50) / 100
}

/// The rate and the latencies of the answers within this time, each for this many claims.
fn rate(within: Duration, claims: u64, latencies: &mut [Duration]) -> Result<Figures> {
    Ok(Figures::Rate {
        per_second: (latencies.len() as u64 * claims) as f64 / within.as_secs_f64(),
        p50: percentile(latencies, 0.50).context("no claims")?,
        p99: percentile(latencies, 0.99).context("no claims")?,
    })
}

/// The answer to a GET.
pub struct Answer {
    pub status: u16,
    /// From before the connection to the first byte of the body.
    pub first_byte: Duration,
    /// To the last.
    pub took: Duration,
    pub body: Vec<u8>,
}

/// GETs a path, by HTTP/1.0 so that the body ends with the connection.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    tokio::task::spawn_blocking(move || get_blocking(address, &request)).await?
}

fn get_blocking(address: SocketAddr, request: &str) -> Result<Answer> {
    const END_OF_HEAD: &[u8] = b"\r\n\r\n";
    let started = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut received = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    let mut body = None;
    let mut first_byte = None;
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        received.extend_from_slice(&chunk[..count]);
        if body.is_none() {
            let end = received
                .windows(END_OF_HEAD.len())
                .position(|part| part == END_OF_HEAD);
            body = end.map(|end| end + END_OF_HEAD.len());
        }
        if first_byte.is_none() && body.is_some_and(|body| received.len() > body) {
            first_byte = Some(started.elapsed());
        }
    }
    let took = started.elapsed();
    let body = received.split_off(body.context("the answer has no end of its head")?);
    let head = String::from_utf8(received)?;
    let status = head
        .split(' ')
        .nth(1)
        .context("the answer has no status")?
        .parse()?;
    Ok(Answer {
        status,
        first_byte: first_byte.unwrap_or(took),
        took,
        body,
    })
}
