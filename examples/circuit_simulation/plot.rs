//! The runs as SVG: one panel each, the state behind the rates.

use std::error::Error;
use std::path::Path;

use async_circuit::State;
use plotters::prelude::*;

use crate::simulation::{DIES, LENGTH, RATE, RECOVERS, Run};

const PANEL: (u32, u32) = (1200, 230);
const OFFERED: RGBColor = RGBColor(190, 190, 190);
const REACHED: RGBColor = RGBColor(31, 119, 180);
const REFUSED: RGBColor = RGBColor(214, 39, 40);
const OPEN: RGBColor = RGBColor(250, 214, 214);
const HALF_OPEN: RGBColor = RGBColor(255, 240, 190);
const DEAD: RGBColor = RGBColor(60, 60, 60);

pub(crate) fn draw(path: &Path, runs: &[Run]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (PANEL.0, PANEL.1 * runs.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, run) in root.split_evenly((runs.len(), 1)).iter().zip(runs) {
        panel(area, run)?;
    }
    root.present()?;
    Ok(())
}

fn panel<DB>(area: &DrawingArea<DB, plotters::coord::Shift>, run: &Run) -> Result<(), Box<dyn Error>>
where
    DB: DrawingBackend<ErrorType: 'static>,
{
    let top = RATE * 1.7;
    let mut chart = ChartBuilder::on(area)
        .caption(run.name, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..LENGTH, 0.0..top)?;
    chart.configure_mesh().x_desc("seconds").y_desc("per second").light_line_style(WHITE).draw()?;

    // Behind the rates: for how long the circuit was in which state.
    let ends = run.changes.iter().skip(1).map(|change| change.at).chain([LENGTH]);
    for (change, end) in run.changes.iter().zip(ends) {
        let colour = match change.to {
            State::Closed => continue,
            State::Open => OPEN,
            State::HalfOpen => HALF_OPEN,
        };
        // Half-open often lasts for less than a line's width.
        let end = end.max(change.at + 0.4);
        chart.draw_series([Rectangle::new([(change.at, 0.0), (end, top * 0.93)], colour.filled())])?;
    }
    let dead = Rectangle::new([(DIES, top * 0.95), (RECOVERS, top)], DEAD.filled());
    chart.draw_series([dead])?.label("backend dead").legend(swatch(DEAD));
    for (colour, name) in [(OPEN, "open"), (HALF_OPEN, "half-open")] {
        chart.draw_series(std::iter::empty::<Circle<(f64, f64), i32>>())?.label(name).legend(swatch(colour));
    }
    for (seconds, colour, name) in [
        (&run.offered, OFFERED, "requests"),
        (&run.reached, REACHED, "let through"),
        (&run.refused, REFUSED, "refused"),
    ] {
        let points = seconds.iter().take(LENGTH as usize).enumerate();
        let line = points.map(|(second, count)| (second as f64 + 0.5, f64::from(*count)));
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

fn swatch(colour: RGBColor) -> impl Fn((i32, i32)) -> Rectangle<(i32, i32)> {
    move |(x, y)| Rectangle::new([(x, y - 4), (x + 16, y + 4)], colour.filled())
}
