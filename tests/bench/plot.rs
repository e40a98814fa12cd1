//! The plot: claims per second on one coupon over the number of clients, in four panels.

use std::{fs, path::Path};

use anyhow::{Result, anyhow};
use plotters::{
    coord::{
        Shift,
        combinators::{BindKeyPoints, IntoLogRange, LogCoord},
    },
    prelude::*,
};

use crate::{
    case::{Case, Flush, HTTP_CLIENTS, NOON_CLIENTS, NOON_STOCK, SQL_CLIENTS, Scene, Subject},
    report::{Run, thousands},
    results::{Results, last_answers, per_second, times},
};

const SIZE: (u32, u32) = (900, 836);
/// Heights of the title above the panels and of the notes below them.
const HEAD: u32 = 58;
const FOOT: u32 = 100;
/// Width beside each panel for the labels at the ends of its lines.
const LABELS: u32 = 152;
/// Least distance between two of these labels.
const LINE_HEIGHT: f64 = 15.0;
const FONT: &str = "sans-serif";

const HONCHO: RGBColor = RGBColor(200, 30, 30);
const USUAL: RGBColor = RGBColor(20, 70, 160);
const FUNCTION: RGBColor = RGBColor(40, 120, 190);
const REDIS_ALWAYS: RGBColor = RGBColor(180, 95, 0);
const REDIS_EVERYSEC: RGBColor = RGBColor(70, 115, 20);
const GREY: RGBColor = RGBColor(95, 95, 95);

/// Claims through SQL or over HTTP, with one duration of the WAL's flush.
#[derive(Clone, Copy)]
struct Panel {
    flush: Flush,
    scene: Scene,
}

const PANELS: [Panel; 4] = [
    Panel {
        flush: Flush::Disk,
        scene: Scene::Sql,
    },
    Panel {
        flush: Flush::Slow,
        scene: Scene::Sql,
    },
    Panel {
        flush: Flush::Disk,
        scene: Scene::Http,
    },
    Panel {
        flush: Flush::Slow,
        scene: Scene::Http,
    },
];

/// The rates of one subject, as (clients, claims per second).
struct Line {
    label: &'static str,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

impl Panel {
    fn clients(self) -> &'static [u32] {
        match self.scene {
            Scene::Http => &HTTP_CLIENTS,
            _ => &SQL_CLIENTS,
        }
    }

    fn most_clients(self) -> u32 {
        self.clients().iter().copied().max().unwrap_or(1)
    }

    fn case(self, clients: u32, subject: Subject) -> Case {
        Case {
            flush: self.flush,
            scene: self.scene,
            clients,
            subject,
        }
    }

    /// The peer in the plot: over HTTP, the pool that claims more at the most connections.
    fn usual(self, results: &Results) -> Subject {
        let rate = |subject| per_second(results, self.case(self.most_clients(), subject));
        match self.scene {
            Scene::Http if rate(Subject::Pool16) > rate(Subject::Pool4) => Subject::Pool16,
            Scene::Http => Subject::Pool4,
            _ => Subject::Prior,
        }
    }

    /// Honcho's rate as a multiple of the usual transaction's, at the most clients.
    fn advantage(self, results: &Results) -> Option<f64> {
        let clients = self.most_clients();
        times(
            results,
            self.case(clients, Subject::Honcho),
            self.case(clients, self.usual(results)),
        )
    }

    fn lines(self, results: &Results) -> Vec<Line> {
        let usual = (self.usual(results), "usual transaction", USUAL);
        let subjects = match self.scene {
            Scene::Http => vec![
                (Subject::Honcho, "Honcho", HONCHO),
                usual,
                (Subject::NoOp, "route that only parses", GREY),
            ],
            _ => vec![
                (Subject::Honcho, "honcho_claim", HONCHO),
                usual,
                (Subject::PriorFunction, "as PL/pgSQL function", FUNCTION),
                (Subject::RedisAlways, "Redis, always", REDIS_ALWAYS),
                (Subject::RedisEverysec, "Redis, everysec", REDIS_EVERYSEC),
            ],
        };
        subjects
            .into_iter()
            .map(|(subject, label, colour)| Line {
                label,
                colour,
                points: self
                    .clients()
                    .iter()
                    .filter_map(|&clients| {
                        let rate = per_second(results, self.case(clients, subject))?;
                        Some((f64::from(clients), rate))
                    })
                    .collect(),
            })
            .filter(|line| !line.points.is_empty())
            .collect()
    }

    /// The rate of the largest batches, which one connection claims.
    fn batch(self, results: &Results) -> Option<f64> {
        if self.scene != Scene::Sql {
            return None;
        }
        per_second(
            results,
            Case {
                flush: self.flush,
                scene: Scene::Batch(1000),
                clients: 1,
                subject: Subject::Honcho,
            },
        )
    }

    fn caption(self, run: &Run) -> String {
        let interface = match self.scene {
            Scene::Http => "Over HTTP",
            _ => "In SQL",
        };
        let measured = run.flush.iter().find(|(flush, ..)| *flush == self.flush);
        match (self.flush, measured) {
            (_, Some((_, time, _))) => format!(
                "{interface}, a flush to disk takes {:.1} ms",
                time.as_secs_f64() * 1000.0
            ),
            (Flush::Disk, None) => format!("{interface}, as the disk flushes"),
            (Flush::Slow, None) => format!("{interface}, each flush 1 ms longer"),
        }
    }

    fn unit(self) -> &'static str {
        match self.scene {
            Scene::Http => "connections",
            _ => "clients",
        }
    }

    /// Why a line of the panel to the left is not in this one.
    fn note(self) -> [&'static str; 2] {
        match (self.flush, self.scene) {
            (Flush::Disk, _) => ["", ""],
            (Flush::Slow, Scene::Http) => ["The route that only parses", "never flushes: see left"],
            (Flush::Slow, _) => [
                "No Redis here: only the flush",
                "of PostgreSQL is slowed down",
            ],
        }
    }
}

/// Draws the claims, with the disk's flush and with the slow one, to an SVG file.
pub fn draw(file: &Path, run: &Run, results: &Results) -> Result<()> {
    fs::write(file, render(run, results)?)?;
    Ok(())
}

fn render(run: &Run, results: &Results) -> Result<String> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    draw_all(&root, run, results).map_err(|error| anyhow!("the plot cannot be drawn: {error}"))?;
    drop(root);
    // plotters has no way to name a picture for those who cannot see it.
    let named = format!(
        " role=\"img\" aria-labelledby=\"title description\">\n<title id=\"title\">{}</title>\n\
         <desc id=\"description\">{}</desc>",
        escape(&headline(results)),
        escape(&describe(run, results)),
    );
    Ok(svg.replacen('>', &named, 1))
}

/// The title: the conclusion from the figures of noon, if they were measured.
fn headline(results: &Results) -> String {
    match last_answers(results) {
        Some((ours, usual)) => format!(
            "{} people, {NOON_STOCK} coupons: all answered in {ours:.1} s, not {usual:.1} s",
            thousands(NOON_CLIENTS.into())
        ),
        None => claims_headline(results),
    }
}

/// The conclusion from the claims on one coupon.
fn claims_headline(results: &Results) -> String {
    let [panel, ..] = PANELS;
    match panel.advantage(results) {
        Some(times) => format!(
            "One hot coupon: {} times the claims of the usual transaction at {} {}",
            multiple(times),
            panel.most_clients(),
            panel.unit()
        ),
        None => "Claims per second on one coupon".to_owned(),
    }
}

/// The line below the title.
fn subtitle(results: &Results) -> String {
    match last_answers(results) {
        Some(_) => format!("{} (log scales).", claims_headline(results)),
        None => "Claims per second on one coupon, by the number of clients that want it at the same time."
            .to_owned(),
    }
}

/// The picture in words.
fn describe(run: &Run, results: &Results) -> String {
    let mut text = String::from("Claims per second on one coupon.");
    for panel in PANELS {
        let ends: Vec<String> = panel
            .lines(results)
            .iter()
            .filter_map(|line| {
                let (_, rate) = line.points.last()?;
                Some(format!("{} {}", line.label, thousands(*rate)))
            })
            .collect();
        if !ends.is_empty() {
            text.push_str(&format!(
                " {}, at {} {}: {}.",
                panel.caption(run),
                panel.most_clients(),
                panel.unit(),
                ends.join(", ")
            ));
        }
    }
    text
}

fn footnotes(run: &Run) -> [String; 5] {
    let machine = |name| {
        let found = run.machine.iter().find(|(key, _)| *key == name);
        found.map_or("", |(_, value)| value)
    };
    let postgresql = run
        .settings
        .iter()
        .find(|(name, _)| name == "server_version");
    let postgresql = postgresql.map_or("", |(_, version)| version);
    [
        format!(
            "All answered: {} clients, not connected yet, claim at the same moment; the second time is the usual \
             transaction's.",
            thousands(NOON_CLIENTS.into())
        ),
        "Usual transaction: begin, select … for update, insert, update, commit; over HTTP in axum, \
         with the better of two pools (4 and 16)."
            .to_owned(),
        "Redis: a Lua script, with appendfsync always and everysec; no part of a transaction in \
         PostgreSQL."
            .to_owned(),
        "Route that only parses: axum without a database, which is as fast as HTTP gets on this machine."
            .to_owned(),
        format!(
            "{}, shared with the load generators; {}; PostgreSQL {}; medians of {} rounds; \
             measured on {} by make bench.",
            machine("Processor"),
            machine("Memory"),
            postgresql.split(' ').next().unwrap_or_default(),
            run.rounds,
            run.date
        ),
    ]
}

fn multiple(times: f64) -> String {
    if times < 10.0 {
        format!("{times:.1}")
    } else {
        format!("{times:.0}")
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

type Drawn<T> = Result<T, Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_all(root: &Area<'_>, run: &Run, results: &Results) -> Drawn<()> {
    root.fill(&WHITE)?;
    let title = (FONT, 24).into_font().style(FontStyle::Bold);
    root.draw(&Text::new(headline(results), (12, 12), title))?;
    root.draw(&Text::new(subtitle(results), (12, 40), (FONT, 16)))?;

    let grid = root.margin(HEAD, FOOT, 0, 0).split_evenly((2, 2));
    for (area, panel) in grid.iter().zip(PANELS) {
        draw_panel(root, area, panel, run, results)?;
    }
    for (y, note) in (SIZE.1 as i32 - 88..).step_by(16).zip(footnotes(run)) {
        root.draw(&Text::new(
            note,
            (12, y),
            (FONT, 15).into_font().color(&GREY),
        ))?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(
    root: &Area<'_>,
    area: &Area<'_>,
    panel: Panel,
    run: &Run,
    results: &Results,
) -> Drawn<()> {
    let clients: LogCoord<f64> = (0.8..300.0).log_scale().into();
    let (lowest, highest) = rate_range(results);
    let rate: LogCoord<f64> = (lowest..highest).log_scale().into();
    let decades = (lowest.log10() as i32..=highest.log10() as i32).map(|power| 10_f64.powi(power));
    let mut chart = ChartBuilder::on(area)
        .margin_top(38)
        .margin_right(LABELS)
        .margin_left(8)
        .x_label_area_size(42)
        .y_label_area_size(72)
        .build_cartesian_2d(
            clients.with_key_points(panel.clients().iter().copied().map(f64::from).collect()),
            rate.with_key_points(decades.collect()),
        )?;
    chart
        .configure_mesh()
        .bold_line_style(BLACK.mix(0.15))
        .x_desc(format!("{} (log scale)", panel.unit()))
        .y_desc("claims per second (log scale)")
        .label_style((FONT, 15))
        .axis_desc_style((FONT, 15))
        .x_label_formatter(&|clients| format!("{clients:.0}"))
        .y_label_formatter(&|rate| thousands(*rate))
        .draw()?;

    let lines = panel.lines(results);
    for line in &lines {
        let style = line.colour.stroke_width(2);
        chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        let dots = line
            .points
            .iter()
            .map(|&point| Circle::new(point, 3, line.colour.filled()));
        chart.draw_series(dots)?;
    }
    if let Some(rate) = panel.batch(results) {
        chart.draw_series([Circle::new((1.0, rate), 4, HONCHO.filled())])?;
        let (x, y) = chart.backend_coord(&(1.0, rate));
        let style = (FONT, 15).into_font().color(&HONCHO);
        root.draw(&Text::new(
            "honcho_claim_batch: 1,000 users a call, one connection",
            (x + 9, y - 6),
            style,
        ))?;
    }

    // Everything from here on is placed by pixels of the whole picture.
    let pixel = |point| chart.backend_coord(&point);
    let (left, top) = pixel((0.8, highest));
    let caption = (FONT, 17).into_font().style(FontStyle::Bold);
    root.draw(&Text::new(panel.caption(run), (left, top - 20), caption))?;
    let (x, y) = pixel((1.2, 30_000.0));
    for (row, note) in (0..).zip(panel.note()) {
        let style = (FONT, 15).into_font().color(&GREY);
        root.draw(&Text::new(note, (x, y + row * 15), style))?;
    }
    label_lines(root, &lines, pixel)?;
    if let Some(times) = panel.advantage(results) {
        let end = |label: usize| {
            lines
                .get(label)
                .and_then(|line| line.points.last().copied())
        };
        if let (Some(ours), Some(theirs)) = (end(0), end(1)) {
            draw_advantage(root, pixel(ours), pixel(theirs), times)?;
        }
    }
    Ok(())
}

/// The range of the rates in all panels: from a power of ten to a little above the highest.
fn rate_range(results: &Results) -> (f64, f64) {
    let lines = PANELS.iter().flat_map(|panel| panel.lines(results));
    let rates = lines.flat_map(|line| line.points).map(|(_, rate)| rate);
    let batches = PANELS.iter().filter_map(|panel| panel.batch(results));
    let (lowest, highest) = rates
        .chain(batches)
        .fold((1_000.0_f64, 100_000.0_f64), |(lowest, highest), rate| {
            (lowest.min(rate.max(1.0)), highest.max(rate))
        });
    (10_f64.powf(lowest.log10().floor()), highest * 1.5)
}

/// Names each line at its right end.
fn label_lines(
    root: &Area<'_>,
    lines: &[Line],
    pixel: impl Fn((f64, f64)) -> (i32, i32),
) -> Drawn<()> {
    let mut ends: Vec<(i32, i32, &Line)> = lines
        .iter()
        .filter_map(|line| {
            let (x, y) = pixel(*line.points.last()?);
            Some((x, y, line))
        })
        .collect();
    ends.sort_by_key(|(_, y, _)| *y);
    let wanted: Vec<f64> = ends.iter().map(|(_, y, _)| f64::from(*y)).collect();
    for ((x, _, line), y) in ends.iter().zip(spread(&wanted, LINE_HEIGHT)) {
        let mut font = (FONT, 16).into_font();
        if line.colour == HONCHO {
            font = font.style(FontStyle::Bold);
        }
        let place = (x + 10, y.round() as i32 - 7);
        root.draw(&Text::new(line.label, place, font.color(&line.colour)))?;
    }
    Ok(())
}

/// Moves ascending positions as little as it takes to keep them `gap` apart. Neighbours that are too
/// close become a group around the middle of what they wanted.
fn spread(wanted: &[f64], gap: f64) -> Vec<f64> {
    // Of each group: the sum of its positions less their distances from the first of all, and its size.
    let mut groups: Vec<(f64, f64)> = Vec::new();
    for (index, position) in wanted.iter().enumerate() {
        let mut group = (position - index as f64 * gap, 1.0);
        while let Some(&(sum, size)) = groups.last()
            && sum / size > group.0 / group.1
        {
            groups.pop();
            group = (group.0 + sum, group.1 + size);
        }
        groups.push(group);
    }
    let middles = groups
        .iter()
        .flat_map(|&(sum, size)| std::iter::repeat_n(sum / size, size as usize));
    middles
        .enumerate()
        .map(|(index, middle)| middle + index as f64 * gap)
        .collect()
}

/// A bracket from the usual transaction up to Honcho, with the multiple.
fn draw_advantage(root: &Area<'_>, ours: (i32, i32), theirs: (i32, i32), times: f64) -> Drawn<()> {
    let x = ours.0;
    let style = BLACK.stroke_width(1);
    root.draw(&PathElement::new(
        [(x, ours.1 + 6), (x, theirs.1 - 6)],
        style,
    ))?;
    for (y, direction) in [(ours.1 + 6, 1), (theirs.1 - 6, -1)] {
        let arrow = [
            (x - 4, y + 5 * direction),
            (x, y),
            (x + 4, y + 5 * direction),
        ];
        root.draw(&PathElement::new(arrow, style))?;
    }
    let font = (FONT, 22).into_font().style(FontStyle::Bold);
    let place = (x + 10, (ours.1 + theirs.1) / 2 - 9);
    root.draw(&Text::new(format!("{} ×", multiple(times)), place, font))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::case::Figures;

    fn results(rates: &[(Case, f64)]) -> Results {
        let figures = |per_second| Figures::Rate {
            per_second,
            p50: Duration::ZERO,
            p99: Duration::ZERO,
        };
        rates
            .iter()
            .map(|&(case, per_second)| (case, vec![Ok(figures(per_second))]))
            .collect()
    }

    fn run() -> Run {
        Run {
            date: "2026-11-23".to_owned(),
            rounds: 3,
            seconds: 2,
            took: Duration::ZERO,
            machine: vec![("Processor", "A & B, 2 cores".to_owned())],
            settings: Vec::new(),
            flush: vec![(Flush::Disk, Duration::from_micros(167), Duration::ZERO)],
        }
    }

    #[test]
    fn labels_stay_apart_and_near_their_lines() {
        assert_eq!(spread(&[], 15.0), [0.0; 0]);
        assert_eq!(spread(&[10.0, 40.0], 15.0), [10.0, 40.0]);
        assert_eq!(spread(&[100.0, 101.0], 15.0), [93.0, 108.0]);
        // The third one comes too near only when the first two have made room for each other.
        assert_eq!(
            spread(&[10.0, 10.0, 22.0, 90.0], 15.0),
            [-1.0, 14.0, 29.0, 90.0]
        );
    }

    #[test]
    fn title_comes_from_the_figures() -> Result<()> {
        let [sql, ..] = PANELS;
        let measured = results(&[
            (sql.case(200, Subject::Honcho), 9_000.0),
            (sql.case(200, Subject::Prior), 2_000.0),
        ]);
        let title = "One hot coupon: 4.5 times the claims of the usual transaction at 200 clients";
        assert_eq!(headline(&measured), title);
        let svg = render(&run(), &measured)?;
        assert!(svg.contains(&format!("<title id=\"title\">{title}</title>")));
        assert!(svg.contains("In SQL, a flush to disk takes 0.2 ms, at 200 clients: honcho_claim 9,000, usual transaction 2,000."));
        Ok(())
    }

    #[test]
    fn noon_is_the_title_if_it_was_measured() -> Result<()> {
        let [sql, ..] = PANELS;
        let mut measured = results(&[
            (sql.case(200, Subject::Honcho), 9_000.0),
            (sql.case(200, Subject::Prior), 2_000.0),
        ]);
        for (subject, last) in [
            (Subject::Honcho, 500),
            (Subject::Pool4, 3_000),
            (Subject::Pool16, 2_000),
        ] {
            let case = Case {
                flush: Flush::Disk,
                scene: Scene::HttpNoon,
                clients: NOON_CLIENTS,
                subject,
            };
            let figures = Figures::Noon {
                last: Duration::from_millis(last),
                p50: Duration::ZERO,
                p99: Duration::ZERO,
                late: 0,
            };
            measured.insert(case, vec![Ok(figures)]);
        }
        let title = "10,000 people, 100 coupons: all answered in 0.5 s, not 2.0 s";
        assert_eq!(headline(&measured), title);
        let svg = render(&run(), &measured)?;
        assert!(svg.contains("One hot coupon: 4.5 times the claims of the usual transaction"));
        Ok(())
    }

    #[test]
    fn axis_holds_all_rates() {
        let [sql, ..] = PANELS;
        assert_eq!(rate_range(&Results::new()), (1_000.0, 150_000.0));
        let measured = results(&[
            (sql.case(1, Subject::Honcho), 400_000.0),
            (sql.case(200, Subject::Prior), 37.0),
        ]);
        assert_eq!(rate_range(&measured), (10.0, 600_000.0));
    }

    #[test]
    fn pool_that_claims_more_is_the_peer_over_http() {
        let http = PANELS[2];
        let measured = results(&[
            (http.case(256, Subject::Honcho), 60_000.0),
            (http.case(256, Subject::Pool4), 2_000.0),
            (http.case(256, Subject::Pool16), 3_000.0),
        ]);
        assert_eq!(http.advantage(&measured), Some(20.0));
    }

    #[test]
    fn figures_that_are_missing_leave_gaps() -> Result<()> {
        let nothing = Results::new();
        assert_eq!(headline(&nothing), "Claims per second on one coupon");
        let svg = render(&run(), &nothing)?;
        assert!(svg.contains("Over HTTP, each flush 1 ms longer"));
        assert!(!svg.contains(" ×"));
        Ok(())
    }
}
