//! What a convolution costs, whole and split, measured on this machine: the trusted part's work, and an exchange with a worker on the
//! same host that answers at once.

use std::collections::BTreeMap;
use std::hint::{black_box, spin_loop};
use std::sync::{LazyLock, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use asymflow_engine::buffer::{add_assign, combine};
use asymflow_engine::local::Scratch;
use asymflow_linalg::conv::{self, ConvError, ConvShape};
use asymflow_linalg::{
    Decomposer, LowRank,
    decompose::{self, BatchShape, DecomposeError},
};
use asymflow_privacy::payload::Payload;
use asymflow_zoo::weights::Pass;
use faer::Par;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Placement;

/// Ranks that are tried.
const RANKS: [usize; 2] = [8, 4];
/// A split has to take at most this share of the time of the whole convolution.
const PAYS: f64 = 0.95;
/// Multiply-accumulates of a measurement, so that a network takes about a second.
const MACS: usize = 400 << 20;

/// Numbers that take the place of what caches hold.
const CACHED: usize = 8 << 20;

/// Seconds of one convolution for one sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassSeconds {
    /// Of an inference.
    pub inference: f64,
    /// Of a training step, forward and backward.
    pub step: f64,
}

/// What was measured of a convolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    whole: PassSeconds,
    /// Of a split at each of the ranks that were tried.
    split: Vec<(usize, PassSeconds)>,
}

impl Times {
    /// Where it takes the least time, in a training step (and no more in inference) or in inference alone.
    pub fn placed(&self, pass: Pass) -> Measured {
        let whole = self.whole;
        let mut best = Measured { placement: Placement::Trusted, whole, placed: whole };
        let of = |seconds: PassSeconds| match pass {
            Pass::Inference => seconds.inference,
            Pass::Training => seconds.step,
        };
        for &(rank, split) in &self.split {
            let no_slower = pass == Pass::Inference || split.inference < whole.inference;
            if no_slower && of(split) < PAYS * of(whole) && of(split) < of(best.placed) {
                best = Measured { placement: Placement::Split { rank }, placed: split, ..best };
            }
        }
        best
    }
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Where it takes the least time.
    pub placement: Placement,
    /// Computed whole in the trusted part.
    pub whole: PassSeconds,
    /// As it is placed, for a worker that answers at once.
    pub placed: PassSeconds,
}

/// Why a convolution could not be measured.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CostError {
    /// A kernel refused.
    #[error("measuring a convolution: {0}")]
    Conv(#[from] ConvError),
    /// The decomposition refused.
    #[error("measuring a decomposition: {0}")]
    Decompose(#[from] DecomposeError),
}

type Key = (&'static str, [usize; 8]);

/// What was measured in this process, so that all who plan say the same.
static KNOWN: Mutex<BTreeMap<Key, Times>> = Mutex::new(BTreeMap::new());

/// Measures `shape`, a batch of which has `shape.samples`, on all threads; a shape is measured once in a process.
///
/// # Errors
/// A shape that the kernels refuse.
pub fn measure(shape: ConvShape, decomposer: &dyn Decomposer) -> Result<Times, CostError> {
    let s = shape;
    let sizes = [s.samples, s.in_channels, s.height, s.width, s.out_channels, s.kernel, s.stride, s.padding];
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(times) = known.get(&(decomposer.name(), sizes)) {
        return Ok(times.clone());
    }
    shape.validate()?;
    let macs = shape.weight_len() * shape.out_height() * shape.out_width();
    let mut layer = Layer::new(ConvShape { samples: shape.samples.clamp(1, (MACS / macs).max(2)), ..shape });
    let whole = layer.seconds(None, decomposer)?;
    let mut split = Vec::new();
    for rank in RANKS.into_iter().filter(|&rank| rank < shape.in_channels.min(shape.height * shape.width)) {
        split.push((rank, layer.seconds(Some(rank), decomposer)?));
    }
    let times = Times { whole, split };
    known.insert((decomposer.name(), sizes), times.clone());
    Ok(times)
}

/// A convolution with values of no meaning.
struct Layer {
    shape: ConvShape,
    par: Par,
    scratch: Scratch,
    low_rank: LowRank,
    x: Vec<f32>,
    weight: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
    d_weight: Vec<f32>,
    answer: Vec<f32>,
    elsewhere: Vec<f32>,
}

impl Layer {
    fn new(shape: ConvShape) -> Self {
        // As after a ReLU: about half is zero.
        let values = |len: usize| (0..len).map(|i| ((i * 7919 % 255) as f32 / 128.0 - 1.0).max(0.0)).collect();
        Self {
            shape,
            par: Par::rayon(0),
            scratch: Scratch::default(),
            low_rank: LowRank::default(),
            x: values(shape.input_len()),
            weight: values(shape.weight_len()),
            y: vec![0.0; shape.output_len()],
            dx: vec![0.0; shape.input_len()],
            d_weight: vec![0.0; shape.weight_len()],
            answer: vec![1.0; shape.input_len().max(shape.output_len())],
            elsewhere: vec![0.0; CACHED],
        }
    }

    /// The least of two runs after one that is not counted.
    fn seconds(&mut self, rank: Option<usize>, decomposer: &dyn Decomposer) -> Result<PassSeconds, CostError> {
        let mut least = PassSeconds { inference: f64::INFINITY, step: f64::INFINITY };
        for run in 0..3 {
            let mut seconds = [0.0; 2];
            for (pass, seconds) in [Pass::Inference, Pass::Training].into_iter().zip(&mut seconds) {
                self.chill();
                let start = Instant::now();
                match rank {
                    Some(rank) => self.split_forward(rank, decomposer, pass)?,
                    None => self.forward()?,
                }
                match (pass, rank) {
                    (Pass::Inference, _) => {}
                    (Pass::Training, Some(_)) => self.split_backward()?,
                    (Pass::Training, None) => self.backward()?,
                }
                *seconds = start.elapsed().as_secs_f64();
            }
            if run > 0 {
                let [inference, step] = seconds;
                least = PassSeconds { inference: least.inference.min(inference), step: least.step.min(step) };
            }
        }
        let samples = self.shape.samples as f64;
        Ok(PassSeconds { inference: least.inference / samples, step: least.step / samples })
    }

    /// Caches hold something else, as they do when a network comes back to a layer.
    fn chill(&mut self) {
        self.elsewhere.par_chunks_mut(1 << 14).for_each(|some| some.iter_mut().for_each(|v| *v += 1.0));
    }

    fn forward(&mut self) -> Result<(), CostError> {
        let (shape, par) = (self.shape, self.par);
        let stack = self.scratch.stack(conv::forward_scratch(shape, par));
        Ok(conv::forward(shape, &self.x, &self.weight, &mut self.y, par, stack)?)
    }

    fn backward(&mut self) -> Result<(), CostError> {
        let (shape, par) = (self.shape, self.par);
        let stack = self.scratch.stack(conv::weight_gradient_scratch(shape, par));
        conv::weight_gradient(shape, &self.x, &self.y, &mut self.d_weight, par, stack)?;
        let stack = self.scratch.stack(conv::input_gradient_scratch(shape, par));
        Ok(conv::input_gradient(shape, &self.y, &self.weight, &mut self.dx, par, stack)?)
    }

    /// All that a split takes here: decomposition, encoding, the convolution of the low-rank part, and the sum with the answer. For
    /// inference by a basis that serves on, the kernels have been folded.
    fn split_forward(&mut self, rank: usize, decomposer: &dyn Decomposer, pass: Pass) -> Result<(), CostError> {
        let (shape, par) = (self.shape, self.par);
        let pixels = shape.height * shape.width;
        let batch = BatchShape { samples: shape.samples, channels: shape.in_channels, pixels };
        let is_known = decomposer.serves() > 1 && self.low_rank.rank == rank;
        if is_known {
            let basis = self.low_rank.coefficients.clone();
            decompose::project(&basis, &self.x, batch, &mut self.low_rank, &mut self.dx, par)?;
        } else {
            let stack = self.scratch.stack(decomposer.scratch(batch, rank, par));
            decomposer.decompose(&self.x, batch, rank, &mut self.low_rank, &mut self.dx, par, stack)?;
        }
        exchange(&Payload::narrow(&self.dx), self.y.len(), 0);
        let low = ConvShape { in_channels: rank, ..shape };
        if is_known && pass == Pass::Inference {
            let stack = self.scratch.stack(conv::forward_scratch(low, par));
            let folded = &self.weight[..low.weight_len()];
            conv::forward(low, &self.low_rank.principal, folded, &mut self.y, par, stack)?;
        } else {
            let stack = self.scratch.stack(conv::folded_forward_scratch(shape, rank, par));
            conv::folded_forward(shape, &self.low_rank, &self.weight, &mut self.y, par, stack, &mut |_| {})?;
        }
        add_assign(&mut self.y, &self.answer);
        Ok(())
    }

    /// The gradient on its way out, that of the low-rank part, the sums with the answers, and the step on its way out.
    fn split_backward(&mut self) -> Result<(), CostError> {
        let (shape, par) = (self.shape, self.par);
        exchange(&Payload::narrow(&self.y), self.dx.len(), self.weight.len());
        let stack = self.scratch.stack(conv::folded_weight_gradient_scratch(shape, self.low_rank.rank, par));
        let (l, y) = (&self.low_rank, &self.y);
        conv::folded_weight_gradient(shape, l, y, &mut self.d_weight, par, stack, &mut |_| {})?;
        combine(&mut self.d_weight, &self.weight, |here, there| here + there);
        combine(&mut self.dx, &self.answer, |_, there| there);
        black_box(black_box(Payload::narrow(&self.weight)).clone());
        Ok(())
    }
}

/// A request and its answer of `values` in binary16 and `weights` in binary32 through a ring: one is copied there, the other widened
/// out of there, and the worker is woken and wakes.
fn exchange(sent: &Payload, values: usize, weights: usize) {
    const RUN: usize = 1 << 14;
    fn moved<T: Copy + Sync, U: Clone + Send>(from: &[T], zero: U, convert: impl Fn(&[T], &mut [U]) + Sync) {
        let mut to = vec![zero; from.len()];
        to.par_chunks_mut(RUN).zip(from.par_chunks(RUN)).for_each(|(to, from)| convert(from, to));
        black_box(to);
    }
    if let Payload::F16(sent) = sent {
        moved(sent, f16::ZERO, |from, to| to.copy_from_slice(from));
    }
    moved(&vec![f16::ONE; values], 0.0, |from, to| from.convert_to_f32_slice(to));
    moved(&vec![1.0_f32; weights], 0.0, |from, to| to.copy_from_slice(from));
    let woken = Instant::now();
    while woken.elapsed() < *WAKING {
        spin_loop();
    }
}

/// What another thread takes to be woken and to wake this one.
static WAKING: LazyLock<Duration> = LazyLock::new(|| {
    const TRIPS: u32 = 200;
    let (there, asked) = mpsc::channel::<()>();
    let (back, answered) = mpsc::channel::<()>();
    let echo = std::thread::spawn(move || asked.iter().try_for_each(|()| back.send(())).is_ok());
    let start = Instant::now();
    let gone = (0..TRIPS).any(|_| there.send(()).is_err() || answered.recv().is_err());
    drop(there);
    let joined = echo.join().is_ok();
    if gone || !joined { Duration::ZERO } else { start.elapsed() / TRIPS }
});
