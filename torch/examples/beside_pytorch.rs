//! Networks and their convolutions on a device of this backend, and in PyTorch itself, in one run.
//!
//! `beside_pytorch DEVICE NETWORK BATCH REPEATS [PYTHON SCRIPT]`: the device is what stands behind `torch:`, the script
//! `benches/scripts/worker_torch.py`. Prints one line of JSON a measurement: seconds of every repetition but the first, in
//! order. Ours take what they compute on from the host and give their answers to it; PyTorch's stay on the device.
#![expect(clippy::print_stdout, reason = "a measurement prints its results")]

use std::process::{Command, Stdio};
use std::time::Instant;

use asymflow_privacy::payload::Payload;
use asymflow_residual::backend::{ConvUnit, Pass, ResidualModel, SgdStep, Unit, Wanted};
use asymflow_residual::session::{Executor, Expected, Request};
use asymflow_residual::units::Units;
use asymflow_torch::TorchBackend;
use asymflow_zoo::graph::Node;
use asymflow_zoo::ops::Op;
use asymflow_zoo::{Network, Weights, by_name, graph::Graph};

type Failure = Box<dyn std::error::Error>;

const SGD: SgdStep = SgdStep::plain(1e-4, 0.9, 5e-4);

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, name, batch, repeats, python @ ..] = arguments.as_slice() else {
        return Err("usage: beside_pytorch DEVICE NETWORK BATCH REPEATS [PYTHON SCRIPT]".into());
    };
    let backend = TorchBackend { device: device.parse()? };
    let network = by_name(name, 10, None)?;
    // Ours before and after PyTorch's, so that a machine that changes its pace shows.
    ours(backend, &network, batch.parse()?, repeats.parse()?)?;
    if let [program, script] = python {
        let script = [script, device, name, batch, repeats];
        let output = Command::new(program).args(script).stderr(Stdio::inherit()).output()?;
        print!("{}", String::from_utf8_lossy(&output.stdout));
        ours(backend, &network, batch.parse()?, repeats.parse()?)?;
    }
    Ok(())
}

fn ours(backend: TorchBackend, network: &Network, samples: usize, repeats: usize) -> Result<(), Failure> {
    let [inference, step] = whole(backend, network, samples, repeats)?;
    let convolutions = convolutions(backend, network, samples, repeats)?;
    let (device, name) = (backend.device, &network.name);
    for (what, seconds) in [("inference", inference), ("step", step), ("convolutions", convolutions)] {
        println!(
            r#"{{"library": "asymflow", "device": "{device}", "network": "{name}", "batch": {samples}, "what": "{what}", "seconds": {seconds:?}}}"#
        );
    }
    Ok(())
}

/// Numbers in [-1, 1).
fn noise(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Seconds of what `work` does to what `prepare` makes beforehand, in every repetition but the first.
fn times<T>(
    repeats: usize,
    prepare: impl Fn() -> T,
    mut work: impl FnMut(T) -> Result<(), Failure>,
) -> Result<Vec<f64>, Failure> {
    let mut times = Vec::new();
    for _ in 0..=repeats {
        let prepared = prepare();
        let start = Instant::now();
        work(prepared)?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(times.split_off(1))
}

fn ask(units: &mut Units, request: Request) -> Result<Vec<f32>, Failure> {
    Ok(units.execute(request, Expected::default())?.values)
}

/// An inference and a training step of a whole network.
fn whole(backend: TorchBackend, network: &Network, samples: usize, repeats: usize) -> Result<[Vec<f64>; 2], Failure> {
    let mut units = backend.units(&ResidualModel { units: vec![Unit::Network(network.clone())] })?;
    let weights = vec![Weights::init(network, 1).flatten(network)?].into();
    ask(&mut units, Request::SetWeights { unit: 0, weights })?;
    let images = noise(samples * network.input.len());
    let batch = || Payload::F32(images.clone());
    let inference =
        times(repeats, batch, |x| ask(&mut units, Request::Forward { unit: 0, x, pass: Pass::Inference }).map(drop))?;
    let step = times(repeats, batch, |x| {
        let logits = ask(&mut units, Request::Forward { unit: 0, x, pass: Pass::Training })?;
        let dy = Payload::F32(logits.iter().map(|logit| logit / samples as f32).collect());
        ask(&mut units, Request::Gradient { unit: 0, dy, wanted: Wanted { input: false, weights: false } })?;
        ask(&mut units, Request::Step { unit: 0, sgd: SGD }).map(drop)
    })?;
    Ok([inference, step])
}

/// All convolutions of a network one after the other, each with both gradients.
fn convolutions(backend: TorchBackend, network: &Network, samples: usize, repeats: usize) -> Result<Vec<f64>, Failure> {
    let unit = |node: &Node| {
        let Op::Conv(conv) = &node.op else { return None };
        let (input, out_channels) = (node.input, conv.out_channels);
        Some(ConvUnit { input, out_channels, kernel: conv.kernel, stride: conv.stride, padding: conv.padding })
    };
    let convs: Vec<ConvUnit> = Graph::new(network)?.nodes.iter().filter_map(unit).collect();
    let mut units = backend.units(&ResidualModel { units: convs.iter().cloned().map(Unit::Conv).collect() })?;
    for (unit, conv) in convs.iter().enumerate() {
        ask(&mut units, Request::SetWeights { unit, weights: vec![noise(conv.weights())].into() })?;
    }
    let payload = |len: usize| Payload::F32(noise(samples * len));
    let prepared = || convs.iter().map(|conv| (payload(conv.input.len()), payload(conv.output().len()))).collect();
    times(repeats, prepared, |batches: Vec<(Payload, Payload)>| {
        for (unit, (x, dy)) in batches.into_iter().enumerate() {
            ask(&mut units, Request::Forward { unit, x, pass: Pass::Training })?;
            let wanted = Wanted { input: true, weights: true };
            ask(&mut units, Request::Gradient { unit, dy, wanted })?;
        }
        Ok(())
    })
}
