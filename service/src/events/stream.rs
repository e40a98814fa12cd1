//! Streams: what one client receives, from one shard or from all.

use axum::body::Bytes;
use futures_util::stream::{self, BoxStream, SelectAll, StreamExt, select_all};

use super::{
    StreamPermit,
    frame::{self, COMMENT},
    watcher::Watcher,
};

/// A stream of events.
pub struct Stream {
    source: Source,
    _permit: StreamPermit,
}

enum Source {
    One(Watcher),
    All(AllShards),
}

/// The watchers of all shards.
///
/// Each shard has its own ids, so the client resumes from one id of each.
struct AllShards {
    /// Frames with the numbers of their shards; none at the end of a shard's.
    frames: SelectAll<BoxStream<'static, (usize, Option<Bytes>)>>,
    /// Ids after which the client would resume.
    ids: Vec<i64>,
}

impl Stream {
    pub(super) fn of_one(watcher: Watcher, permit: StreamPermit) -> Self {
        Self {
            source: Source::One(watcher),
            _permit: permit,
        }
    }

    /// A stream of the watchers of all shards, in the order of their numbers, which resumes one with the ids `after`.
    pub(super) fn of_all(
        watchers: Vec<Watcher>,
        after: Option<Vec<i64>>,
        permit: StreamPermit,
    ) -> Self {
        let source = match <[Watcher; 1]>::try_from(watchers) {
            Ok([only]) => Source::One(only),
            Err(several) => Source::All(AllShards::new(several, after)),
        };
        Self {
            source,
            _permit: permit,
        }
    }

    /// Waits for the next frame; none at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        match &mut self.source {
            Source::One(watcher) => watcher.next().await,
            Source::All(shards) => shards.next().await,
        }
    }
}

impl AllShards {
    fn new(watchers: Vec<Watcher>, after: Option<Vec<i64>>) -> Self {
        // A watcher that resets its shard is already past the gap. The client must resume before it until it has received
        // the reset.
        let ids = after.unwrap_or_else(|| watchers.iter().map(Watcher::position).collect());
        let frames = watchers.into_iter().enumerate().map(|(shard, watcher)| {
            stream::unfold(Some(watcher), move |watcher| async move {
                let mut watcher = watcher?;
                let frame = watcher.next().await;
                let rest = frame.is_some().then_some(watcher);
                Some(((shard, frame), rest))
            })
            .boxed()
        });
        Self {
            frames: select_all(frames),
            ids,
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // The end of one shard's frames is that of the stream: the client can come back.
            let (shard, frame) = self.frames.next().await?;
            let frame = frame?;
            if let Some((id, rest)) = frame::split_id(&frame) {
                self.ids[shard] = id;
                return Some(frame::join_ids(&self.ids, rest));
            }
            // The comments of one shard show that the stream is alive.
            if shard == 0 || frame != COMMENT {
                return Some(frame);
            }
        }
    }
}
