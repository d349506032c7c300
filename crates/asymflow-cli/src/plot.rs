//! Plots as SVG without a background, in colours that colour-blind readers can tell apart (after Okabe and Ito, each shifted until it
//! stands out on white and on black) and with the name of every line beside it.

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::CliError;
pub use crate::page::{LayerTime, Point};

const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 150, 110),
    RGBColor(200, 110, 160),
    RGBColor(190, 125, 0),
    RGBColor(120, 94, 240),
    RGBColor(45, 145, 205),
    RGBColor(150, 110, 60),
];
/// The grey of words and axes, which both grounds set off.
const INK: RGBColor = RGBColor(122, 122, 122);
/// Lines that are there for comparison.
const FAINT: f64 = 0.35;
const WIDTH: u32 = 700;
/// Room for names to the right of the lines, and for each of them in height.
const NAMES: i32 = 190;
const NAME: i32 = 16;
/// Size of words as plotters counts it, of which a browser's pixels are four fifths.
const SIZE: i32 = 16;
/// Panels side by side.
const COLUMNS: usize = 3;
const PANEL_HEIGHT: u32 = 190;

/// Points joined by a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    name: String,
    colour: Option<usize>,
    /// Right, up, and half of the interval around it.
    points: Vec<(f64, f64, f64)>,
}

impl Line {
    /// A line with a name, in a colour of its own.
    pub fn new(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self::with_intervals(name, points.into_iter().map(|(x, y)| (x, y, 0.0)))
    }

    /// A line whose points have intervals: the third number is half of each.
    pub fn with_intervals(name: &str, points: impl IntoIterator<Item = (f64, f64, f64)>) -> Self {
        Self { name: name.to_owned(), colour: None, points: points.into_iter().collect() }
    }

    /// The same line in a colour that others may have too.
    #[must_use]
    pub fn with_colour(self, colour: usize) -> Self {
        Self { colour: Some(colour), ..self }
    }

    fn colour(&self, number: usize) -> RGBColor {
        COLOURS[self.colour.unwrap_or(number) % COLOURS.len()]
    }
}

/// Lines over two axes; the title is that of the experiment. Up to eight lines share one panel, more have one each.
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

/// Left, right, and top of the axes.
type Bounds = (f64, f64, f64);
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failure = Box<dyn std::error::Error>;

impl Plot {
    /// Colours that differ.
    pub const COLOURS: usize = COLOURS.len();

    /// The plot under a title; empty where there are no points.
    pub(crate) fn draw(&self, title: &str) -> Result<String, CliError> {
        let mut svg = String::new();
        if let Some(bounds) = self.bounds() {
            self.draw_into(&mut svg, title, bounds)
                .map_err(|e| CliError::failed(format!("cannot draw {title}: {e}"), ""))?;
        }
        Ok(svg)
    }

    fn bounds(&self) -> Option<Bounds> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        points().next()?;
        let low = points().map(|p| p.0).fold(f64::INFINITY, f64::min);
        let high = points().map(|p| p.0).fold(low + f64::MIN_POSITIVE, f64::max);
        let high = if high - low < 1e-9 { low + 1.0 } else { high };
        let top = self.y_max.unwrap_or_else(|| points().map(|p| p.1 + p.2).fold(0.0, f64::max) * 1.05);
        Some((low, high, if top > 0.0 { top } else { 1.0 }))
    }

    fn draw_into(&self, svg: &mut String, title: &str, bounds: Bounds) -> Result<(), Failure> {
        let is_one = self.lines.len() <= COLOURS.len();
        let rows = if is_one { 0 } else { self.lines.len().div_ceil(COLUMNS) };
        let height = if is_one { 420 } else { 40 + PANEL_HEIGHT * rows as u32 };
        let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
        let (head, body) = root.split_vertically(34);
        let size = if title.chars().count() > 75 { 16 } else { 21 };
        head.draw(&Text::new(title.to_owned(), (12, 10), ("sans-serif", size).into_font().color(&INK)))?;
        if is_one {
            return self.one_panel(&body, bounds);
        }
        let panels = body.margin(0, 6, 0, 0).split_evenly((rows, COLUMNS));
        for (number, panel) in panels.iter().take(self.lines.len()).enumerate() {
            self.small_panel(panel, number, bounds)?;
        }
        Ok(root.present()?)
    }

    /// All lines, each with its name to the right of its end.
    fn one_panel(&self, area: &Area<'_>, (low, high, top): Bounds) -> Result<(), Failure> {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(NAMES)
            .x_label_area_size(38)
            .y_label_area_size(56)
            .build_cartesian_2d(low..high, 0.0..top)?;
        axes(&mut chart, &self.x, &self.y)?;
        for (number, line) in self.lines.iter().enumerate() {
            draw_line(&mut chart, line, line.colour(number).to_rgba(), true)?;
        }
        let ends = self.lines.iter().enumerate().filter_map(|(number, line)| {
            let &(x, y, _) = line.points.last()?;
            let (_, down) = chart.backend_coord(&(x, y.clamp(0.0, top)));
            Some((down, number))
        });
        let (_, offset) = area.get_base_pixel();
        let (right, names) = (WIDTH as i32 - NAMES, spread(ends.collect(), area.dim_in_pixel().1 as i32 - 46));
        for (down, number) in names {
            let (line, colour) = (&self.lines[number], self.lines[number].colour(number));
            let at = down - offset;
            area.draw(&PathElement::new([(right + 6, at), (right + 18, at)], colour.stroke_width(3)))?;
            let style = ("sans-serif", SIZE).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(shortened(&line.name, 22), (right + 22, at), style))?;
        }
        Ok(())
    }

    /// One line under its name, before the others.
    fn small_panel(&self, area: &Area<'_>, number: usize, (low, high, top): Bounds) -> Result<(), Failure> {
        let (head, body) = area.split_vertically(20);
        let style = ("sans-serif", SIZE).into_font().color(&INK).pos(Pos::new(HPos::Center, VPos::Top));
        let middle = (area.dim_in_pixel().0 / 2) as i32;
        head.draw(&Text::new(shortened(&self.lines[number].name, 28), (middle, 2), style))?;
        let mut chart = ChartBuilder::on(&body)
            .margin(6)
            .margin_top(10)
            .margin_right(16)
            .x_label_area_size(38)
            .y_label_area_size(56)
            .build_cartesian_2d(low..high, 0.0..top)?;
        axes(&mut chart, &self.x, &self.y)?;
        for line in &self.lines {
            draw_line(&mut chart, line, INK.mix(FAINT), false)?;
        }
        let line = &self.lines[number];
        draw_line(&mut chart, line, line.colour(number).to_rgba(), true)
    }
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn axes(chart: &mut Chart<'_, '_>, x: &str, y: &str) -> Result<(), Failure>
where
    plotters::coord::types::RangedCoordf64: ValueFormatter<f64>,
{
    let label = || ("sans-serif", SIZE).into_font().color(&INK);
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(x).y_desc(y).disable_mesh().axis_style(INK).label_style(label()).axis_desc_style(label());
    Ok(mesh.x_labels(6).y_labels(6).draw()?)
}

fn draw_line(chart: &mut Chart<'_, '_>, line: &Line, colour: RGBAColor, is_marked: bool) -> Result<(), Failure> {
    let points = line.points.iter().map(|&(x, y, _)| (x, y));
    chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
    if is_marked {
        let intervals = line.points.iter().filter(|point| point.2 > 0.0);
        chart.draw_series(intervals.map(|&(x, y, half)| {
            PathElement::new([(x, (y - half).max(0.0)), (x, y + half)], colour.stroke_width(1))
        }))?;
        // A line of few points is read at them.
        let marks = line.points.iter().filter(|_| line.points.len() <= 12);
        chart.draw_series(marks.map(|&(x, y, _)| Circle::new((x, y), 3, colour.filled())))?;
    }
    Ok(())
}

/// Places for names near the ends of their lines, none over another and none below `bottom`.
fn spread(mut ends: Vec<(i32, usize)>, bottom: i32) -> Vec<(i32, usize)> {
    ends.sort_unstable();
    let mut least = i32::MIN;
    for end in &mut ends {
        end.0 = end.0.max(least);
        least = end.0 + NAME;
    }
    let mut most = bottom;
    for end in ends.iter_mut().rev() {
        end.0 = end.0.min(most);
        most = end.0 - NAME;
    }
    ends
}

fn shortened(name: &str, most: usize) -> String {
    if name.chars().count() <= most {
        return name.to_owned();
    }
    name.chars().take(most - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests;
