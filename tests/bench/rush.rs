//! Clients that all come at the same moment, each from an address of its own, as people do.
//!
//! They are one thread without a runtime, which lets them connect one after the other, so that most of the processors'
//! time is left to what is measured.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use honcho_tests::PATIENCE;
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with},
};
use tokio::task::spawn_blocking;

use crate::{
    case::Figures,
    clients::{BUFFER, answer_status, claim_request},
    machine::percentile,
};

/// Longest ordinary wait for a connection. If the system drops a client's first packet, the client sends it again
/// a second later.
const LATE: Duration = Duration::from_secs(1);

/// Number of clients that connect before those that are ready are served.
const STEP: usize = 64;

/// The most events taken at once.
const EVENTS: usize = 256;

/// The answers to clients that came at the same moment.
pub struct Rush {
    /// Claims that succeeded, with status 200.
    pub claimed: u64,
    /// Refusals with status 409.
    pub refused: u64,
    pub figures: Figures,
}

/// The clients that have begun to connect. They stay connected until all have their answers.
struct Clients {
    service: SocketAddr,
    all: Vec<Client>,
    epoll: OwnedFd,
    events: Vec<Event>,
    started: Instant,
    statuses: Vec<u16>,
    times: Vec<Duration>,
    /// Number of those that were seen to be connected only over [`LATE`] later.
    late: u32,
}

struct Client {
    stream: TcpStream,
    asked: Instant,
    /// Its claim, until that is sent.
    request: Option<Vec<u8>>,
    received: Vec<u8>,
    is_answered: bool,
}

/// Lets this many clients connect as fast as they can, each with a claim of its own user. Times are from the first
/// one's beginning.
pub async fn rush(service: SocketAddr, coupon: &str, clients: u32) -> Result<Rush> {
    let requests = (0..clients)
        .map(|number| claim_request(&format!("user_{number}"), coupon))
        .collect();
    spawn_blocking(move || all_at_once(service, requests)).await?
}

fn all_at_once(service: SocketAddr, requests: Vec<Vec<u8>>) -> Result<Rush> {
    let count = requests.len();
    let mut clients = Clients {
        service,
        all: Vec::with_capacity(count),
        epoll: epoll::create(CreateFlags::CLOEXEC)?,
        events: Vec::with_capacity(EVENTS),
        started: Instant::now(),
        statuses: Vec::with_capacity(count),
        times: Vec::with_capacity(count),
        late: 0,
    };
    for request in requests {
        clients.connect(request)?;
        if clients.all.len().is_multiple_of(STEP) {
            clients.serve_ready(Duration::ZERO)?;
        }
    }
    while clients.statuses.len() < count {
        let left = PATIENCE.saturating_sub(clients.started.elapsed());
        ensure!(
            !left.is_zero(),
            "a client waits for its answer for too long"
        );
        clients.serve_ready(left)?;
    }
    let Clients {
        statuses,
        mut times,
        late,
        ..
    } = clients;
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

impl Clients {
    /// Lets one more client connect and, if that is done immediately, send its claim.
    fn connect(&mut self, request: Vec<u8>) -> Result<()> {
        let number = self.all.len();
        let asked = Instant::now();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        // From one address, the system would have to search among thousands of ports for a free one.
        bind(&socket, &SocketAddrV4::new(address_of(number)?, 0))?;
        match connect(&socket, &self.service) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error).context("a client cannot connect"),
        }
        let mut client = Client {
            stream: socket.into(),
            asked,
            request: Some(request),
            received: Vec::new(),
            is_answered: false,
        };
        let mut events = EventFlags::IN | EventFlags::ET;
        if !client.send(&mut self.late)? {
            events |= EventFlags::OUT;
        }
        let data = EventData::new_u64(number.try_into()?);
        epoll::add(&self.epoll, &client.stream, data, events)?;
        self.all.push(client);
        Ok(())
    }

    /// Serves the clients that can send or receive, after waiting so long for the first of them.
    fn serve_ready(&mut self, wait: Duration) -> Result<()> {
        self.events.clear();
        let wait = Timespec::try_from(wait)?;
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &self.events {
            let client = &mut self.all[usize::try_from(event.data.u64())?];
            if !client.is_answered
                && client.send(&mut self.late)?
                && let Some(status) = client.receive()?
            {
                client.is_answered = true;
                self.statuses.push(status);
                self.times.push(self.started.elapsed());
            }
        }
        Ok(())
    }
}

impl Client {
    /// Sends the claim if it is not sent. Returns false if the client is not connected yet.
    fn send(&mut self, late: &mut u32) -> Result<bool> {
        let Some(request) = &self.request else {
            return Ok(true);
        };
        match self.stream.write(request) {
            Ok(sent) => ensure!(sent == request.len(), "a claim was not sent at once"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("a client cannot send its claim"),
        }
        *late += u32::from(self.asked.elapsed() > LATE);
        self.request = None;
        Ok(true)
    }

    /// Receives what has arrived. Returns the status of the answer if it is complete.
    fn receive(&mut self) -> Result<Option<u16>> {
        let mut buffer = [0; BUFFER];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("a connection has ended before its answer"),
                Ok(received) => {
                    self.received.extend_from_slice(&buffer[..received]);
                    if let Some(status) = answer_status(&self.received)? {
                        return Ok(Some(status));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("a client cannot receive its answer"),
            }
        }
    }
}

/// Address of the client of this number, on this machine.
fn address_of(number: usize) -> Result<Ipv4Addr> {
    let number = u16::try_from(number).context("too many clients")?;
    let [high, low] = number.to_be_bytes();
    Ok(Ipv4Addr::new(127, 1, high, low))
}
