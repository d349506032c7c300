//! What an experiment of kind `speedup` found, in Markdown.

use asymflow::studies::Variant;
use asymflow_engine::timing::Seconds;

use super::{Measured, NULL, NetworkSpeedup, Ratios, SpeedupSection, Torch};
use crate::experiment::Experiment;
use crate::tables::{SECONDS_HEAD, seconds_row};
use crate::text::{markdown, median};

const HEAD: [&str; 12] = [
    "mode, basis, worker",
    "trusted MACs",
    "inference ms",
    "over trusted-only",
    "of the limit",
    "wait ms",
    "faults",
    "step ms",
    "over trusted-only",
    "of the limit",
    "wait ms",
    "MiB to and from the worker: inference, step",
];

const PAPERS: &str = "\
The papers' ratios are over everything computed in SGX with Eigen, on other machines. AsymML: 11.2× for inference (VGG-19, 4.8 s in SGX a batch of 32 at \
224²; ResNet-18 5.8×, 2.26 s) and 7.6× for training (VGG-19, 10.28 s; ResNet-18 5.8×, 5.85 s), beside an RTX 5000. Delta: 25× for \
inference and 22× for training (ResNet-18 on 32², batch 32: 510 and 1372 ms in SGX). `null` answers zeros at once and modelled \
cards answer zeros after the time that operations, copies and requests take them: what they leave is time, not results.\n";

pub(super) fn table(experiment: &Experiment, settings: &SpeedupSection, results: &[NetworkSpeedup]) -> String {
    let mut text = format!(
        "Medians of {} repetitions (smallest–largest), rank {}, {:?} on the wire. *Limit*: what lies outside of split convolutions, and \
         in them the longer of moving every byte once and of the low-rank operations, with a basis that costs nothing and a worker that \
         answers at once. *Faults*: pages that the system mapped during an inference or a step.\n\n{PAPERS}",
        settings.repeats, experiment.mode.rank, experiment.worker.precision,
    );
    for measured in results.iter().filter_map(|network| network.measured.as_ref()) {
        let report = &measured.report;
        text += &format!(
            "\n## {}, batch {}\n\nThis machine copies {:.1} GB/s and multiplies matrices at {:.0} GFLOP/s.\n\n{}",
            report.network,
            report.batch,
            report.rates.bytes_per_second / 1e9,
            report.rates.flops / 1e9,
            of_network(measured),
        );
        let alone = measured.labels.iter().zip(&report.variants).filter(|(l, _)| l.worker.as_deref() == Some(NULL));
        for (label, variant) in alone.filter(|_| settings.repeats > 0) {
            text += &layers(label.basis.as_deref().unwrap_or_default(), variant);
        }
    }
    text
}

fn of_network(measured: &Measured) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(measured.report.variants.iter().map(|variant| row(measured, variant)));
    let none = || "-".to_owned();
    let times = |ratio: Option<f64>| ratio.map_or_else(none, |ratio| format!("{ratio:.2}×"));
    let beside = |name: String, (inference, training): (&[f64], &[f64])| {
        let Ratios { inference: over, training: over_step } = measured.over(inference, training);
        let mut row: [String; 12] = std::array::from_fn(|_| none());
        [row[0], row[2], row[3], row[7], row[8]] =
            [name, spread(inference), times(Some(over)), spread(training), times(over_step)];
        row
    };
    let mut bases: Vec<_> = measured.labels.iter().filter_map(|label| label.basis.as_deref()).collect();
    bases.dedup();
    for basis in bases {
        if let Some(limit) = measured.splits(basis).find_map(|(_, variant)| variant.limit) {
            rows.push(beside(format!("limit, {basis}"), (&[limit.inference], &[limit.training])));
        }
    }
    let mut note = String::new();
    match &measured.torch {
        Torch::Seconds { inference, training } => rows.push(beside("PyTorch".to_owned(), (inference, training))),
        Torch::Skipped(reason) => note = format!("\nPyTorch is missing here: {reason}.\n"),
    }
    markdown(&rows) + &note
}

fn row(measured: &Measured, variant: &Variant) -> [String; 12] {
    let over = measured.over(&variant.inference, &variant.training);
    let none = || "-".to_owned();
    let share = match &variant.plan {
        Some(plan) => format!("{:.1} %", 100.0 * plan.trusted_macs() as f64 / plan.full_macs().max(1) as f64),
        None => "0 %".to_owned(),
    };
    let of_limit = |limit: Option<f64>, seconds: &[f64]| {
        limit
            .filter(|_| !seconds.is_empty())
            .map_or_else(none, |limit| format!("{:.0} %", 100.0 * limit / median(seconds)))
    };
    let wait = |layers: &[Seconds], repeats: &[f64]| {
        let all: f64 = layers.iter().map(|layer| layer.wait).sum();
        if repeats.is_empty() { none() } else { format!("{:.1}", 1e3 * all / repeats.len() as f64) }
    };
    let mib = |traffic: &asymflow::job::Traffic| {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        format!("{:.1} + {:.1}", mib(traffic.to_worker), mib(traffic.from_worker))
    };
    [
        variant.name.clone(),
        share,
        spread(&variant.inference),
        format!("{:.2}×", over.inference),
        of_limit(variant.limit.map(|limit| limit.inference), &variant.inference),
        wait(&variant.inference_layers, &variant.inference),
        format!("{}, {}", variant.inference_faults, variant.training_faults),
        spread(&variant.training),
        over.training.map_or_else(none, |ratio| format!("{ratio:.2}×")),
        of_limit(variant.limit.map(|limit| limit.training), &variant.training),
        wait(&variant.training_layers, &variant.training),
        format!("{}, {}", mib(&variant.inference_traffic), mib(&variant.training_traffic)),
    ]
}

/// The trusted side alone, by convolution.
fn layers(basis: &str, variant: &Variant) -> String {
    let Some(plan) = &variant.plan else { return String::new() };
    let mut rows = vec![SECONDS_HEAD.map(|head| head.replace(" s", " ms"))];
    let each = 1e3 / variant.inference.len().max(1) as f64;
    for (conv, s) in plan.convs.iter().zip(&variant.inference_layers) {
        let Seconds { decompose, fold, trusted, worker, wait, transfer, release } = *s;
        let [decompose, fold, trusted, worker, wait, transfer, release] =
            [decompose, fold, trusted, worker, wait, transfer, release].map(|seconds| seconds * each);
        rows.push(seconds_row(&conv.layer, &Seconds { decompose, fold, trusted, worker, wait, transfer, release }));
    }
    format!("\n{basis}, the trusted side alone, one inference by convolution:\n\n{}", markdown(&rows))
}

fn spread(values: &[f64]) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    if low == high {
        return format!("{:.1}", 1e3 * low);
    }
    format!("{:.1} ({:.1}–{:.1})", 1e3 * median(values), 1e3 * low, 1e3 * high)
}
