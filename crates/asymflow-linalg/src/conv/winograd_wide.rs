//! Winograd's forward pass for many channels and few tiles, where kernels outweigh images: each thread transforms the
//! kernels of 64 outputs a few inputs at a time, and multiplies them before they leave its memory.

use super::layout::gathered_len;
use super::tiles::Points;
use super::transforms::{POINTS, SIDE};
use super::winograd::{Conv3, Kernels, input_tiles, output_tiles};
use crate::gemm::{Gemm, PANEL};
use crate::parallel::{Shared, for_each};
use crate::simd::{LANES, dispatch};

/// Values that the tiles of the whole batch may take, unless the kernels take more than twice that.
const TILES_VALUES: usize = 2 << 20;
/// Values of products that stay in the memory of a core beside the kernels.
const PRODUCTS_VALUES: usize = 128 << 10;
/// Inputs whose kernels are transformed at a time where the products stay in the memory of a core.
const INPUTS: usize = 32;

/// Sizes of the buffers.
#[derive(Clone, Copy)]
pub(super) struct Wide {
    threads: usize,
    /// Inputs whose kernels are transformed at a time.
    inputs: usize,
    /// For each point, `tile × in`.
    input: Points,
    /// For each point and thread, `inputs × 64`.
    weight: Points,
    /// For each point and thread, `tile × 64`.
    output: Points,
    staging: usize,
}

impl Wide {
    /// Nothing where the tiles take too much memory or there are fewer panels than threads.
    pub(super) fn new(conv: &Conv3, threads: usize) -> Option<Self> {
        let tiles = conv.strips() * conv.tile_columns();
        let input = Points { rows: tiles, pitch: conv.in_channels.next_multiple_of(LANES) };
        let output = Points { rows: tiles, pitch: PANEL };
        let most = TILES_VALUES.max(POINTS * conv.in_channels * conv.out_channels / 2);
        if input.len() > most || conv.out_channels.div_ceil(PANEL) < threads {
            return None;
        }
        let inputs = if output.len() <= PRODUCTS_VALUES { INPUTS } else { conv.in_channels };
        let inputs = inputs.min(conv.in_channels);
        Some(Self {
            threads,
            inputs,
            input,
            weight: Points { rows: inputs, pitch: PANEL },
            output,
            staging: gathered_len((SIDE * conv.width.max(conv.out_width())).max(9 * LANES)),
        })
    }

    const fn thread_len(&self) -> usize {
        self.weight.len() + self.output.len() + self.staging
    }

    /// f32 values of scratch that a pass needs.
    pub(super) const fn len(&self) -> usize {
        self.input.len() + self.threads * self.thread_len()
    }

    /// Overwrites `y`; `memory` holds [`Wide::len`] values.
    pub(super) fn forward(&self, conv: &Conv3, x: &[f32], weight: &[f32], y: Shared, memory: Shared) {
        let (strips, columns) = (conv.strips(), conv.tile_columns());
        let v = memory.part(0, self.input.len());
        let thread_memory = |thread| memory.part(self.input.len() + thread * self.thread_len(), self.thread_len());
        let blocks = conv.in_channels.div_ceil(LANES);
        for_each(self.threads, strips * blocks, |thread, task| {
            let (strip, channel) = (task / blocks, task % blocks * LANES);
            let to = v.at(strip * columns * self.input.pitch + channel);
            let staging = thread_memory(thread);
            let tiles = input_tiles(conv, x, strip, channel, staging.ptr(), to, &self.input);
            // SAFETY: the tiles of this strip and these channels lie in `v` and no other task writes them.
            unsafe { dispatch(&tiles) };
        });
        for_each(self.threads, conv.out_channels.div_ceil(PANEL), |thread, task| {
            let memory = thread_memory(thread);
            let u = memory.part(self.staging, self.weight.len());
            let m = memory.part(self.staging + self.weight.len(), self.output.len());
            let outputs = task * PANEL..conv.out_channels.min((task + 1) * PANEL);
            for first in (0..conv.in_channels).step_by(self.inputs) {
                let inputs = first..conv.in_channels.min(first + self.inputs);
                self.transform_weight(conv, weight, outputs.clone(), inputs.clone(), memory.ptr(), u);
                self.multiply(v, inputs, outputs.len(), u, m);
            }
            for channel in outputs.clone().step_by(LANES) {
                for strip in 0..strips {
                    let from = m.at(strip * columns * PANEL + channel - outputs.start);
                    let tiles = output_tiles(conv, from, &self.output, strip, channel, memory.ptr(), y);
                    // SAFETY: the products were written above; this task alone writes these planes of `y`.
                    unsafe { dispatch(&tiles) };
                }
            }
        });
    }

    fn transform_weight(
        &self,
        conv: &Conv3,
        weight: &[f32],
        outputs: std::ops::Range<usize>,
        inputs: std::ops::Range<usize>,
        staging: *mut f32,
        u: Shared,
    ) {
        for output in outputs.clone().step_by(LANES) {
            for input in inputs.clone().step_by(LANES) {
                let kernels = Kernels {
                    conv,
                    weight,
                    output,
                    inputs: input..inputs.end.min(input + LANES),
                    staging,
                    to: u.at((input - inputs.start) * PANEL + output - outputs.start),
                    to_point: self.weight.apart(),
                };
                // SAFETY: these outputs and inputs lie in `u`, which belongs to this thread.
                unsafe { dispatch(&kernels) };
            }
        }
    }

    fn multiply(&self, v: Shared, inputs: std::ops::Range<usize>, outputs: usize, u: Shared, m: Shared) {
        for point in 0..POINTS {
            let product = Gemm {
                a: v.at(point * self.input.apart() + inputs.start),
                a_row: self.input.pitch,
                a_depth: 1,
                a_segment: 0,
                b: u.at(point * self.weight.apart()),
                b_row: PANEL,
                b_panel: 0,
                c: m.at(point * self.output.apart()),
                c_row: PANEL,
                rows: self.input.rows,
                depth: inputs.len(),
                segments: 1,
                columns: outputs.next_multiple_of(LANES),
                add: inputs.start > 0,
            };
            // SAFETY: the factors were written before; `m` belongs to this thread.
            unsafe { dispatch(&product) };
        }
    }
}
