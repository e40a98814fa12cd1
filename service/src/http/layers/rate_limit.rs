//! Rate limit: a token bucket for each caller, and the `RateLimit` headers (draft-ietf-httpapi-ratelimit-headers).

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{StateStore, keyed::ShrinkableKeyedStateStore},
};

use crate::{auth::CallerId, http::problem::whole_seconds};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The most callers with buckets of their own: about 2 MB. Others share [`SHARED`] buckets.
const MOST_CALLERS: usize = 100_000;

/// Number of shared buckets.
const SHARED: u64 = 4_096;

/// Shortest time between two removals of full buckets, which look at all of them.
const SWEEP: Duration = Duration::from_secs(1);

/// Shortest time that a refused caller is told to wait.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// The most requests in a rate.
const MOST_REQUESTS: u32 = 1_000_000;

/// Requests in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    requests: NonZeroU32,
    time: Duration,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rate = || {
            let (requests, time) = text.split_once('/')?;
            let time = match time {
                "s" => Duration::from_secs(1),
                "m" => Duration::from_secs(60),
                "h" => Duration::from_secs(3600),
                _ => return None,
            };
            let requests: NonZeroU32 = requests.parse().ok()?;
            (requests.get() <= MOST_REQUESTS).then_some(Self { requests, time })
        };
        rate().ok_or_else(|| {
            format!(
                "must be a number of requests, up to {MOST_REQUESTS}, per s, m or h, such as 20/s or 100/m"
            )
        })
    }
}

/// Identity of a caller for the rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimitKey {
    /// The address; for IPv6 its network of 64 bits, which one customer gets.
    Address,
    /// The token; without one, the address.
    Token,
}

impl FromStr for RateLimitKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "address" => Ok(Self::Address),
            "token" => Ok(Self::Token),
            _ => Err("must be address or token".to_owned()),
        }
    }
}

/// Key of a caller's bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CallerKey {
    /// An address, or an IPv6 network.
    Address(IpAddr),
    /// An authenticated caller.
    Caller(CallerId),
    /// A connection without an address.
    Unknown,
}

impl CallerKey {
    /// Key of an address.
    pub fn address(address: IpAddr) -> Self {
        Self::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                Ipv6Addr::from_bits(network).into()
            }
        })
    }
}

type Buckets = RateLimiter<CallerKey, BucketStore, DefaultClock, StateInformationMiddleware>;

/// The buckets, each as the moment at which it will be full again. A caller with a bucket of its own keeps it, however
/// many others come; those that come when there is no room share buckets.
///
/// Callers are known by a hash of their keys, which may be long: that of a JSON Web Token is its subject. The hash has
/// a secret of its own, so no client can make two keys with the same one.
///
/// The store of the crate `governor` has no limit, and cannot say if it has a key.
#[derive(Debug)]
struct BucketStore {
    /// The most callers that have a bucket of their own.
    most: usize,
    hasher: RandomState,
    buckets: Mutex<StoredBuckets>,
}

#[derive(Debug, Default)]
struct StoredBuckets {
    own: HashMap<u64, Nanos>,
    shared: HashMap<u64, Nanos>,
}

impl BucketStore {
    fn new(most: usize) -> Self {
        Self {
            most,
            hasher: RandomState::new(),
            buckets: Mutex::default(),
        }
    }

    /// Locks the buckets. Each is one number, so a thread that panicked has left them complete.
    fn lock(&self) -> MutexGuard<'_, StoredBuckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateStore for BucketStore {
    type Key = CallerKey;

    fn measure_and_replace<T, F, E>(&self, key: &CallerKey, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let caller = self.hasher.hash_one(key);
        let mut buckets = self.lock();
        let StoredBuckets { own, shared } = &mut *buckets;
        if let Some(bucket) = own.get_mut(&caller) {
            let (outcome, next) = measure(Some(*bucket))?;
            *bucket = next;
            return Ok(outcome);
        }
        if own.len() < self.most {
            let (outcome, next) = measure(None)?;
            own.insert(caller, next);
            return Ok(outcome);
        }
        let index = caller % SHARED;
        let (outcome, next) = measure(shared.get(&index).copied())?;
        shared.insert(index, next);
        Ok(outcome)
    }
}

impl ShrinkableKeyedStateStore<CallerKey> for BucketStore {
    fn retain_recent(&self, drop_below: Nanos) {
        let mut buckets = self.lock();
        buckets.own.retain(|_, full| *full > drop_below);
        buckets.shared.retain(|_, full| *full > drop_below);
    }

    fn shrink_to_fit(&self) {
        self.lock().own.shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.lock().own.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A rate limit and its use by each caller.
#[derive(Debug)]
pub struct RateLimit {
    rate: Rate,
    by: RateLimitKey,
    policy: HeaderValue,
    buckets: Buckets,
    most: usize,
    swept: Mutex<Instant>,
}

/// Use of the rate limit after a request.
#[derive(Debug)]
pub(crate) struct Usage {
    left: u32,
    wait: Option<Duration>,
}

impl Usage {
    /// Time until the caller's next request, if this one exceeds the limit.
    pub fn wait(&self) -> Option<Duration> {
        self.wait
    }
}

impl RateLimit {
    /// Limits each caller to `rate`. A caller without requests during its time may send all of them at a time.
    pub fn new(rate: Rate, by: RateLimitKey) -> Self {
        Self::for_callers(rate, by, MOST_CALLERS)
    }

    fn for_callers(rate: Rate, by: RateLimitKey, most: usize) -> Self {
        let period = rate.time / rate.requests.get();
        let quota = Quota::with_period(period)
            .unwrap_or_else(|| Quota::per_second(rate.requests))
            .allow_burst(rate.requests);
        let policy = format!(
            r#""default";q={};w={}"#,
            rate.requests,
            whole_seconds(rate.time)
        );
        Self {
            rate,
            by,
            policy: HeaderValue::try_from(policy)
                .unwrap_or_else(|_| HeaderValue::from_static(r#""default""#)),
            buckets: RateLimiter::new(quota, BucketStore::new(most), DefaultClock::default()),
            most,
            swept: Mutex::new(Instant::now()),
        }
    }

    /// Returns true if callers are identified by their tokens.
    pub(crate) fn is_by_token(&self) -> bool {
        self.by == RateLimitKey::Token
    }

    /// Counts a request.
    pub(crate) fn count(&self, key: &CallerKey) -> Usage {
        if self.buckets.len() >= self.most {
            self.sweep();
        }
        match self.buckets.check_key(key) {
            Ok(state) => Usage {
                left: state.remaining_burst_capacity(),
                wait: None,
            },
            Err(refusal) => {
                let wait = refusal.wait_time_from(DefaultClock::default().now());
                Usage {
                    left: 0,
                    // It may be over by now. No `Retry-After` may say 0: clients would try again without a pause.
                    wait: Some(wait.max(SHORTEST_WAIT)),
                }
            }
        }
    }

    /// Removes full buckets, unless that was done a moment ago.
    fn sweep(&self) {
        // Another thread may be doing it already.
        if let Ok(mut swept) = self.swept.try_lock()
            && swept.elapsed() >= SWEEP
        {
            self.buckets.retain_recent();
            self.buckets.shrink_to_fit();
            *swept = Instant::now();
        }
    }

    /// Writes the headers about the caller's use of the limit.
    pub(crate) fn write(&self, usage: &Usage, headers: &mut HeaderMap) {
        let used = self.rate.requests.get() - usage.left.min(self.rate.requests.get());
        let restored = self
            .rate
            .time
            .mul_f64(f64::from(used) / f64::from(self.rate.requests.get()));
        let state = format!(
            r#""default";r={};t={}"#,
            usage.left,
            whole_seconds(usage.wait.unwrap_or(restored))
        );
        headers.insert(RATE_LIMIT_POLICY, self.policy.clone());
        if let Ok(state) = HeaderValue::try_from(state) {
            headers.insert(RATE_LIMIT, state);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn address(n: u32) -> CallerKey {
        CallerKey::address(IpAddr::V4(n.into()))
    }

    #[test]
    fn rates_are_read_or_refused() {
        let rate: Rate = "100/m".parse().unwrap();
        assert_eq!(rate.requests.get(), 100);
        assert_eq!(rate.time, Duration::from_secs(60));
        for wrong in [
            "",
            "100",
            "0/s",
            "-1/s",
            "1/d",
            "1/",
            "/s",
            "1.5/s",
            "1000001/s",
            "5000000000/s",
        ] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_caller_has_its_own_limit() {
        let limit = RateLimit::new("2/h".parse().unwrap(), RateLimitKey::Address);
        assert_eq!(limit.count(&address(1)).left, 1);
        assert_eq!(limit.count(&address(1)).left, 0);
        let refused = limit.count(&address(1));
        assert!(
            refused.wait().unwrap() > Duration::from_secs(1700),
            "{refused:?}"
        );
        assert!(limit.count(&address(2)).wait().is_none());
        let mut headers = HeaderMap::new();
        limit.write(&refused, &mut headers);
        assert_eq!(headers["ratelimit-policy"], r#""default";q=2;w=3600"#);
        assert_eq!(headers["ratelimit"], r#""default";r=0;t=1800"#);
    }

    #[test]
    fn a_bucket_does_not_keep_its_callers_subject() {
        let limit = RateLimit::new("2/h".parse().unwrap(), RateLimitKey::Token);
        let subject = |end: &str| -> Arc<str> { ("x".repeat(5900) + end).into() };
        let (anna, bert) = (subject("anna"), subject("bert"));
        let count = |subject: &Arc<str>| {
            let id = CallerId::Subject(Arc::clone(subject));
            limit.count(&CallerKey::Caller(id)).left
        };
        assert_eq!((count(&anna), count(&anna), count(&bert)), (1, 0, 1));
        assert_eq!(Arc::strong_count(&anna), 1);
        assert_eq!(limit.buckets.len(), 2);
    }

    #[test]
    fn a_refused_caller_waits_for_at_least_a_second() {
        let limit = RateLimit::new("50/s".parse().unwrap(), RateLimitKey::Address);
        let mut waits = (0..1000).filter_map(|_| limit.count(&address(1)).wait());
        assert_eq!(waits.next(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn an_ipv6_network_is_one_caller() {
        let key = |address: &str| CallerKey::address(address.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:2"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
    }

    #[test]
    fn a_flood_of_callers_takes_no_more_memory_and_is_limited_still() {
        let limit = RateLimit::for_callers("1/h".parse().unwrap(), RateLimitKey::Address, 1000);
        let mut refused = 0;
        for n in 0..50_000 {
            refused += u32::from(limit.count(&address(n)).wait().is_some());
        }
        assert_eq!(limit.buckets.len(), 1000);
        // The first thousand have a bucket each; all others share, and find theirs empty.
        assert!(refused >= 49_000 - SHARED as u32, "{refused}");
    }

    #[test]
    fn a_caller_that_is_known_keeps_its_limit_in_a_flood_of_others() {
        let limit = RateLimit::for_callers("10/h".parse().unwrap(), RateLimitKey::Address, 1000);
        for left in [9, 8] {
            assert_eq!(limit.count(&address(1)).left, left);
        }
        for n in 2..50_000 {
            limit.count(&address(n));
        }
        let known = limit.count(&address(1));
        assert_eq!((known.left, known.wait()), (7, None));
        // Newcomers share what others have used up.
        let newcomers = 100_000..101_000;
        let refused = newcomers.filter(|n| limit.count(&address(*n)).wait().is_some());
        assert!(refused.count() > 500);
    }
}
