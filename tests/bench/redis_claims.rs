//! The claim of a service over Redis: the Lua script, through one connection that all requests share.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, aio::MultiplexedConnection, cmd};

use crate::{
    peer_service::{Claim, Outcome},
    redis::{SCRIPT, keys},
};

/// Commands that may wait for the task that writes them to the connection; by default 50, which is fewer than the
/// clients of a case.
const BUFFER: usize = 1024;

/// A handle of the connection, to be cloned for every request.
#[derive(Clone)]
pub struct RedisClaims {
    connection: MultiplexedConnection,
    /// The checksum by which Redis knows the script.
    script: Arc<str>,
}

impl RedisClaims {
    /// Connects through this socket, and loads the script.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let client = Client::open(ConnectionAddr::Unix(socket.to_owned()))?;
        // Without a timeout, as the pools of the other peers: it would cost a timer for each request.
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_pipeline_buffer_size(BUFFER);
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let script: String = cmd("SCRIPT")
            .arg("LOAD")
            .arg(SCRIPT)
            .query_async(&mut connection)
            .await
            .context("the script cannot be loaded")?;
        Ok(Self {
            connection,
            script: script.into(),
        })
    }

    /// Runs the script.
    pub async fn claim(mut self, claim: &Claim) -> Result<Outcome> {
        let keys = keys(&claim.coupon_name);
        let outcome: String = cmd("EVALSHA")
            .arg(&*self.script)
            .arg(keys.len())
            .arg(&keys)
            .arg(&claim.user_id)
            .query_async(&mut self.connection)
            .await?;
        Ok(match outcome.as_str() {
            "claimed" => Outcome::Claimed,
            "already_claimed" => Outcome::AlreadyClaimed,
            "sold_out" => Outcome::SoldOut,
            "not_found" => Outcome::NotFound,
            _ => bail!("Redis answered {outcome}"),
        })
    }
}
