//! Whole networks in the trusted part beside burn-flex and PyTorch, on the same threads, in one run.
//!
//! `cargo bench -p asymflow-benches --bench trusted_networks`; `ASYMFLOW_PYTHON` names the Python that has torch
//! (default `python3`); without torch its column is empty. `ASYMFLOW_BENCH_REPEATS` sets the repetitions.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use asymflow::modes::{Clear, Mode, TrainBatch, TrustedOnly};
use asymflow_privacy::records::RecordAccountant;
use asymflow_residual::{
    backend::SgdStep,
    burn_backend::{BurnBackend, DeviceChoice},
};
use asymflow_zoo::{Weights, by_name};
use faer::{Accum, Mat, Par};

type Failure = Box<dyn std::error::Error>;

const CASES: [(&str, usize); 4] =
    [("resnet18-cifar", 32), ("vgg16-cifar", 32), ("resnet18-imagenet", 8), ("vgg16-imagenet", 8)];
const THREADS: usize = 2;
const SGD: SgdStep = SgdStep::plain(1e-4, 0.9, 5e-4);

fn repeats() -> usize {
    std::env::var("ASYMFLOW_BENCH_REPEATS").ok().and_then(|n| n.parse().ok()).unwrap_or(5)
}

/// Sorted seconds of the repetitions after one that is not counted.
fn times(mut work: impl FnMut() -> Result<(), Failure>) -> Result<Vec<f64>, Failure> {
    work()?;
    let mut times = Vec::new();
    for _ in 0..repeats() {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn median(times: &[f64]) -> f64 {
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn cell(times: &[f64]) -> String {
    match times {
        [] => "-".to_owned(),
        [first, .., last] => format!("{:.1} ({:.1}–{:.1})", 1e3 * median(times), 1e3 * first, 1e3 * last),
        [only] => format!("{:.1}", 1e3 * only),
    }
}

/// Times of an inference and of a training step.
fn measure(mode: &mut dyn Mode, images: &[f32], samples: usize) -> Result<[Vec<f64>; 2], Failure> {
    let records: Vec<usize> = (0..samples).collect();
    let labels: Vec<u32> = (0..samples as u32).map(|i| i % 10).collect();
    let inference = times(|| Ok(mode.infer(images, &records).map(drop)?))?;
    let batch = TrainBatch::new(images, &labels, &records)?;
    let training = times(|| Ok(mode.step(batch, SGD).map(drop)?))?;
    Ok([inference, training])
}

/// The same of PyTorch, eager, the better of its two memory formats.
fn torch(name: &str, samples: usize) -> Option<[Vec<f64>; 2]> {
    let python = std::env::var("ASYMFLOW_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/asymflow-cli/src/kinds/speedup/networks_torch.py");
    let arguments = [name.to_owned(), samples.to_string(), THREADS.to_string(), repeats().to_string()];
    let output = Command::new(python).arg(script).args(arguments).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    let mut lines = text.lines().map(|line| line.split(' ').filter_map(|t| t.parse().ok()).collect::<Vec<f64>>());
    Some([lines.next()?, lines.next()?])
}

/// GFLOP/s of faer on two large square matrices: the ceiling.
fn gemm_rate() -> Result<f64, Failure> {
    let n = 2048;
    let (a, b) = (Mat::<f32>::full(n, n, 0.5), Mat::<f32>::full(n, n, 0.25));
    let mut c = Mat::<f32>::zeros(n, n);
    let seconds = times(|| {
        faer::linalg::matmul::matmul(c.as_mut(), Accum::Replace, a.as_ref(), b.as_ref(), 1.0, Par::rayon(THREADS));
        Ok(())
    })?;
    Ok(2.0 * (n as f64).powi(3) / median(&seconds) / 1e9)
}

fn main() -> Result<(), Failure> {
    // `cargo test` runs benches too; there is nothing to check in one that only measures.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    println!(
        "{THREADS} threads; ms: median (smallest–largest) of {}; faer GEMM {:.0} GFLOP/s",
        repeats(),
        gemm_rate()?
    );
    println!("| network | batch | case | trusted | burn-flex | PyTorch | PyTorch / trusted | GFLOP/s |");
    println!("|---|---:|---|---:|---:|---:|---:|---:|");
    for (name, samples) in CASES {
        let network = by_name(name, 10, None)?;
        let weights = Weights::init(&network, 1);
        let images: Vec<f32> = (0..samples * network.input.len()).map(|i| (i % 255) as f32 / 255.0 - 0.5).collect();
        let macs = asymflow_zoo::graph::cost::total_cost(&network)?.macs as f64 * samples as f64;
        let torch = torch(name, samples).unwrap_or_default();
        let ours = measure(&mut TrustedOnly::new(network.clone(), &weights, Par::rayon(THREADS))?, &images, samples)?;
        let backend = Arc::new(BurnBackend::new(DeviceChoice::Flex));
        let mut clear = Clear::new(network, &weights, backend, RecordAccountant::new(samples))?;
        let burn = measure(&mut clear, &images, samples)?;
        for (case, (which, passes)) in [("inference", 1.0), ("training step", 3.0)].into_iter().enumerate() {
            let ratio = median(&torch[case]) / median(&ours[case]);
            println!(
                "| {name} | {samples} | {which} | {} | {} | {} | {ratio:.2} | {:.0} |",
                cell(&ours[case]),
                cell(&burn[case]),
                cell(&torch[case]),
                2.0 * passes * macs / median(&ours[case]) / 1e9
            );
        }
    }
    Ok(())
}
