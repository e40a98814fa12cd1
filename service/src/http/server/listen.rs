//! Listening sockets.

use std::{fs, io, net::SocketAddr};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tracing::warn;

/// The least number of new connections that the system should queue. Linux has it from 5.4 on, and 128 before.
const QUEUE: u32 = 4096;

/// Bytes of an answer that the system buffers beyond those that it can send. Without a limit it buffers megabytes, and
/// takes more only after sending a third of them: a slow client would seem idle meanwhile, and an idle one would cost
/// all that memory. The system takes more after sending half of this, so this also measures progress within
/// `WRITE_TIMEOUT`: a client that receives some kilobytes in that time stays connected.
const AHEAD: u32 = 16 * 1024;

/// Listens on the first address of `host` that can be bound.
///
/// New connections queue until the service accepts them. In a rush they come faster than that, and a client that finds
/// the queue full tries again a second later. So the queue is as long as the system allows.
///
/// # Errors
/// The name has no address, or none of its addresses can be bound.
pub async fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut failed = None;
    for address in lookup_host((host, port)).await? {
        match bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed
        .unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    // Connections inherit both, also those that arrive before the first is accepted.
    if let Err(error) = SockRef::from(&socket).set_tcp_notsent_lowat(AHEAD) {
        warn!("no TCP_NOTSENT_LOWAT: {error}");
    }
    if let Err(error) = socket.set_nodelay(true) {
        warn!("no TCP_NODELAY: {error}");
    }
    socket.bind(address)?;
    // The system shortens it to its own limit.
    socket.listen(i32::MAX.unsigned_abs())
}

/// Warns if the system's limit of the queue is low.
pub fn check_queue_limit() {
    let limit = fs::read_to_string("/proc/sys/net/core/somaxconn");
    let limit = limit.ok().and_then(|limit| limit.trim().parse().ok());
    if limit.is_some_and(|limit: u32| limit < QUEUE) {
        warn!(
            "the system queues at most {} new connections: in a rush, further clients wait for a second or more; \
             raise the limit (sysctl net.core.somaxconn={QUEUE})",
            limit.unwrap_or_default()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_inherit_the_options() -> io::Result<()> {
        let listener = listen("127.0.0.1", 0).await?;
        let _client = tokio::net::TcpStream::connect(listener.local_addr()?).await?;
        let (stream, _) = listener.accept().await?;
        assert_eq!(SockRef::from(&stream).tcp_notsent_lowat()?, AHEAD);
        assert!(stream.nodelay()?);
        Ok(())
    }
}
