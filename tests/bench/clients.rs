//! Clients in this process that send claims over HTTP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use honcho_tests::PATIENCE;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

/// Bytes that a client reads at once: an answer fits.
pub const BUFFER: usize = 1024;

/// Files that this process needs besides those of such clients' connections.
const OTHER_FILES: u64 = 500;

/// The number of open files that this many clients need in this process, and in a service.
pub fn files(clients: u32) -> u64 {
    u64::from(clients) + OTHER_FILES
}

/// The bytes of a request that claims.
pub fn claim_request(user: &str, coupon: &str) -> Vec<u8> {
    let body = format!(r#"{{"user_id":"{user}","coupon_name":"{coupon}"}}"#);
    format!(
        "POST /api/coupons/claim HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The status of an answer; none if not all of it has been received.
pub fn answer_status(received: &[u8]) -> Result<Option<u16>> {
    let received = str::from_utf8(received)?;
    let Some((head, body)) = received.split_once("\r\n\r\n") else {
        return Ok(None);
    };
    let status = head.split(' ').nth(1).context("an answer has no status")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.context("an answer has no length")?;
    ensure!(body.len() <= length, "an answer is longer than it says");
    Ok((body.len() == length).then(|| status.parse()).transpose()?)
}

/// One connection.
struct Client(TcpStream);

impl Client {
    async fn connect(address: SocketAddr) -> Result<Self> {
        Ok(Self(TcpStream::connect(address).await?))
    }

    /// Sends a claim, and returns the status of its answer after reading all of it.
    async fn claim(&mut self, user: &str, coupon: &str) -> Result<u16> {
        self.0.write_all(&claim_request(user, coupon)).await?;
        let mut received = Vec::with_capacity(BUFFER);
        loop {
            if let Some(status) = answer_status(&received)? {
                return Ok(status);
            }
            let read = self.0.read_buf(&mut received).await?;
            ensure!(read > 0, "a connection has ended within an answer");
        }
    }
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
