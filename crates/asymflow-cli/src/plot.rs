//! Plots as SVG, in colours that colour-blind readers can tell apart (Okabe and Ito).

use plotters::prelude::*;

use crate::error::CliError;

const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// Points joined by a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    name: String,
    colour: Option<usize>,
    points: Vec<(f64, f64)>,
}

impl Line {
    /// A line with a name for the legend, in a colour of its own.
    pub fn new(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { name: name.to_owned(), colour: None, points: points.into_iter().collect() }
    }

    /// The same line in a colour that others may have too.
    #[must_use]
    pub fn with_colour(self, colour: usize) -> Self {
        Self { colour: Some(colour), ..self }
    }
}

/// Lines over two axes; the title is that of the experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// What goes to the right.
    pub x: String,
    /// What goes up.
    pub y: String,
    /// The top of the plot; just above the highest point without it.
    pub y_max: Option<f64>,
    /// The lines.
    pub lines: Vec<Line>,
}

impl Plot {
    /// Colours that differ.
    pub const COLOURS: usize = COLOURS.len();

    /// The plot under a title; empty where there are no points.
    pub(crate) fn draw(&self, title: &str) -> Result<String, CliError> {
        let mut svg = String::new();
        draw_into(&mut svg, title, self).map_err(|e| CliError::failed(format!("cannot draw {title}: {e}"), ""))?;
        Ok(svg)
    }
}

fn draw_into(svg: &mut String, title: &str, plot: &Plot) -> Result<(), Box<dyn std::error::Error>> {
    let Plot { x, y, y_max, lines } = plot;
    let points = || lines.iter().flat_map(|line| &line.points);
    let bound = |f: fn(f64, f64) -> f64, start, pick: fn(&(f64, f64)) -> f64| points().map(pick).fold(start, f);
    let (low, high) = (bound(f64::min, f64::INFINITY, |p| p.0), bound(f64::max, f64::NEG_INFINITY, |p| p.0));
    if points().next().is_none() {
        return Ok(());
    }
    let top = y_max.unwrap_or_else(|| bound(f64::max, 0.0, |p| p.1) * 1.05);
    let root = SVGBackend::with_string(svg, (720, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(low..high.max(low + 1.0), 0.0..top)?;
    chart.configure_mesh().x_desc(x).y_desc(y).disable_mesh().draw()?;
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[line.colour.unwrap_or(number) % COLOURS.len()];
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}
