//! The trusted convolution kernels: forward, input gradient and weight gradient, plain and folded.
//!
//! All operands are NCHW, row-major, f32, over a batch. The caller owns memory and threads: each function `f` asks for
//! its scratch through `f_scratch` with the same shape and `par`, and works on `par.degree()` threads of the current
//! rayon pool. Vector code for AVX-512 and for AVX2 with FMA is chosen at run time; other processors run portable
//! code.
//!
//! The way follows from the shape alone ([`ConvShape`], rank):
//! - 3×3 of stride 1 with at least 12 input channels, images above 2×2 and four tiles of 4×4 in the batch: Winograd's
//!   F(4×4, 3×3) (Lavin and Gray, arXiv 1509.09308), 36 products where a plain convolution takes 144; the input gradient is the same with turned
//!   kernels, the weight gradient its adjoint.
//! - all else: matrix products with columns that are expanded a few at a time and stay in the cache of a core. The
//!   input gradient of a stride above 1 splits into one such product for each remainder of the pixel by the stride.
//! - folded (thesis eq 2.6 and 2.7): as above over r channels; by way of the dense X_main = A·V, which has the same
//!   result, where folding the kernels of every sample costs more.
//!
//! Errors: Winograd's sums lose digits. The tests hold every result within 2·10⁻⁵ of the largest magnitude in the
//! exact result (an f64 loop), for uniform values and up to 512 channels; the bound does not hold for infinities and
//! NaN, which spread over their tile of 6×6 pixels. Results are the same for each run with the same number of threads;
//! with other numbers of threads sums may be rounded otherwise.

mod direct;
mod direct_gradient;
mod folded;
mod layout;
mod plain;
mod tiles;
mod transforms;
mod window;
mod winograd;
mod winograd_gradient;
mod winograd_wide;

use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use thiserror::Error;

use crate::LowRank;

/// Largest number of values of one operand, 2³⁸ bytes: far from overflow in every size computed from it.
const MAX_VALUES: usize = 1 << 36;

const fn out_side(side: usize, kernel: usize, stride: usize, padding: usize) -> usize {
    let padded = side.saturating_add(padding.saturating_mul(2));
    if kernel == 0 || stride == 0 || padded < kernel { 0 } else { (padded - kernel) / stride + 1 }
}

const fn product(sizes: [usize; 4]) -> usize {
    sizes[0].saturating_mul(sizes[1]).saturating_mul(sizes[2]).saturating_mul(sizes[3])
}

/// Shape of a batched square convolution without dilation or groups, NCHW, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Samples in the batch.
    pub samples: usize,
    /// Input channels N.
    pub in_channels: usize,
    /// Input rows h.
    pub height: usize,
    /// Input columns w.
    pub width: usize,
    /// Output channels M.
    pub out_channels: usize,
    /// Side k of the kernel.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zero padding on every side.
    pub padding: usize,
}

impl ConvShape {
    /// Checks that every size is positive, that the kernel fits into the padded input and that every length can be
    /// addressed. All kernels of this module call it first.
    ///
    /// # Errors
    /// [`ConvError::Shape`] and [`ConvError::TooLarge`].
    pub const fn validate(&self) -> Result<(), ConvError> {
        let ConvShape { samples, in_channels, height, width, out_channels, kernel, stride, padding } = *self;
        let too_large = ConvError::TooLarge { limit: MAX_VALUES };
        let sizes = [samples, in_channels, height, width, out_channels, kernel, stride];
        let mut i = 0;
        while i < sizes.len() {
            if sizes[i] == 0 {
                return Err(ConvError::Shape { kernel, stride, padding, height, width });
            }
            if sizes[i] > MAX_VALUES {
                return Err(too_large);
            }
            i += 1;
        }
        if padding > MAX_VALUES {
            return Err(too_large);
        }
        if kernel > height + 2 * padding || kernel > width + 2 * padding {
            return Err(ConvError::Shape { kernel, stride, padding, height, width });
        }
        let padded = [samples, in_channels, height + 2 * padding, width + 2 * padding];
        let output = [samples, out_channels, self.out_height(), self.out_width()];
        let weight = [in_channels, out_channels, kernel, kernel];
        if product(padded) > MAX_VALUES || product(output) > MAX_VALUES || product(weight) > MAX_VALUES {
            return Err(too_large);
        }
        Ok(())
    }

    /// Output rows; zero where the kernel does not fit.
    pub const fn out_height(&self) -> usize {
        out_side(self.height, self.kernel, self.stride, self.padding)
    }

    /// Output columns; zero where the kernel does not fit.
    pub const fn out_width(&self) -> usize {
        out_side(self.width, self.kernel, self.stride, self.padding)
    }

    /// Values of the input batch.
    pub const fn input_len(&self) -> usize {
        self.samples * self.in_channels * self.height * self.width
    }

    /// Values of the output batch.
    pub const fn output_len(&self) -> usize {
        self.samples * self.out_channels * self.out_height() * self.out_width()
    }

    /// Values of the weight, `out × in × k × k`.
    pub const fn weight_len(&self) -> usize {
        self.out_channels * self.in_channels * self.kernel * self.kernel
    }
}

/// Why a convolution could not be computed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConvError {
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
    /// A size is zero, or the kernel does not fit into the padded input.
    #[error("kernel {kernel} with stride {stride} and padding {padding} does not fit into {height}x{width}")]
    Shape {
        /// Side of the kernel.
        kernel: usize,
        /// Stride.
        stride: usize,
        /// Padding.
        padding: usize,
        /// Input rows.
        height: usize,
        /// Input columns.
        width: usize,
    },
    /// An operand would hold more values than this crate addresses.
    #[error("the shape has an operand of more than {limit} values")]
    TooLarge {
        /// The largest number of values of one operand.
        limit: usize,
    },
    /// The rank of the low-rank part is zero.
    #[error("rank {rank} is below 1")]
    Rank {
        /// The rank.
        rank: usize,
    },
    /// The scratch is smaller than the matching `*_scratch` function says.
    #[error("the scratch holds {got} bytes, the kernel needs {needed}")]
    Scratch {
        /// Bytes needed.
        needed: usize,
        /// Bytes the scratch holds.
        got: usize,
    },
}

/// Scratch of [`forward`]; empty for a shape that [`ConvShape::validate`] refuses.
pub fn forward_scratch(shape: ConvShape, par: Par) -> StackReq {
    if shape.validate().is_err() {
        return StackReq::empty();
    }
    if let Some(conv) = winograd_forward(shape) {
        return winograd::scratch(conv, par.degree());
    }
    plain::forward_scratch(shape, par.degree())
}

/// Y = X ⊛ W: overwrites `y` (`samples × out × oh × ow`) from `x` (`samples × in × h × w`) and `weight`
/// (`out × in × k × k`).
///
/// # Errors
/// A shape that [`ConvShape::validate`] refuses, slices of another length than it says, too little scratch.
pub fn forward(
    shape: ConvShape,
    x: &[f32],
    weight: &[f32],
    y: &mut [f32],
    par: Par,
    stack: &mut MemStack,
) -> Result<(), ConvError> {
    shape.validate()?;
    check_len("x", shape.input_len(), x.len())?;
    check_len("weight", shape.weight_len(), weight.len())?;
    check_len("y", shape.output_len(), y.len())?;
    check_scratch(forward_scratch(shape, par), stack)?;
    match winograd_forward(shape) {
        Some(conv) => winograd::forward(conv, x, weight, y, par.degree(), stack),
        None => plain::forward(shape, x, weight, y, par.degree(), stack),
    }
    Ok(())
}

/// As [`forward`], into memory of its own and on one thread.
///
/// # Errors
/// As [`forward`].
pub fn convolve(shape: ConvShape, x: &[f32], weight: &[f32]) -> Result<Vec<f32>, ConvError> {
    shape.validate()?;
    let mut y = vec![0.0; shape.output_len()];
    let mut memory = MemBuffer::new(forward_scratch(shape, Par::Seq));
    forward(shape, x, weight, &mut y, Par::Seq, MemStack::new(&mut memory))?;
    Ok(y)
}

/// Scratch of [`input_gradient`]; empty for a shape that [`ConvShape::validate`] refuses.
pub fn input_gradient_scratch(shape: ConvShape, par: Par) -> StackReq {
    if shape.validate().is_err() {
        return StackReq::empty();
    }
    if let Some(conv) = winograd_input_gradient(shape) {
        return winograd::scratch(conv, par.degree());
    }
    plain::input_gradient_scratch(shape, par.degree())
}

/// ∇X, the adjoint of [`forward`] in X: overwrites `dx` (`samples × in × h × w`) from `dy`
/// (`samples × out × oh × ow`) and `weight`.
///
/// # Errors
/// As [`forward`].
pub fn input_gradient(
    shape: ConvShape,
    dy: &[f32],
    weight: &[f32],
    dx: &mut [f32],
    par: Par,
    stack: &mut MemStack,
) -> Result<(), ConvError> {
    shape.validate()?;
    check_len("dy", shape.output_len(), dy.len())?;
    check_len("weight", shape.weight_len(), weight.len())?;
    check_len("dx", shape.input_len(), dx.len())?;
    check_scratch(input_gradient_scratch(shape, par), stack)?;
    match winograd_input_gradient(shape) {
        Some(conv) => winograd::forward(conv, dy, weight, dx, par.degree(), stack),
        None => plain::input_gradient(shape, dy, weight, dx, par.degree(), stack),
    }
    Ok(())
}

/// Scratch of [`weight_gradient`]; empty for a shape that [`ConvShape::validate`] refuses.
pub fn weight_gradient_scratch(shape: ConvShape, par: Par) -> StackReq {
    if shape.validate().is_err() {
        return StackReq::empty();
    }
    if let Some(conv) = winograd_forward(shape) {
        return winograd_gradient::scratch(conv, par.degree());
    }
    plain::weight_gradient_scratch(shape, par.degree())
}

/// ∇W, the adjoint of [`forward`] in W, summed over the batch: overwrites `dw` (`out × in × k × k`).
///
/// # Errors
/// As [`forward`].
pub fn weight_gradient(
    shape: ConvShape,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    par: Par,
    stack: &mut MemStack,
) -> Result<(), ConvError> {
    shape.validate()?;
    check_len("x", shape.input_len(), x.len())?;
    check_len("dy", shape.output_len(), dy.len())?;
    check_len("dw", shape.weight_len(), dw.len())?;
    check_scratch(weight_gradient_scratch(shape, par), stack)?;
    match winograd_forward(shape) {
        Some(conv) => winograd_gradient::weight_gradient(conv, x, dy, dw, par.degree(), stack),
        None => plain::weight_gradient(shape, x, dy, dw, par.degree(), stack),
    }
    Ok(())
}

/// Where a convolution of a low-rank input stands with its coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folding {
    /// Work on them begins.
    Begins,
    /// It has ended.
    Ends,
}

/// Hears of [`Folding`], once each, on the calling thread. This crate reads no clock; a caller that does can tell
/// folding apart from the rest.
pub type Mark<'a> = &'a mut dyn FnMut(Folding);

/// Scratch of [`fold`] by a basis of rank `rank`; empty for a shape that [`ConvShape::validate`] refuses.
pub fn fold_scratch(shape: ConvShape, rank: usize) -> StackReq {
    let is_valid = shape.validate().is_ok() && (ConvShape { in_channels: rank, ..shape }).validate().is_ok();
    if is_valid { folded::fold_scratch(shape, rank) } else { StackReq::empty() }
}

/// Overwrites `folded` (`out × r × k × k`) with the kernels W'_{i,p} = Σ_j a_{j,p} W_{i,j} (thesis eq 2.6) of the one basis `a`
/// (`in × r`, row-major). [`forward`] of the principal channels with them is [`folded_forward`], for as long as basis and weight stay.
///
/// # Errors
/// As [`forward`].
pub fn fold(
    shape: ConvShape,
    a: &[f32],
    weight: &[f32],
    folded: &mut [f32],
    par: Par,
    stack: &mut MemStack,
) -> Result<(), ConvError> {
    shape.validate()?;
    let low = ConvShape { in_channels: a.len() / shape.in_channels, ..shape };
    low.validate()?;
    check_len("the basis", low.in_channels * shape.in_channels, a.len())?;
    check_len("weight", shape.weight_len(), weight.len())?;
    check_len("the folded kernels", low.weight_len(), folded.len())?;
    check_scratch(fold_scratch(shape, low.in_channels), stack)?;
    folded::fold(shape, a, weight, folded, par.degree(), stack);
    Ok(())
}

/// Scratch of [`folded_forward`] for a low-rank part of rank `rank`, shared or not; empty where that is refused.
pub fn folded_forward_scratch(shape: ConvShape, rank: usize, par: Par) -> StackReq {
    if (ConvShape { in_channels: rank, ..shape }).validate().is_err() || shape.validate().is_err() {
        return StackReq::empty();
    }
    let threads = par.degree();
    let either = [true, false].map(|shared| match Way::new(shape, rank, shared) {
        Way::Low(conv) => folded::forward_low_scratch(shape, conv, threads),
        Way::Dense(conv) => folded::forward_dense_scratch(conv, rank, shared, threads),
        Way::Direct => folded::forward_scratch(shape, rank, shared, threads),
    });
    StackReq::any_of(&either)
}

/// Overwrites `y` with Y_main = Σ_p X'_p ⊛ W'_p, with the folded kernels W'_{i,p} = Σ_j a_{j,p} W_{i,j} (thesis eq 2.6):
/// a convolution with r instead of N input channels. Folds once where `low_rank.shared`, else once per sample.
/// `mark` hears when work on the coefficients begins and ends: folding, or writing X_main where that is the way.
///
/// # Errors
/// As [`forward`], and [`ConvError::Rank`].
pub fn folded_forward(
    shape: ConvShape,
    low_rank: &LowRank,
    weight: &[f32],
    y: &mut [f32],
    par: Par,
    stack: &mut MemStack,
    mark: Mark<'_>,
) -> Result<(), ConvError> {
    shape.validate()?;
    check_low_rank(shape, low_rank)?;
    check_len("weight", shape.weight_len(), weight.len())?;
    check_len("y", shape.output_len(), y.len())?;
    check_scratch(folded_forward_scratch(shape, low_rank.rank, par), stack)?;
    let threads = par.degree();
    match Way::new(shape, low_rank.rank, low_rank.shared) {
        Way::Low(conv) => folded::forward_low(shape, conv, low_rank, weight, y, threads, stack, mark),
        Way::Dense(conv) => folded::forward_dense(conv, low_rank, weight, y, threads, stack, mark),
        Way::Direct => folded::forward(shape, low_rank, weight, y, threads, stack, mark),
    }
    Ok(())
}

/// Scratch of [`folded_weight_gradient`] for a low-rank part of rank `rank`, shared or not; empty where that is
/// refused.
pub fn folded_weight_gradient_scratch(shape: ConvShape, rank: usize, par: Par) -> StackReq {
    if (ConvShape { in_channels: rank, ..shape }).validate().is_err() || shape.validate().is_err() {
        return StackReq::empty();
    }
    let threads = par.degree();
    let either = [true, false].map(|shared| match Way::new(shape, rank, shared) {
        Way::Low(conv) => folded::weight_gradient_low_scratch(shape, conv, threads),
        Way::Dense(conv) => folded::weight_gradient_dense_scratch(conv, rank, shared, threads),
        Way::Direct => folded::weight_gradient_scratch(shape, rank, shared, threads),
    });
    StackReq::any_of(&either)
}

/// Overwrites `dw` with ∇W_main, ∇W_{i,j} = Σ_p a_{j,p} (X'_p ⊛ ∇Y_i) (thesis eq 2.7), summed over the batch: r
/// correlations instead of N, then one recombination. Where `low_rank.shared`, the correlations are summed over the
/// batch first. `mark` hears when work on the coefficients begins and ends: the recombination, or writing X_main where
/// that is the way.
///
/// # Errors
/// As [`forward`], and [`ConvError::Rank`].
pub fn folded_weight_gradient(
    shape: ConvShape,
    low_rank: &LowRank,
    dy: &[f32],
    dw: &mut [f32],
    par: Par,
    stack: &mut MemStack,
    mark: Mark<'_>,
) -> Result<(), ConvError> {
    shape.validate()?;
    check_low_rank(shape, low_rank)?;
    check_len("dy", shape.output_len(), dy.len())?;
    check_len("dw", shape.weight_len(), dw.len())?;
    check_scratch(folded_weight_gradient_scratch(shape, low_rank.rank, par), stack)?;
    let threads = par.degree();
    match Way::new(shape, low_rank.rank, low_rank.shared) {
        Way::Low(conv) => folded::weight_gradient_low(shape, conv, low_rank, dy, dw, threads, stack, mark),
        Way::Dense(conv) => folded::weight_gradient_dense(conv, low_rank, dy, dw, threads, stack, mark),
        Way::Direct => folded::weight_gradient(shape, low_rank, dy, dw, threads, stack, mark),
    }
    Ok(())
}

/// Whether Winograd's transforms are repaid: those of the input by enough channels and images larger than half a
/// tile, those of the kernels by enough tiles.
fn winograd_pays(s: ConvShape, in_channels: usize) -> bool {
    let suits = s.validate().is_ok() && s.kernel == 3 && s.stride == 1;
    let (height, width) = (s.out_height(), s.out_width());
    let tiles = s.samples * height.div_ceil(4) * width.div_ceil(4);
    suits && in_channels >= 12 && height.min(width) > 2 && tiles >= 4
}

fn winograd_forward(s: ConvShape) -> Option<winograd::Conv3> {
    winograd_pays(s, s.in_channels).then_some(winograd::Conv3 {
        samples: s.samples,
        in_channels: s.in_channels,
        height: s.height,
        width: s.width,
        out_channels: s.out_channels,
        padding: s.padding,
        flipped: false,
    })
}

/// The input gradient as a convolution of ∇Y.
fn winograd_input_gradient(s: ConvShape) -> Option<winograd::Conv3> {
    (winograd_pays(s, s.out_channels) && s.padding <= 2).then(|| winograd::Conv3 {
        samples: s.samples,
        in_channels: s.out_channels,
        height: s.out_height(),
        width: s.out_width(),
        out_channels: s.in_channels,
        padding: 2 - s.padding,
        flipped: true,
    })
}

/// How a convolution of a low-rank input is computed.
enum Way {
    /// Folded kernels, any kernel and stride.
    Direct,
    /// Winograd's convolution of the principal channels with the one folded kernel.
    Low(winograd::Conv3),
    /// Winograd's convolution of the dense X_main: folding takes M·N·k² multiplications for each rank and sample,
    /// which deep layers do not repay.
    Dense(winograd::Conv3),
}

impl Way {
    fn new(s: ConvShape, rank: usize, shared: bool) -> Self {
        let low = ConvShape { in_channels: rank, ..s };
        if let (true, Some(conv)) = (shared, winograd_forward(low)) {
            return Self::Low(conv);
        }
        let Some(conv) = winograd_forward(s) else { return Self::Direct };
        // Multiplications; Winograd's take a third of the time, as measured.
        let pixels = (s.samples * s.out_height() * s.out_width()) as f64;
        let mixings = if shared { 1 } else { s.samples } as f64;
        let (rank, channels, kernels) = (rank as f64, s.in_channels as f64, (9 * s.out_channels) as f64);
        let folding = rank * kernels * (pixels + mixings * channels);
        let dense = channels * pixels * (kernels / 3.0 + rank);
        if dense < folding { Self::Dense(conv) } else { Self::Direct }
    }
}

fn check_len(what: &'static str, expected: usize, got: usize) -> Result<(), ConvError> {
    if expected == got { Ok(()) } else { Err(ConvError::Length { what, expected, got }) }
}

fn check_low_rank(shape: ConvShape, low_rank: &LowRank) -> Result<(), ConvError> {
    let rank = low_rank.rank;
    if rank == 0 {
        return Err(ConvError::Rank { rank });
    }
    let mixings = if low_rank.shared { 1 } else { shape.samples };
    let coefficients = (mixings * shape.in_channels).saturating_mul(rank);
    let principal = (shape.samples * shape.height * shape.width).saturating_mul(rank);
    check_len("the coefficients", coefficients, low_rank.coefficients.len())?;
    check_len("the principal channels", principal, low_rank.principal.len())
}

fn check_scratch(request: StackReq, stack: &MemStack) -> Result<(), ConvError> {
    if stack.can_hold(request) {
        Ok(())
    } else {
        Err(ConvError::Scratch { needed: request.unaligned_bytes_required(), got: stack.len_bytes() })
    }
}

#[cfg(test)]
mod tests {
    use faer::dyn_stack::MemBuffer;

    use super::*;
    use crate::simd::tests::at_each_level;

    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 5003.5 - 1.0).collect()
    }

    fn with_scratch(request: StackReq, run: impl FnOnce(&mut MemStack) -> Result<(), ConvError>) {
        assert_eq!(run(MemStack::new(&mut MemBuffer::new(request))), Ok(()));
    }

    /// Forward pass, both gradients, and both folded forms.
    fn all(s: ConvShape) -> [Vec<f32>; 5] {
        let (x, weight, dy) = (values(s.input_len(), 1), values(s.weight_len(), 2), values(s.output_len(), 3));
        let (par, rank) = (Par::Seq, 3);
        let l = LowRank {
            rank,
            shared: false,
            coefficients: values(s.samples * s.in_channels * rank, 4),
            principal: values(s.samples * rank * s.height * s.width, 5),
        };
        let mut out = [dy.clone(), x.clone(), weight.clone(), dy.clone(), weight.clone()];
        let [y, dx, dw, y_main, dw_main] = &mut out;
        with_scratch(forward_scratch(s, par), |stack| forward(s, &x, &weight, y, par, stack));
        with_scratch(input_gradient_scratch(s, par), |stack| input_gradient(s, &dy, &weight, dx, par, stack));
        with_scratch(weight_gradient_scratch(s, par), |stack| weight_gradient(s, &x, &dy, dw, par, stack));
        let request = folded_forward_scratch(s, rank, par);
        with_scratch(request, |stack| folded_forward(s, &l, &weight, y_main, par, stack, &mut |_| {}));
        let request = folded_weight_gradient_scratch(s, rank, par);
        with_scratch(request, |stack| folded_weight_gradient(s, &l, &dy, dw_main, par, stack, &mut |_| {}));
        out
    }

    /// The tests of the crate compare the widest level with a naive loop; here every level must agree with it.
    #[test]
    fn every_instruction_set_gives_the_same() {
        let shapes = [(20, 9, 37, 3, 1, 1), (33, 12, 18, 3, 1, 2), (5, 11, 70, 3, 2, 1), (17, 7, 19, 1, 2, 0)];
        for (in_channels, side, out_channels, kernel, stride, padding) in shapes {
            let (height, width) = (side, side + 5);
            let s = ConvShape { samples: 2, in_channels, height, width, out_channels, kernel, stride, padding };
            let widest = all(s);
            at_each_level(|level| {
                for (got, expected) in all(s).iter().zip(&widest) {
                    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                    let error = got.iter().zip(expected).fold(0.0_f32, |m, (g, e)| m.max((g - e).abs()));
                    assert!(error <= 2e-5 * largest, "{level:?} {s:?}: {error} of {largest}");
                }
            });
        }
    }
}
