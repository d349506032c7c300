//! `kind = "rank-dct-study"`: what Delta's split leaves to the residual.

use asymflow::studies::{SplitStudy, SplitStudyReport};

use super::study::{self, LIMITS, StudySection};
use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::{Experiment, Limit};
use crate::kind::{Ended, ExperimentKind};
use crate::plot::{Line, Plot};
use crate::run::Run;

/// Trains Delta's trusted networks, and splits their features at every rank and side of a block.
pub struct RankDctStudy;

impl ExperimentKind for RankDctStudy {
    type Settings = StudySection;
    type Results = SplitStudyReport;

    fn name(&self) -> &'static str {
        "rank-dct-study"
    }

    fn section(&self) -> Option<&'static str> {
        Some("study")
    }

    fn limits(&self) -> &'static [Limit] {
        LIMITS
    }

    fn run(&self, run: &Run, settings: &StudySection) -> Result<(Ended, Option<SplitStudyReport>), CliError> {
        let StudySection { samples, ranks, kept, .. } = settings.clone();
        let e = run.experiment();
        let network = e.network(&e.model.names[0])?;
        let shape = e.delta.shape(&network).map_err(|e| CliError::usage(e.to_string(), "take another model"))?;
        let study = SplitStudy { train: e.train_spec(e.train.seeds[0]), shape, samples, ranks, kept };
        let on = (Entry::of("main-only"), e.model.names[0].as_str(), None);
        Ok((Ended::Whole, Some(run.study("main-only", on, &study)?)))
    }

    fn table(&self, _: &Experiment, _: &StudySection, report: &SplitStudyReport) -> String {
        table(report)
    }

    fn plots(&self, report: &SplitStudyReport) -> Vec<(&'static str, Plot)> {
        let lines = sides(report).into_iter().map(|side| {
            let energies = report.energies.iter().filter(|e| e.kept == side);
            let name = format!("{side} of {} frequencies", report.block);
            Line::new(&name, energies.map(|e| ((e.rank as f64).log2(), e.residual)))
        });
        vec![study::residual_energy(lines.collect())]
    }
}

/// Every side that was kept of a block.
fn sides(report: &SplitStudyReport) -> Vec<usize> {
    let mut kept: Vec<usize> = report.energies.iter().map(|e| e.kept).collect();
    kept.sort_unstable();
    kept.dedup();
    kept
}

fn table(report: &SplitStudyReport) -> String {
    let mut text = format!(
        "{}: M_bb and M_main at {:.1} % test accuracy, {} test images, features of {} channels, DCT blocks of {}.\n\nShare of \
         the features' energy in the residual, by rank and by the side of the low frequencies kept of a block:\n\n| rank |",
        report.network,
        100.0 * report.test_accuracy,
        report.samples,
        report.channels,
        report.block
    );
    let kept = sides(report);
    for side in &kept {
        let share = 100.0 * (side * side) as f64 / (report.block * report.block) as f64;
        text += &format!(" {side} ({share:.1} % of the DCT) |");
    }
    text += &format!("\n|---:|{}", "---:|".repeat(kept.len()));
    let mut rank = 0;
    for energy in &report.energies {
        if energy.rank != rank {
            rank = energy.rank;
            text += &format!("\n| {rank} ({:.1} % of the channels) |", 100.0 * rank as f64 / report.channels as f64);
        }
        text += &format!(" {:.4} |", energy.residual);
    }
    text + "\n"
}
