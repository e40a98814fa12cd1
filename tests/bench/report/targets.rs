//! Targets: ratios and bounds, met or missed.

use super::{suffix, thousands};
use crate::{
    case::{
        BATCHES, Case, Figures, Flush, GROWN, GROWN_CLIENTS, HELD, HELD_CLIENTS, HOLD_CLIENTS,
        HTTP_CLIENTS, HTTP_CLIENTS_BEFORE, NOON_CLIENTS, OPERATION_CLIENTS, REFUSAL_CLIENTS,
        SNAPSHOT_CLIENTS, SQL_CLIENTS_BEFORE, Scene, Subject, WATCHERS, mebibytes,
    },
    results::{
        Results, case, claims_under_snapshot, get_million, gets_under_snapshot, last_answers,
        late_connections, median, median_of, memory, middle, milliseconds, most_of, noon,
        snapshot_case, sound, times,
    },
};

/// A target and its figure.
pub struct Target {
    what: String,
    figure: Option<f64>,
    need: Need,
}

#[derive(Clone, Copy)]
enum Need {
    /// At least this multiple of the peer.
    Times(f64),
    /// Less than this number of this unit.
    Under(f64, &'static str),
}

/// The targets, compared with the results. It is one list, and long for that reason only.
pub fn targets(results: &Results) -> Vec<Target> {
    use Subject::{Bare, Honcho, NoOp, Pool4, Pool16, Prior, RedisAlways, RedisEverysec};
    let p50 = |clients, subject| {
        middle(results, case(Flush::Disk, Scene::Http, clients, subject)).map(|middle| middle.p50)
    };
    let ratio = |ours, theirs| times(results, ours, theirs);
    let mut targets = Vec::new();
    let mut at_least = |what: String, figure, least| {
        targets.push(Target {
            what,
            figure,
            need: Need::Times(least),
        });
    };

    for (flush, needs) in [
        (Flush::Disk, [(8, 2.2), (64, 3.2), (200, 6.0)]),
        (Flush::Slow, [(8, 5.0), (64, 8.0), (200, 10.0)]),
    ] {
        for (scene, through) in [(Scene::Sql, "pgbench"), (Scene::Driver, "tokio-postgres")] {
            for (clients, least) in needs {
                at_least(
                    format!(
                        "SQL claims, {clients} clients{}, against the usual transaction ({through})",
                        suffix(flush)
                    ),
                    ratio(
                        case(flush, scene, clients, Honcho),
                        case(flush, scene, clients, Prior),
                    ),
                    least,
                );
            }
        }
    }
    for (flush, least) in [(Flush::Disk, 0.5), (Flush::Slow, 1.0)] {
        at_least(
            format!(
                "SQL claims, our 200 clients against our 8{} (pgbench)",
                suffix(flush)
            ),
            ratio(
                case(flush, Scene::Sql, 200, Honcho),
                case(flush, Scene::Sql, 8, Honcho),
            ),
            least,
        );
    }
    at_least(
        "SQL batches of 1,000 on one connection, against Redis `always` at 64 clients".into(),
        ratio(
            case(Flush::Disk, Scene::Batch(1000), 1, Honcho),
            case(Flush::Disk, Scene::Sql, 64, RedisAlways),
        ),
        1.5,
    );
    let http = |subject| case(Flush::Disk, Scene::Http, 256, subject);
    let better_pool = |ours: Case| {
        let against = |subject| ratio(ours, Case { subject, ..ours });
        let (four, sixteen) = against(Pool4).zip(against(Pool16))?;
        Some(four.min(sixteen))
    };
    at_least(
        "HTTP claims, 256 connections, against the usual transaction in axum, its better pool"
            .into(),
        better_pool(http(Honcho)),
        12.0,
    );
    at_least(
        "HTTP claims on 1,000 coupons at random, 256 connections, against the usual transaction in axum, its better \
         pool"
            .into(),
        better_pool(case(Flush::Disk, Scene::HttpCoupons, 256, Honcho)),
        5.0,
    );
    at_least(
        "HTTP claims, 256 connections, against the no-op route".into(),
        ratio(http(Honcho), http(NoOp)),
        0.6,
    );
    for (subject, policy, least) in [
        (RedisAlways, "always", 1.2),
        (RedisEverysec, "everysec", 1.0),
    ] {
        at_least(
            format!("HTTP claims, 256 connections, against axum over Redis `{policy}`"),
            ratio(http(Honcho), http(subject)),
            least,
        );
    }
    at_least(
        "HTTP claims, 256 connections, against the same routes with nothing around them".into(),
        ratio(http(Honcho), http(Bare)),
        0.9,
    );
    for (scene, what) in [
        (Scene::HttpSoldOut, "on a sold-out coupon"),
        (Scene::HttpAlready, "by users who have one"),
    ] {
        for clients in HTTP_CLIENTS.into_iter().filter(|clients| *clients > 1) {
            at_least(
                format!("HTTP claims {what}, {clients} connections, against the no-op route"),
                ratio(
                    case(Flush::Disk, scene, clients, Honcho),
                    case(Flush::Disk, Scene::Http, clients, NoOp),
                ),
                0.8,
            );
        }
    }
    at_least(
        "HTTP claims, 1 connection: p50 of the usual transaction in axum, its better pool, against ours"
            .into(),
        p50(1, Pool4).zip(p50(1, Pool16)).and_then(|(four, sixteen)| {
            Some(four.min(sixteen) / p50(1, Honcho)?)
        }),
        1.0,
    );
    at_least(
        format!(
            "Noon, {} clients: time until the last answer of the usual transaction in axum, its better pool, against \
             ours",
            thousands(NOON_CLIENTS.into())
        ),
        last_answers(results).map(|(ours, usual)| usual / ours),
        4.0,
    );
    at_least(
        "SQL claims with 10 million claims in the table, against 10 thousand".into(),
        ratio(
            case(
                Flush::Disk,
                Scene::GrownNew(GROWN[2]),
                GROWN_CLIENTS,
                Honcho,
            ),
            case(
                Flush::Disk,
                Scene::GrownNew(GROWN[0]),
                GROWN_CLIENTS,
                Honcho,
            ),
        ),
        0.8,
    );
    for (what, figure, least) in against_claims(results).chain(against_before(results)) {
        at_least(what, figure, least);
    }

    let mut under = |what: &str, figure, most, unit| {
        targets.push(Target {
            what: what.into(),
            figure,
            need: Need::Under(most, unit),
        });
    };
    under(
        "Noon: clients that waited over a second for a connection",
        median_of(results, noon(Honcho), late_connections),
        1.0,
        "clients",
    );
    let get = |of: fn(Figures) -> Option<f64>| most_of(results, get_million(), of);
    under(
        "GET of a coupon with 1 million claims: memory of the service grows by",
        get(|figures| match figures {
            Figures::Get { growth, .. } => Some(mebibytes(growth)),
            _ => None,
        }),
        32.0,
        "MiB",
    );
    under(
        "GET of a coupon with 1 million claims: first byte of the body",
        get(|figures| match figures {
            Figures::Get { first_byte, .. } => Some(milliseconds(first_byte)),
            _ => None,
        }),
        50.0,
        "ms",
    );
    let memory = |of: fn(Figures) -> Option<f64>| most_of(results, memory(), of);
    under(
        "Memory of the service, idle",
        memory(|figures| match figures {
            Figures::Memory { idle, .. } => Some(mebibytes(idle)),
            _ => None,
        }),
        20.0,
        "MiB",
    );
    under(
        "Memory of the service, under 256 connections",
        memory(|figures| match figures {
            Figures::Memory { loaded, .. } => Some(mebibytes(loaded)),
            _ => None,
        }),
        64.0,
        "MiB",
    );
    targets
}

/// Targets of other operations than claims, and of claims among them, as multiples of plain claims.
fn against_claims(results: &Results) -> impl Iterator<Item = (String, Option<f64>, f64)> {
    let ours = |scene, clients| case(Flush::Disk, scene, clients, Subject::Honcho);
    let sql = [
        (Scene::SqlReserve, "reservations"),
        (Scene::SqlConfirm, "confirmations"),
    ];
    let sql = sql.into_iter().flat_map(move |(scene, what)| {
        HOLD_CLIENTS.map(|clients| {
            (
                format!("SQL {what}, {clients} clients, against claims"),
                times(results, ours(scene, clients), ours(Scene::Sql, clients)),
                0.8,
            )
        })
    });
    let refusals = (
        format!(
            "SQL claims on a coupon of which all is held, {} holds, {REFUSAL_CLIENTS} clients, against a sold-out one",
            thousands(HELD.into())
        ),
        times(
            results,
            ours(Scene::SqlAllHeld, REFUSAL_CLIENTS),
            ours(Scene::SqlSoldOut, REFUSAL_CLIENTS),
        ),
        0.9,
    );
    let snapshot = [
        (
            format!("SQL claims, {SNAPSHOT_CLIENTS} clients"),
            claims_under_snapshot as fn(Figures) -> Option<(f64, f64)>,
        ),
        (
            "honcho_get_coupon, 1 client".to_owned(),
            gets_under_snapshot,
        ),
    ];
    let snapshot = snapshot.map(|(what, of)| {
        let ratio = |figures| of(figures).map(|(first, last)| last / first);
        let mut ratios: Vec<f64> = sound(results, snapshot_case()).filter_map(ratio).collect();
        (
            format!("{what}, after many claims under one snapshot, against its beginning"),
            median(&mut ratios),
            0.8,
        )
    });
    let watched = format!("claims with {} watchers", thousands(WATCHERS.into()));
    let http = [
        (Scene::HttpReserve, "reservations", 0.7),
        (Scene::HttpConfirm, "confirmations", 0.7),
        (
            Scene::HttpMixed,
            "claims with a tenth of other operations",
            0.9,
        ),
        (
            Scene::HttpOneRefused,
            "claims while a trigger refuses those of one more client",
            0.8,
        ),
        (Scene::HttpWatched, watched.as_str(), 0.95),
    ];
    let http = http.map(|(scene, what, least)| {
        (
            format!("HTTP {what}, {OPERATION_CLIENTS} connections, against claims alone"),
            times(
                results,
                ours(scene, OPERATION_CLIENTS),
                ours(Scene::Http, OPERATION_CLIENTS),
            ),
            least,
        )
    });
    let held = (
        format!(
            "HTTP claims on 1,000 coupons at random, {OPERATION_CLIENTS} connections, while one is held and \
             {HELD_CLIENTS} more clients claim it, against none held"
        ),
        times(
            results,
            ours(Scene::HttpCouponHeld, OPERATION_CLIENTS),
            ours(Scene::HttpCoupons, OPERATION_CLIENTS),
        ),
        0.9,
    );
    sql.chain([refusals])
        .chain(snapshot)
        .chain(http)
        .chain([held])
}

/// Targets of plain claims as multiples of those of the version before, if there is one.
fn against_before(results: &Results) -> impl Iterator<Item = (String, Option<f64>, f64)> {
    let sql = SQL_CLIENTS_BEFORE.map(|clients| {
        let plural = if clients == 1 { "" } else { "s" };
        let what = format!("SQL claims, {clients} client{plural}");
        (Scene::Sql, clients, what)
    });
    let batches = BATCHES.map(|users| {
        let what = format!("SQL batches of {}", thousands(users.into()));
        (Scene::Batch(users), 1, what)
    });
    let http = HTTP_CLIENTS_BEFORE.map(|clients| {
        let what = format!("HTTP claims, {clients} connections");
        (Scene::Http, clients, what)
    });
    let cases = sql.into_iter().chain(batches).chain(http);
    cases.filter_map(|(scene, clients, what)| {
        let ours = case(Flush::Disk, scene, clients, Subject::Honcho);
        let theirs = Case {
            subject: Subject::Before,
            ..ours
        };
        results.contains_key(&theirs).then(|| {
            (
                format!("{what}, against the version before"),
                times(results, ours, theirs),
                0.97,
            )
        })
    })
}

impl Target {
    /// The cells of its row in the report.
    pub fn row(&self) -> [String; 4] {
        let show = |value: f64| match self.need {
            Need::Times(_) if value < 10.0 => format!("{value:.2}"),
            Need::Times(_) => format!("{value:.1}"),
            Need::Under(_, unit) => format!("{value:.1} {unit}"),
        };
        let (need, met) = match self.need {
            Need::Times(least) => (
                format!("at least {least:?} times"),
                self.figure.map(|figure| figure >= least),
            ),
            Need::Under(most, unit) => (
                format!("under {most:.0} {unit}"),
                self.figure.map(|figure| figure < most),
            ),
        };
        let verdict = match met {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "not measured",
        };
        let figure = self.figure.map_or_else(|| "–".to_owned(), show);
        [self.what.clone(), figure, need, verdict.to_owned()]
    }
}
