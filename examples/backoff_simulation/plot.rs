//! The results as SVG.

use std::error::Error;
use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::contention::{Kind, Point};
use crate::outage::{BEGINS, ENDS, Run};

const SIZE: (u32, u32) = (1200, 500);
const COLOURS: [RGBColor; 5] = [
    RGBColor(120, 120, 120),
    RGBColor(31, 119, 180),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// One diagram: its names, the y axis, and where the lines leave room for the legend.
fn diagram<Y>(
    area: &Area<'_>,
    title: &str,
    (x_name, y_name): (&str, &str),
    y: Y,
    legend: SeriesLabelPosition,
    lines: &[Line],
) -> Result<(), Box<dyn Error>>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let xs = || lines.iter().flat_map(|line| line.points.iter().map(|point| point.0));
    let (from, to) = (xs().fold(f64::MAX, f64::min), xs().fold(f64::MIN, f64::max));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(from..to, y)?;
    chart
        .configure_mesh()
        .x_desc(x_name)
        .y_desc(y_name)
        .x_label_formatter(&f64::to_string)
        .y_label_formatter(&f64::to_string)
        .light_line_style(WHITE)
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// Completion time and total calls over the number of clients.
pub(crate) fn contention(path: &Path, points: &[Point]) -> Result<(), Box<dyn Error>> {
    let lines = |y: fn(&Point) -> f64| {
        Kind::ALL.map(|kind| Line {
            name: kind.name(),
            points: points.iter().filter(|p| p.kind == kind).map(|p| (f64::from(p.clients), y(p))).collect(),
        })
    };
    let ends = |lines: &[Line]| {
        let ys = || lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
        (ys().fold(f64::MAX, f64::min), 1.05 * ys().fold(f64::MIN, f64::max))
    };
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0 / 2);
    let time = lines(|point| point.millis / 1000.0);
    let (least, most) = ends(&time);
    let y = (least..most * 10.0).log_scale();
    let legend = SeriesLabelPosition::UpperLeft;
    diagram(&left, "Time until all have written", ("clients", "seconds"), y, legend, &time)?;
    let writes = lines(|point| point.writes);
    let (_, most) = ends(&writes);
    let legend = SeriesLabelPosition::UpperLeft;
    diagram(
        &right,
        "Calls in all",
        ("clients", "writes that reached the server"),
        0.0..most,
        legend,
        &writes,
    )?;
    root.present()?;
    Ok(())
}

/// Attempts and successes per call, second by second.
pub(crate) fn outage(path: &Path, runs: &[Run]) -> Result<(), Box<dyn Error>> {
    let lines = |y: fn(&crate::outage::Second) -> f64| -> Vec<Line> {
        let line = |run: &Run| Line {
            name: run.name,
            points: run.seconds.iter().enumerate().map(|(second, s)| (second as f64, y(s))).collect(),
        };
        runs.iter().map(line).collect()
    };
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0 / 2);
    let per_call = lines(|second| f64::from(second.attempts) / f64::from(second.calls.max(1)));
    let title = format!("Load: half of all answers fail from {BEGINS} s to {ENDS} s");
    let legend = SeriesLabelPosition::UpperRight;
    diagram(&left, &title, ("seconds", "attempts per call"), 0.0..2.5, legend, &per_call)?;
    let succeeded = lines(|second| 100.0 * f64::from(second.succeeded) / f64::from(second.ended.max(1)));
    let legend = SeriesLabelPosition::LowerLeft;
    diagram(&right, "Calls that succeeded", ("seconds", "%"), 0.0..105.0, legend, &succeeded)?;
    root.present()?;
    Ok(())
}
