//! Convolutions of low-rank inputs: with folded kernels forward, with recombined correlations backward.
//!
//! Each marks where applying the coefficients begins and ends. It comes before or after the convolution, on all threads,
//! so the caller's clock is read twice.

use faer::dyn_stack::{MemStack, StackReq};

use super::direct::{self, Left, Target};
use super::direct_gradient::{Collect, Correlation};
use super::layout::gather;
use super::plain::{forward_window, output};
use super::window::Window;
use super::winograd::{self, Conv3};
use super::winograd_gradient;
use super::{ConvShape, Folding, Mark};
use crate::LowRank;
use crate::gemm::{Gemm, PANEL};
use crate::parallel::{Shared, for_each};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Output channels that a task folds.
const FOLDED: usize = 4;
/// Input channels that a task recombines at a time.
const RECOMBINED: usize = 48;

/// The window over the r principal channels.
const fn low_window(s: ConvShape, rank: usize, tap_major: bool) -> Window {
    Window { tap_major, ..forward_window(ConvShape { in_channels: rank, ..s }) }
}

/// Sizes of a fold: the coefficients as panels of `in × 64`, whose columns are the ranks of all samples; the folded
/// kernels as `out × taps × columns`.
#[derive(Clone, Copy)]
struct Fold {
    columns: usize,
    coefficients_len: usize,
    folded_len: usize,
}

impl Fold {
    fn new(s: ConvShape, rank: usize, shared: bool) -> Self {
        let taps = s.kernel * s.kernel;
        let columns = (rank * if shared { 1 } else { s.samples }).next_multiple_of(LANES);
        Self {
            columns,
            coefficients_len: columns.next_multiple_of(PANEL) * s.in_channels,
            folded_len: s.out_channels * taps * columns,
        }
    }

    const fn len(&self) -> usize {
        self.coefficients_len + self.folded_len
    }
}

pub(super) fn forward_scratch(s: ConvShape, rank: usize, shared: bool, threads: usize) -> StackReq {
    let products = direct::scratch(&low_window(s, rank, true), s.samples, !shared, s.out_channels, threads);
    StackReq::new_aligned::<f32>(Fold::new(s, rank, shared).len(), 64).and(products)
}

/// Overwrites `y`; the slices have the lengths that the shape says.
pub(super) fn forward(
    s: ConvShape,
    l: &LowRank,
    weight: &[f32],
    y: &mut [f32],
    threads: usize,
    stack: &mut MemStack,
    mark: Mark<'_>,
) {
    mark(Folding::Begins);
    let fold = Fold::new(s, l.rank, l.shared);
    let (memory, stack) = stack.make_aligned_uninit::<f32>(fold.len(), 64);
    let memory = Shared::uninit(memory);
    let folded = memory.part(fold.coefficients_len, fold.folded_len);
    fold_weight(s, (l.rank, &l.coefficients), weight, fold, memory, threads);
    mark(Folding::Ends);
    let taps = s.kernel * s.kernel;
    let left = Left {
        start: folded.ptr(),
        rows: s.out_channels,
        row: taps * fold.columns,
        segment: fold.columns,
        segments: taps,
        sample: if l.shared { 0 } else { l.rank },
    };
    let target = output(s, Shared::new(y));
    // SAFETY: the folded kernels were written above; `y` is borrowed exclusively.
    unsafe { direct::multiply(low_window(s, l.rank, true), s.samples, &l.principal, left, target, threads, stack) };
}

pub(super) fn fold_scratch(s: ConvShape, rank: usize) -> StackReq {
    StackReq::new_aligned::<f32>(Fold::new(s, rank, true).len(), 64)
}

/// Writes the kernels folded by one basis `a` (`in × rank`) into `low` (`out × rank × taps`).
pub(super) fn fold(s: ConvShape, a: &[f32], weight: &[f32], low: &mut [f32], threads: usize, stack: &mut MemStack) {
    let (rank, taps) = (a.len() / s.in_channels, s.kernel * s.kernel);
    let fold = Fold::new(s, rank, true);
    let (memory, _) = stack.make_aligned_uninit::<f32>(fold.len(), 64);
    let memory = Shared::uninit(memory);
    fold_weight(s, (rank, a), weight, fold, memory, threads);
    let folded = memory.part(fold.coefficients_len, fold.folded_len);
    for (at, value) in low.iter_mut().enumerate() {
        let (output, p, tap) = (at / taps / rank, at / taps % rank, at % taps);
        // SAFETY: the folded kernels were written above.
        *value = unsafe { *folded.at((output * taps + tap) * fold.columns + p) };
    }
}

pub(super) fn forward_low_scratch(s: ConvShape, conv: Conv3, threads: usize) -> StackReq {
    let (rank, weight_len) = (conv.in_channels, 9 * conv.in_channels * s.out_channels);
    StackReq::new_aligned::<f32>(weight_len, 64).and(fold_scratch(s, rank).or(winograd::scratch(conv, threads)))
}

/// As [`forward`] for a shared low-rank part, by Winograd: `conv` is the convolution of the principal channels.
pub(super) fn forward_low(
    s: ConvShape,
    conv: Conv3,
    l: &LowRank,
    weight: &[f32],
    y: &mut [f32],
    threads: usize,
    stack: &mut MemStack,
    mark: Mark<'_>,
) {
    mark(Folding::Begins);
    let (mut low, stack) = stack.make_aligned_with::<f32>(9 * l.rank * s.out_channels, 64, |_| 0.0);
    fold(s, &l.coefficients, weight, &mut low, threads, stack);
    mark(Folding::Ends);
    winograd::forward(conv, &l.principal, &low, y, threads, stack);
}

/// W'\[i, tap, (s, p)\] = Σ_j W\[i, j, tap\] a\[s, j, p\], for all samples in one product.
fn fold_weight(
    s: ConvShape,
    (rank, mixings): (usize, &[f32]),
    weight: &[f32],
    fold: Fold,
    memory: Shared,
    threads: usize,
) {
    let (inputs, taps) = (s.in_channels, s.kernel * s.kernel);
    let coefficients = memory.part(0, fold.coefficients_len);
    let pitch = fold.columns.min(PANEL);
    let used = mixings.len() / inputs;
    for j in 0..inputs {
        let put = |column: usize, value: f32| {
            // SAFETY: the place lies in the buffer, and no task runs yet.
            unsafe { *coefficients.at((column / PANEL * inputs + j) * pitch + column % PANEL) = value };
        };
        for (sample, mixing) in mixings.chunks_exact(inputs * rank).enumerate() {
            for (p, &value) in mixing[j * rank..][..rank].iter().enumerate() {
                put(sample * rank + p, value);
            }
        }
        (used..fold.columns).for_each(|column| put(column, 0.0));
    }
    let folded = memory.part(fold.coefficients_len, fold.folded_len);
    for_each(threads, s.out_channels.div_ceil(FOLDED), |_, task| {
        for output in task * FOLDED..s.out_channels.min((task + 1) * FOLDED) {
            let product = Gemm {
                a: weight[output * inputs * taps..][..inputs * taps].as_ptr(),
                a_row: 1,
                a_depth: taps,
                a_segment: 0,
                b: coefficients.ptr(),
                b_row: pitch,
                b_panel: inputs * pitch,
                c: folded.at(output * taps * fold.columns),
                c_row: fold.columns,
                rows: taps,
                depth: inputs,
                segments: 1,
                columns: fold.columns,
                add: false,
            };
            // SAFETY: the kernel and the coefficients have these sizes; this task alone writes this output.
            unsafe { dispatch(&product) };
        }
    });
}

/// X_main = A·V as the product of a 1×1 convolution: its window, for an input of `conv`.
const fn mixing_window(conv: Conv3, rank: usize) -> Window {
    forward_window(ConvShape {
        samples: conv.samples,
        in_channels: rank,
        height: conv.height,
        width: conv.width,
        out_channels: conv.in_channels,
        kernel: 1,
        stride: 1,
        padding: 0,
    })
}

fn dense_scratch(conv: Conv3, rank: usize, shared: bool, threads: usize) -> StackReq {
    let mixing = direct::scratch(&mixing_window(conv, rank), conv.samples, !shared, conv.in_channels, threads);
    let values = conv.samples * conv.in_channels * conv.height * conv.width;
    StackReq::new_aligned::<f32>(values, 64).and(mixing)
}

/// Writes X_main into scratch, and hands it on with the rest of the scratch.
fn with_dense(
    conv: Conv3,
    l: &LowRank,
    threads: usize,
    stack: &mut MemStack,
    run: impl FnOnce(&[f32], &mut MemStack),
    mark: Mark<'_>,
) {
    mark(Folding::Begins);
    let values = conv.samples * conv.in_channels * conv.height * conv.width;
    let (memory, stack) = stack.make_aligned_uninit::<f32>(values, 64);
    let start = Shared::uninit(memory);
    let (window, plane) = (mixing_window(conv, l.rank), conv.height * conv.width);
    let left = Left {
        start: l.coefficients.as_ptr(),
        rows: conv.in_channels,
        row: l.rank,
        segment: l.rank,
        segments: 1,
        sample: if l.shared { 0 } else { conv.in_channels * l.rank },
    };
    let target = Target { start, planes: conv.in_channels, plane, width: conv.width, step: 1 };
    // SAFETY: the coefficients are `in × rank` for each sample or once; the memory is borrowed exclusively.
    unsafe { direct::multiply(window, conv.samples, &l.principal, left, target, threads, stack) };
    mark(Folding::Ends);
    // SAFETY: the product has written all of it.
    run(unsafe { std::slice::from_raw_parts(start.ptr(), values) }, stack);
}

pub(super) fn forward_dense_scratch(conv: Conv3, rank: usize, shared: bool, threads: usize) -> StackReq {
    dense_scratch(conv, rank, shared, threads).and(winograd::scratch(conv, threads))
}

/// As [`forward`], by way of the dense X_main.
pub(super) fn forward_dense(
    conv: Conv3,
    l: &LowRank,
    weight: &[f32],
    y: &mut [f32],
    threads: usize,
    stack: &mut MemStack,
    mark: Mark<'_>,
) {
    let run = |x: &[f32], stack: &mut MemStack| winograd::forward(conv, x, weight, y, threads, stack);
    with_dense(conv, l, threads, stack, run, mark);
}

pub(super) fn weight_gradient_dense_scratch(conv: Conv3, rank: usize, shared: bool, threads: usize) -> StackReq {
    dense_scratch(conv, rank, shared, threads).and(winograd_gradient::scratch(conv, threads))
}

/// As [`weight_gradient`], by way of the dense X_main.
pub(super) fn weight_gradient_dense(
    conv: Conv3,
    l: &LowRank,
    dy: &[f32],
    dw: &mut [f32],
    threads: usize,
    stack: &mut MemStack,
    mark: Mark<'_>,
) {
    let run = |x: &[f32], stack: &mut MemStack| winograd_gradient::weight_gradient(conv, x, dy, dw, threads, stack);
    with_dense(conv, l, threads, stack, run, mark);
}

/// Sizes of a recombination: the correlations, and for each thread the gradient of a few input channels.
struct Recombination {
    correlation: Correlation,
    sums_len: usize,
    /// Input channels of a task.
    channels: usize,
    thread_len: usize,
}

impl Recombination {
    fn new(s: ConvShape, rank: usize, shared: bool, threads: usize) -> Self {
        let window = low_window(s, rank, false);
        let correlation = Correlation::new(window, s.samples, s.out_channels, !shared, threads);
        let channels = RECOMBINED.min(s.in_channels.div_ceil(threads));
        Self {
            correlation,
            sums_len: correlation.groups * correlation.sum_len(),
            channels,
            thread_len: channels * s.kernel * s.kernel * correlation.pitch(),
        }
    }

    fn len(&self, threads: usize) -> usize {
        self.sums_len + self.correlation.scratch_len().max(threads * self.thread_len)
    }
}

pub(super) fn weight_gradient_scratch(s: ConvShape, rank: usize, shared: bool, threads: usize) -> StackReq {
    StackReq::new_aligned::<f32>(Recombination::new(s, rank, shared, threads).len(threads), 64)
}

/// Overwrites `dw`; the slices have the lengths that the shape says.
pub(super) fn weight_gradient(
    s: ConvShape,
    l: &LowRank,
    dy: &[f32],
    dw: &mut [f32],
    threads: usize,
    stack: &mut MemStack,
    mark: Mark<'_>,
) {
    let sizes = Recombination::new(s, l.rank, l.shared, threads);
    let (memory, _) = stack.make_aligned_uninit::<f32>(sizes.len(threads), 64);
    let memory = Shared::uninit(memory);
    let (c, sums) = (sizes.correlation, memory.part(0, sizes.sums_len));
    c.run(&l.principal, dy, sums, memory.part(sizes.sums_len, c.scratch_len()));

    let memory = memory.part(sizes.sums_len, threads * sizes.thread_len);
    recombine(s, l, &sizes, sums, Shared::new(dw), memory, threads, mark);
}

/// Writes Σ_p a\[j, p\] · sum\[(p, tap), i\], over all groups of sums, into `dw`.
fn recombine(
    s: ConvShape,
    l: &LowRank,
    sizes: &Recombination,
    sums: Shared,
    dw: Shared,
    memory: Shared,
    threads: usize,
    mark: Mark<'_>,
) {
    mark(Folding::Begins);
    let c = &sizes.correlation;
    let taps = s.kernel * s.kernel;
    let (row, depth) = (taps * c.pitch(), s.in_channels * taps);
    for_each(threads, s.in_channels.div_ceil(sizes.channels), |thread, task| {
        let first = task * sizes.channels;
        let channels = sizes.channels.min(s.in_channels - first);
        let gradient = memory.part(thread * sizes.thread_len, sizes.thread_len);
        let product = Gemm {
            a: l.coefficients[first * l.rank..].as_ptr(),
            a_row: l.rank,
            a_depth: 1,
            a_segment: if l.shared { 0 } else { s.in_channels * l.rank },
            b: sums.ptr(),
            b_row: row,
            b_panel: PANEL,
            c: gradient.ptr(),
            c_row: row,
            rows: channels,
            depth: l.rank,
            segments: c.groups,
            columns: row,
            add: false,
        };
        // SAFETY: the sums were written above; the gradient belongs to this thread.
        unsafe { dispatch(&product) };
        for channel in (0..s.out_channels).step_by(LANES) {
            let collect = Collect {
                sums: gradient.at(channel),
                parts: 1,
                part_len: 0,
                pitch: c.pitch(),
                columns: channels * taps,
                channels: LANES.min(s.out_channels - channel),
                to: dw.at(channel * depth + first * taps),
                to_pitch: depth,
            };
            // SAFETY: the gradient was written above; this task alone touches these input channels of `dw`.
            unsafe { dispatch(&collect) };
        }
    });
    mark(Folding::Ends);
}

pub(super) fn weight_gradient_low_scratch(s: ConvShape, conv: Conv3, threads: usize) -> StackReq {
    let sizes = Recombination::new(s, conv.in_channels, true, threads);
    let sums = StackReq::new_aligned::<f32>(low_len(&sizes) + threads * sizes.thread_len, 64);
    sums.and(StackReq::new_aligned::<f32>(9 * conv.in_channels * s.out_channels, 64))
        .and(winograd_gradient::scratch(conv, threads))
}

/// One sum, and the vectors that a group of sixteen may reach beyond.
const fn low_len(sizes: &Recombination) -> usize {
    sizes.correlation.sum_len() + LANES * sizes.correlation.pitch()
}

/// As [`weight_gradient`] for a shared low-rank part, by Winograd: `conv` is the convolution of the principal
/// channels.
pub(super) fn weight_gradient_low(
    s: ConvShape,
    conv: Conv3,
    l: &LowRank,
    dy: &[f32],
    dw: &mut [f32],
    threads: usize,
    stack: &mut MemStack,
    mark: Mark<'_>,
) {
    let mut sizes = Recombination::new(s, l.rank, true, threads);
    sizes.correlation.groups = 1;
    let (memory, stack) = stack.make_aligned_uninit::<f32>(low_len(&sizes) + threads * sizes.thread_len, 64);
    let memory = Shared::uninit(memory);
    let (mut low, stack) = stack.make_aligned_with::<f32>(9 * l.rank * s.out_channels, 64, |_| 0.0);
    winograd_gradient::weight_gradient(conv, &l.principal, dy, &mut low, threads, stack);
    let sums = memory.part(0, low_len(&sizes));
    // SAFETY: `low` is `out × (rank · 9)`; the sums hold its transpose.
    unsafe {
        dispatch(&Transpose { from: &low, rows: s.out_channels, to: sums.ptr(), pitch: sizes.correlation.pitch() })
    };
    let memory = memory.part(low_len(&sizes), threads * sizes.thread_len);
    recombine(s, l, &sizes, sums, Shared::new(dw), memory, threads, mark);
}

/// Transposes a row-major matrix; rows of the result beyond the last may be overwritten up to a multiple of 16.
struct Transpose<'a> {
    from: &'a [f32],
    rows: usize,
    to: *mut f32,
    pitch: usize,
}

impl Kernel for Transpose<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let columns = self.from.len() / self.rows;
        for row in (0..self.rows).step_by(LANES) {
            let (from, rows) = (&self.from[row * columns..], LANES.min(self.rows - row));
            // SAFETY: the rows exist; the caller vouches for the target.
            unsafe { gather::<S>(from.as_ptr(), from.len(), columns, rows, columns, self.to.add(row), self.pitch) };
        }
    }
}
