//! Takes connections and serves requests on them, until told to stop.

use std::{future::Future, io, pin::pin, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown, service::TowerToHyperService};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tracing::{debug, error, warn};

/// How long to wait before the next connection is taken where taking one failed: most likely files
/// have run out, and will for a moment.
const BREATH: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop` completes, then finishes the requests under way.
///
/// This is what `axum::serve` does, with two settings that it hides: no part of an answer waits for
/// the one before to be acknowledged, and head and body leave in one write.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let connections = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            () = &mut stop => break,
        };
        match taken {
            Ok((stream, _)) => answer(stream, router.clone(), &connections),
            Err(error) if is_of_one_connection(&error) => debug!("a connection broke: {error}"),
            Err(error) => {
                error!("cannot take connections: {error}");
                sleep(BREATH).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

fn answer(stream: TcpStream, router: Router, connections: &GracefulShutdown) {
    if let Err(error) = stream.set_nodelay(true) {
        warn!("no TCP_NODELAY: {error}");
    }
    let connection = http1::Builder::new()
        .writev(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!("a connection broke: {error}");
        }
    });
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}
