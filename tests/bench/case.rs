//! The cases, in the order of a round.

use std::{fmt, time::Duration};

/// Duration of a flush of the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flush {
    /// The disk's own time.
    Disk,
    /// One millisecond longer.
    Slow,
}

/// Subjects of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The extension, and for HTTP the service.
    Honcho,
    /// Another build of both, given with `--against`.
    Before,
    /// The service's routes with nothing around them.
    Bare,
    /// The prior system's transaction, statement by statement.
    Prior,
    /// The same logic as one PL/pgSQL function.
    PriorFunction,
    /// A transaction that takes one of many rows with `skip locked`, a row for each unit of the coupon.
    Units,
    /// The claim in SQL on Honcho's tables, with an advisory lock as the coupon's turn.
    SqlInQueue,
    /// An axum service that does the prior system's transaction on a pool of 4 connections.
    Pool4,
    /// The same on a pool of 16.
    Pool16,
    /// An axum route that parses the claim and answers 200.
    NoOp,
    /// Redis with a Lua script, `appendfsync always`; for HTTP, an axum service over it.
    RedisAlways,
    /// The same with `appendfsync everysec`.
    RedisEverysec,
}

/// Workloads of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scene {
    /// Single claims on one coupon through pgbench, or redis-benchmark.
    Sql,
    /// The same through tokio-postgres, all connections in one process.
    Driver,
    /// Batches of this many users on one connection.
    Batch(u32),
    /// Single reservations by new users.
    SqlReserve,
    /// Single confirmations of holds.
    SqlConfirm,
    /// Single claims on a coupon that is sold out.
    SqlSoldOut,
    /// Single claims on a coupon of which all is held.
    SqlAllHeld,
    /// Single claims, and look-ups of the coupon, under the snapshot of another session: at its beginning and after
    /// many claims.
    SqlSnapshot,
    /// Claims on one coupon.
    Http,
    /// Claims on a coupon that is sold out.
    HttpSoldOut,
    /// Claims by users who have claimed already.
    HttpAlready,
    /// Reservations by new users.
    HttpReserve,
    /// Confirmations of holds.
    HttpConfirm,
    /// Claims, and for every tenth of them another operation.
    HttpMixed,
    /// Claims on a coupon with a thousand watchers.
    HttpWatched,
    /// Claims on 1,000 coupons at random.
    HttpCoupons,
    /// The same, while further clients claim a coupon that an open transaction holds.
    HttpCouponHeld,
    /// Claims on one coupon, while one further client sends claims that a trigger refuses.
    HttpOneRefused,
    /// One claim each of clients that connect at the same moment, on a coupon with a small stock.
    HttpNoon,
    /// Single claims on a new coupon, with this many claims on others in the table.
    GrownNew(u64),
    /// Single claims on a coupon with up to a million claims, with this many in the table.
    GrownOld(u64),
    /// GETs of a coupon with 1,000 claims, with this many in the table.
    GrownGet(u64),
    /// One GET of a coupon with a million claims.
    GetMillion,
    /// The service's memory, idle and then under claims.
    Memory,
}

/// One case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    pub flush: Flush,
    pub scene: Scene,
    pub clients: u32,
    pub subject: Subject,
}

/// The result of one measurement.
#[derive(Clone, Copy, Debug)]
pub enum Figures {
    /// Expected answers per second, and the latency of one answer (for batches: of one batch).
    Rate {
        per_second: f64,
        p50: Duration,
        p99: Duration,
    },
    /// One GET of a coupon with a million claims.
    Get {
        first_byte: Duration,
        took: Duration,
        growth: u64,
    },
    /// Times of clients that connected at the same moment, from the first one's beginning to their answers.
    Noon {
        last: Duration,
        p50: Duration,
        p99: Duration,
        /// Clients that waited over a second for their connection.
        late: u32,
    },
    /// Claims, and look-ups of the coupon, per second under one snapshot: first, and after claims for many times as
    /// long.
    Snapshot {
        claims: (f64, f64),
        gets: (f64, f64),
        /// The claims in between.
        meanwhile: u64,
    },
    /// Bytes of resident memory.
    Memory { idle: u64, loaded: u64 },
}

pub const SQL_CLIENTS: [u32; 4] = [1, 8, 64, 200];
pub const HTTP_CLIENTS: [u32; 3] = [1, 64, 256];
pub const BATCHES: [u32; 3] = [16, 128, 1000];
/// The clients of reservations and confirmations in SQL, and those of refusals.
pub const HOLD_CLIENTS: [u32; 2] = [8, 64];
pub const REFUSAL_CLIENTS: u32 = 8;
/// The clients that claim under a snapshot.
pub const SNAPSHOT_CLIENTS: u32 = 8;
/// The connections of holds, mixtures and watched claims.
pub const OPERATION_CLIENTS: u32 = 256;
/// Clients with which the version before claims, too.
pub const SQL_CLIENTS_BEFORE: [u32; 3] = [1, 8, 64];
pub const HTTP_CLIENTS_BEFORE: [u32; 2] = [64, 256];
/// Clients with which other designs of the claim in SQL are measured.
const SQL_CLIENTS_DESIGNS: [u32; 2] = [8, 64];
pub const GROWN: [u64; 3] = [10_000, 1_000_000, 10_000_000];
/// Enough clients for the growth cases to queue on the coupon.
pub const GROWN_CLIENTS: u32 = 8;
/// Further clients that claim the coupon that is held.
pub const HELD_CLIENTS: u32 = 8;
/// Holds of a coupon of which all is held.
pub const HELD: u32 = 100_000;
pub const WATCHERS: u32 = 1_000;
/// The clients at noon, and the stock of their coupon.
pub const NOON_CLIENTS: u32 = 10_000;
pub const NOON_STOCK: u32 = 100;
/// Turns in a round of the cases that are [close](Case::is_close) to what is required.
pub const CLOSE_TURNS: usize = 3;

impl Case {
    /// Every case, Honcho and peer in turns, with or without the version before.
    pub fn all(with_before: bool) -> Vec<Self> {
        use Subject::*;
        let mut cases = Vec::new();
        let is_measured = |subject: &Subject| with_before || *subject != Before;
        let mut add = |flush, scene, clients, subjects: &[Subject]| {
            for &subject in subjects.iter().filter(|subject| is_measured(subject)) {
                cases.push(Self {
                    flush,
                    scene,
                    clients,
                    subject,
                });
            }
        };
        let redis = [RedisAlways, RedisEverysec];
        for clients in SQL_CLIENTS {
            add(Flush::Disk, Scene::Sql, clients, &[Honcho]);
            if SQL_CLIENTS_BEFORE.contains(&clients) {
                add(Flush::Disk, Scene::Sql, clients, &[Before]);
            }
            if HOLD_CLIENTS.contains(&clients) {
                add(Flush::Disk, Scene::SqlReserve, clients, &[Honcho]);
                add(Flush::Disk, Scene::SqlConfirm, clients, &[Honcho]);
            }
            add(Flush::Disk, Scene::Sql, clients, &[Prior, PriorFunction]);
            if SQL_CLIENTS_DESIGNS.contains(&clients) {
                add(Flush::Disk, Scene::Sql, clients, &[Units, SqlInQueue]);
            }
            add(Flush::Disk, Scene::Sql, clients, &redis);
            if clients > 1 {
                add(Flush::Disk, Scene::Driver, clients, &[Honcho, Prior]);
            }
        }
        for scene in [Scene::SqlSoldOut, Scene::SqlAllHeld] {
            add(Flush::Disk, scene, REFUSAL_CLIENTS, &[Honcho]);
        }
        add(Flush::Disk, Scene::SqlSnapshot, SNAPSHOT_CLIENTS, &[Honcho]);
        for users in BATCHES {
            add(Flush::Disk, Scene::Batch(users), 1, &[Honcho]);
        }
        add(Flush::Disk, Scene::Batch(BATCHES[2]), 1, &[Before]);
        for clients in HTTP_CLIENTS {
            add(Flush::Disk, Scene::Http, clients, &[Honcho]);
            if HTTP_CLIENTS_BEFORE.contains(&clients) {
                add(Flush::Disk, Scene::Http, clients, &[Before]);
            }
            if clients > 1 {
                add(Flush::Disk, Scene::Http, clients, &redis);
            }
            if clients == OPERATION_CLIENTS {
                add(Flush::Disk, Scene::Http, clients, &[Bare]);
                for scene in [
                    Scene::HttpReserve,
                    Scene::HttpConfirm,
                    Scene::HttpMixed,
                    Scene::HttpWatched,
                ] {
                    add(Flush::Disk, scene, clients, &[Honcho]);
                }
            }
            add(Flush::Disk, Scene::Http, clients, &[Pool4, NoOp, Pool16]);
            if clients > 1 {
                add(Flush::Disk, Scene::HttpSoldOut, clients, &[Honcho, Pool4]);
                add(Flush::Disk, Scene::HttpAlready, clients, &[Honcho, Pool4]);
            }
        }
        add(
            Flush::Disk,
            Scene::HttpCoupons,
            256,
            &[Honcho, Pool4, Pool16],
        );
        add(Flush::Disk, Scene::HttpCouponHeld, 256, &[Honcho]);
        add(
            Flush::Disk,
            Scene::HttpOneRefused,
            OPERATION_CLIENTS,
            &[Honcho],
        );
        add(
            Flush::Disk,
            Scene::HttpNoon,
            NOON_CLIENTS,
            &[Honcho, Pool4, Pool16, NoOp],
        );
        add(Flush::Disk, Scene::Memory, 256, &[Honcho]);
        for clients in SQL_CLIENTS {
            add(
                Flush::Slow,
                Scene::Sql,
                clients,
                &[Honcho, Prior, PriorFunction],
            );
            if clients > 1 {
                add(Flush::Slow, Scene::Driver, clients, &[Honcho, Prior]);
            }
        }
        for users in BATCHES {
            add(Flush::Slow, Scene::Batch(users), 1, &[Honcho]);
        }
        for clients in HTTP_CLIENTS {
            add(Flush::Slow, Scene::Http, clients, &[Honcho, Pool4, Pool16]);
        }
        for rows in GROWN {
            add(
                Flush::Disk,
                Scene::GrownNew(rows),
                GROWN_CLIENTS,
                &[Honcho, Prior],
            );
            add(Flush::Disk, Scene::GrownOld(rows), GROWN_CLIENTS, &[Honcho]);
            add(Flush::Disk, Scene::GrownGet(rows), GROWN_CLIENTS, &[Honcho]);
        }
        add(Flush::Disk, Scene::GetMillion, 1, &[Honcho]);
        cases
    }

    /// Returns true if its ratios to others are so close to what is required that one measurement in a round does not tell
    /// them from noise.
    pub fn is_close(&self) -> bool {
        use Scene::*;
        let is_over_http = matches!(
            self.scene,
            Http | HttpSoldOut
                | HttpAlready
                | HttpReserve
                | HttpConfirm
                | HttpMixed
                | HttpWatched
                | HttpCoupons
                | HttpCouponHeld
                | HttpOneRefused
                | HttpNoon
        );
        is_over_http && self.flush == Flush::Disk && self.clients >= OPERATION_CLIENTS
    }
}

impl fmt::Display for Flush {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Disk => "disk",
            Self::Slow => "slow",
        })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Honcho => "honcho",
            Self::Before => "before",
            Self::Bare => "bare",
            Self::Prior => "prior",
            Self::PriorFunction => "prior-function",
            Self::Units => "units",
            Self::SqlInQueue => "sql-in-queue",
            Self::Pool4 => "axum-pool-4",
            Self::Pool16 => "axum-pool-16",
            Self::NoOp => "no-op",
            Self::RedisAlways => "redis-always",
            Self::RedisEverysec => "redis-everysec",
        })
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sql => formatter.write_str("sql"),
            Self::Driver => formatter.write_str("driver"),
            Self::Batch(users) => write!(formatter, "batch-{users}"),
            Self::SqlReserve => formatter.write_str("sql-reserve"),
            Self::SqlConfirm => formatter.write_str("sql-confirm"),
            Self::SqlSoldOut => formatter.write_str("sql-sold-out"),
            Self::SqlAllHeld => formatter.write_str("sql-all-held"),
            Self::SqlSnapshot => formatter.write_str("sql-snapshot"),
            Self::Http => formatter.write_str("http"),
            Self::HttpReserve => formatter.write_str("http-reserve"),
            Self::HttpConfirm => formatter.write_str("http-confirm"),
            Self::HttpMixed => formatter.write_str("http-mixed"),
            Self::HttpWatched => formatter.write_str("http-watched"),
            Self::HttpSoldOut => formatter.write_str("http-sold-out"),
            Self::HttpAlready => formatter.write_str("http-already-claimed"),
            Self::HttpCoupons => formatter.write_str("http-1000-coupons"),
            Self::HttpCouponHeld => formatter.write_str("http-coupon-held"),
            Self::HttpOneRefused => formatter.write_str("http-one-refused"),
            Self::HttpNoon => formatter.write_str("http-noon"),
            Self::GrownNew(rows) => write!(formatter, "grown-{rows}-new-coupon"),
            Self::GrownOld(rows) => write!(formatter, "grown-{rows}-old-coupon"),
            Self::GrownGet(rows) => write!(formatter, "grown-{rows}-get"),
            Self::GetMillion => formatter.write_str("get-a-million"),
            Self::Memory => formatter.write_str("memory"),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}/{}/{}/{}",
            self.flush, self.scene, self.clients, self.subject
        )
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate {
                per_second,
                p50,
                p99,
            } => {
                write!(formatter, "{per_second:.0}/s, p50 {p50:.1?}, p99 {p99:.1?}")
            }
            Self::Get {
                first_byte,
                took,
                growth,
            } => write!(
                formatter,
                "first byte {first_byte:.1?}, all {took:.1?}, memory +{:.1} MiB",
                mebibytes(*growth)
            ),
            Self::Noon {
                last,
                p50,
                p99,
                late,
            } => write!(
                formatter,
                "last answer {last:.1?}, p50 {p50:.1?}, p99 {p99:.1?}, {late} late connections"
            ),
            Self::Snapshot {
                claims,
                gets,
                meanwhile,
            } => write!(
                formatter,
                "claims {:.0}/s and after {meanwhile} more {:.0}/s, gets {:.0}/s and {:.0}/s",
                claims.0, claims.1, gets.0, gets.1
            ),
            Self::Memory { idle, loaded } => write!(
                formatter,
                "idle {:.1} MiB, loaded {:.1} MiB",
                mebibytes(*idle),
                mebibytes(*loaded)
            ),
        }
    }
}

/// Bytes as MiB.
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
