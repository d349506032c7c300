//! What a decomposer is, what it takes and what it gives.

use std::fmt::Debug;

use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use thiserror::Error;

/// Shape of a batch of matrices: `samples` of `channels × pixels`, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Samples in the batch.
    pub samples: usize,
    /// Channels: rows of each matrix.
    pub channels: usize,
    /// Pixels (height · width): columns of each matrix.
    pub pixels: usize,
}

impl BatchShape {
    /// Values of the whole batch.
    pub const fn len(&self) -> usize {
        self.samples * self.channels * self.pixels
    }

    /// Whether the batch holds no value.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The low-rank part of a batch: X_main\[s\] = A\[s\] · V\[s\] (thesis eq 2.1 to 2.5).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LowRank {
    /// Rank r: columns of A, rows of V.
    pub rank: usize,
    /// Whether one A serves the whole batch.
    pub shared: bool,
    /// A, coefficients a_{j,p}: `channels × rank` for each sample, or once when `shared`; row-major.
    pub coefficients: Vec<f32>,
    /// V, principal channels X'_p: `samples × rank × pixels`, row-major.
    pub principal: Vec<f32>,
}

impl LowRank {
    /// A (channels × rank) and V (rank × pixels) of one sample of a batch of `shape`; `None` where there is no such sample, or
    /// these are the factors of another shape.
    pub fn factors(&self, shape: BatchShape, sample: usize) -> Option<(&[f32], &[f32])> {
        let (a, v) = (shape.channels * self.rank, self.rank * shape.pixels);
        let is_ours = self.principal.len() == shape.samples * v
            && self.coefficients.len() == if self.shared { a } else { shape.samples * a };
        if !is_ours || sample >= shape.samples {
            return None;
        }
        let first = if self.shared { 0 } else { sample * a };
        Some((self.coefficients.get(first..first + a)?, self.principal.get(sample * v..(sample + 1) * v)?))
    }

    /// X_main = A·V of the whole batch, row-major; with the residual added it is the batch again.
    ///
    /// # Errors
    /// These are the factors of another shape.
    pub fn reconstruct(&self, shape: BatchShape) -> Result<Vec<f32>, DecomposeError> {
        let mut main = Vec::with_capacity(shape.len());
        for sample in 0..shape.samples {
            let (a, v) = self.factors(shape, sample).ok_or(DecomposeError::Length {
                what: "the principal channels",
                expected: shape.samples * self.rank * shape.pixels,
                got: self.principal.len(),
            })?;
            let value = |row: &[f32], pixel: usize| -> f32 {
                row.iter().zip(v.chunks_exact(shape.pixels)).map(|(a, v)| a * v[pixel]).sum()
            };
            for row in a.chunks_exact(self.rank.max(1)) {
                main.extend((0..shape.pixels).map(|pixel| value(row, pixel)));
            }
        }
        Ok(main)
    }
}

/// Why a batch could not be decomposed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecomposeError {
    /// The batch holds no value.
    #[error("the batch is empty: {samples} samples of {channels}x{pixels}")]
    Empty {
        /// Samples.
        samples: usize,
        /// Channels.
        channels: usize,
        /// Pixels.
        pixels: usize,
    },
    /// A slice has another length than the shape says.
    #[error("{what} holds {got} values, the shape needs {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// What the shape needs.
        expected: usize,
        /// What it holds.
        got: usize,
    },
    /// The rank is zero or larger than the smaller side of the matrices.
    #[error("rank {rank} is out of range 1..={max}")]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// The largest possible.
        max: usize,
    },
    /// The input holds NaN or an infinity.
    #[error("value {index} is not finite")]
    NonFinite {
        /// Index of the first such value.
        index: usize,
    },
    /// The scratch is smaller than [`Decomposer::scratch`] says.
    #[error("the scratch holds {got_bytes} bytes, {needed_bytes} are needed")]
    Scratch {
        /// What is needed.
        needed_bytes: usize,
        /// What was given.
        got_bytes: usize,
    },
    /// The iteration did not converge.
    #[error("the singular value decomposition did not converge")]
    NoConvergence,
}

/// A batch to split, whose lengths and rank have been checked, and where its parts go.
#[derive(Debug)]
pub struct BatchToSplit<'a> {
    /// X, row-major.
    pub x: &'a [f32],
    /// Its shape.
    pub shape: BatchShape,
    /// Rank of the low-rank part.
    pub rank: usize,
    /// A and V, of their sizes.
    pub low_rank: &'a mut LowRank,
    /// X − A·V, as long as X.
    pub residual: &'a mut [f32],
    /// Threads of the current rayon pool that may be used.
    pub par: Par,
}

impl BatchToSplit<'_> {
    /// Checks shape, lengths, rank and scratch before anything is written.
    pub(super) fn check(&self, needed: StackReq, stack: &MemStack) -> Result<(), DecomposeError> {
        let Self { x, shape, rank, ref residual, .. } = *self;
        let BatchShape { samples, channels, pixels } = shape;
        if shape.is_empty() {
            return Err(DecomposeError::Empty { samples, channels, pixels });
        }
        for (what, got) in [("x", x.len()), ("residual", residual.len())] {
            if got != shape.len() {
                return Err(DecomposeError::Length { what, expected: shape.len(), got });
            }
        }
        let max = channels.min(pixels);
        if rank == 0 || rank > max {
            return Err(DecomposeError::Rank { rank, max });
        }
        if !stack.can_hold(needed) {
            return Err(DecomposeError::Scratch { needed_bytes: needed.size_bytes(), got_bytes: stack.len_bytes() });
        }
        Ok(())
    }

    /// Sets the sizes of A and V, keeping their memory.
    pub(super) fn prepare(&mut self, shared: bool) {
        let Self { shape, rank, ref mut low_rank, .. } = *self;
        let factors = if shared { 1 } else { shape.samples };
        low_rank.rank = rank;
        low_rank.shared = shared;
        low_rank.coefficients.resize(factors * shape.channels * rank, 0.0);
        low_rank.principal.resize(shape.samples * rank * shape.pixels, 0.0);
    }
}

/// A way to split a batch into its low-rank part and the residual.
///
/// The caller owns memory and threads: scratch is requested by [`Decomposer::scratch`] and passed in, and
/// `par` says how many threads of the current rayon pool may be used.
pub trait Decomposer: Send + Sync + Debug {
    /// Name in configuration and reports.
    fn name(&self) -> &'static str;

    /// Whether one basis serves the whole batch, so that the residual of a sample depends on the others.
    fn shares_basis(&self) -> bool {
        false
    }

    /// Training steps for which a basis serves once it was found; then [`project`](super::project) takes the place of
    /// [`Decomposer::decompose`]. Only a shared one serves for more than one.
    fn serves(&self) -> usize {
        1
    }

    /// Scratch that [`Decomposer::decompose`] needs.
    fn scratch(&self, shape: BatchShape, rank: usize, par: Par) -> StackReq;

    /// Fills A, V and the residual of a batch that has been checked.
    ///
    /// # Errors
    /// Non-finite values, no convergence.
    fn fill(&self, batch: BatchToSplit<'_>, stack: &mut MemStack) -> Result<(), DecomposeError>;

    /// Splits `x` (the batch, row-major): fills `low_rank`, reusing its memory, and `residual = x − A·V`.
    ///
    /// # Errors
    /// Empty batch, slices of the wrong length, rank out of range, non-finite values, no convergence.
    fn decompose(
        &self,
        x: &[f32],
        shape: BatchShape,
        rank: usize,
        low_rank: &mut LowRank,
        residual: &mut [f32],
        par: Par,
        stack: &mut MemStack,
    ) -> Result<(), DecomposeError> {
        let mut batch = BatchToSplit { x, shape, rank, low_rank, residual, par };
        batch.check(self.scratch(shape, rank, par), stack)?;
        batch.prepare(self.shares_basis());
        self.fill(batch, stack)
    }

    /// The low-rank part of `x` and its residual, in memory of their own and on one thread.
    ///
    /// # Errors
    /// As [`Decomposer::decompose`].
    fn split(&self, x: &[f32], shape: BatchShape, rank: usize) -> Result<(LowRank, Vec<f32>), DecomposeError> {
        let mut memory = MemBuffer::new(self.scratch(shape, rank, Par::Seq));
        let (mut low_rank, mut residual) = (LowRank::default(), vec![0.0; x.len()]);
        self.decompose(x, shape, rank, &mut low_rank, &mut residual, Par::Seq, MemStack::new(&mut memory))?;
        Ok((low_rank, residual))
    }
}
