//! What every decomposer does alike: memory, one thread to each share of the samples.

use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::{BatchShape, BatchToSplit, DecomposeError};

/// Alignment of scratch and of each thread's share of it.
pub(super) const ALIGN_BYTES: usize = 64;

/// One sample as a decomposer sees it. All matrices are row-major.
pub(super) struct Sample<'a> {
    /// Place in the batch.
    pub index: usize,
    /// `channels × pixels`.
    pub x: &'a [f32],
    /// A, `channels × rank`; empty when the whole batch shares one.
    pub coefficients: &'a mut [f32],
    /// V, `rank × pixels`.
    pub principal: &'a mut [f32],
    /// `channels × pixels`.
    pub residual: &'a mut [f32],
}

impl Sample<'_> {
    /// The same sample for a shorter time.
    pub fn reborrow(&mut self) -> Sample<'_> {
        Sample {
            index: self.index,
            x: self.x,
            coefficients: self.coefficients,
            principal: self.principal,
            residual: self.residual,
        }
    }
}

/// Index of the first value of `x` that is not finite.
pub(super) fn first_non_finite(x: &[f32]) -> Option<usize> {
    x.iter().position(|value| !value.is_finite())
}

/// Threads a batch is shared out to: never more than samples.
pub(super) fn shares(samples: usize, par: Par) -> usize {
    par.degree().clamp(1, samples.max(1))
}

/// Parallelism within one sample: samples are shared out first, so only a lone one may use every thread, and only
/// a large one gains by it.
pub(super) fn inner(shape: BatchShape, par: Par) -> Par {
    const WORTH_SHARING: usize = 1 << 18;
    if shape.samples == 1 && shape.len() >= WORTH_SHARING { par } else { Par::Seq }
}

/// Scratch for `shares` threads that need `one` each.
pub(super) fn shared_scratch(one: StackReq, shares: usize) -> StackReq {
    StackReq::new_aligned::<u8>(share_bytes(one) * shares, ALIGN_BYTES)
}

fn share_bytes(one: StackReq) -> usize {
    // A request may ask for more alignment than ours: room to find it inside the share.
    (one.size_bytes() + one.align_bytes()).next_multiple_of(ALIGN_BYTES)
}

/// `len` zeros from the scratch.
pub(super) fn zeros(stack: &mut MemStack, len: usize) -> (faer::dyn_stack::DynArray<'_, f32>, &mut MemStack) {
    stack.make_aligned_with(len, ALIGN_BYTES, |_| 0.0)
}

/// Scratch that [`zeros`] takes.
pub(super) fn zeros_scratch(len: usize) -> StackReq {
    StackReq::new_aligned::<f32>(len, ALIGN_BYTES)
}

/// A run of consecutive samples with the scratch for their threads.
struct Run<'a> {
    first: usize,
    samples: usize,
    x: &'a [f32],
    coefficients: &'a mut [f32],
    principal: &'a mut [f32],
    residual: &'a mut [f32],
    scratch: &'a mut [core::mem::MaybeUninit<u8>],
}

impl<'a> Run<'a> {
    /// Splits off the first `samples` samples with `scratch_bytes` of the scratch.
    fn split(self, samples: usize, scratch_bytes: usize) -> (Self, Self) {
        let part = |len: usize| len / self.samples * samples;
        let (x, x_rest) = self.x.split_at(part(self.x.len()));
        let (coefficients, coefficients_rest) = self.coefficients.split_at_mut(part(self.coefficients.len()));
        let (principal, principal_rest) = self.principal.split_at_mut(part(self.principal.len()));
        let (residual, residual_rest) = self.residual.split_at_mut(part(self.residual.len()));
        let (scratch, scratch_rest) = self.scratch.split_at_mut(scratch_bytes);
        (
            Run { first: self.first, samples, x, coefficients, principal, residual, scratch },
            Run {
                first: self.first + samples,
                samples: self.samples - samples,
                x: x_rest,
                coefficients: coefficients_rest,
                principal: principal_rest,
                residual: residual_rest,
                scratch: scratch_rest,
            },
        )
    }

    fn go<F>(self, shares: usize, share_bytes: usize, each: &F) -> Result<(), DecomposeError>
    where
        F: Fn(Sample<'_>, &mut MemStack) -> Result<(), DecomposeError> + Sync,
    {
        if shares > 1 {
            let left = shares / 2;
            let samples = self.samples * left / shares;
            let (a, b) = self.split(samples, left * share_bytes);
            let (a, b) = rayon::join(|| a.go(left, share_bytes, each), || b.go(shares - left, share_bytes, each));
            return a.and(b);
        }
        let mut rest = self;
        while rest.samples > 0 {
            let (one, others) = rest.split(1, 0);
            let Run { first: index, x, coefficients, principal, residual, .. } = one;
            each(Sample { index, x, coefficients, principal, residual }, MemStack::new(&mut *others.scratch))?;
            rest = others;
        }
        Ok(())
    }
}

/// Runs `each` on every sample, the samples shared out over its threads, each with its own scratch of size `one`.
///
/// Returns the error of the first sample in the batch that failed.
pub(super) fn for_each_sample<F>(
    batch: &mut BatchToSplit<'_>,
    one: StackReq,
    stack: &mut MemStack,
    each: F,
) -> Result<(), DecomposeError>
where
    F: Fn(Sample<'_>, &mut MemStack) -> Result<(), DecomposeError> + Sync,
{
    let BatchToSplit { x, shape: BatchShape { samples, .. }, low_rank, residual, par, .. } = batch;
    let shares = shares(*samples, *par);
    let share_bytes = share_bytes(one);
    let (scratch, _) = stack.make_aligned_uninit::<u8>(share_bytes * shares, ALIGN_BYTES);
    let coefficients = if low_rank.shared { &mut [][..] } else { &mut low_rank.coefficients[..] };
    let principal = &mut low_rank.principal;
    let run = Run { first: 0, samples: *samples, x, coefficients, principal, residual, scratch };
    run.go(shares, share_bytes, &each)
}

/// `residual = x − A·V` for one sample.
pub(super) fn subtract(x: MatRef<'_, f32>, a: MatRef<'_, f32>, v: MatRef<'_, f32>, residual: &mut [f32], par: Par) {
    let mut residual = MatMut::from_row_major_slice_mut(residual, x.nrows(), x.ncols());
    residual.copy_from(x);
    matmul(residual, Accum::Add, a, v, -1.0, par);
}

/// Whether the energy of a sample (a sum of squares) is far from overflow and underflow.
pub(super) fn in_range(energy: f32) -> bool {
    (1e-20..1e30).contains(&energy)
}

/// Largest magnitude of `x`, or 1 when all is zero.
///
/// # Errors
/// The index of the first value that is not finite.
fn largest_magnitude(x: &[f32]) -> Result<f32, usize> {
    // Without the sign, bits of floats are ordered as integers, and infinities and NaN come last.
    let largest = x.iter().fold(0, |largest: i32, value| largest.max((value.to_bits() & 0x7fff_ffff) as i32));
    let largest = f32::from_bits(largest.cast_unsigned());
    match first_non_finite(if largest.is_finite() { &[] } else { x }) {
        Some(index) => Err(index),
        None => Ok(if largest > 0.0 { largest } else { 1.0 }),
    }
}

/// Combines `map` of every sample, the samples shared out over `par`.
fn reduce<T: Send>(
    x: &[f32],
    (first, shape): (usize, BatchShape),
    shares: usize,
    map: &(impl Fn(usize, &[f32]) -> T + Sync),
    combine: &(impl Fn(T, T) -> T + Sync),
) -> T {
    if shape.samples > 1 {
        // Always halves, so that sums do not depend on the number of threads.
        let samples = shape.samples / 2;
        let (x_left, x_right) = x.split_at(samples * shape.channels * shape.pixels);
        let (left, right) = (BatchShape { samples, ..shape }, BatchShape { samples: shape.samples - samples, ..shape });
        let a = || reduce(x_left, (first, left), shares / 2, map, combine);
        let b = || reduce(x_right, (first + samples, right), shares - shares / 2, map, combine);
        let (a, b) = if shares > 1 { rayon::join(a, b) } else { (a(), b()) };
        return combine(a, b);
    }
    map(first, x)
}

/// Largest magnitude in the batch, or 1 when all is zero.
///
/// # Errors
/// The index of the first value that is not finite.
pub(super) fn largest(x: &[f32], shape: BatchShape, par: Par) -> Result<f32, usize> {
    let each = |index: usize, sample: &[f32]| largest_magnitude(sample).map_err(|at| index * sample.len() + at);
    reduce(x, (0, shape), shares(shape.samples, par), &each, &|a, b| Ok(a?.max(b?)))
}

/// ‖x‖² of the batch, summed in f64.
pub(super) fn energy(x: &[f32], shape: BatchShape, par: Par) -> f64 {
    let each = |_: usize, sample: &[f32]| sample.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    reduce(x, (0, shape), shares(shape.samples, par), &each, &|a, b| a + b)
}

/// Writes `x` divided by its largest magnitude into `out`, so that squares stay in the range of f32; returns both.
///
/// # Errors
/// The index of the first value that is not finite.
pub(super) fn rescaled<'a>(x: &[f32], out: &'a mut [f32]) -> Result<(&'a [f32], f32), usize> {
    let largest = largest_magnitude(x)?;
    // The reciprocal of a subnormal overflows, so divide.
    out.iter_mut().zip(x).for_each(|(out, value)| *out = value / largest);
    Ok((out, largest))
}
