//! Forward pass and gradients of any kernel and stride from the products of `direct` and `direct_gradient`.

use faer::dyn_stack::{MemStack, StackReq};

use super::ConvShape;
use super::direct::{self, Left, Target};
use super::direct_gradient::{Collect, Correlation};
use super::layout::{gather, gathered_len};
use super::window::{Window, copy};
use crate::parallel::{Shared, for_each};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Rows of a sum that a task collects.
const COLLECTED: usize = 256;

/// The window of the forward pass.
pub(super) const fn forward_window(s: ConvShape) -> Window {
    Window {
        channels: s.in_channels,
        height: s.height,
        width: s.width,
        step: s.stride,
        top: -(s.padding as isize),
        left: -(s.padding as isize),
        tap_step: 1,
        tap_rows: s.kernel,
        tap_columns: s.kernel,
        tap_major: false,
        out_height: s.out_height(),
        out_width: s.out_width(),
    }
}

pub(super) fn forward_scratch(s: ConvShape, threads: usize) -> StackReq {
    direct::scratch(&forward_window(s), s.samples, false, s.out_channels, threads)
}

pub(super) fn forward(s: ConvShape, x: &[f32], weight: &[f32], y: &mut [f32], threads: usize, stack: &mut MemStack) {
    let window = forward_window(s);
    let left = Left {
        start: weight.as_ptr(),
        rows: s.out_channels,
        row: window.depth(),
        segment: window.depth(),
        segments: 1,
        sample: 0,
    };
    let target = output(s, Shared::new(y));
    // SAFETY: a row of the weight has one value for each channel and tap; `y` is borrowed exclusively.
    unsafe { direct::multiply(window, s.samples, x, left, target, threads, stack) };
}

/// The output of the forward pass as a target.
pub(super) const fn output(s: ConvShape, y: Shared) -> Target {
    let (planes, plane) = (s.out_channels, s.out_height() * s.out_width());
    Target { start: y, planes, plane, width: s.out_width(), step: 1 }
}

/// The input pixels (row + stride·a, column + stride·b), and how they depend on the output gradient.
fn phase(s: ConvShape, row: usize, column: usize) -> Window {
    // Tap k reaches the pixel p from the output (p + padding − k) / stride, where that is whole.
    let first = |p: usize| (p + s.padding) % s.stride;
    let taps = |p: usize| if first(p) < s.kernel { (s.kernel - first(p)).div_ceil(s.stride) } else { 0 };
    let start = |p: usize| ((p + s.padding - first(p)) / s.stride) as isize;
    Window {
        channels: s.out_channels,
        height: s.out_height(),
        width: s.out_width(),
        step: 1,
        top: start(row),
        left: start(column),
        tap_step: -1,
        tap_rows: taps(row),
        tap_columns: taps(column),
        tap_major: true,
        out_height: (s.height - row).div_ceil(s.stride),
        out_width: (s.width - column).div_ceil(s.stride),
    }
}

/// The phases of the input that have pixels.
fn phases(s: ConvShape) -> impl Iterator<Item = (usize, usize)> {
    let (rows, columns) = (s.stride.min(s.height), s.stride.min(s.width));
    (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)))
}

pub(super) fn input_gradient_scratch(s: ConvShape, threads: usize) -> StackReq {
    let turned = StackReq::new_aligned::<f32>(s.weight_len() + threads * turning_len(s), 64);
    let products = phases(s).map(|(row, column)| phase(s, row, column)).filter(|window| window.taps() > 0);
    turned.and(products.fold(StackReq::empty(), |most, window| {
        most.or(direct::scratch(&window, s.samples, false, s.in_channels, threads))
    }))
}

/// Values of the kernels of sixteen input channels as vectors over outputs.
const fn turning_len(s: ConvShape) -> usize {
    s.out_channels.div_ceil(LANES) * gathered_len(LANES * s.kernel * s.kernel)
}

pub(super) fn input_gradient(
    s: ConvShape,
    dy: &[f32],
    weight: &[f32],
    dx: &mut [f32],
    threads: usize,
    stack: &mut MemStack,
) {
    if s.kernel < s.stride {
        dx.fill(0.0);
    }
    let (memory, stack) = stack.make_aligned_uninit::<f32>(s.weight_len() + threads * turning_len(s), 64);
    let memory = Shared::uninit(memory);
    let turned = memory.part(0, s.weight_len());
    for_each(threads, s.in_channels.div_ceil(LANES), |thread, task| {
        let channels = task * LANES..s.in_channels.min((task + 1) * LANES);
        let staging = memory.at(s.weight_len() + thread * turning_len(s));
        // SAFETY: this task alone writes these channels of the turned weight, and its thread's staging.
        unsafe { dispatch(&TurnWeight { shape: s, weight, channels, staging, to: turned }) };
    });
    let dx = Shared::new(dx);
    let mut start = 0;
    for (row, column) in phases(s) {
        let window = phase(s, row, column);
        if window.taps() == 0 {
            continue;
        }
        let left = Left {
            start: turned.at(start),
            rows: s.in_channels,
            row: window.depth(),
            segment: window.depth(),
            segments: 1,
            sample: 0,
        };
        let target = Target {
            start: dx.part(row * s.width + column, s.input_len() - row * s.width - column),
            planes: s.in_channels,
            plane: s.height * s.width,
            width: s.width,
            step: s.stride,
        };
        // SAFETY: the turned weight of this phase was written above; its pixels belong to no other phase.
        unsafe { direct::multiply(window, s.samples, dy, left, target, threads, stack) };
        start += s.in_channels * window.depth();
    }
}

/// Writes the kernels of up to sixteen input channels, for each phase `in × taps × out`.
struct TurnWeight<'a> {
    shape: ConvShape,
    weight: &'a [f32],
    channels: std::ops::Range<usize>,
    staging: *mut f32,
    to: Shared,
}

impl Kernel for TurnWeight<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let s = self.shape;
        let taps = s.kernel * s.kernel;
        let block = gathered_len(LANES * taps);
        for (index, output) in (0..s.out_channels).step_by(LANES).enumerate() {
            let rows = LANES.min(s.out_channels - output);
            let from = &self.weight[(output * s.in_channels + self.channels.start) * taps..];
            let (pitch, columns) = (s.in_channels * taps, self.channels.len() * taps);
            // SAFETY: the rows exist in the weight; the staging holds a block for each sixteen outputs.
            unsafe {
                let to = self.staging.add(index * block);
                gather::<S>(from.as_ptr(), from.len(), pitch, rows, columns, to, LANES);
            }
        }
        let mut start = 0;
        for (row, column) in phases(s) {
            let window = phase(s, row, column);
            for tap in 0..window.taps() {
                let ky = (row + s.padding) % s.stride + s.stride * (tap / window.tap_columns);
                let kx = (column + s.padding) % s.stride + s.stride * (tap % window.tap_columns);
                for (i, channel) in self.channels.clone().enumerate() {
                    let from = self.staging.wrapping_add((i * taps + ky * s.kernel + kx) * LANES);
                    let to = self.to.at(start + channel * window.depth() + tap * s.out_channels);
                    for (index, output) in (0..s.out_channels).step_by(LANES).enumerate() {
                        let rows = LANES.min(s.out_channels - output);
                        // SAFETY: the taps of all phases together are the taps of the kernel.
                        unsafe { copy::<S>(from.add(index * block), to.add(output), rows) };
                    }
                }
            }
            start += s.in_channels * window.depth();
        }
    }
}

fn correlation(s: ConvShape, threads: usize) -> Correlation {
    Correlation::new(forward_window(s), s.samples, s.out_channels, false, threads)
}

pub(super) fn weight_gradient_scratch(s: ConvShape, threads: usize) -> StackReq {
    let c = correlation(s, threads);
    StackReq::new_aligned::<f32>(c.groups * c.sum_len() + c.scratch_len(), 64)
}

pub(super) fn weight_gradient(
    s: ConvShape,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    threads: usize,
    stack: &mut MemStack,
) {
    let c = correlation(s, threads);
    let sums_len = c.groups * c.sum_len();
    let (memory, _) = stack.make_aligned_uninit::<f32>(sums_len + c.scratch_len(), 64);
    let memory = Shared::uninit(memory);
    let sums = memory.part(0, sums_len);
    c.run(x, dy, sums, memory.part(sums_len, c.scratch_len()));

    let dw = Shared::new(dw);
    let depth = c.window.depth();
    let blocks = depth.div_ceil(COLLECTED);
    for_each(threads, s.out_channels.div_ceil(LANES) * blocks, |_, task| {
        let (channel, first) = (task / blocks * LANES, task % blocks * COLLECTED);
        let collect = Collect {
            sums: sums.at(first * c.pitch() + channel),
            parts: c.groups,
            part_len: c.sum_len(),
            pitch: c.pitch(),
            columns: COLLECTED.min(depth - first),
            channels: LANES.min(s.out_channels - channel),
            to: dw.at(channel * depth + first),
            to_pitch: depth,
        };
        // SAFETY: the sums were written above; this task alone touches these rows and channels.
        unsafe { dispatch(&collect) };
    });
}
