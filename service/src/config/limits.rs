//! Settings of the limits of requests and connections.

use std::time::Duration;

use clap::Args;

use super::{
    layers::InvalidSetting,
    values::{duration, whole},
};
use crate::{
    auth::Policy,
    events::StreamOptions,
    http::{ConnectionLimits, Rate, RateLimit, RateLimitKey, RequestLimits, TrustedProxies},
};

/// Settings of the limits of requests and connections.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitSettings {
    /// Most open connections; on further ones only health and metrics are answered, anything else 503
    #[arg(long, value_name = "NUMBER", default_value_t = ConnectionLimits::default().connections,
          value_parser = whole::<usize>(1..=1_000_000))]
    connection_limit: usize,
    /// Most requests in progress; further ones are answered 503
    #[arg(long, value_name = "NUMBER", default_value_t = RequestLimits::default().in_progress,
          value_parser = whole::<usize>(1..=1_000_000))]
    request_limit: usize,
    /// Most open event streams, which are among the connections; further ones are answered 503 [default:
    /// 2000, or half of CONNECTION_LIMIT if that is less]
    #[arg(long, value_name = "NUMBER", value_parser = whole::<usize>(1..=1_000_000))]
    stream_limit: Option<usize>,
    /// Longest time for a request; then a read is answered 504, a change 503 outcome_unknown
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time())]
    request_timeout: Duration,
    /// Longest time for receiving a request's head; then the connection is closed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time())]
    header_timeout: Duration,
    /// Longest time for receiving a request's body; then the answer is 408
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time())]
    body_timeout: Duration,
    /// Longest time without progress in sending an answer; then the connection is closed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time())]
    write_timeout: Duration,
    /// Time for which a connection is kept open between requests
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = time())]
    idle_timeout: Duration,
    /// Time between comments in an event stream, by which clients and proxies see that it is alive
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = time())]
    heartbeat_interval: Duration,
    /// Requests of each caller, such as 20/s, 100/m or 1000/h; further ones are answered 429 [default:
    /// no limit]
    #[arg(long, value_name = "RATE")]
    rate_limit: Option<Rate>,
    /// Identity of a caller for the rate limit: its address or its token
    #[arg(long, value_name = "address|token", default_value = "address")]
    rate_limit_by: RateLimitKey,
    /// Addresses and networks of proxies whose X-Forwarded-For is trusted, separated by commas [default:
    /// none]
    #[arg(long, value_name = "NETWORKS", default_value = "", hide_default_value = true,
          value_parser = TrustedProxies::parse)]
    trusted_proxies: TrustedProxies,
}

impl LimitSettings {
    /// Checks the settings.
    pub(super) fn check(
        self,
        policy: &Policy,
    ) -> Result<(RequestLimits, ConnectionLimits, StreamOptions), InvalidSetting> {
        if self.rate_limit_by == RateLimitKey::Token && policy.is_open() {
            let why =
                "is token, but there are no tokens: set API_TOKENS or a JWT_ variable as well";
            return Err(InvalidSetting::setting("rate_limit_by", why));
        }
        let streams = self.stream_limit.unwrap_or_else(|| {
            let half = self.connection_limit.div_ceil(2);
            StreamOptions::default().streams.min(half)
        });
        // Else streams could take all connections.
        if self.stream_limit.is_some() && streams >= self.connection_limit {
            let why = format!(
                "is {streams}, but each stream takes one of the {} connections of CONNECTION_LIMIT: it must be less",
                self.connection_limit
            );
            return Err(InvalidSetting::setting("stream_limit", why));
        }
        let requests = RequestLimits {
            in_progress: self.request_limit,
            request_timeout: self.request_timeout,
            body_timeout: self.body_timeout,
            rate_limit: self
                .rate_limit
                .map(|rate| RateLimit::new(rate, self.rate_limit_by)),
            proxies: self.trusted_proxies,
        };
        let connections = ConnectionLimits {
            connections: self.connection_limit,
            header_timeout: self.header_timeout,
            idle_timeout: self.idle_timeout,
            write_timeout: self.write_timeout,
        };
        let streams = StreamOptions {
            streams,
            heartbeat: self.heartbeat_interval,
        };
        Ok((requests, connections, streams))
    }
}

fn time() -> impl Fn(&str) -> Result<Duration, String> + Clone {
    duration(Duration::from_millis(10)..=Duration::from_secs(3600))
}
