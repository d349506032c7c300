//! `kind = "rank-study"`: how low the rank of activations is.

use asymflow::studies::{self, RankStudyReport};

use super::study::{self, LIMITS, StudySection};
use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::{Experiment, Limit};
use crate::kind::{Ended, ExperimentKind};
use crate::plot::{Line, Plot};
use crate::run::Run;

/// Trains a network in the trusted part, and decomposes the inputs of its convolutions by every method at every rank.
pub struct RankStudy;

impl ExperimentKind for RankStudy {
    type Settings = StudySection;
    type Results = RankStudyReport;

    fn name(&self) -> &'static str {
        "rank-study"
    }

    fn section(&self) -> Option<&'static str> {
        Some("study")
    }

    fn limits(&self) -> &'static [Limit] {
        LIMITS
    }

    fn run(&self, run: &Run, settings: &StudySection) -> Result<(Ended, Option<RankStudyReport>), CliError> {
        let StudySection { samples, ranks, methods, .. } = settings.clone();
        let e = run.experiment();
        let study = studies::RankStudy { train: e.train_spec(e.train.seeds[0]), samples, ranks, methods };
        let on = (Entry::of("trusted-only"), e.model.names[0].as_str(), None);
        Ok((Ended::Whole, Some(run.study("trusted-only", on, &study)?)))
    }

    fn table(&self, _: &Experiment, settings: &StudySection, report: &RankStudyReport) -> String {
        table(settings, report)
    }

    fn plots(&self, report: &RankStudyReport) -> Vec<(&'static str, Plot)> {
        let shown = report.layers.iter().step_by(report.layers.len().div_ceil(Plot::COLOURS).max(1));
        let lines = shown.map(|layer| {
            let exact = layer.residuals.iter().filter(|r| r.method == "exact-svd");
            Line::new(&layer.layer, exact.map(|r| ((r.rank as f64).log2(), r.energy)))
        });
        vec![study::residual_energy(lines.collect())]
    }
}

fn table(settings: &StudySection, report: &RankStudyReport) -> String {
    let mut text = format!(
        "{} at {:.1} % test accuracy, {} test images.\n\nMean SVD-channel entropy μ in bits, and the \
         share of energy left in the residual:\n\n",
        report.network,
        100.0 * report.test_accuracy,
        report.samples
    );
    for method in &settings.methods {
        text += &format!("## {method}\n\n| layer | channels | μ |");
        for rank in &settings.ranks {
            text += &format!(" r = {rank} |");
        }
        text += &format!("\n|---|---:|---:|{}\n", "---:|".repeat(settings.ranks.len()));
        for layer in &report.layers {
            text += &format!("| {} | {} | {:.2} |", layer.layer, layer.channels, layer.entropy);
            for &rank in &settings.ranks {
                let found = layer.residuals.iter().find(|r| r.method == *method && r.rank == rank);
                text += &found.map_or_else(|| " - |".to_owned(), |r| format!(" {:.4} |", r.energy));
            }
            text += "\n";
        }
        text += "\n";
    }
    text
}
