//! Decomposing 32 samples of 64 channels × 1024 pixels at rank 8: time, and residual against the optimum.
//!
//! `cargo bench -p asymflow-benches --bench decomposition` prints a table for two threads and for one, then runs
//! criterion on each method. Times are of rounds in which the methods take turns; inputs take turns too.
//! When `python` (or `ASYMFLOW_BENCH_PYTHON`) has PyTorch, its decompositions of the same data are timed between two
//! halves of our rounds and stand in the same table.
//! `ASYMFLOW_BENCH_EXPORT=DIR` leaves the inputs there as raw little-endian f32.
#![expect(clippy::print_stdout, reason = "the table is the product")]
#![expect(clippy::expect_used, reason = "a bench that cannot run stops")]

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use asymflow_linalg::decompose::NAMES;
use asymflow_linalg::{
    Decomposer, LowRank,
    decompose::{BatchShape, by_name},
};
use criterion::Criterion;
use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;

const SIDE: usize = 32;
const SHAPE: BatchShape = BatchShape { samples: 32, channels: 64, pixels: SIDE * SIDE };
const RANK: usize = 8;
/// Rounds before and after PyTorch's.
const ROUNDS: usize = 20;

/// A product of rank 8 with standard normal factors, plus normal noise.
fn low_rank_plus_noise(rng: &mut StdRng) -> Vec<f32> {
    let BatchShape { samples, channels, pixels } = SHAPE;
    let mut x = Vec::with_capacity(SHAPE.len());
    for _ in 0..samples {
        let u: Vec<f32> = (0..channels * RANK).map(|_| rng.sample(StandardNormal)).collect();
        let v: Vec<f32> = (0..RANK * pixels).map(|_| rng.sample(StandardNormal)).collect();
        for j in 0..channels {
            for i in 0..pixels {
                let product: f32 = (0..RANK).map(|p| u[j * RANK + p] * v[p * pixels + i]).sum();
                x.push(product + 0.65 * rng.sample::<f32, _>(StandardNormal));
            }
        }
    }
    x
}

/// A square map whose amplitudes fall as 1/frequency, like those of natural images; unit mean square.
fn one_over_f(rng: &mut StdRng) -> Vec<f32> {
    let half = SIDE as i32 / 2;
    let mut map = vec![0.0f32; SIDE * SIDE];
    for fy in -half..half {
        for fx in 0..half {
            if fx == 0 && fy <= 0 {
                continue;
            }
            let amplitude = 1.0 / ((fx * fx + fy * fy) as f32).sqrt();
            let (a, b): (f32, f32) = (rng.sample(StandardNormal), rng.sample(StandardNormal));
            let wave: Vec<f32> = (0..SIDE)
                .map(|k| {
                    let (sin, cos) = (std::f32::consts::TAU * k as f32 / SIDE as f32).sin_cos();
                    amplitude * (a * cos + b * sin)
                })
                .collect();
            for (at, value) in map.iter_mut().enumerate() {
                let phase = fx * (at % SIDE) as i32 + fy * (at / SIDE) as i32;
                *value += wave[phase.rem_euclid(SIDE as i32) as usize];
            }
        }
    }
    let scale = (map.len() as f32 / map.iter().map(|v| v * v).sum::<f32>()).sqrt();
    map.iter_mut().for_each(|value| *value *= scale);
    map
}

/// ReLU of 64 random mixtures of 16 maps with 1/f amplitudes.
fn relu_of_one_over_f(rng: &mut StdRng) -> Vec<f32> {
    const MAPS: usize = 16;
    let mut x = Vec::with_capacity(SHAPE.len());
    for _ in 0..SHAPE.samples {
        let maps: Vec<Vec<f32>> = (0..MAPS).map(|_| one_over_f(rng)).collect();
        for _ in 0..SHAPE.channels {
            let weights: [f32; MAPS] = std::array::from_fn(|_| rng.sample(StandardNormal));
            let mixture = |i: usize| maps.iter().zip(weights).map(|(map, weight)| map[i] * weight).sum::<f32>();
            x.extend((0..SHAPE.pixels).map(|i| mixture(i).max(0.0)));
        }
    }
    x
}

/// One method with its memory, reused between runs as in a network.
struct Bench {
    method: Box<dyn Decomposer>,
    memory: MemBuffer,
    low_rank: LowRank,
    residual: Vec<f32>,
    par: Par,
}

impl Bench {
    fn new(name: &str, threads: usize) -> Self {
        let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
        let method = by_name(name).expect("a known name");
        let memory = MemBuffer::new(method.scratch(SHAPE, RANK, par));
        Self { method, memory, low_rank: LowRank::default(), residual: vec![0.0; SHAPE.len()], par }
    }

    fn run(&mut self, x: &[f32]) {
        let stack = MemStack::new(&mut self.memory);
        let done = self.method.decompose(x, SHAPE, RANK, &mut self.low_rank, &mut self.residual, self.par, stack);
        done.expect("finite input of the right size");
    }

    fn relative_residual(&mut self, x: &[f32]) -> f64 {
        self.run(x);
        let energy = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        (energy(&self.residual) / energy(x)).sqrt()
    }
}

/// A row of the table.
struct Row {
    name: String,
    times_ms: Vec<f64>,
    residuals: Vec<f64>,
}

impl Row {
    /// The time that the given share of the rounds does not exceed.
    fn quantile_ms(&self, share: f64) -> f64 {
        let mut sorted = self.times_ms.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(((sorted.len().saturating_sub(1)) as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

/// Our rounds: every method once a round.
fn time(benches: &mut [Bench], rows: &mut [Row], inputs: &[Vec<f32>]) {
    for round in 0..ROUNDS {
        for (bench, row) in benches.iter_mut().zip(rows.iter_mut()) {
            let start = Instant::now();
            bench.run(&inputs[round % inputs.len()]);
            row.times_ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
}

/// PyTorch's rows, or none with the reason.
fn torch(directory: &Path, threads: usize) -> Result<Vec<Row>, String> {
    let python = std::env::var("ASYMFLOW_BENCH_PYTHON").unwrap_or_else(|_| "python".to_owned());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/decomposition_torch.py");
    let run = Command::new(&python).arg(script).arg(directory).args([threads, ROUNDS].map(|n| n.to_string())).output();
    let output = run.map_err(|error| format!("{python}: {error}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{python}: {}", message.lines().last().unwrap_or("failed")));
    }
    let numbers = |field: &str| field.split(',').map(str::parse).collect::<Result<Vec<f64>, _>>();
    let row = |line: &str| -> Option<Row> {
        let [name, times, residuals] = line.split('\t').collect::<Vec<_>>().try_into().ok()?;
        Some(Row { name: name.to_owned(), times_ms: numbers(times).ok()?, residuals: numbers(residuals).ok()? })
    };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| row(line).ok_or_else(|| format!("unreadable line {line:?}"))).collect()
}

fn print(rows: &[Row], threads: usize) {
    let optimal = rows.iter().find(|row| row.name == "exact-svd").map(|row| row.residuals.clone()).unwrap_or_default();
    let reference =
        rows.iter().find(|row| row.name == "torch.svd_lowrank").map(|row| [row.quantile_ms(0.5), row.quantile_ms(0.0)]);
    println!("\n{threads} threads, ms a batch; relative residual and its ratio to the optimum on both inputs");
    println!(
        "| method | n | min | quartile | median | quartile | noise | ratio | ReLU | ratio | × svd_lowrank: medians, minima |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        let [min, low, median, high] = [0.0, 0.25, 0.5, 0.75].map(|share| row.quantile_ms(share));
        print!("| {} | {} | {min:.2} | {low:.2} | {median:.2} | {high:.2} |", row.name, row.times_ms.len());
        for (residual, optimal) in row.residuals.iter().zip(&optimal) {
            print!(" {residual:.4} | {:.4} |", residual / optimal);
        }
        match reference {
            Some([their_median, their_min]) => println!(" {:.1}, {:.1} |", their_median / median, their_min / min),
            None => println!(" - |"),
        }
    }
}

fn table(inputs: &[Vec<f32>], directory: &Path, threads: usize) {
    let mut benches: Vec<Bench> = NAMES.iter().map(|name| Bench::new(name, threads)).collect();
    let mut rows: Vec<Row> = benches
        .iter_mut()
        .map(|bench| Row {
            name: bench.method.name().to_owned(),
            times_ms: Vec::new(),
            residuals: inputs.iter().map(|x| bench.relative_residual(x)).collect(),
        })
        .collect();
    time(&mut benches, &mut rows, inputs);
    let torch = torch(directory, threads);
    time(&mut benches, &mut rows, inputs);
    match torch {
        Ok(theirs) => rows.extend(theirs),
        Err(reason) => println!("PyTorch is not in the table: {reason}"),
    }
    print(&rows, threads);
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut rng = StdRng::seed_from_u64(20_260_711);
    let inputs = [low_rank_plus_noise(&mut rng), relu_of_one_over_f(&mut rng)];
    let temporary = tempfile::tempdir()?;
    let export = std::env::var_os("ASYMFLOW_BENCH_EXPORT");
    let directory = export.as_deref().map_or(temporary.path(), Path::new);
    fs::create_dir_all(directory)?;
    for (name, input) in ["0-noise", "1-relu"].iter().zip(&inputs) {
        let bytes: Vec<u8> = input.iter().flat_map(|value| value.to_le_bytes()).collect();
        fs::write(directory.join(name).with_extension("f32"), bytes)?;
    }
    // `cargo test --benches` only checks that everything runs.
    let threads: &[usize] = if std::env::args().any(|argument| argument == "--bench") { &[2, 1] } else { &[] };
    for &threads in threads {
        table(&inputs, directory, threads);
    }
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    for name in NAMES {
        let mut bench = Bench::new(name, 1);
        criterion.bench_function(&format!("decompose/{name}"), |b| b.iter(|| bench.run(&inputs[1])));
    }
    criterion.final_summary();
    Ok(())
}
