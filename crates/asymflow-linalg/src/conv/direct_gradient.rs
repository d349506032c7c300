//! Correlations of inputs with output gradients, for weight gradients of any kernel and stride.

use super::layout::{gather, scatter};
use super::window::{Expand, Window};
use crate::gemm::{Gemm, PANEL};
use crate::parallel::{Shared, for_each};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Rows of a panel that are expanded and multiplied at a time.
const DEPTH: usize = 192;
/// Values of panels and gradients of a task, to stay in the memory of a core.
const CORE_VALUES: usize = 128 << 10;

/// Sums over groups of pixels of X(column k) · ∇Y(channel m): for each group `depth × pitch`.
#[derive(Clone, Copy)]
pub(super) struct Correlation {
    pub window: Window,
    pub out_channels: usize,
    /// Groups of pixels, with a sum each.
    pub groups: usize,
    /// Pixels of a group; the last may have fewer.
    group_pixels: usize,
    pixels: usize,
    row_parts: usize,
    panels: usize,
    threads: usize,
}

impl Correlation {
    /// Sums over the batch, in one group or a few; or, with `by_sample`, a sum for each sample.
    pub(super) fn new(window: Window, samples: usize, out_channels: usize, by_sample: bool, threads: usize) -> Self {
        let pixels = samples * window.out_pixels();
        // Many rows are shared out among threads; few rows would make each of them turn the same gradients.
        let groups = match by_sample {
            true => samples,
            false if window.depth() >= 4 * DEPTH => 1,
            false => threads.min(pixels.div_ceil(PANEL)),
        };
        let group_pixels = if by_sample { window.out_pixels() } else { pixels.div_ceil(groups) };
        let groups = pixels.div_ceil(group_pixels);
        let row_parts = threads.div_ceil(groups).min(window.depth());
        let at_most = (CORE_VALUES / (PANEL * (DEPTH.min(window.depth()) + out_channels))).max(1);
        let panels = at_most.min(group_pixels.div_ceil(PANEL));
        Self { window, out_channels, groups, group_pixels, pixels, row_parts, panels, threads }
    }

    /// Distance of two rows of a sum.
    pub(super) const fn pitch(&self) -> usize {
        self.out_channels.next_multiple_of(LANES)
    }

    /// Values of the sum of a group.
    pub(super) const fn sum_len(&self) -> usize {
        self.window.depth() * self.pitch()
    }

    const fn panels_len(&self) -> usize {
        let depth = self.window.depth();
        self.panels * PANEL * if depth < DEPTH { depth } else { DEPTH }
    }

    /// The gradients of a chunk, and the vectors that a group of sixteen may reach beyond.
    const fn gradient_len(&self) -> usize {
        (self.out_channels.div_ceil(PANEL) * self.panels * PANEL + LANES) * PANEL
    }

    /// Values of scratch of [`Correlation::run`].
    pub(super) const fn scratch_len(&self) -> usize {
        self.threads * (self.panels_len() + self.gradient_len())
    }

    /// Writes the sums of all groups.
    pub(super) fn run(&self, x: &[f32], dy: &[f32], sums: Shared, scratch: Shared) {
        let rows = self.window.depth().div_ceil(self.row_parts);
        let worker_len = self.panels_len() + self.gradient_len();
        for_each(self.threads, self.groups * self.row_parts, |worker, task| {
            let (group, row) = (task / self.row_parts, task % self.row_parts * rows);
            let rows = row..self.window.depth().min(row + rows);
            let memory = scratch.part(worker * worker_len, worker_len);
            let sums = sums.part(group * self.sum_len(), self.sum_len());
            let start = group * self.group_pixels;
            let end = self.pixels.min(start + self.group_pixels);
            let chunk = self.panels * PANEL;
            for first in (start..end).step_by(chunk) {
                let count = chunk.min(end - first);
                self.add_chunk(x, dy, first..first + count, rows.clone(), sums, memory, first > start);
            }
        });
    }

    fn add_chunk(
        &self,
        x: &[f32],
        dy: &[f32],
        pixels: std::ops::Range<usize>,
        rows: std::ops::Range<usize>,
        sums: Shared,
        memory: Shared,
        add: bool,
    ) {
        let panels = pixels.len().div_ceil(PANEL);
        let depth = if panels == 1 { pixels.len() } else { PANEL };
        let gradient = memory.at(self.panels_len());
        let turn = Turn {
            dy,
            channels: self.out_channels,
            plane: self.window.out_pixels(),
            first: pixels.start,
            count: pixels.len(),
            filled: panels * depth,
            to: gradient,
        };
        // SAFETY: the gradients of this chunk fit into their buffer.
        unsafe { dispatch(&turn) };
        for row in rows.clone().step_by(DEPTH) {
            let block = row..rows.end.min(row + DEPTH);
            let expand = Expand {
                window: self.window,
                x,
                first: pixels.start,
                count: pixels.len(),
                rows: block.clone(),
                whole: true,
                to: memory.ptr(),
                to_panel: block.len() * PANEL,
            };
            let product = Gemm {
                a: memory.ptr(),
                a_row: PANEL,
                a_depth: 1,
                a_segment: block.len() * PANEL,
                b: gradient,
                b_row: PANEL,
                b_panel: panels * depth * PANEL,
                c: sums.at(row * self.pitch()),
                c_row: self.pitch(),
                rows: block.len(),
                depth,
                segments: panels,
                columns: self.pitch(),
                add,
            };
            // SAFETY: the panels fit into their buffer; these rows of the sums belong to this task.
            unsafe {
                dispatch(&expand);
                dispatch(&product);
            }
        }
    }
}

/// Transposes the gradients of `count` pixels into panels of 64 channels, `filled × 64` each, zeros at the end.
struct Turn<'a> {
    dy: &'a [f32],
    channels: usize,
    plane: usize,
    first: usize,
    count: usize,
    filled: usize,
    to: *mut f32,
}

impl Kernel for Turn<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        // In this order, what a group of sixteen pixels writes too far is overwritten later.
        for channel in (0..self.channels).step_by(LANES) {
            let to = self.to.wrapping_add(channel / PANEL * self.filled * PANEL + channel % PANEL);
            let mut done = 0;
            while done < self.count {
                let (sample, pixel) = ((self.first + done) / self.plane, (self.first + done) % self.plane);
                let len = (self.plane - pixel).min(self.count - done);
                let from = &self.dy[(sample * self.channels + channel) * self.plane + pixel..];
                let rows = LANES.min(self.channels - channel);
                // SAFETY: the rows exist in `dy`; the caller vouches for the buffer.
                unsafe {
                    gather::<S>(from.as_ptr(), from.len(), self.plane, rows, len, to.add(done * PANEL), PANEL);
                }
                done += len;
            }
            for pixel in self.count..self.filled {
                // SAFETY: `filled` vectors fit.
                unsafe { S::store(to.add(pixel * PANEL), S::splat(0.0)) };
            }
        }
    }
}

/// Transposes `columns` rows of up to sixteen channels of a sum into rows of the weight, or adds them.
pub(super) struct Collect {
    pub sums: *mut f32,
    pub parts: usize,
    pub part_len: usize,
    pub pitch: usize,
    pub columns: usize,
    pub channels: usize,
    pub to: *mut f32,
    pub to_pitch: usize,
}

impl Kernel for Collect {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        for first in (0..self.columns).step_by(LANES) {
            let columns = LANES.min(self.columns - first);
            // SAFETY: the rows exist in all parts of the sums and in the weight, as the caller vouches.
            unsafe {
                for column in first..first + columns {
                    let sum = self.sums.add(column * self.pitch);
                    let mut total = S::load(sum);
                    for part in 1..self.parts {
                        total = S::add(total, S::load(sum.add(part * self.part_len)));
                    }
                    S::store(sum, total);
                }
                let from = self.sums.add(first * self.pitch);
                let to = self.to.add(first);
                scatter::<S>(from, self.pitch, columns, to, self.to_pitch, self.channels);
            }
        }
    }
}
