//! Weight gradients of 3×3 convolutions of stride 1 by the adjoint of Winograd's F(4×4, 3×3):
//! ∇W = Gᵀ[Σ (Bᵀ X B) ⊙ (A ∇Y Aᵀ)]G, summed over all tiles of the batch.

use std::ops::Range;

use faer::dyn_stack::{MemStack, StackReq};

use super::layout::{gathered_len, scatter};
use super::tiles::{GradientTiles, InputTiles, Planes, Points, Tiles};
use super::transforms::{POINTS, SIDE, TILE, Transform, WeightGradient};
use super::winograd::Conv3;
use crate::gemm::{Gemm, PANEL};
use crate::parallel::{Shared, for_each};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Values of the tiles of a block where each thread sums its own blocks.
const CORE_VALUES: usize = 192 << 10;
/// Values of the tiles of a block where all threads work on one, unless there are more sums than that.
const SHARED_VALUES: usize = 4 << 20;
/// Values of sums that each thread may keep for itself.
const SUMS_VALUES: usize = 320 << 10;

/// Input channels of the sums of a task where the batch is one block.
const TASK_CHANNELS: usize = 64;

/// How the work is cut: `parts` sums of their own blocks, each made by `team` threads. Where one block is the whole
/// batch, `tasks` is set: each thread sums a few channels at a time, and the sums do not leave its memory.
struct Cut {
    parts: usize,
    team: usize,
    tasks: bool,
    block_strips: usize,
    blocks: usize,
    /// For each point, `tile × in`.
    input: Points,
    /// For each point, panels of `tile × 64`.
    gradient: Points,
    /// For each point, `in × out`, or those of a task.
    sums: Points,
    /// Vectors of one strip, for each thread.
    staging: usize,
}

impl Cut {
    fn new(conv: &Conv3, threads: usize) -> Self {
        let (inputs, outputs) = (conv.in_channels.next_multiple_of(LANES), conv.out_channels.next_multiple_of(LANES));
        let sums = Points { rows: conv.in_channels, pitch: outputs };
        let strips = conv.strips();
        let private = sums.len() <= SUMS_VALUES && strips >= threads;
        let (parts, team, limit) = if private {
            (threads, 1, CORE_VALUES)
        } else {
            (1, threads, SHARED_VALUES.max(sums.len().min(2 * SHARED_VALUES)))
        };
        let at_most = (limit / (POINTS * (inputs + outputs) * conv.tile_columns())).clamp(1, strips);
        let block_strips = strips.div_ceil(strips.div_ceil(at_most).next_multiple_of(parts));
        let tiles = block_strips * conv.tile_columns();
        let tasks = !private && block_strips == strips;
        let task_sums = Points { rows: TASK_CHANNELS.min(conv.in_channels), pitch: PANEL };
        Self {
            parts,
            team,
            tasks,
            block_strips,
            blocks: strips.div_ceil(block_strips),
            // A row more than the channels: a power of two would meet the same cache sets for every tile.
            input: Points { rows: tiles, pitch: inputs },
            gradient: Points { rows: outputs.div_ceil(PANEL) * tiles, pitch: PANEL },
            sums: if tasks { task_sums } else { sums },
            staging: gathered_len((SIDE * conv.width.max(conv.out_width())).max(9 * LANES)),
        }
    }

    /// The tiles of a part, and its sums unless those belong to the threads.
    const fn part_len(&self) -> usize {
        self.input.len() + self.gradient.len() + if self.tasks { 0 } else { self.sums.len() }
    }

    const fn thread_len(&self) -> usize {
        self.staging + if self.tasks { self.sums.len() } else { 0 }
    }

    const fn len(&self) -> usize {
        self.parts * self.part_len() + self.parts * self.team * self.thread_len()
    }
}

pub(super) fn scratch(conv: Conv3, threads: usize) -> StackReq {
    StackReq::new_aligned::<f32>(Cut::new(&conv, threads).len(), 64)
}

/// Overwrites `dw`; the slices have the lengths that `conv` says.
pub(super) fn weight_gradient(
    conv: Conv3,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    threads: usize,
    stack: &mut MemStack,
) {
    let cut = Cut::new(&conv, threads);
    let (memory, _) = stack.make_aligned_uninit::<f32>(cut.len(), 64);
    let memory = Shared::uninit(memory);
    let thread_memory =
        |thread: usize| memory.part(cut.parts * cut.part_len() + thread * cut.thread_len(), cut.thread_len());
    let parts = cut.parts.min(cut.blocks);
    let part = |part: usize| Part {
        conv: &conv,
        cut: &cut,
        x,
        dy,
        v: memory.part(part * cut.part_len(), cut.input.len()),
        z: memory.part(part * cut.part_len() + cut.input.len(), cut.gradient.len()),
    };
    let dw = Shared::new(dw);
    if cut.tasks {
        let part = part(0);
        part.transform(0, &thread_memory);
        return part.finish_tasks(dw, &thread_memory);
    }
    let sums = |part: usize| memory.part(part * cut.part_len() + cut.input.len() + cut.gradient.len(), cut.sums.len());
    for_each(parts, parts, |_, index| {
        let part = part(index);
        for block in (index..cut.blocks).step_by(parts) {
            part.transform(block, &|member| thread_memory(index * cut.team + member));
            let panels = conv.out_channels.div_ceil(PANEL);
            for_each(cut.team, POINTS * panels, |_, task| {
                let (point, panel) = (task / panels, task % panels);
                let to = sums(index).at(point * cut.sums.apart() + panel * PANEL);
                part.multiply(block, point, 0..conv.in_channels, panel, to, block != index);
            });
        }
    });

    let (inputs, outputs) = (conv.in_channels.div_ceil(LANES), conv.out_channels.div_ceil(LANES));
    for_each(cut.parts * cut.team, inputs * outputs, |thread, task| {
        let (input, output) = (task / outputs * LANES, task % outputs * LANES);
        let kernels = Kernels {
            sums: sums(0).at(input * cut.sums.pitch + output),
            parts,
            part_len: cut.part_len(),
            point: cut.sums.apart(),
            row: cut.sums.pitch,
            inputs: LANES.min(conv.in_channels - input),
            outputs: LANES.min(conv.out_channels - output),
            staging: thread_memory(thread).ptr(),
            to: dw.at(9 * (output * conv.in_channels + input)),
            pitch: 9 * conv.in_channels,
        };
        // SAFETY: the sums of all parts were written above; this task alone writes these kernels of `dw`.
        unsafe { dispatch(&kernels) };
    });
}

/// One part of the sum.
struct Part<'a> {
    conv: &'a Conv3,
    cut: &'a Cut,
    x: &'a [f32],
    dy: &'a [f32],
    v: Shared,
    z: Shared,
}

impl Part<'_> {
    const fn block_tiles(&self, block: usize) -> usize {
        let left = self.conv.strips() - block * self.cut.block_strips;
        let strips = if left < self.cut.block_strips { left } else { self.cut.block_strips };
        strips * self.conv.tile_columns()
    }

    /// Transforms the tiles of a block, of the input into `v` and of the output gradient into `z`.
    fn transform(&self, block: usize, staging: &(impl Fn(usize) -> Shared + Sync)) {
        let (conv, cut) = (self.conv, self.cut);
        let (tiles, count) = (self.block_tiles(block), conv.tile_columns());
        let inputs = conv.in_channels.div_ceil(LANES);
        let tasks = inputs + conv.out_channels.div_ceil(LANES);
        for_each(cut.team, tiles / count * tasks, |member, task| {
            let (strip, task) = (task / tasks, task % tasks);
            let at = block * cut.block_strips + strip;
            let (sample, top) = (at / conv.tile_rows(), at % conv.tile_rows() * TILE);
            let staging = staging(member).ptr();
            if task < inputs {
                let channel = task * LANES;
                let tiles = Tiles {
                    planes: Planes::new(self.x, conv.in_channels, conv.height, conv.width, sample, channel),
                    top: top as isize - conv.padding as isize,
                    left: -(conv.padding as isize),
                    count,
                    staging,
                    to: self.v.at(strip * count * cut.input.pitch + channel),
                    to_point: cut.input.apart(),
                    to_tile: cut.input.pitch,
                };
                // SAFETY: the tiles of this strip and these channels lie in `v`; no other task writes them.
                unsafe { dispatch(&InputTiles(tiles)) };
            } else {
                let channel = (task - inputs) * LANES;
                let (height, width) = (conv.out_height(), conv.out_width());
                let panel = channel / PANEL * tiles + strip * count;
                let tiles = Tiles {
                    planes: Planes::new(self.dy, conv.out_channels, height, width, sample, channel),
                    top: top as isize,
                    left: 0,
                    count,
                    staging,
                    to: self.z.at(panel * PANEL + channel % PANEL),
                    to_point: cut.gradient.apart(),
                    to_tile: PANEL,
                };
                // SAFETY: the tiles of this strip and these channels lie in `z`; no other task writes them.
                unsafe { dispatch(&GradientTiles(tiles)) };
            }
        });
    }

    /// Sums the products of the tiles of a block for one point, some inputs and a panel of outputs.
    fn multiply(&self, block: usize, point: usize, inputs: Range<usize>, panel: usize, sums: *mut f32, add: bool) {
        let (conv, cut) = (self.conv, self.cut);
        let tiles = self.block_tiles(block);
        let product = Gemm {
            a: self.v.at(point * cut.input.apart() + inputs.start),
            a_row: 1,
            a_depth: cut.input.pitch,
            a_segment: 0,
            b: self.z.at(point * cut.gradient.apart() + panel * tiles * PANEL),
            b_row: PANEL,
            b_panel: 0,
            c: sums,
            c_row: cut.sums.pitch,
            rows: inputs.len(),
            depth: tiles,
            segments: 1,
            columns: PANEL.min(conv.out_channels.next_multiple_of(LANES) - panel * PANEL),
            add,
        };
        // SAFETY: the factors were written before; the caller alone writes these sums.
        unsafe { dispatch(&product) };
    }

    /// Sums and writes the kernels of a few channels at a time.
    fn finish_tasks(&self, dw: Shared, thread_memory: &(impl Fn(usize) -> Shared + Sync)) {
        let (conv, cut) = (self.conv, self.cut);
        let panels = conv.out_channels.div_ceil(PANEL);
        for_each(cut.team, conv.in_channels.div_ceil(TASK_CHANNELS) * panels, |thread, task| {
            let (first, panel) = (task / panels * TASK_CHANNELS, task % panels);
            let inputs = first..conv.in_channels.min(first + TASK_CHANNELS);
            let memory = thread_memory(thread);
            let sums = memory.part(cut.staging, cut.sums.len());
            for point in 0..POINTS {
                self.multiply(0, point, inputs.clone(), panel, sums.at(point * cut.sums.apart()), false);
            }
            for output in (panel * PANEL..conv.out_channels.min((panel + 1) * PANEL)).step_by(LANES) {
                for input in inputs.clone().step_by(LANES) {
                    let kernels = Kernels {
                        sums: sums.at((input - first) * PANEL + output - panel * PANEL),
                        parts: 1,
                        part_len: 0,
                        point: cut.sums.apart(),
                        row: PANEL,
                        inputs: LANES.min(inputs.end - input),
                        outputs: LANES.min(conv.out_channels - output),
                        staging: memory.ptr(),
                        to: dw.at(9 * (output * conv.in_channels + input)),
                        pitch: 9 * conv.in_channels,
                    };
                    // SAFETY: the sums were written above; this task alone writes these kernels of `dw`.
                    unsafe { dispatch(&kernels) };
                }
            }
        });
    }
}

/// Sums of up to sixteen inputs and outputs to turn into kernels.
struct Kernels {
    sums: *const f32,
    parts: usize,
    part_len: usize,
    point: usize,
    row: usize,
    inputs: usize,
    outputs: usize,
    staging: *mut f32,
    to: *mut f32,
    pitch: usize,
}

impl Kernel for Kernels {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        // SAFETY: loads and stores go where the maker of this value has vouched.
        unsafe {
            for input in 0..self.inputs {
                let mut sums = [[S::splat(0.0); SIDE]; SIDE];
                for part in 0..self.parts {
                    let from = self.sums.add(part * self.part_len + input * self.row);
                    for (i, line) in sums.iter_mut().enumerate() {
                        for (j, sum) in line.iter_mut().enumerate() {
                            *sum = S::add(*sum, S::load(from.add((i * SIDE + j) * self.point)));
                        }
                    }
                }
                let kernel = WeightGradient::square::<S>(sums);
                for (i, line) in kernel.iter().enumerate() {
                    for (j, value) in line.iter().enumerate() {
                        S::store(self.staging.add((9 * input + 3 * i + j) * LANES), *value);
                    }
                }
            }
            scatter::<S>(self.staging, LANES, 9 * self.inputs, self.to, self.pitch, self.outputs);
        }
    }
}
