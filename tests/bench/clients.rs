//! Clients in this process that send claims over HTTP.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use honcho_tests::PATIENCE;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::Barrier,
    task::JoinSet,
    time::timeout,
};

use crate::{case::Figures, machine::percentile};

/// Bytes of a buffer: an answer fits.
const BUFFER: usize = 1024;

/// Longest ordinary wait for a connection. If the system drops a client's first packet, the client sends it again
/// a second later.
const LATE: Duration = Duration::from_secs(1);

/// Files that this process needs besides those of such clients' connections.
const OTHER_FILES: u64 = 500;

/// The number of open files that this many clients need in this process, and in a service.
pub fn files(clients: u32) -> u64 {
    u64::from(clients) + OTHER_FILES
}

/// One connection.
struct Client(BufReader<TcpStream>);

impl Client {
    async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        Ok(Self(BufReader::with_capacity(BUFFER, stream)))
    }

    /// Sends a claim, and returns the status of its answer after reading all of it.
    async fn claim(&mut self, user: &str, coupon: &str) -> Result<u16> {
        let body = format!(r#"{{"user_id":"{user}","coupon_name":"{coupon}"}}"#);
        let request = format!(
            "POST /api/coupons/claim HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(request.as_bytes()).await?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = self.0.read_line(&mut head).await?;
            ensure!(read > 0, "a connection has ended within an answer's head");
        }
        let status = head.split(' ').nth(1).context("an answer has no status")?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.trim().parse().ok())?
        });
        let mut body = vec![0; length.context("an answer has no length")?];
        self.0.read_exact(&mut body).await?;
        Ok(status.parse()?)
    }
}

/// The answers to clients that came at the same moment.
pub struct Rush {
    /// Claims that succeeded, with status 200.
    pub claimed: u64,
    /// Refusals with status 409.
    pub refused: u64,
    pub figures: Figures,
}

/// Lets this many clients connect at the same moment, each with a claim of its own user.
pub async fn rush(address: SocketAddr, coupon: &str, clients: u32) -> Result<Rush> {
    let all_are_here = Arc::new(Barrier::new(clients.try_into()?));
    let started = Arc::new(OnceLock::new());
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let (all_are_here, started) = (Arc::clone(&all_are_here), Arc::clone(&started));
        let (user, coupon) = (format!("user_{number}"), coupon.to_owned());
        tasks.spawn(async move {
            all_are_here.wait().await;
            let started = *started.get_or_init(Instant::now);
            let asked = Instant::now();
            let mut client = Client::connect(address).await?;
            let is_late = asked.elapsed() > LATE;
            let status = client.claim(&user, &coupon).await?;
            anyhow::Ok((status, started.elapsed(), is_late))
        });
    }
    let mut statuses = Vec::new();
    let mut times = Vec::new();
    let mut late = 0;
    let answers = async {
        while let Some(answered) = tasks.join_next().await {
            let (status, took, is_late) = answered??;
            statuses.push(status);
            times.push(took);
            late += u32::from(is_late);
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, answers)
        .await
        .context("a client waits for its answer for too long")??;
    let count = |status| statuses.iter().filter(|&&of_one| of_one == status).count();
    Ok(Rush {
        claimed: count(200).try_into()?,
        refused: count(409).try_into()?,
        figures: Figures::Noon {
            last: percentile(&mut times, 1.0).context("no clients")?,
            p50: percentile(&mut times, 0.50).context("no clients")?,
            p99: percentile(&mut times, 0.99).context("no clients")?,
            late,
        },
    })
}

/// Clients whose claims are all refused, one after the other until they are stopped.
pub struct Refused {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Result<u32>>,
}

impl Refused {
    /// Starts this many clients on a coupon. Their users' names begin with `user`, and each answer must have this
    /// status.
    pub async fn start(
        address: SocketAddr,
        coupon: &str,
        user: &'static str,
        clients: u32,
        status: u16,
    ) -> Result<Self> {
        let mut refused = Self {
            stop: Arc::new(AtomicBool::new(false)),
            tasks: JoinSet::new(),
        };
        for number in 0..clients {
            let mut client = Client::connect(address).await?;
            let (stop, coupon) = (Arc::clone(&refused.stop), coupon.to_owned());
            refused.tasks.spawn(async move {
                let mut answers = 0;
                while !stop.load(Ordering::Relaxed) {
                    let user = format!("{user}_{number}_{answers}");
                    let answered = client.claim(&user, &coupon).await?;
                    ensure!(
                        answered == status,
                        "a claim was answered {answered} instead of {status}"
                    );
                    answers += 1;
                }
                Ok(answers)
            });
        }
        Ok(refused)
    }

    /// Stops them, and waits for the last answers.
    pub async fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let clients = self.tasks.len();
        let mut answers = 0;
        let all = async {
            while let Some(of_one) = self.tasks.join_next().await {
                let of_one = of_one??;
                ensure!(of_one > 0, "a client has claimed nothing");
                answers += of_one;
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, all)
            .await
            .context("a client waits for its refusal for too long")??;
        eprintln!("           {answers} refusals of {clients} more clients meanwhile");
        Ok(())
    }
}
