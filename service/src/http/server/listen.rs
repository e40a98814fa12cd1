//! Listening sockets.

use std::{fs, io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tracing::warn;

/// The least number of new connections that the system should queue. Linux has it from 5.4 on, and 128 before.
const QUEUE: u32 = 4096;

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
