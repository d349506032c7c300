//! What a split convolution takes, by lengths alone: [`SplitConv`](crate::split::SplitConv) without its worker.

use std::collections::HashMap;

use asymflow_engine::local::{LocalConv, Scratch, conv_shape};
use asymflow_engine::{
    EngineError,
    buffer::{Activation, Buffer, Pool},
    convolver::Convolver,
    program::ConvNode,
};
use asymflow_linalg::{Decomposer, conv, decompose::BatchShape};
use asymflow_privacy::payload::Precision;
use asymflow_zoo::weights::Pass;
use faer::Par;

use super::wire;
use crate::plan::Placement;

const VALUE: usize = size_of::<f32>();

/// Memory of a vector that is resized, as `Vec` does it.
#[derive(Clone, Copy, Debug, Default)]
struct Grown(usize);

impl Grown {
    fn resize(&mut self, len: usize) {
        if len > self.0 {
            self.0 = len.max(2 * self.0);
        }
    }
}

/// The factors of one decomposition.
#[derive(Clone, Copy, Debug, Default)]
struct Factors {
    coefficients: Grown,
    principal: Grown,
}

impl Factors {
    fn prepare(&mut self, shape: BatchShape, rank: usize, shared: bool) {
        self.coefficients.resize(if shared { 1 } else { shape.samples } * shape.channels * rank);
        self.principal.resize(shape.samples * rank * shape.pixels);
    }

    const fn len(&self) -> usize {
        self.coefficients.0 + self.principal.0
    }
}

/// A convolver that counts what splitting takes.
pub(super) struct SplitSizes<'a> {
    pub local: LocalConv,
    pub placements: &'a [Placement],
    pub decomposer: &'a dyn Decomposer,
    pub precision: Precision,
    /// Whether answers are verified.
    pub verify: bool,
    pub pool: Pool,
    pub par: Par,
    pub taken: SplitBytes,
    scratch: Scratch,
    kept: HashMap<usize, Factors>,
    /// What is kept of inputs to verify gradients of weights, and all of it.
    seen: HashMap<usize, usize>,
    /// Bases that serve for more than one batch, and kernels folded by them.
    bases: HashMap<usize, usize>,
    spare: Vec<Factors>,
}

/// What splitting takes at most, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SplitBytes {
    /// Factors of decompositions.
    pub factors: usize,
    /// Residuals and gradients on their way out.
    pub release: usize,
    /// They together with their copies for the wire; or answers, where those are more.
    pub exchange: usize,
}

impl<'a> SplitSizes<'a> {
    pub fn new(
        placements: &'a [Placement],
        decomposer: &'a dyn Decomposer,
        (precision, verify): (Precision, bool),
        pool: Pool,
        par: Par,
    ) -> Self {
        let local = LocalConv::new(placements.len(), pool.clone(), par);
        let (taken, scratch) = (SplitBytes::default(), Scratch::default());
        let (kept, seen, bases, spare) = (HashMap::new(), HashMap::new(), HashMap::new(), Vec::new());
        Self { local, placements, decomposer, precision, verify, pool, par, taken, scratch, kept, seen, bases, spare }
    }

    /// Scratch of convolutions here, of decompositions, and of those on factors.
    pub const fn scratch_bytes(&self) -> usize {
        self.local.scratch_bytes() + self.scratch.bytes()
    }

    fn rank(&self, node: &ConvNode) -> Option<usize> {
        match self.placements.get(node.index) {
            Some(Placement::Split { rank }) => Some(*rank),
            Some(Placement::Trusted) | None => None,
        }
    }

    /// What leaves is copied once more for the wire, and for the verifier beside its own values. In binary16 it is a copy, and
    /// the batch stays with the pool.
    fn release(&mut self, batch: Buffer, verifying: usize) {
        let values = batch.vector_len();
        match self.precision {
            Precision::F32 => drop(batch.into_vec()),
            Precision::F16 => drop(batch),
        }
        let released = values * self.precision.bytes();
        self.taken.release = self.taken.release.max(released);
        let verifying = if self.verify { VALUE * (values + verifying) } else { 0 };
        self.exchange(released + values * self.precision.bytes() + verifying);
    }

    /// What leaves, and what comes back once that is gone.
    fn exchange(&mut self, bytes: usize) {
        self.taken.exchange = self.taken.exchange.max(bytes);
    }

    fn count_factors(&mut self) {
        let factors: usize = self.spare.iter().chain(self.kept.values()).map(Factors::len).sum();
        let kept: usize = self.seen.values().chain(self.bases.values()).sum();
        self.taken.factors = self.taken.factors.max((factors + kept) * VALUE);
    }
}

/// What a verifier takes of `pixels`: a plane for every tap, and one to keep.
const fn planes(node: &ConvNode, pixels: usize) -> usize {
    (node.conv.kernel * node.conv.kernel + 1) * pixels
}

impl Convolver for SplitSizes<'_> {
    type Error = EngineError;

    fn forward(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], pass: Pass) -> Result<Buffer, EngineError> {
        let Some(rank) = self.rank(node) else { return self.local.forward(node, x, weight, pass) };
        let batch = BatchShape { samples: x.samples, channels: x.shape.channels, pixels: x.shape.pixels() };
        let mut factors = self.spare.pop().unwrap_or_default();
        let residual = self.pool.take(x.data.len());
        self.scratch.ask(self.decomposer.scratch(batch, rank, self.par));
        factors.prepare(batch, rank, self.decomposer.shares_basis());
        let shape = conv_shape(node, x.samples);
        let of_input = x.samples * x.shape.pixels();
        self.release(residual, planes(node, of_input) + x.samples * node.output.pixels());
        let y = self.pool.take(shape.output_len());
        self.scratch.ask(conv::folded_forward_scratch(shape, rank, self.par));
        if self.decomposer.serves() > 1 {
            let low = conv::ConvShape { in_channels: rank, ..shape };
            self.bases.insert(node.index, x.shape.channels * rank + low.weight_len());
            self.scratch.ask(conv::fold_scratch(shape, rank));
            self.scratch.ask(conv::forward_scratch(low, self.par));
        }
        self.exchange(wire::answer_bytes(y.len(), 0, self.precision));
        match pass {
            Pass::Training => {
                self.kept.insert(node.index, factors);
                if self.verify {
                    self.seen.insert(node.index, of_input);
                }
            }
            Pass::Inference => self.spare.push(factors),
        }
        self.count_factors();
        Ok(y)
    }

    fn backward(
        &mut self,
        node: &ConvNode,
        dy: Buffer,
        samples: usize,
        weight: &[f32],
        d_weight: &mut [f32],
    ) -> Result<Option<Buffer>, EngineError> {
        let Some(rank) = self.rank(node) else { return self.local.backward(node, dy, samples, weight, d_weight) };
        let shape = conv_shape(node, samples);
        let scaled = self.pool.take(dy.len());
        self.release(scaled, planes(node, samples * node.output.pixels()) + samples * node.input.pixels());
        self.scratch.ask(conv::folded_weight_gradient_scratch(shape, rank, self.par));
        let input = if node.input_gradient { shape.input_len() } else { 0 };
        self.exchange(wire::answer_bytes(input, shape.weight_len(), self.precision));
        self.spare.extend(self.kept.remove(&node.index));
        self.seen.remove(&node.index);
        let dx = node.input_gradient.then(|| self.pool.take(input));
        drop(dy);
        Ok(dx)
    }
}
