//! The client's end of a connection, as routes and layers see it.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;

use super::activity::{Activity, Limit};
use crate::lanes::LaneClient;

/// The client's end of the connection: an extension of every request.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Address of the client.
    pub address: SocketAddr,
    /// True if the connection is beyond the limit.
    pub is_beyond_limit: bool,
    /// Arrival of the request's head.
    pub received: Instant,
    pub(super) activity: Arc<Activity>,
}

pin_project! {
    /// An operation of a request with a limited time; none if that is over. To be polled in the connection's task.
    ///
    /// A connection has one alarm for all its limits: a `tokio::time::timeout` for each limit of each request shows in a
    /// profile. This is no `async fn`, because that would store the operation twice.
    #[derive(Debug)]
    pub(crate) struct Within<F> {
        #[pin]
        operation: F,
        limit: Option<(Arc<Activity>, Limit)>,
    }
}

impl Peer {
    /// Limits the time of `operation` of the peer's request, from the arrival of the request's head on. Without a peer
    /// there is no limit.
    pub fn within<F>(peer: Option<Self>, limit: Duration, operation: F) -> Within<F> {
        let limit = peer.map(|Self { activity, .. }| {
            let limit = activity.limit(limit);
            (activity, limit)
        });
        Within { operation, limit }
    }

    /// The client as lanes know it.
    pub fn lane_client(&self) -> LaneClient {
        self.activity.lane_client.clone()
    }

    /// Records that the request's body has been received completely.
    pub fn body_received(&self) {
        self.activity.body_received();
    }
}

impl<F: Future> Future for Within<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let this = self.project();
        let outcome = match this.operation.poll(context) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => match this.limit {
                Some((activity, limit)) if activity.is_exceeded(*limit) => None,
                _ => return Poll::Pending,
            },
        };
        if let Some((activity, limit)) = this.limit {
            activity.lift(*limit);
        }
        Poll::Ready(outcome)
    }
}
