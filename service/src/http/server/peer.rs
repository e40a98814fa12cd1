//! The client's end of a connection, as routes and layers see it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::activity::Activity;

/// The client's end of the connection: an extension of every request.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Address of the client.
    pub address: SocketAddr,
    /// True if the connection is beyond the limit.
    pub is_beyond_limit: bool,
    pub(super) activity: Arc<Activity>,
}

impl Peer {
    /// Runs `future` for the peer's request; returns none if that takes longer than `limit` from the arrival of the
    /// request's head. Without a peer there is no limit.
    ///
    /// A connection has one alarm for all its limits: a `tokio::time::timeout` for each limit of each request shows in a
    /// profile.
    pub async fn within<F: Future>(
        peer: Option<&Self>,
        limit: Duration,
        future: F,
    ) -> Option<F::Output> {
        match peer {
            Some(peer) => peer.activity.within(limit, future).await,
            None => Some(future.await),
        }
    }

    /// Records that the request's body has been received completely.
    pub fn body_received(&self) {
        self.activity.body_received();
    }
}
