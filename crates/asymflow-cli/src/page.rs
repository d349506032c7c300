//! The trade-off page: every mode as a point of accuracy against trusted time, with ε and what the strongest attack gets, in one HTML
//! file that needs no network. Plots are uPlot's (MIT).

use asymflow::studies::Picture;
use asymflow_audit::figures::{AttackRow, Control};
use serde::Serialize;

use crate::error::CliError;
use crate::report::Provenance;

/// What a part of a mode took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerTime {
    /// The layer.
    pub layer: String,
    /// Seconds of the trusted part.
    pub trusted: f64,
    /// Seconds of the worker's device.
    pub worker: f64,
    /// Seconds of waiting for it.
    pub wait: f64,
}

/// One mode with one setting.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    /// The mode and its setting.
    pub mode: String,
    /// The network.
    pub network: String,
    /// The data set.
    pub data: String,
    /// Seed.
    pub seed: u64,
    /// Share of test images classified correctly.
    pub accuracy: Option<f64>,
    /// Seconds that the trusted part computed in training.
    pub trusted_seconds: f64,
    /// ε of the record that lost most; null for none.
    pub epsilon: Option<f64>,
    /// Insecure settings in force.
    pub insecure: Vec<String>,
    /// Figures of attacks on it.
    pub attacks: Vec<AttackRow>,
    /// The attack that gets most beyond what is had without it.
    pub strongest: Option<AttackRow>,
    /// Time by layer.
    pub layers: Vec<LayerTime>,
    /// Test accuracy by epoch.
    pub curve: Vec<(usize, f64)>,
    /// Images beside what was made of them.
    pub pictures: Vec<Picture>,
    /// The command.
    pub command: String,
    /// Where it was measured.
    pub provenance: String,
}

impl Point {
    /// The same with attacks, the strongest of which is found.
    #[must_use]
    pub fn attacked(self, attacks: Vec<AttackRow>) -> Self {
        let strongest = strongest(&attacks).cloned();
        Self { attacks, strongest, ..self }
    }

    /// The same as `provenance` has it.
    #[must_use]
    pub(crate) fn measured(self, provenance: &Provenance) -> Self {
        Self { command: provenance.command.clone(), provenance: provenance.words(), ..self }
    }
}

/// How much of what it is after an attack gets beyond what is had without it, from 0 to 1; `None` for a figure that cannot be compared.
fn gain(row: &AttackRow, all: &[AttackRow]) -> Option<f64> {
    let without = row.without(all).max(0.0);
    let has_a_most = matches!(row.figure.as_str(), "labels right" | "SSIM" | "pixels recovered" | "AUC");
    has_a_most.then(|| (row.value - without) / (1.0 - without).max(1e-9))
}

fn strongest(attacks: &[AttackRow]) -> Option<&AttackRow> {
    let is_attack = |row: &&AttackRow| matches!(row.control, Control::Attack | Control::MustWin);
    let gains = attacks.iter().filter(is_attack).filter_map(|row| Some((gain(row, attacks)?, row)));
    gains.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, row)| row)
}

const TEMPLATE: &str = include_str!("../assets/page.html");
const SCRIPT: &str = include_str!("../assets/page.js");
const PLOTS: &str = include_str!("../assets/uplot-1.6.32.iife.min.js");
const PLOT_STYLE: &str = include_str!("../assets/uplot-1.6.32.min.css");
const LICENCE: &str = include_str!("../assets/uplot-LICENSE");

/// The page of these points.
///
/// # Errors
/// They cannot be written.
pub fn page(points: &[Point]) -> Result<String, CliError> {
    let data = serde_json::to_string(points);
    let data = data.map_err(|e| CliError::failed(format!("cannot write the page: {e}"), ""))?;
    // What closes a script, in a name, would end the data.
    let data = data.replace('<', "\\u003c");
    let parts = [
        ("/*UPLOT-LICENCE*/", format!("/*\n{LICENCE}*/")),
        ("/*UPLOT-STYLE*/", PLOT_STYLE.to_owned()),
        ("/*UPLOT*/", PLOTS.to_owned()),
        ("/*PAGE*/", SCRIPT.to_owned()),
    ];
    let page = parts.iter().fold(TEMPLATE.to_owned(), |page, (place, part)| page.replacen(place, part, 1));
    Ok(page.replacen("/*DATA*/", &data, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(figure: &str, value: f64, control: Control) -> AttackRow {
        let (attack, mode, figure) = ("a".to_owned(), "m".to_owned(), figure.to_owned());
        AttackRow { attack, mode, figure, value, low: value, high: value, control }
    }

    #[test]
    fn the_strongest_attack_is_the_one_that_gains_most() {
        let rows = [
            row("labels right", 0.5, Control::Attack),
            row("labels right", 0.4, Control::Baseline),
            row("AUC", 0.7, Control::Attack),
            row("SSIM", 0.9, Control::MustNot),
            row("PSNR", 20.0, Control::Attack),
        ];
        assert_eq!(strongest(&rows), Some(&rows[2]));
        assert_eq!(strongest(&rows[3..]), None);
    }

    #[test]
    fn a_page_stands_alone_whatever_names_say() {
        let mode = "</script><script>alert(1)</script>".to_owned();
        let point = Point { mode, curve: vec![(1, 0.5)], ..Point::default() };
        let page = page(&[point]).unwrap();
        assert!(!page.contains("<script>alert"));
        for outside in ["src=\"http", "href=\"http", "@import", "fetch(", "XMLHttpRequest"] {
            assert!(!page.contains(outside), "{outside}");
        }
        for place in ["/*DATA*/", "/*UPLOT*/", "/*PAGE*/", "/*UPLOT-STYLE*/"] {
            assert!(!page.contains(place), "{place}");
        }
    }
}
