//! 3×3 convolutions of stride 1 by Winograd's F(4×4, 3×3): 36 products for 16 outputs instead of 144.

use faer::dyn_stack::{MemStack, StackReq};

use super::layout::{gather, gathered_len, scatter};
use super::tiles::{InputTiles, Planes, Points, Tiles};
use super::transforms::{Output, POINTS, SIDE, TILE, Transform, Weight};
use super::winograd_wide::Wide;
use crate::gemm::{Gemm, PANEL};
use crate::parallel::{Shared, for_each};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// A 3×3 convolution of stride 1, forward or, with `flipped`, the input gradient of one written as such: `weight` is
/// then `in × out × 3 × 3` and its taps run backwards.
#[derive(Clone, Copy)]
pub(super) struct Conv3 {
    pub samples: usize,
    pub in_channels: usize,
    pub height: usize,
    pub width: usize,
    pub out_channels: usize,
    pub padding: usize,
    pub flipped: bool,
}

/// Memory of a core that a block should stay in.
const CORE_VALUES: usize = 160 << 10;
/// Memory of all cores that a block should stay in.
const SHARED_VALUES: usize = 4 << 20;

impl Conv3 {
    pub(super) const fn out_height(&self) -> usize {
        self.height + 2 * self.padding - 2
    }

    pub(super) const fn out_width(&self) -> usize {
        self.width + 2 * self.padding - 2
    }

    pub(super) const fn tile_rows(&self) -> usize {
        self.out_height().div_ceil(TILE)
    }

    pub(super) const fn tile_columns(&self) -> usize {
        self.out_width().div_ceil(TILE)
    }

    /// Rows of tiles of the batch.
    pub(super) const fn strips(&self) -> usize {
        self.samples * self.tile_rows()
    }
}

/// How the work is cut: blocks of strips, several blocks at once (`workers`) or several threads in a block (`team`).
#[derive(Clone, Copy)]
struct Cut {
    workers: usize,
    team: usize,
    block_strips: usize,
}

impl Cut {
    fn new(conv: &Conv3, threads: usize) -> Self {
        let columns = conv.in_channels.next_multiple_of(LANES) + conv.out_channels.next_multiple_of(LANES);
        let strip_values = POINTS * columns * conv.tile_columns();
        let weight_values = POINTS * conv.in_channels * conv.out_channels;
        let strips = conv.strips();
        let private = weight_values <= 2 * CORE_VALUES;
        let limit = if private { CORE_VALUES } else { SHARED_VALUES };
        let at_most = (limit / strip_values).clamp(1, strips);
        if private && strips >= threads {
            let blocks = strips.div_ceil(at_most).next_multiple_of(threads);
            Self { workers: threads, team: 1, block_strips: strips.div_ceil(blocks) }
        } else {
            Self { workers: 1, team: threads, block_strips: strips.div_ceil(strips.div_ceil(at_most)) }
        }
    }

    /// The way for few tiles, where all threads would work on one block.
    fn wide(&self, conv: &Conv3) -> Option<Wide> {
        if self.workers > 1 || conv.in_channels * conv.out_channels < 1 << 14 {
            None
        } else {
            Wide::new(conv, self.team)
        }
    }

    const fn blocks(&self, conv: &Conv3) -> usize {
        conv.strips().div_ceil(self.block_strips)
    }

    const fn threads(&self) -> usize {
        self.workers * self.team
    }
}

/// Sizes of the buffers of a forward pass.
#[derive(Clone, Copy)]
struct Buffers {
    /// Transformed kernels: for each point, panels of `in × 64`.
    weight: Points,
    input: Points,
    output: Points,
    /// Vectors of one strip, for each thread.
    staging: usize,
}

impl Buffers {
    fn new(conv: &Conv3, cut: &Cut) -> Self {
        let tiles = cut.block_strips * conv.tile_columns();
        let panels = conv.out_channels.div_ceil(PANEL);
        let strip = SIDE * conv.width.max(conv.out_width());
        Self {
            weight: Points { rows: panels * conv.in_channels, pitch: PANEL },
            input: Points { rows: tiles, pitch: conv.in_channels.next_multiple_of(LANES) },
            output: Points { rows: tiles, pitch: conv.out_channels.next_multiple_of(LANES) },
            staging: gathered_len(strip.max(9 * LANES)),
        }
    }

    fn len(&self, cut: &Cut) -> usize {
        self.weight.len() + cut.workers * (self.input.len() + self.output.len()) + cut.threads() * self.staging
    }
}

pub(super) fn scratch(conv: Conv3, threads: usize) -> StackReq {
    let cut = Cut::new(&conv, threads);
    if let Some(wide) = cut.wide(&conv) {
        return StackReq::new_aligned::<f32>(wide.len(), 64);
    }
    StackReq::new_aligned::<f32>(Buffers::new(&conv, &cut).len(&cut), 64)
}

/// Overwrites `y`; the slices have the lengths that `conv` says.
pub(super) fn forward(conv: Conv3, x: &[f32], weight: &[f32], y: &mut [f32], threads: usize, stack: &mut MemStack) {
    let cut = Cut::new(&conv, threads);
    if let Some(wide) = cut.wide(&conv) {
        let (memory, _) = stack.make_aligned_uninit::<f32>(wide.len(), 64);
        return wide.forward(&conv, x, weight, Shared::new(y), Shared::uninit(memory));
    }
    let sizes = Buffers::new(&conv, &cut);
    let (memory, _) = stack.make_aligned_uninit::<f32>(sizes.len(&cut), 64);
    let memory = Shared::uninit(memory);
    let u = memory.part(0, sizes.weight.len());
    let v_start = sizes.weight.len();
    let m_start = v_start + cut.workers * sizes.input.len();
    let staging_start = m_start + cut.workers * sizes.output.len();
    let staging = |thread: usize| memory.part(staging_start + thread * sizes.staging, sizes.staging);
    let y = Shared::new(y);

    transform_weight(&conv, weight, u, sizes.weight.apart(), cut.threads(), &staging);
    for_each(cut.workers, cut.blocks(&conv), |worker, block| {
        let first = block * cut.block_strips;
        let block = Block {
            conv: &conv,
            sizes: &sizes,
            team: cut.team,
            first,
            strips: cut.block_strips.min(conv.strips() - first),
            v: memory.part(v_start + worker * sizes.input.len(), sizes.input.len()),
            m: memory.part(m_start + worker * sizes.output.len(), sizes.output.len()),
        };
        let staging = |member: usize| staging(worker * cut.team + member);
        block.transform(x, &staging);
        block.multiply(u);
        block.deliver(y, &staging);
    });
}

/// Some strips of the batch.
struct Block<'a> {
    conv: &'a Conv3,
    sizes: &'a Buffers,
    team: usize,
    first: usize,
    strips: usize,
    v: Shared,
    m: Shared,
}

impl Block<'_> {
    /// Writes V, the transformed tiles of the input.
    fn transform(&self, x: &[f32], staging: &(impl Fn(usize) -> Shared + Sync)) {
        let (conv, points) = (self.conv, &self.sizes.input);
        let blocks = conv.in_channels.div_ceil(LANES);
        for_each(self.team, self.strips * blocks, |member, task| {
            let (strip, channel) = (task / blocks, task % blocks * LANES);
            let to = self.v.at(strip * conv.tile_columns() * points.pitch + channel);
            let tiles = input_tiles(conv, x, self.first + strip, channel, staging(member).ptr(), to, points);
            // SAFETY: the tiles of this strip and these channels lie in `v` and no other task writes them.
            unsafe { dispatch(&tiles) };
        });
    }

    /// M = V · U for each point.
    fn multiply(&self, u: Shared) {
        let (conv, sizes) = (self.conv, self.sizes);
        let panels = conv.out_channels.div_ceil(PANEL);
        for_each(self.team, POINTS * panels, |_, task| {
            let (point, panel) = (task / panels, task % panels);
            let product = Gemm {
                a: self.v.at(point * sizes.input.apart()),
                a_row: sizes.input.pitch,
                a_depth: 1,
                a_segment: 0,
                b: u.at(point * sizes.weight.apart() + panel * conv.in_channels * PANEL),
                b_row: PANEL,
                b_panel: 0,
                c: self.m.at(point * sizes.output.apart() + panel * PANEL),
                c_row: sizes.output.pitch,
                rows: self.strips * conv.tile_columns(),
                depth: conv.in_channels,
                segments: 1,
                columns: PANEL.min(sizes.output.pitch - panel * PANEL),
                add: false,
            };
            // SAFETY: the factors were written before; this task alone writes this panel of `m`.
            unsafe { dispatch(&product) };
        });
    }

    /// Transforms M and writes it to the output.
    fn deliver(&self, y: Shared, staging: &(impl Fn(usize) -> Shared + Sync)) {
        let (conv, points) = (self.conv, &self.sizes.output);
        let blocks = conv.out_channels.div_ceil(LANES);
        for_each(self.team, self.strips * blocks, |member, task| {
            let (strip, channel) = (task / blocks, task % blocks * LANES);
            let from = self.m.at(strip * conv.tile_columns() * points.pitch + channel);
            let tiles = output_tiles(conv, from, points, self.first + strip, channel, staging(member).ptr(), y);
            // SAFETY: the products were written before; this task alone writes these rows of `y`.
            unsafe { dispatch(&tiles) };
        });
    }
}

/// The tiles of up to sixteen channels of a strip of the batch.
pub(super) fn input_tiles<'a>(
    conv: &Conv3,
    x: &'a [f32],
    strip: usize,
    channel: usize,
    staging: *mut f32,
    to: *mut f32,
    points: &Points,
) -> InputTiles<'a> {
    let (sample, row) = (strip / conv.tile_rows(), strip % conv.tile_rows());
    InputTiles(Tiles {
        planes: Planes::new(x, conv.in_channels, conv.height, conv.width, sample, channel),
        top: (row * TILE) as isize - conv.padding as isize,
        left: -(conv.padding as isize),
        count: conv.tile_columns(),
        staging,
        to,
        to_point: points.apart(),
        to_tile: points.pitch,
    })
}

/// The output of up to sixteen channels of a strip of the batch.
pub(super) fn output_tiles(
    conv: &Conv3,
    from: *const f32,
    points: &Points,
    strip: usize,
    channel: usize,
    staging: *mut f32,
    y: Shared,
) -> OutputTiles {
    let (sample, row) = (strip / conv.tile_rows(), strip % conv.tile_rows());
    let pixels = conv.out_height() * conv.out_width();
    OutputTiles {
        from,
        from_point: points.apart(),
        from_tile: points.pitch,
        rows: TILE.min(conv.out_height() - row * TILE),
        width: conv.out_width(),
        staging,
        to: y.at((sample * conv.out_channels + channel) * pixels + row * TILE * conv.out_width()),
        pitch: pixels,
        channels: LANES.min(conv.out_channels - channel),
    }
}

/// Products of a strip to turn into `rows ≤ 4` rows of output in up to sixteen planes.
pub(super) struct OutputTiles {
    from: *const f32,
    from_point: usize,
    from_tile: usize,
    rows: usize,
    width: usize,
    staging: *mut f32,
    to: *mut f32,
    pitch: usize,
    channels: usize,
}

impl Kernel for OutputTiles {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        // SAFETY: loads and stores go where the maker of this value has vouched; the staging holds the rows.
        unsafe {
            for tile in 0..self.width.div_ceil(TILE) {
                let from = self.from.add(tile * self.from_tile);
                let mut m = [[S::splat(0.0); SIDE]; SIDE];
                for (i, line) in m.iter_mut().enumerate() {
                    for (j, value) in line.iter_mut().enumerate() {
                        *value = S::load(from.add((i * SIDE + j) * self.from_point));
                    }
                }
                let y = Output::square::<S>(m);
                let columns = TILE.min(self.width - tile * TILE);
                for (i, line) in y.iter().enumerate().take(self.rows) {
                    for (j, value) in line.iter().enumerate().take(columns) {
                        S::store(self.staging.add((i * self.width + tile * TILE + j) * LANES), *value);
                    }
                }
            }
            let pixels = self.rows * self.width;
            scatter::<S>(self.staging, LANES, pixels, self.to, self.pitch, self.channels);
        }
    }
}

/// Writes U = G g Gᵀ of all kernels: for each point, panels of 64 outputs, `in × 64` each.
fn transform_weight(
    conv: &Conv3,
    weight: &[f32],
    u: Shared,
    apart: usize,
    threads: usize,
    staging: &(impl Fn(usize) -> Shared + Sync),
) {
    let blocks = conv.out_channels.div_ceil(LANES);
    let inputs = conv.in_channels.div_ceil(LANES);
    for_each(threads, blocks * inputs, |thread, task| {
        let (output, input) = (task / inputs * LANES, task % inputs * LANES);
        let kernels = Kernels {
            conv,
            weight,
            output,
            inputs: input..conv.in_channels.min(input + LANES),
            staging: staging(thread).ptr(),
            to: u.at((output / PANEL * conv.in_channels + input) * PANEL + output % PANEL),
            to_point: apart,
        };
        // SAFETY: these outputs and inputs lie in `u` and no other task writes them.
        unsafe { dispatch(&kernels) };
    });
}

/// Kernels of up to sixteen outputs and inputs to transform.
pub(super) struct Kernels<'a> {
    pub conv: &'a Conv3,
    pub weight: &'a [f32],
    pub output: usize,
    pub inputs: std::ops::Range<usize>,
    pub staging: *mut f32,
    pub to: *mut f32,
    pub to_point: usize,
}

impl Kernel for Kernels<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let outputs = LANES.min(self.conv.out_channels - self.output);
        let flipped = self.conv.flipped;
        // SAFETY: the kernels gathered exist in `weight`; stores go where the maker of this value has vouched.
        unsafe {
            if !flipped {
                let pitch = 9 * self.conv.in_channels;
                let from = &self.weight[self.output * pitch + 9 * self.inputs.start..];
                gather::<S>(from.as_ptr(), from.len(), pitch, outputs, 9 * self.inputs.len(), self.staging, LANES);
            }
            for (i, input) in self.inputs.clone().enumerate() {
                if flipped {
                    let from = &self.weight[9 * (input * self.conv.out_channels + self.output)..];
                    gather::<S>(from.as_ptr(), from.len(), 9, outputs, 9, self.staging, LANES);
                }
                let from = if flipped { self.staging } else { self.staging.add(9 * i * LANES) };
                let mut g = [[S::splat(0.0); 3]; 3];
                for tap in 0..9 {
                    g[tap / 3][tap % 3] = S::load(from.add(LANES * if flipped { 8 - tap } else { tap }));
                }
                let transformed = Weight::square::<S>(g);
                let to = self.to.add(i * PANEL);
                for (k, line) in transformed.iter().enumerate() {
                    for (j, value) in line.iter().enumerate() {
                        S::store(to.add((k * SIDE + j) * self.to_point), *value);
                    }
                }
            }
        }
    }
}
