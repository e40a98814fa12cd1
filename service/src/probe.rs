//! Health check of a running service, for images without an HTTP client.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// Longest time for each step.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Limit of the answer, in bytes: far more than it has.
const ANSWER_LIMIT: u64 = 16 * 1024;

/// Asks the service at this address if it is ready, and prints its answer.
///
/// # Errors
/// It is not ready, or does not answer.
pub fn ask(host: &str, port: u16) -> Result<()> {
    let answer = get(host, port).with_context(|| format!("no answer from {host}:{port}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    println!("{body}");
    if status != "200" {
        bail!("not ready: status {status}");
    }
    Ok(())
}

fn get(host: &str, port: u16) -> Result<String> {
    let address = (host, port)
        .to_socket_addrs()?
        .next()
        .context("no address")?;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = "GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_LIMIT).read_to_string(&mut answer)?;
    Ok(answer)
}
