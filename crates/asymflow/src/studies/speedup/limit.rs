//! The least time that this machine needs for the trusted side of a split.

use std::time::Instant;

use asymflow_engine::program::ConvNode;
use asymflow_privacy::payload::Precision;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::plan::{ConvPlan, Placement, Plan};

/// Rates of this machine on the threads of the trusted part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineRates {
    /// Bytes read and written a second by a copy from memory to memory.
    pub bytes_per_second: f64,
    /// Operations a second of a product of large matrices in f32.
    pub flops: f64,
}

impl MachineRates {
    /// The best of a few tries, about a tenth of a second in all.
    pub fn measure(par: Par) -> Self {
        let (values, side, threads) = (1 << 23, 1024, par.degree().max(1));
        let from = vec![1.0f32; values];
        let mut to = vec![0.0f32; values];
        let piece = values / threads;
        let copy = || {
            to.par_chunks_mut(piece).zip(from.par_chunks(piece)).for_each(|(to, from)| to.copy_from_slice(from));
        };
        let bytes_per_second = 8.0 * values as f64 / best(copy);
        let (a, b) = (Mat::<f32>::full(side, side, 0.5), Mat::<f32>::full(side, side, 0.25));
        let mut c = Mat::<f32>::zeros(side, side);
        let product = || matmul(c.as_mut(), Accum::Replace, a.as_ref(), b.as_ref(), 1.0, par);
        let flops = 2.0 * (side as f64).powi(3) / best(product);
        Self { bytes_per_second, flops }
    }
}

fn best(mut work: impl FnMut()) -> f64 {
    let mut seconds = || {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    seconds();
    (0..5).map(|_| seconds()).fold(f64::INFINITY, f64::min)
}

/// Seconds that the trusted side of a split takes at least, with a worker that answers at once: what lies outside of split convolutions, as
/// long as it took in the trusted part alone; and in each of those the longer of moving its bytes through memory once (activation and
/// answer read, residual and output written) and of the operations of its low-rank part, with a basis that costs nothing to find.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// Of an inference.
    pub inference: f64,
    /// Of a training step.
    pub training: f64,
}

impl Limit {
    /// Of a network split by a plan for inference and one for training, for batches of `batch`; beside each stands what a pass takes
    /// outside of split convolutions.
    pub(super) fn new(
        nodes: &[&ConvNode],
        [(plan, outside), (training_plan, outside_training)]: [(&Plan, f64); 2],
        (batch, precision): (usize, Precision),
        rates: &MachineRates,
    ) -> Self {
        let split = |plan: &Plan, seconds: fn(&MachineRates, [Cost; 2]) -> f64| -> f64 {
            let of = |(node, conv): (&&ConvNode, &ConvPlan)| match conv.placement {
                Placement::Split { rank } => seconds(rates, Cost::of(node, rank, batch, precision)),
                Placement::Trusted => 0.0,
            };
            nodes.iter().zip(&plan.convs).map(of).sum()
        };
        Self {
            inference: outside + split(plan, |rates, [forward, _]| forward.seconds(rates)),
            training: outside_training
                + split(training_plan, |rates, passes| passes.iter().map(|pass| pass.seconds(rates)).sum()),
        }
    }
}

/// What a pass moves and computes.
struct Cost {
    bytes: f64,
    operations: f64,
}

impl Cost {
    /// Of a forward and a backward pass over a batch.
    fn of(node: &ConvNode, rank: usize, batch: usize, precision: Precision) -> [Self; 2] {
        let (batch, wire) = (batch as f64, precision.bytes() as f64);
        let (input, output) = (batch * node.input.len() as f64, batch * node.output.len() as f64);
        let taps = (node.conv.kernel * node.conv.kernel) as f64;
        let weights = taps * (node.input.channels * node.output.channels) as f64;
        let rank = rank as f64;
        // Once to read and once to write, in f32 here and in the wire's format there.
        let moved = (4.0 + wire) * (input + output);
        let low_rank = 2.0 * rank * (taps * output + weights);
        let forward = Self { bytes: moved, operations: low_rank + 4.0 * rank * input };
        // The gradient of the weights is read and added to; the new weights are read and written once more, for the worker.
        [forward, Self { bytes: moved + 5.0 * 4.0 * weights, operations: low_rank }]
    }

    fn seconds(&self, rates: &MachineRates) -> f64 {
        (self.bytes / rates.bytes_per_second).max(self.operations / rates.flops)
    }
}
