//! State that the routes share.

use std::{sync::Arc, time::Duration};

use axum::extract::FromRef;

use crate::{
    auth::Policy,
    database::Database,
    events::Events,
    health::Health,
    http::{
        extract::body::{BodyTimeout, LargeBodies},
        layers::permits::RequestPermits,
    },
    lanes::Lanes,
    shards::Shards,
};

/// State of the routes. It is one pointer, because the router clones it for every request.
#[derive(Clone, Debug)]
pub(crate) struct AppState(Arc<Parts>);

/// Parts of the state, which extractors can take one by one.
#[derive(Debug)]
pub(crate) struct Parts {
    pub databases: Shards<Database>,
    pub lanes: Shards<Lanes>,
    pub events: Events,
    pub health: Shards<Health>,
    pub policy: Policy,
    pub hold_ttl: HoldTtl,
    pub body_timeout: BodyTimeout,
    pub large_bodies: LargeBodies,
    pub permits: RequestPermits,
}

/// Time for which a piece is held if the request names none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HoldTtl(pub Duration);

impl From<Parts> for AppState {
    fn from(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

macro_rules! part {
    ($field:ident: $Part:ty) => {
        impl FromRef<AppState> for $Part {
            fn from_ref(AppState(parts): &AppState) -> Self {
                parts.$field.clone()
            }
        }
    };
}

part!(databases: Shards<Database>);
part!(lanes: Shards<Lanes>);
part!(events: Events);
part!(health: Shards<Health>);
part!(policy: Policy);
part!(hold_ttl: HoldTtl);
part!(body_timeout: BodyTimeout);
part!(large_bodies: LargeBodies);
part!(permits: RequestPermits);
