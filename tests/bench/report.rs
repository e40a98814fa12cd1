//! The report: tables, targets, and the circumstances of the run.

mod targets;

use std::{fmt::Write, time::Duration};

use crate::{
    case::{
        BATCHES, CLOSE_TURNS, Case, Figures, Flush, GROWN, GROWN_CLIENTS, HELD_CLIENTS,
        HOLD_CLIENTS, HTTP_CLIENTS, NOON_CLIENTS, NOON_STOCK, OPERATION_CLIENTS, REFUSAL_CLIENTS,
        SNAPSHOT_CLIENTS, SQL_CLIENTS, Scene, Subject, mebibytes,
    },
    results::{
        Results, claims_under_snapshot, get_million, gets_under_snapshot, last_answer,
        late_connections, median, median_of, middle, milliseconds, most_of, noon, snapshot_case,
        sound, times,
    },
};

/// The circumstances of a run.
pub struct Run {
    /// The day on which it was measured (UTC), as `2026-11-23`.
    pub date: String,
    pub rounds: u32,
    pub seconds: u32,
    pub took: Duration,
    pub machine: Vec<(&'static str, String)>,
    pub settings: Vec<(String, String)>,
    /// Duration of a flush, and of a commit.
    pub flush: Vec<(Flush, Duration, Duration)>,
}

fn suffix(flush: Flush) -> &'static str {
    match flush {
        Flush::Disk => "",
        Flush::Slow => ", flush + 1 ms",
    }
}

/// A Markdown table.
struct Table(String);

impl Table {
    fn new(head: &[&str]) -> Self {
        let mut table = Self(String::new());
        table.row(head);
        table.row(&[&["---"], vec!["---:"; head.len() - 1].as_slice()].concat());
        table
    }

    fn row<S: AsRef<str>>(&mut self, cells: &[S]) {
        for cell in cells {
            self.0.push_str("| ");
            self.0.push_str(cell.as_ref());
            self.0.push(' ');
        }
        self.0.push_str("|\n");
    }
}

/// The name of a subject in the report.
fn title(subject: Subject, scene: Scene) -> &'static str {
    let http = matches!(
        scene,
        Scene::Http
            | Scene::HttpSoldOut
            | Scene::HttpAlready
            | Scene::HttpCoupons
            | Scene::HttpCouponHeld
            | Scene::HttpNoon
    );
    match subject {
        Subject::Honcho if scene == Scene::SqlReserve => "honcho_reserve",
        Subject::Honcho if scene == Scene::SqlConfirm => "honcho_confirm",
        Subject::Honcho if scene == Scene::SqlSoldOut => "honcho_claim, sold out",
        Subject::Honcho if scene == Scene::SqlAllHeld => "honcho_claim, all held",
        Subject::Honcho if scene == Scene::HttpReserve => "reservations",
        Subject::Honcho if scene == Scene::HttpConfirm => "confirmations",
        Subject::Honcho if scene == Scene::HttpMixed => "claims with a tenth of other operations",
        Subject::Honcho if scene == Scene::HttpOneRefused => {
            "claims, those of one more client refused"
        }
        Subject::Honcho if scene == Scene::HttpWatched => "claims on a watched coupon",
        Subject::Honcho if http => "Honcho over HTTP",
        Subject::Honcho if scene == Scene::Batch(1000) => "honcho_claim_batch, 1,000 users",
        Subject::Honcho if matches!(scene, Scene::Batch(_)) => "honcho_claim_batch",
        Subject::Honcho if matches!(scene, Scene::GrownGet(_)) => "Honcho over HTTP",
        Subject::Honcho => "honcho_claim",
        Subject::Before => "the version before",
        Subject::Bare => "Honcho's routes with nothing around them",
        Subject::Prior => "usual transaction",
        Subject::PriorFunction => "the same as a PL/pgSQL function",
        Subject::Units => "a row for each unit, skip locked",
        Subject::SqlInQueue => "SQL on the same tables, in a queue of advisory locks",
        Subject::Pool4 => "usual transaction in axum, pool of 4",
        Subject::Pool16 => "usual transaction in axum, pool of 16",
        Subject::NoOp => "axum route that only parses the claim",
        Subject::RedisAlways if http => "axum over Redis + Lua, appendfsync always",
        Subject::RedisEverysec if http => "axum over Redis + Lua, appendfsync everysec",
        Subject::RedisAlways => "Redis + Lua, appendfsync always",
        Subject::RedisEverysec => "Redis + Lua, appendfsync everysec",
    }
}

/// The whole report in Markdown.
pub fn render(run: &Run, results: &Results) -> String {
    let mut report = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut report, run, results);
    report
}

fn write_report(report: &mut String, run: &Run, results: &Results) -> std::fmt::Result {
    writeln!(report, "# Benchmarks\n")?;
    writeln!(
        report,
        "Written by `make bench` on {}. It measures Honcho and its peers in turns in one run: {} \
         rounds of {} s for each case, {:.0} minutes in all on this machine; over HTTP with \
         {OPERATION_CLIENTS} connections, and at noon, a case has {CLOSE_TURNS} turns in a round (not with a slower flush). \
         Figures are medians, p50 and p99 too. Ratios of rates are medians of the turns' own ratios, for the machine is \
         not as fast in each. After each measurement the books are checked \
         (`honcho_verify`, and as many claims and holds in the tables as the answers say), so a fast \
         wrong answer is no figure here.\n",
        run.date,
        run.rounds,
        run.seconds,
        run.took.as_secs_f64() / 60.0,
    )?;
    writeln!(
        report,
        "![Claims per second over clients](claims-per-second.svg)\n"
    )?;

    writeln!(report, "## What it must reach\n")?;
    let mut table = Table::new(&["", "figure", "required", ""]);
    for target in targets::targets(results) {
        table.row(&target.row());
    }
    writeln!(report, "{}", table.0)?;
    let broken: Vec<(&Case, &String)> = results
        .iter()
        .flat_map(|(case, outcomes)| {
            outcomes
                .iter()
                .filter_map(move |outcome| Some((case, outcome.as_ref().err()?)))
        })
        .collect();
    if !broken.is_empty() {
        writeln!(report, "## Not measured\n")?;
        let mut last = None;
        for (case, error) in broken {
            if last.replace((case, error)) != Some((case, error)) {
                let line = error.lines().next().unwrap_or_default();
                writeln!(report, "- `{case}`: {line}")?;
            }
        }
        writeln!(report)?;
    }

    write_figures(report, results)?;
    write_circumstances(report, run)
}

/// Writes the tables of figures, one after the other; it is long for their number only.
fn write_figures(report: &mut String, results: &Results) -> std::fmt::Result {
    for flush in [Flush::Disk, Flush::Slow] {
        section(
            report,
            results,
            &format!("SQL claims on one coupon{}", suffix(flush)),
            "Through pgbench (Redis: redis-benchmark) with prepared statements.",
            SQL_CLIENTS.map(|clients| (flush, Scene::Sql, clients)),
            "clients",
        )?;
        section(
            report,
            results,
            &format!(
                "SQL claims on one coupon through tokio-postgres{}",
                suffix(flush)
            ),
            "All connections in one process.",
            SQL_CLIENTS.map(|clients| (flush, Scene::Driver, clients)),
            "clients",
        )?;
        section(
            report,
            results,
            &format!("SQL batches on one connection{}", suffix(flush)),
            "Claims per second; p50 and p99 are those of a whole batch.",
            BATCHES.map(|users| (flush, Scene::Batch(users), 1)),
            "connections",
        )?;
        section(
            report,
            results,
            &format!("HTTP claims on one coupon{}", suffix(flush)),
            "Through wrk.",
            HTTP_CLIENTS.map(|clients| (flush, Scene::Http, clients)),
            "connections",
        )?;
    }
    section(
        report,
        results,
        "SQL reservations and confirmations on one coupon",
        "Through pgbench, as claims are. The holds to be confirmed are made beforehand.",
        [Scene::SqlReserve, Scene::SqlConfirm]
            .map(|scene| HOLD_CLIENTS.map(|clients| (Flush::Disk, scene, clients)))
            .as_flattened(),
        "clients",
    )?;
    section(
        report,
        results,
        "SQL claims that are refused",
        "Through pgbench.",
        [Scene::SqlSoldOut, Scene::SqlAllHeld].map(|scene| (Flush::Disk, scene, REFUSAL_CLIENTS)),
        "clients",
    )?;
    write_snapshot(report, results)?;
    section(
        report,
        results,
        "HTTP operations on one coupon",
        "Through wrk. Of fifty requests in the mixture, two are reservations, and one each a confirmation, a \
         cancellation and a release.",
        [
            Scene::HttpReserve,
            Scene::HttpConfirm,
            Scene::HttpMixed,
            Scene::HttpWatched,
            Scene::HttpOneRefused,
        ]
        .map(|scene| (Flush::Disk, scene, OPERATION_CLIENTS)),
        "connections",
    )?;
    section(
        report,
        results,
        "HTTP claims on a sold-out coupon",
        "Every answer is 409 (statuses counted one by one in a run of their own beforehand).",
        HTTP_CLIENTS.map(|clients| (Flush::Disk, Scene::HttpSoldOut, clients)),
        "connections",
    )?;
    section(
        report,
        results,
        "HTTP claims by users who have one already",
        "Every answer is 409, likewise.",
        HTTP_CLIENTS.map(|clients| (Flush::Disk, Scene::HttpAlready, clients)),
        "connections",
    )?;
    section(
        report,
        results,
        "HTTP claims on 1,000 coupons at random",
        "",
        HTTP_CLIENTS.map(|clients| (Flush::Disk, Scene::HttpCoupons, clients)),
        "connections",
    )?;
    section(
        report,
        results,
        "HTTP claims on 1,000 coupons at random, one of which is held",
        &format!(
            "An open transaction has claimed it. Meanwhile {HELD_CLIENTS} more clients, not counted here, claim it in \
             vain."
        ),
        [(Flush::Disk, Scene::HttpCouponHeld, OPERATION_CLIENTS)],
        "connections",
    )?;
    write_noon(report, results)?;
    for (title, note, scene) in [
        (
            "SQL claims on a new coupon in a grown table",
            "",
            Scene::GrownNew as fn(u64) -> Scene,
        ),
        (
            "SQL claims on an old coupon in a grown table",
            "The coupon has up to a million claims already.",
            Scene::GrownOld,
        ),
        (
            "GET of a coupon with 1,000 claims from a grown table",
            "GETs per second.",
            Scene::GrownGet,
        ),
    ] {
        section(
            report,
            results,
            title,
            note,
            GROWN.map(|rows| (Flush::Disk, scene(rows), GROWN_CLIENTS)),
            "clients",
        )?;
    }

    let mut table = Table::new(&["worst round", "first byte", "last byte", "memory grows by"]);
    let mut any = false;
    let get = |of| most_of(results, get_million(), of);
    if let (Some(first), Some(last), Some(growth)) = (
        get(|figures| match figures {
            Figures::Get { first_byte, .. } => Some(milliseconds(first_byte)),
            _ => None,
        }),
        get(|figures| match figures {
            Figures::Get { took, .. } => Some(milliseconds(took)),
            _ => None,
        }),
        get(|figures| match figures {
            Figures::Get { growth, .. } => Some(mebibytes(growth)),
            _ => None,
        }),
    ) {
        any = true;
        table.row(&[
            "GET".to_owned(),
            format!("{first:.1} ms"),
            format!("{last:.0} ms"),
            format!("{growth:.1} MiB"),
        ]);
    }
    if any {
        writeln!(report, "## GET of a coupon with 1 million claims\n")?;
        writeln!(
            report,
            "From a table of 10 million, by a service that just started.\n"
        )?;
        writeln!(report, "{}", table.0)?;
    }
    Ok(())
}

/// Writes the table of claims and look-ups under a snapshot.
fn write_snapshot(report: &mut String, results: &Results) -> std::fmt::Result {
    if !results.contains_key(&snapshot_case()) {
        return Ok(());
    }
    let meanwhile = |figures| match figures {
        Figures::Snapshot { meanwhile, .. } => Some(meanwhile as f64),
        _ => None,
    };
    let meanwhile = median_of(results, snapshot_case(), meanwhile);
    let meanwhile = meanwhile.map_or_else(|| "many".to_owned(), thousands);
    writeln!(
        report,
        "## SQL claims under the snapshot of another session\n"
    )?;
    writeln!(
        report,
        "Per second, through pgbench: when a `repeatable read` transaction has taken its snapshot, and after {meanwhile} \
         claims while it stays open.\n"
    )?;
    let mut table = Table::new(&["", "clients", "at the beginning", "after the claims"]);
    for (name, clients, of) in [
        (
            "honcho_claim",
            SNAPSHOT_CLIENTS,
            claims_under_snapshot as fn(Figures) -> Option<(f64, f64)>,
        ),
        ("honcho_get_coupon", 1, gets_under_snapshot),
    ] {
        let (mut first, mut last): (Vec<f64>, Vec<f64>) =
            sound(results, snapshot_case()).filter_map(of).unzip();
        let show = |rates: &mut [f64]| median(rates).map_or_else(|| "–".to_owned(), thousands);
        table.row(&[
            name.to_owned(),
            clients.to_string(),
            show(&mut first),
            show(&mut last),
        ]);
    }
    writeln!(report, "{}", table.0)
}

/// Writes the table of those who served the clients at noon.
fn write_noon(report: &mut String, results: &Results) -> std::fmt::Result {
    let mut table = Table::new(&[
        "",
        "last answer ms",
        "p50 ms",
        "p99 ms",
        "over 1 s for a connection",
        "Honcho is so many times as fast",
    ]);
    let ours = median_of(results, noon(Subject::Honcho), last_answer);
    let mut any = false;
    for &case in results.keys().filter(|case| case.scene == Scene::HttpNoon) {
        any = true;
        let name = title(case.subject, case.scene);
        let of = |of| median_of(results, case, of);
        let (Some(last), Some(p50), Some(p99), Some(late)) = (
            of(last_answer),
            of(|figures| match figures {
                Figures::Noon { p50, .. } => Some(milliseconds(p50)),
                _ => None,
            }),
            of(|figures| match figures {
                Figures::Noon { p99, .. } => Some(milliseconds(p99)),
                _ => None,
            }),
            of(late_connections),
        ) else {
            table.row(&[name, "not measured", "", "", "", ""]);
            continue;
        };
        let times = ours.filter(|_| case.subject != Subject::Honcho);
        table.row(&[
            name.to_owned(),
            format!("{last:.0}"),
            format!("{p50:.0}"),
            format!("{p99:.0}"),
            thousands(late),
            times.map_or_else(String::new, |ours| format!("{:.2}", last / ours)),
        ]);
    }
    if any {
        let clients = thousands(NOON_CLIENTS.into());
        writeln!(report, "## Noon: {clients} clients at the same moment\n")?;
        writeln!(
            report,
            "One thread of the benchmark lets them connect as fast as it can. Each sends one claim on a coupon with a stock \
             of {NOON_STOCK}. Times are from the first one's beginning to the answer. The route that only parses the \
             claim shows about what clients and connections take.\n"
        )?;
        writeln!(report, "{}", table.0)?;
    }
    Ok(())
}

/// Writes a table of all subjects that were measured in these scenes.
fn section(
    report: &mut String,
    results: &Results,
    heading: &str,
    note: &str,
    scenes: impl AsRef<[(Flush, Scene, u32)]>,
    clients_are: &str,
) -> std::fmt::Result {
    let cases = || {
        scenes.as_ref().iter().flat_map(|&(flush, scene, clients)| {
            results.keys().filter(move |case| {
                (case.flush, case.scene, case.clients) == (flush, scene, clients)
            })
        })
    };
    if cases().next().is_none() {
        return Ok(());
    }
    writeln!(report, "## {heading}\n")?;
    if !note.is_empty() {
        writeln!(report, "{note}\n")?;
    }
    let head = [
        "",
        clients_are,
        "per second",
        "least – most",
        "p50 ms",
        "p99 ms",
        "Honcho is so many times",
    ];
    let mut table = Table::new(&head);
    for &case in cases() {
        let mut name = title(case.subject, case.scene).to_owned();
        match case.scene {
            Scene::Batch(users) if users < 1000 || case.subject == Subject::Before => {
                write!(name, ", {} users", thousands(users.into()))?
            }
            Scene::GrownNew(rows) | Scene::GrownOld(rows) | Scene::GrownGet(rows) => {
                write!(name, ", {} claims in the table", thousands(rows as f64))?;
            }
            _ => {}
        }
        let clients = case.clients.to_string();
        let Some(middle) = middle(results, case) else {
            table.row(&[&name, &clients, "not measured", "", "", "", ""]);
            continue;
        };
        let ours = Case {
            subject: Subject::Honcho,
            ..case
        };
        let times = times(results, ours, case)
            .filter(|_| case != ours)
            .map_or_else(String::new, |times| format!("{times:.2}"));
        table.row(&[
            name,
            clients,
            thousands(middle.per_second),
            format!("{} – {}", thousands(middle.least), thousands(middle.most)),
            format!("{:.2}", middle.p50),
            format!("{:.2}", middle.p99),
            times,
        ]);
    }
    writeln!(report, "{}", table.0)
}

fn write_circumstances(report: &mut String, run: &Run) -> std::fmt::Result {
    writeln!(report, "## Machine, versions, settings\n")?;
    let mut table = Table::new(&["", ""]);
    for (name, value) in &run.machine {
        table.row(&[*name, value]);
    }
    for (flush, flush_time, commit_time) in &run.flush {
        table.row(&[
            format!("Flush of 8 KiB{}", suffix(*flush)),
            format!(
                "{} µs (a single insert with its commit: {} µs)",
                flush_time.as_micros(),
                commit_time.as_micros()
            ),
        ]);
    }
    for (name, value) in &run.settings {
        let value = if value.is_empty() { "''" } else { value };
        table.row(&[format!("`{name}`"), value.to_owned()]);
    }
    writeln!(report, "{}", table.0)?;
    report.push_str(include_str!("method.md"));
    Ok(())
}

/// A number with a comma between thousands.
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
