//! The plot: claims per second on one coupon over clients.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    coord::{
        Shift,
        combinators::{BindKeyPoints, IntoLogRange, LogCoord},
    },
    element::DashedPathElement,
    prelude::*,
};

use crate::{
    case::{Case, Flush, HTTP_CLIENTS, SQL_CLIENTS, Scene, Subject},
    report::{Results, per_second, thousands, title},
};

const SIZE: (u32, u32) = (1280, 700);
const LEGEND: u32 = 130;
const LEGEND_COLUMNS: usize = 3;
const FONT: &str = "sans-serif";

/// What is drawn, and its colour. HTTP is dashed.
const SERIES: [(Scene, Subject, RGBColor); 10] = [
    (Scene::Sql, Subject::Honcho, RGBColor(200, 30, 30)),
    (Scene::Sql, Subject::Prior, RGBColor(20, 70, 160)),
    (Scene::Sql, Subject::PriorFunction, RGBColor(70, 160, 230)),
    (Scene::Batch(1000), Subject::Honcho, RGBColor(120, 0, 120)),
    (Scene::Http, Subject::Honcho, RGBColor(200, 30, 30)),
    (Scene::Http, Subject::Pool4, RGBColor(20, 70, 160)),
    (Scene::Http, Subject::Pool16, RGBColor(70, 160, 230)),
    (Scene::Http, Subject::NoOp, RGBColor(120, 120, 120)),
    (Scene::Sql, Subject::RedisAlways, RGBColor(220, 130, 0)),
    (Scene::Sql, Subject::RedisEverysec, RGBColor(90, 140, 30)),
];

/// Draws the claims, with the disk's flush and with the slow one, to an SVG file.
pub fn draw(file: &Path, results: &Results) -> Result<()> {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    draw_all(&root, results).map_err(|error| anyhow!("the plot cannot be drawn: {error}"))
}

type Drawn<T> = Result<T, Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_all(root: &Area<'_>, results: &Results) -> Drawn<()> {
    root.fill(&WHITE)?;
    let (panels, legend) = root.split_vertically(SIZE.1 - LEGEND);
    for (flush, caption, panel) in panels
        .split_evenly((1, 2))
        .iter()
        .zip([
            (Flush::Disk, "as the disk flushes"),
            (Flush::Slow, "each flush 1 ms slower"),
        ])
        .map(|(panel, (flush, caption))| (flush, caption, panel))
    {
        draw_panel(
            panel,
            results,
            flush,
            &format!("Claims per second on one coupon, {caption}"),
        )?;
    }
    draw_legend(&legend)?;
    root.present()?;
    Ok(())
}

fn draw_panel(panel: &Area<'_>, results: &Results, flush: Flush, caption: &str) -> Drawn<()> {
    let clients: LogCoord<f64> = (0.9..300.0).log_scale().into();
    let rate: LogCoord<f64> = (100.0..500_000.0).log_scale().into();
    let mut chart = ChartBuilder::on(panel)
        .caption(caption, (FONT, 18))
        .margin(12)
        .x_label_area_size(45)
        .y_label_area_size(70)
        .build_cartesian_2d(
            clients.with_key_points(vec![1.0, 8.0, 64.0, 200.0]),
            rate.with_key_points(
                [100.0, 1_000.0, 10_000.0]
                    .into_iter()
                    .flat_map(|decade| [1.0, 2.0, 5.0].map(|step| decade * step))
                    .chain([100_000.0, 200_000.0, 500_000.0])
                    .collect(),
            ),
        )?;
    chart
        .configure_mesh()
        .bold_line_style(BLACK.mix(0.12))
        .x_desc("clients or connections")
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .x_label_formatter(&|clients| format!("{clients:.0}"))
        .y_label_formatter(&|rate| thousands(*rate))
        .draw()?;
    for (scene, subject, colour) in SERIES {
        let widths = if scene == Scene::Http {
            &HTTP_CLIENTS[..]
        } else {
            &SQL_CLIENTS[..]
        };
        let points: Vec<(f64, f64)> = widths
            .iter()
            .filter_map(|&clients| {
                let rate = per_second(
                    results,
                    Case {
                        flush,
                        scene,
                        clients,
                        subject,
                    },
                )?;
                Some((f64::from(clients), rate))
            })
            .collect();
        let style = colour.stroke_width(2);
        if scene == Scene::Http {
            chart.draw_series(DashedLineSeries::new(points.iter().copied(), 7, 4, style))?;
        } else {
            chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        }
        let dots = points
            .iter()
            .map(|&point| Circle::new(point, 3, colour.filled()));
        chart.draw_series(dots)?;
    }
    Ok(())
}

fn draw_legend(legend: &Area<'_>) -> Drawn<()> {
    let rows = SERIES.len().div_ceil(LEGEND_COLUMNS);
    for (cell, column) in legend
        .split_evenly((1, LEGEND_COLUMNS))
        .iter()
        .zip(SERIES.chunks(rows))
    {
        for (row, &(scene, subject, colour)) in (0..).zip(column) {
            let y = 18 + row * 28;
            let style = colour.stroke_width(2);
            let line = [(80, y), (125, y)];
            if scene == Scene::Http {
                cell.draw(&DashedPathElement::new(line, 7, 4, style))?;
            } else {
                cell.draw(&PathElement::new(line, style))?;
            }
            cell.draw(&Circle::new((102, y), 3, colour.filled()))?;
            cell.draw(&Text::new(title(subject, scene), (135, y - 6), (FONT, 15)))?;
        }
    }
    Ok(())
}
