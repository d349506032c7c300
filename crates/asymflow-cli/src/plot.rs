//! Plots of a report as SVG, in colours that colour-blind readers can tell apart (Okabe and Ito).

use plotters::prelude::*;

use crate::error::CliError;
use crate::report::{Report, Results};

const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

struct Line {
    name: String,
    colour: usize,
    points: Vec<(f64, f64)>,
}

struct Axes<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    y_max: Option<f64>,
}

/// Every plot of a report, by name.
pub fn plots(report: &Report) -> Result<Vec<(&'static str, String)>, CliError> {
    Ok(match &report.results {
        Results::Train { curves, .. } => {
            let mut modes: Vec<&str> = curves.iter().map(|c| c.mode.as_str()).collect();
            modes.dedup();
            let colour = |mode: &str| modes.iter().position(|m| *m == mode).unwrap_or_default();
            let lines = curves.iter().map(|curve| Line {
                name: format!("{} seed {}", curve.mode, curve.seed),
                colour: colour(&curve.mode),
                points: curve.test_accuracy.iter().map(|&(epoch, a)| (epoch as f64, 100.0 * a)).collect(),
            });
            let axes = Axes { title: &report.experiment.title, x: "epoch", y: "test accuracy %", y_max: Some(100.0) };
            vec![("accuracy", draw(&axes, &lines.collect::<Vec<_>>())?)]
        }
        Results::RankStudy(study) => {
            let method = "exact-svd";
            let shown = study.layers.iter().step_by(study.layers.len().div_ceil(COLOURS.len()).max(1));
            let lines = shown.enumerate().map(|(i, layer)| Line {
                name: layer.layer.clone(),
                colour: i,
                points: layer
                    .residuals
                    .iter()
                    .filter(|r| r.method == method)
                    .map(|r| ((r.rank as f64).log2(), r.energy))
                    .collect(),
            });
            vec![("residual-energy", residual_energy(report, &lines.collect::<Vec<_>>())?)]
        }
        Results::Serve(_) | Results::Shares(_) | Results::Budget(_) => Vec::new(),
        Results::SplitStudy(study) => {
            let mut kept: Vec<usize> = study.energies.iter().map(|e| e.kept).collect();
            kept.sort_unstable();
            kept.dedup();
            let lines = kept.into_iter().enumerate().map(|(i, kept)| Line {
                name: format!("{kept} of {} frequencies", study.block),
                colour: i,
                points: study
                    .energies
                    .iter()
                    .filter(|e| e.kept == kept)
                    .map(|e| ((e.rank as f64).log2(), e.residual))
                    .collect(),
            });
            vec![("residual-energy", residual_energy(report, &lines.collect::<Vec<_>>())?)]
        }
        Results::Speedup(_) | Results::Memory(_) => Vec::new(),
    })
}

fn residual_energy(report: &Report, lines: &[Line]) -> Result<String, CliError> {
    let axes =
        Axes { title: &report.experiment.title, x: "log2 of the rank", y: "energy in the residual", y_max: None };
    draw(&axes, lines)
}

fn draw(axes: &Axes<'_>, lines: &[Line]) -> Result<String, CliError> {
    let mut svg = String::new();
    draw_into(&mut svg, axes, lines).map_err(|e| CliError::failed(format!("cannot draw {}: {e}", axes.title), ""))?;
    Ok(svg)
}

fn draw_into(svg: &mut String, axes: &Axes<'_>, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let bound = |f: fn(f64, f64) -> f64, start, pick: fn(&(f64, f64)) -> f64| points().map(pick).fold(start, f);
    let (low, high) = (bound(f64::min, f64::INFINITY, |p| p.0), bound(f64::max, f64::NEG_INFINITY, |p| p.0));
    if points().next().is_none() {
        return Ok(());
    }
    let top = axes.y_max.unwrap_or_else(|| bound(f64::max, 0.0, |p| p.1) * 1.05);
    let root = SVGBackend::with_string(svg, (720, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(axes.title, ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(low..high.max(low + 1.0), 0.0..top)?;
    chart.configure_mesh().x_desc(axes.x).y_desc(axes.y).disable_mesh().draw()?;
    for line in lines {
        let colour = COLOURS[line.colour % COLOURS.len()];
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}
