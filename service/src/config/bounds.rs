//! How much the service takes on, and how long it waits for its clients.

use std::time::Duration;

use clap::Args;

use super::{
    layers::Wrong,
    values::{duration, whole},
};
use crate::{
    access::Access,
    address::Proxies,
    admission::Bounds,
    rate_limit::{By, Rate, RateLimit},
    serve::Limits,
};

/// How much the service takes on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Bounds")]
pub(super) struct BoundsSettings {
    /// The most connections at a time; beyond, health and metrics are answered, and 503 to all else
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().connections,
          value_parser = whole::<usize>(1..=1_000_000))]
    connection_limit: usize,
    /// The most requests under way; beyond, 503 at once
    #[arg(long, value_name = "NUMBER", default_value_t = Bounds::default().requests,
          value_parser = whole::<usize>(1..=1_000_000))]
    request_limit: usize,
    /// How long a request may take in all: 504 to one that reads, 503 outcome_unknown to one that
    /// changes something
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time())]
    request_timeout: Duration,
    /// How long a request's head may take to arrive; the connection is closed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time())]
    header_timeout: Duration,
    /// How long a request's body may take to arrive: 408
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time())]
    body_timeout: Duration,
    /// How long a client may take in nothing of an answer; the connection is closed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time())]
    write_timeout: Duration,
    /// How long a connection is kept open between requests
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = time())]
    idle_timeout: Duration,
    /// How often each caller may ask, such as 20/s, 100/m or 1000/h; beyond, 429 [default: no limit]
    #[arg(long, value_name = "RATE")]
    rate_limit: Option<Rate>,
    /// What tells callers apart: their address, or their token
    #[arg(long, value_name = "address|token", default_value = "address")]
    rate_limit_by: By,
    /// The addresses and networks of proxies whose X-Forwarded-For is believed, separated by commas
    /// [default: none]
    #[arg(long, value_name = "NETWORKS", default_value = "", hide_default_value = true,
          value_parser = Proxies::parse)]
    trusted_proxies: Proxies,
}

impl BoundsSettings {
    pub(super) fn check(self, access: &Access) -> Result<(Bounds, Limits), Wrong> {
        if self.rate_limit_by == By::Token && access.is_open() {
            let why =
                "is token, but there are no tokens: set API_TOKENS or a JWT_ variable as well";
            return Err(Wrong::setting("rate_limit_by", why));
        }
        let bounds = Bounds {
            requests: self.request_limit,
            request_timeout: self.request_timeout,
            body_timeout: self.body_timeout,
            rate_limit: self
                .rate_limit
                .map(|rate| RateLimit::new(rate, self.rate_limit_by)),
            proxies: self.trusted_proxies,
        };
        let limits = Limits {
            connections: self.connection_limit,
            header_timeout: self.header_timeout,
            idle_timeout: self.idle_timeout,
            write_timeout: self.write_timeout,
        };
        Ok((bounds, limits))
    }
}

fn time() -> impl Fn(&str) -> Result<Duration, String> + Clone {
    duration(Duration::from_millis(10)..=Duration::from_secs(3600))
}
