//! A basis for each sample from a few of its pixels.

use faer::Par;
use faer::dyn_stack::{MemStack, StackReq};

use super::batch::{self, Sample};
use super::orthonormal::{LANES, orthonormalise};
use super::project::project_sample;
use super::subspace::{fill_uniform, splitmix};
use super::{BatchShape, BatchToSplit, DecomposeError, Decomposer};
use crate::gemm::Gemm;
use crate::simd::dispatch;

/// Seed of pixels and start: results depend on the sample alone.
const SEED: u64 = 0x9175;

/// A orthonormal, by subspace iteration on some pixels at random (the same in every sample); V = Aᵀ·X.
///
/// The residual of 64 pixels at rank 8 is a few percent above the optimum, and finding A costs next to nothing, where the
/// Gram matrix of all pixels costs a tenth to a third of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Pixels looked at, and at least twice the rank; all where there are no more.
    pub pixels: usize,
    /// Steps of the subspace iteration.
    pub steps: usize,
}

impl Default for Sampled {
    fn default() -> Self {
        Self { pixels: 64, steps: 2 }
    }
}

/// Sizes of what is iterated: S of `channels × pixels`, Q of `channels × width` of which `rank` columns count.
#[derive(Clone, Copy)]
struct Sizes {
    channels: usize,
    pixels: usize,
    /// Distance of the rows of S.
    pitch: usize,
    rank: usize,
    width: usize,
}

impl Sampled {
    fn sizes(&self, shape: BatchShape, rank: usize) -> Sizes {
        let pixels = self.pixels.max(2 * rank).min(shape.pixels);
        let width = rank.next_multiple_of(LANES);
        Sizes { channels: shape.channels, pixels, pitch: pixels.next_multiple_of(LANES), rank, width }
    }

    fn sample(
        &self,
        s: Sizes,
        (pixels, par): (usize, Par),
        sample: Sample<'_>,
        stack: &mut MemStack,
    ) -> Result<(), DecomposeError> {
        let mut state = SEED;
        let all = s.pixels == pixels;
        let (places, stack) = stack.make_aligned_with(s.pixels, batch::ALIGN_BYTES, |i| {
            let random = splitmix(&mut state) % pixels as u64;
            if all { i as u32 } else { random as u32 }
        });
        let (mut some, stack) = batch::zeros(stack, s.channels * s.pitch);
        let gather = |from: &[f32], some: &mut [f32]| {
            for (row, to) in from.chunks_exact(pixels).zip(some.chunks_exact_mut(s.pitch)) {
                to.iter_mut().zip(&places[..]).for_each(|(to, &at)| *to = row[at as usize]);
            }
        };
        gather(sample.x, &mut some);
        if !batch::in_range(some.iter().map(|v| v * v).sum()) {
            let (scaled, _) = batch::rescaled(sample.x, sample.residual)
                .map_err(|index| DecomposeError::NonFinite { index: sample.index * sample.x.len() + index })?;
            gather(scaled, &mut some);
        }
        self.iterate(s, &some, sample.coefficients, stack);
        project_sample(sample.x, pixels, sample.coefficients, sample.principal, sample.residual, par);
        // A value that is not finite makes its whole column of V so; V may also overflow on its own.
        match batch::first_non_finite(sample.principal).and_then(|_| batch::first_non_finite(sample.x)) {
            Some(index) => Err(DecomposeError::NonFinite { index: sample.index * sample.x.len() + index }),
            None => Ok(()),
        }
    }

    /// Writes an orthonormal basis of the leading left directions of S into `a` (`channels × rank`).
    fn iterate(&self, s: Sizes, some: &[f32], a: &mut [f32], stack: &mut MemStack) {
        let (mut q, stack) = batch::zeros(stack, s.channels * s.width);
        let (mut z, stack) = batch::zeros(stack, s.pitch * s.width);
        let (mut lengths, _) = batch::zeros(stack, s.width);
        z.chunks_exact_mut(s.width).zip(0..).for_each(|(row, at)| fill_uniform(&mut row[..s.rank], SEED ^ at));
        let plain = Gemm {
            a: some.as_ptr(),
            a_row: s.pitch,
            a_depth: 1,
            a_segment: 0,
            b: z.as_ptr(),
            b_row: s.width,
            b_panel: crate::gemm::PANEL,
            c: q.as_mut_ptr(),
            c_row: s.width,
            rows: s.channels,
            depth: s.pixels,
            segments: 1,
            columns: s.width,
            add: false,
        };
        for step in 0..=self.steps {
            if step > 0 {
                let (b, c) = (q.as_ptr(), z.as_mut_ptr());
                let turned = Gemm { a_row: 1, a_depth: s.pitch, b, c, rows: s.pixels, depth: s.channels, ..plain };
                // SAFETY: S is `channels × pitch`, Q and Z have as many rows as it has channels and pixels, `width` apart.
                unsafe { dispatch(&turned) };
            }
            // SAFETY: as above.
            unsafe { dispatch(&plain) };
            orthonormalise(&mut q, s.width, s.rank, &mut lengths);
        }
        for (to, from) in a.chunks_exact_mut(s.rank).zip(q.chunks_exact(s.width)) {
            to.copy_from_slice(&from[..s.rank]);
        }
    }

    fn sample_scratch(&self, shape: BatchShape, rank: usize) -> StackReq {
        let s = self.sizes(shape, rank);
        let lens = [s.channels * s.pitch, s.channels * s.width, s.pitch * s.width, s.width];
        lens.iter().fold(StackReq::new_aligned::<u32>(s.pixels, batch::ALIGN_BYTES), |all, &len| {
            all.and(batch::zeros_scratch(len))
        })
    }
}

impl Decomposer for Sampled {
    fn name(&self) -> &'static str {
        "per-sample"
    }

    fn scratch(&self, shape: BatchShape, rank: usize, par: Par) -> StackReq {
        batch::shared_scratch(self.sample_scratch(shape, rank), batch::shares(shape.samples, par))
    }

    fn fill(&self, mut batch: BatchToSplit<'_>, stack: &mut MemStack) -> Result<(), DecomposeError> {
        let BatchToSplit { shape, rank, par, .. } = batch;
        let inner = batch::inner(shape, par);
        let (one, sizes) = (self.sample_scratch(shape, rank), self.sizes(shape, rank));
        batch::for_each_sample(&mut batch, one, stack, |part, stack| {
            self.sample(sizes, (shape.pixels, inner), part, stack)
        })
    }
}
