//! Watchers of a coupon: open streams of server-sent events, read by tasks of this process.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use honcho_tests::eventually;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// Streams that are read until this is dropped.
pub struct Watchers {
    seen: Vec<Arc<Seen>>,
    tasks: JoinSet<Result<()>>,
}

/// Counts of what one watcher has received.
#[derive(Default)]
struct Seen {
    bytes: AtomicU32,
    stocks: AtomicU32,
    restocks: AtomicU32,
}

impl Watchers {
    /// Opens the streams, and waits until the stock has arrived on each.
    pub async fn open(address: SocketAddr, coupon: &str, count: u32) -> Result<Self> {
        let mut watchers = Self {
            seen: Vec::new(),
            tasks: JoinSet::new(),
        };
        for _ in 0..count {
            let mut stream = TcpStream::connect(address).await?;
            let request =
                format!("GET /api/coupons/{coupon}/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let seen = Arc::new(Seen::default());
            watchers.seen.push(Arc::clone(&seen));
            watchers.tasks.spawn(watch(stream, seen));
        }
        watchers
            .until("the first stock", |seen| &seen.stocks)
            .await?;
        Ok(watchers)
    }

    /// Fails unless the stock has arrived again on each stream; then waits for the event `restocked`.
    pub async fn finish(mut self) -> Result<()> {
        let least = self
            .seen
            .iter()
            .map(|seen| seen.stocks.load(Ordering::Relaxed));
        let least = least.min().context("no watchers")?;
        ensure!(least > 1, "a watcher has seen no claim");
        self.until("the restock", |seen| &seen.restocks).await?;
        let bytes = self
            .seen
            .iter()
            .map(|seen| seen.bytes.load(Ordering::Relaxed));
        eprintln!(
            "           {} watchers: each saw the stock {least} times or more; {} kB in all",
            self.seen.len(),
            bytes.map(u64::from).sum::<u64>() / 1000
        );
        Ok(())
    }

    /// Waits until each watcher has counted this, and fails if a stream has ended.
    async fn until(&mut self, what: &str, count: fn(&Seen) -> &AtomicU32) -> Result<()> {
        eventually(&format!("{what} on every stream"), async || {
            if let Some(ended) = self.tasks.try_join_next() {
                ended??;
            }
            let waiting = |seen: &Arc<Seen>| count(seen).load(Ordering::Relaxed) == 0;
            Ok((!self.seen.iter().any(waiting)).then_some(()))
        })
        .await
    }
}

/// Reads a stream line by line, in which the service's chunks may begin and end anywhere.
async fn watch(mut stream: TcpStream, seen: Arc<Seen>) -> Result<()> {
    let mut buffer = vec![0; 4096];
    let mut unread = 0;
    let mut is_first = true;
    loop {
        ensure!(
            unread < buffer.len(),
            "a stream has a line that is too long"
        );
        let read = stream.read(&mut buffer[unread..]).await?;
        ensure!(read > 0, "a stream has ended");
        seen.bytes
            .fetch_add(u32::try_from(read)?, Ordering::Relaxed);
        let all = &buffer[..unread + read];
        let end = all.iter().rposition(|&byte| byte == b'\n');
        let (lines, rest) = all.split_at(end.map_or(0, |end| end + 1));
        for line in lines.split(|&byte| byte == b'\n') {
            if is_first {
                let status = String::from_utf8_lossy(line);
                ensure!(
                    status.starts_with("HTTP/1.1 200"),
                    "a stream is answered {status}"
                );
                is_first = false;
            }
            match line {
                b"event: stock" => seen.stocks.fetch_add(1, Ordering::Relaxed),
                b"event: restocked" => seen.restocks.fetch_add(1, Ordering::Relaxed),
                _ => 0,
            };
        }
        let start = lines.len();
        unread = rest.len();
        buffer.copy_within(start..start + unread, 0);
    }
}
