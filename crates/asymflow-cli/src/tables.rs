//! Results as Markdown.

use asymflow::delta::SplitStudyReport;
use asymflow::job::TrainReport;
use asymflow::plan::Plan;
use asymflow::speedup::{SpeedupReport, Variant};
use asymflow::study::RankStudyReport;
use asymflow_engine::Program;
use asymflow_engine::timing::Seconds;
use asymflow_zoo::cost;

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::{Experiment, Kind};
use crate::memory;
use crate::report::{Report, Results};
use crate::serve_experiment::ServeRun;
use crate::summary::{self, Summary, markdown};
use crate::{budget_experiment, run, shares_experiment};

fn provenance(report: &Report) -> String {
    let p = &report.provenance;
    format!(
        "Commit {}, {} with {} cores{}. Command: `{}`. Trusted part: {}; worker: {}.\n",
        p.commit.as_deref().unwrap_or("unknown"),
        p.machine.cpu,
        p.machine.cores,
        p.machine.gpu.as_ref().map_or_else(String::new, |gpu| format!(" and {gpu}")),
        p.command,
        p.assurance,
        p.worker_device.as_deref().unwrap_or("none")
    )
}

/// A whole report.
pub fn render(report: &Report) -> String {
    let body = match &report.results {
        Results::Train { runs, .. } => comparison(&report.experiment, runs),
        Results::Speedup(networks) => speedup(&report.experiment, networks),
        Results::RankStudy(study) => rank_study(&report.experiment, study),
        Results::SplitStudy(study) => split_study(study),
        Results::Serve(runs) => serve(&report.experiment, runs),
        Results::Memory(cells) => memory::render(&report.experiment, cells),
        Results::Shares(runs) => shares_experiment::render(&report.experiment, runs),
        Results::Budget(budget) => budget_experiment::render(&report.experiment, budget),
    };
    let Experiment { title, claim, .. } = &report.experiment;
    format!("# {title}\n\nClaim: {claim}.\n\n{}\n{body}", provenance(report))
}

/// What would run and what it would cost.
pub fn dry_run(experiment: &Experiment) -> Result<String, CliError> {
    let mut text = toml::to_string(experiment)
        .map_err(|e| CliError::failed(format!("cannot print the configuration: {e}"), ""))?;
    let batch = match experiment.kind {
        Kind::Speedup => experiment.speedup.batch,
        _ => experiment.train.batch,
    };
    for name in &experiment.model.names {
        let network = run::network(experiment, name)?;
        if experiment.kind == Kind::Shares {
            text += &format!("\n# {name}\n{}", shares_experiment::costs(experiment, &network)?);
            continue;
        }
        let invalid = |e: String| CliError::usage(format!("{name}: {e}"), "");
        let program = Program::new(&network).map_err(|e| invalid(e.to_string()))?;
        let plan = Plan::asymml(&program, &experiment.split_spec(), batch).map_err(|e| invalid(e.to_string()))?;
        let total = cost::total_cost(&network).map_err(|e| invalid(e.to_string()))?;
        let bytes = experiment.worker.precision.bytes() as u64;
        let sent: u64 = plan.convs.iter().map(|c| c.released_values).sum();
        text += &format!(
            "\n# {name}: {} parameters, {:.1} MMACs; asymml: {:.1} % of them trusted, {:.1} KiB to the worker for one \
             inference\n{}",
            total.parameters,
            total.macs as f64 / 1e6,
            100.0 * plan.trusted_macs() as f64 / plan.full_macs().max(1) as f64,
            (sent * bytes) as f64 / 1024.0,
            layers(&plan)
        );
    }
    Ok(text)
}

/// Where each convolution of a plan is computed, and its costs.
pub fn layers(plan: &Plan) -> String {
    let mut rows = vec![["layer", "placement", "MMACs", "low-rank", "fold", "decompose"].map(str::to_owned)];
    let millions = |macs: u64| format!("{:.2}", macs as f64 / 1e6);
    for conv in &plan.convs {
        let placement = match conv.placement {
            asymflow::plan::Placement::Trusted => "trusted".to_owned(),
            asymflow::plan::Placement::Split { rank } => format!("split, rank {rank}"),
        };
        let low_rank = if conv.placement.is_split() { millions(conv.trusted_macs) } else { "-".to_owned() };
        rows.push([
            conv.layer.clone(),
            placement,
            millions(conv.full_macs),
            low_rank,
            millions(conv.fold_macs),
            millions(conv.decompose_macs),
        ]);
    }
    markdown(&rows)
}

fn seconds_row(name: &str, s: &Seconds) -> [String; 8] {
    let f = |v: f64| format!("{v:.3}");
    let fold = if s.fold > 0.0 { f(s.fold) } else { "-".to_owned() };
    [name.to_owned(), f(s.decompose), fold, f(s.release), f(s.trusted), f(s.worker), f(s.transfer), f(s.wait)]
}

const SECONDS_HEAD: [&str; 8] =
    ["layer", "decompose s", "fold s", "release s", "trusted s", "worker s", "transfer s", "wait s"];

/// One training run.
pub fn training(summary: &Summary, report: &TrainReport) -> String {
    let mut text = format!(
        "# {} in mode {}, seed {}\n\n{}",
        summary.model,
        summary.mode,
        summary.seed,
        crate::summary::table(std::slice::from_ref(summary))
    );
    if report.layers.len() > 1 {
        let mut rows = vec![SECONDS_HEAD.map(str::to_owned)];
        rows.extend(report.layers.iter().map(|(name, seconds)| seconds_row(name, seconds)));
        text += &format!("\nSeconds by convolution, training and evaluation together:\n\n{}", markdown(&rows));
    }
    if let Some(plan) = &report.plan {
        text += &format!("\nWhere each convolution is computed, for one inference of one sample:\n\n{}", layers(plan));
    }
    text
}

/// All runs of a training experiment.
pub fn comparison(experiment: &Experiment, runs: &[Summary]) -> String {
    let data = runs.first().map_or_else(String::new, |run| {
        format!("Data: {}, {} training and {} test images. ", run.data.name, run.data.train, run.data.test)
    });
    let seeds = match experiment.train.seeds.len() {
        1 => "one seed (n = 1, no spread)".to_owned(),
        n => format!("{n} seeds; means ± standard deviations"),
    };
    if experiment.model.names.len() > 1 {
        let e = &experiment.train;
        return format!(
            "{data}{} epochs, batch {}, {seeds}. Accuracies are of running statistics, so that the batch that an image is \
             answered in does not matter. Sign decisions, squares and MMACs are of one inference.\n\n{}",
            e.epochs,
            e.batch,
            summary::networks(runs),
        );
    }
    let mut gaps = String::new();
    for run in runs.iter().filter(|run| run.mode == "asymml") {
        if let (Some(asymml), Some(clear)) = (run.accuracy.test, run.accuracy.clear) {
            gaps += &format!("\nSeed {}: asymml minus clear {:+.2} points.", run.seed, 100.0 * (asymml - clear));
        }
    }
    format!(
        "{data}{}, {} epochs, batch {}, {seeds}. Seconds are of training and evaluation together, except training s; \
         parts overlap.\n\n{}\nOf one sample (training bytes above include the public weights that are sent):\n\n{}{gaps}\n",
        experiment.model.names.join(", "),
        experiment.train.epochs,
        experiment.train.batch,
        summary::table(runs),
        summary::per_sample(runs),
    )
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    format!("{:.1} ({:.1}–{:.1})", 1e3 * median(values), 1e3 * low, 1e3 * high)
}

fn speedup_row(variant: &Variant, baseline: &Variant, batch: usize) -> [String; 8] {
    let ratio = |ours: &[f64], theirs: &[f64]| {
        if ours.is_empty() { "-".to_owned() } else { format!("{:.2}×", median(theirs) / median(ours)) }
    };
    let share = match &variant.plan {
        Some(plan) => format!("{:.1} %", 100.0 * plan.trusted_macs() as f64 / plan.full_macs().max(1) as f64),
        None => "0 %".to_owned(),
    };
    let kib = |bytes: u64| format!("{:.0}", bytes as f64 / 1024.0 / batch.max(1) as f64);
    [
        variant.name.clone(),
        share,
        spread(&variant.inference),
        ratio(&variant.inference, &baseline.inference),
        spread(&variant.training),
        ratio(&variant.training, &baseline.training),
        kib(variant.inference_traffic.to_worker),
        kib(variant.training_traffic.to_worker),
    ]
}

const SPEEDUP_HEAD: [&str; 8] = [
    "mode",
    "trusted MACs",
    "inference ms",
    "over trusted-only",
    "training step ms",
    "over trusted-only",
    "KiB to worker / inference",
    "KiB to worker / training sample",
];

/// The ratios of one network in one line.
pub fn speedup_line(report: &SpeedupReport) -> String {
    let Some(baseline) = report.variants.first() else { return String::new() };
    let parts: Vec<String> =
        report.variants.iter().map(|v| format!("{} {:.1} ms", v.name, 1e3 * median(&v.inference))).collect();
    format!("{}: inference {} (baseline {})", report.network, parts.join(", "), baseline.name)
}

/// The speedup experiment.
fn speedup(experiment: &Experiment, reports: &[SpeedupReport]) -> String {
    let mut text = format!(
        "Medians of {} repetitions (smallest–largest), batch {}, rank {}.\n",
        experiment.speedup.repeats, experiment.speedup.batch, experiment.mode.rank,
    );
    for report in reports {
        let Some(baseline) = report.variants.first() else { continue };
        let mut rows = vec![SPEEDUP_HEAD.map(str::to_owned)];
        rows.extend(report.variants.iter().map(|v| speedup_row(v, baseline, report.batch)));
        text += &format!("\n## {}\n\n{}", report.network, markdown(&rows));
        for variant in &report.variants {
            let Some(plan) = &variant.plan else { continue };
            let counted = variant.inference.len().max(1) as f64;
            let mut rows = vec![SECONDS_HEAD.map(|head| head.replace(" s", " ms"))];
            for (conv, seconds) in plan.convs.iter().zip(&variant.inference_layers) {
                rows.push(seconds_row(&conv.layer, &scaled(seconds, 1e3 / counted)));
            }
            text += &format!("\n{}, one inference by convolution:\n\n{}", variant.name, markdown(&rows));
        }
    }
    text
}

fn scaled(s: &Seconds, factor: f64) -> Seconds {
    Seconds {
        decompose: s.decompose * factor,
        fold: s.fold * factor,
        trusted: s.trusted * factor,
        worker: s.worker * factor,
        wait: s.wait * factor,
        transfer: s.transfer * factor,
        release: s.release * factor,
    }
}

/// The rank study.
fn rank_study(experiment: &Experiment, report: &RankStudyReport) -> String {
    let mut text = format!(
        "{} at {:.1} % test accuracy, {} test images.\n\nMean SVD-channel entropy μ in bits, and the \
         share of energy left in the residual:\n\n",
        report.network,
        100.0 * report.test_accuracy,
        report.samples
    );
    for method in &experiment.study.methods {
        text += &format!("## {method}\n\n| layer | channels | μ |");
        for rank in &experiment.study.ranks {
            text += &format!(" r = {rank} |");
        }
        text += &format!("\n|---|---:|---:|{}\n", "---:|".repeat(experiment.study.ranks.len()));
        for layer in &report.layers {
            text += &format!("| {} | {} | {:.2} |", layer.layer, layer.channels, layer.entropy);
            for &rank in &experiment.study.ranks {
                let found = layer.residuals.iter().find(|r| r.method == *method && r.rank == rank);
                text += &found.map_or_else(|| " - |".to_owned(), |r| format!(" {:.4} |", r.energy));
            }
            text += "\n";
        }
        text += "\n";
    }
    text
}

fn serve(experiment: &Experiment, runs: &[ServeRun]) -> String {
    let head = [
        "mode",
        "load",
        "answers",
        "failed",
        "answers/s",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "images/batch",
        "trusted ms",
        "release ms",
        "wait ms",
        "B to worker",
        "MiB early",
        "MiB end",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for ServeRun { mode, load, report, resident_bytes } in runs {
        let (stats, latency) = (&report.service, &load.latency_ms);
        let each = |total: f64| format!("{:.2}", 1e3 * total / stats.answered.max(1) as f64);
        let mebibytes = |of: fn((u64, u64)) -> u64| {
            resident_bytes
                .map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", of(bytes) as f64 / f64::from(1 << 20)))
        };
        let load_name = match load.load.rate {
            Some(rate) => format!("open, {rate}/s on {}", load.load.connections),
            None => format!("closed, {}", load.load.connections),
        };
        rows.push([
            mode.clone(),
            format!("{load_name}, {} s", load.load.seconds),
            load.answered.to_string(),
            (load.failed + load.refused).to_string(),
            format!("{:.1}", load.per_second),
            format!("{:.1}", latency.p50),
            format!("{:.1}", latency.p90),
            format!("{:.1}", latency.p99),
            format!("{:.1}", latency.p999),
            format!("{:.1}", latency.max),
            format!("{:.2}", stats.answered as f64 / stats.batches.max(1) as f64),
            each(stats.parts.trusted + stats.parts.decompose + stats.parts.fold),
            each(stats.parts.release),
            each(stats.parts.wait),
            format!("{:.0}", stats.traffic.to_worker as f64 / stats.answered.max(1) as f64),
            mebibytes(|(early, _)| early),
            mebibytes(|(_, end)| end),
        ]);
    }
    format!(
        "Network {}, weights by seed, {} records in a message to the worker, clients and both programs on the same cores. \
         Latency is from when an image was due to its answer, TLS included; an open loop offers images at a fixed rate. \
         Milliseconds and bytes are for one answer; messages are filled up with coins, so few images in a batch cost more \
         bytes each. Memory is that of the trusted program, after a quarter of the load and at its end.\n\n{}",
        experiment.model.names.join(", "),
        experiment.serve.batch,
        markdown(&rows)
    )
}

fn split_study(report: &SplitStudyReport) -> String {
    let mut text = format!(
        "{}: M_bb and M_main at {:.1} % test accuracy, {} test images, features of {} channels, DCT blocks of {}.\n\nShare of \
         the features' energy in the residual, by rank and by the side of the low frequencies kept of a block:\n\n| rank |",
        report.network,
        100.0 * report.test_accuracy,
        report.samples,
        report.channels,
        report.block
    );
    let mut kept: Vec<usize> = report.energies.iter().map(|e| e.kept).collect();
    kept.sort_unstable();
    kept.dedup();
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

/// The modes, for `asymflow modes`.
pub fn modes() -> String {
    Entry::names().map(|name| format!("{name}\n")).collect()
}
