use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream, UnixStream},
    task::{JoinHandle, JoinSet},
};

/// A TCP port that leads to a cluster's unix socket, until it is cut.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    socket: Arc<Mutex<PathBuf>>,
    open: Arc<Mutex<JoinSet<()>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of the loopback address.
    pub async fn start(socket: impl AsRef<Path>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut proxy = Self {
            address: listener.local_addr()?,
            socket: Arc::new(Mutex::new(socket.as_ref().to_owned())),
            open: Arc::default(),
            accepting: None,
        };
        proxy.accept(listener);
        Ok(proxy)
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads new connections to another socket; open connections stay.
    pub fn lead_to(&self, socket: impl AsRef<Path>) {
        *locked(&self.socket) = socket.as_ref().to_owned();
    }

    /// Cuts every connection, even during a transfer, and stops listening.
    pub async fn cut(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            // The task was aborted, so its result is no error.
            let _ = accepting.await;
        }
        locked(&self.open).abort_all();
    }

    /// Listens again on the same address.
    pub async fn mend(&mut self) -> Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.accept(listener);
        Ok(())
    }

    fn accept(&mut self, listener: TcpListener) {
        let (socket, open) = (Arc::clone(&self.socket), Arc::clone(&self.open));
        self.accepting = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let socket = locked(&socket).clone();
                locked(&open).spawn(pass(stream, socket));
            }
        }));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
        locked(&self.open).abort_all();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pass(mut stream: TcpStream, socket: PathBuf) {
    // Each side detects the other's end by itself.
    if let Ok(mut server) = UnixStream::connect(socket).await {
        let _ = copy_bidirectional(&mut stream, &mut server).await;
    }
}
