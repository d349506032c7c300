//! The trusted convolution kernels on the layers of ResNet-18 and VGG-16, beside PyTorch in the same run.
//!
//! `cargo bench --bench trusted_conv [-- FILTER]` prints, for each distinct layer, direction and number of threads,
//! GFLOP/s (two per multiply-add of the direct convolution) from the smallest of the repeated times, the spread (median
//! over smallest), and the ratio PyTorch's time / our time (above 1: faster than PyTorch). Then the sums over whole
//! networks and, as a measure of the machine, the rate of faer's matrix product. FILTER is a part of a network's name.
//! `ASYMFLOW_PYTHON` names the Python that has torch (default `python3`); without torch the ratios are missing.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use asymflow_linalg::conv::{self, ConvError, ConvShape};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::{Accum, Mat, Par};

type Failure = Box<dyn std::error::Error>;

const REPEATS: usize = 9;
const DIRECTIONS: [&str; 3] = ["forward", "input gradient", "weight gradient"];

/// The smallest and the median time in seconds.
#[derive(Clone, Copy, Default)]
struct Times {
    smallest: f64,
    median: f64,
}

struct Network {
    name: &'static str,
    samples: usize,
    layers: &'static [Layer],
}

/// How often, then input channels, input side, output channels, kernel and stride.
type Layer = (usize, [usize; 5]);

const RESNET18_CIFAR: &[Layer] = &[
    (1, [3, 32, 64, 3, 1]),
    (4, [64, 32, 64, 3, 1]),
    (1, [64, 32, 128, 3, 2]),
    (1, [64, 32, 128, 1, 2]),
    (3, [128, 16, 128, 3, 1]),
    (1, [128, 16, 256, 3, 2]),
    (1, [128, 16, 256, 1, 2]),
    (3, [256, 8, 256, 3, 1]),
    (1, [256, 8, 512, 3, 2]),
    (1, [256, 8, 512, 1, 2]),
    (3, [512, 4, 512, 3, 1]),
];

const VGG16_CIFAR: &[Layer] = &[
    (1, [3, 32, 64, 3, 1]),
    (1, [64, 32, 64, 3, 1]),
    (1, [64, 16, 128, 3, 1]),
    (1, [128, 16, 128, 3, 1]),
    (1, [128, 8, 256, 3, 1]),
    (2, [256, 8, 256, 3, 1]),
    (1, [256, 4, 512, 3, 1]),
    (2, [512, 4, 512, 3, 1]),
    (3, [512, 2, 512, 3, 1]),
];

const RESNET18_224: &[Layer] = &[
    (1, [3, 224, 64, 7, 2]),
    (4, [64, 56, 64, 3, 1]),
    (1, [64, 56, 128, 3, 2]),
    (1, [64, 56, 128, 1, 2]),
    (3, [128, 28, 128, 3, 1]),
    (1, [128, 28, 256, 3, 2]),
    (1, [128, 28, 256, 1, 2]),
    (3, [256, 14, 256, 3, 1]),
    (1, [256, 14, 512, 3, 2]),
    (1, [256, 14, 512, 1, 2]),
    (3, [512, 7, 512, 3, 1]),
];

const VGG16_224: &[Layer] = &[
    (1, [3, 224, 64, 3, 1]),
    (1, [64, 224, 64, 3, 1]),
    (1, [64, 112, 128, 3, 1]),
    (1, [128, 112, 128, 3, 1]),
    (1, [128, 56, 256, 3, 1]),
    (2, [256, 56, 256, 3, 1]),
    (1, [256, 28, 512, 3, 1]),
    (2, [512, 28, 512, 3, 1]),
    (3, [512, 14, 512, 3, 1]),
];

const NETWORKS: [Network; 6] = [
    Network { name: "resnet18-cifar-b32", samples: 32, layers: RESNET18_CIFAR },
    Network { name: "vgg16-cifar-b32", samples: 32, layers: VGG16_CIFAR },
    Network { name: "resnet18-cifar-b1", samples: 1, layers: RESNET18_CIFAR },
    Network { name: "vgg16-cifar-b1", samples: 1, layers: VGG16_CIFAR },
    Network { name: "resnet18-224-b8", samples: 8, layers: RESNET18_224 },
    Network { name: "vgg16-224-b8", samples: 8, layers: VGG16_224 },
];

fn measure(mut run: impl FnMut() -> Result<(), ConvError>) -> Result<Times, ConvError> {
    run()?;
    let mut times = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(Times { smallest: times[0], median: times[REPEATS / 2] })
}

/// Values in −1..1 that do not repeat soon.
fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed) % 10007) as f32 / 5003.5 - 1.0).collect()
}

fn ours(shape: ConvShape, par: Par) -> Result<[Times; 3], ConvError> {
    let (x, weight, dy) = (values(shape.input_len(), 1), values(shape.weight_len(), 2), values(shape.output_len(), 3));
    let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), weight.clone());
    let mut memory = MemBuffer::new(conv::forward_scratch(shape, par));
    let forward = measure(|| conv::forward(shape, &x, &weight, &mut y, par, MemStack::new(&mut memory)))?;
    let mut memory = MemBuffer::new(conv::input_gradient_scratch(shape, par));
    let input = measure(|| conv::input_gradient(shape, &dy, &weight, &mut dx, par, MemStack::new(&mut memory)))?;
    let mut memory = MemBuffer::new(conv::weight_gradient_scratch(shape, par));
    let weight = measure(|| conv::weight_gradient(shape, &x, &dy, &mut dw, par, MemStack::new(&mut memory)))?;
    Ok([forward, input, weight])
}

/// PyTorch in a process of its own.
struct Torch {
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Torch {
    /// Nothing where no Python with torch is found.
    fn start() -> Option<Self> {
        let python = std::env::var("ASYMFLOW_PYTHON").unwrap_or_else(|_| "python3".into());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/trusted_conv_torch.py");
        let found = Command::new(&python).args(["-c", "import torch"]).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut process = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let (asks, answers) = (process.stdin.take()?, BufReader::new(process.stdout.take()?));
        Some(Self { process, asks, answers })
    }

    fn measure(&mut self, s: ConvShape, threads: usize) -> Result<[Times; 3], Failure> {
        let ConvShape { samples, in_channels, height, width, out_channels, kernel, stride, padding } = s;
        let shape = [threads, samples, in_channels, height, width, out_channels, kernel, stride, padding];
        writeln!(self.asks, "{}", shape.map(|size| size.to_string()).join(" "))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let times = line.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        let [a, b, c, d, e, f] = times[..] else { return Err(format!("torch answered {line:?}").into()) };
        Ok([(a, b), (c, d), (e, f)].map(|(smallest, median)| Times { smallest, median }))
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // Nothing is left to do where the process has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Times of a whole network: inference, then a training step.
#[derive(Default)]
struct Sums {
    ours: [f64; 2],
    torch: [f64; 2],
}

fn run_network(network: &Network, threads: usize, torch: &mut Option<Torch>) -> Result<(), Failure> {
    let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
    let mut sums = Sums::default();
    for (index, (count, [channels, side, out, kernel, stride])) in network.layers.iter().enumerate() {
        let shape = ConvShape {
            samples: network.samples,
            in_channels: *channels,
            height: *side,
            width: *side,
            out_channels: *out,
            kernel: *kernel,
            stride: *stride,
            padding: kernel / 2,
        };
        let ours = ours(shape, par)?;
        let torch = torch.as_mut().map(|torch| torch.measure(shape, threads)).transpose()?;
        let gflop = 2e-9 * (shape.output_len() * channels * kernel * kernel) as f64;
        print!("{threads} {:17} {count}x {channels:3} {side:3}^2 {out:3} {kernel}x{kernel}/{stride}", network.name);
        for direction in 0..3 {
            let time = ours[direction];
            let spread = time.median / time.smallest;
            print!(" | {:8.2} ms {:5.0} GFLOP/s {spread:4.2}", time.smallest * 1e3, gflop / time.smallest);
            if let Some(torch) = torch {
                let torch = torch[direction];
                print!(" {:5.2} ({:4.2})", torch.smallest / time.smallest, torch.median / torch.smallest);
            }
            // The gradient of the first layer's input is not needed.
            let trained = if index == 0 && direction == 1 { 0.0 } else { *count as f64 };
            let inferred = if direction == 0 { *count as f64 } else { 0.0 };
            for (sum, weight) in [inferred, trained].into_iter().enumerate() {
                sums.ours[sum] += weight * time.smallest;
                sums.torch[sum] += weight * torch.map_or(0.0, |torch| torch[direction].smallest);
            }
        }
        println!();
    }
    for (sum, name) in ["inference", "training step"].into_iter().enumerate() {
        let (ours, torch) = (sums.ours[sum], sums.torch[sum]);
        println!(
            "{threads} {:17} sum {name}: {:.2} ms, PyTorch {:.2} ms, ratio {:.2}",
            network.name,
            ours * 1e3,
            torch * 1e3,
            torch / ours
        );
    }
    Ok(())
}

/// GFLOP/s of faer's product of two square matrices.
fn faer_rate(threads: usize) -> Result<f64, ConvError> {
    const SIDE: usize = 1536;
    let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
    let a = Mat::from_fn(SIDE, SIDE, |i, j| ((i * 31 + j * 17) % 101) as f32 / 50.0 - 1.0);
    let mut c = Mat::<f32>::zeros(SIDE, SIDE);
    let times = measure(|| {
        faer::linalg::matmul::matmul(c.as_mut(), Accum::Replace, a.as_ref(), a.as_ref(), 1.0, par);
        Ok(())
    })?;
    Ok(2e-9 * (SIDE * SIDE * SIDE) as f64 / times.smallest)
}

fn main() -> Result<(), Failure> {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut torch = Torch::start();
    println!("threads network count in side out kernel/stride, then for each of {}:", DIRECTIONS.join(", "));
    println!("smallest time, nominal GFLOP/s, median / smallest [, PyTorch's smallest time / ours (its spread)]");
    println!("{REPEATS} repeats; PyTorch {}", if torch.is_some() { "in the same run" } else { "not found" });
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        println!("{threads} faer GEMM {:.0} GFLOP/s", pool.install(|| faer_rate(threads))?);
        for network in NETWORKS.iter().filter(|network| network.name.contains(&filter)) {
            pool.install(|| run_network(network, threads, &mut torch).map_err(|failure| failure.to_string()))?;
        }
    }
    Ok(())
}
