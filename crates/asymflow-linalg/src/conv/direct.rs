//! Convolutions of any kernel and stride as matrix products with panels of expanded columns.

use faer::dyn_stack::{MemStack, StackReq};

use super::window::{Expand, Window, copy, runs};
use crate::gemm::{Gemm, PANEL};
use crate::parallel::{Shared, for_each};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Rows of a panel that are expanded and multiplied at a time.
const DEPTH: usize = 256;
/// Values of panels and results of a task, to stay in the memory of a core.
const CORE_VALUES: usize = 128 << 10;

/// The left factor: `rows × (segments × depth)` with row and segment pitch, the inner index being contiguous.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub start: *const f32,
    pub rows: usize,
    pub row: usize,
    pub segment: usize,
    pub segments: usize,
    /// Distance from the factor of one sample to the next; zero where one factor serves all.
    pub sample: usize,
}

// SAFETY: only read.
unsafe impl Sync for Left {}
// SAFETY: only read.
unsafe impl Send for Left {}

impl Left {
    /// Rows `row..row + rows` of the factor of sample `sample`.
    const fn part(self, sample: usize, row: usize, rows: usize) -> Self {
        Self { start: self.start.wrapping_add(sample * self.sample + row * self.row), rows, ..self }
    }
}

/// Where the pixel (oy, ox) of row m of sample n goes:
/// `start + (n·planes + m)·plane + step·(oy·width + ox)`.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub start: Shared,
    pub planes: usize,
    pub plane: usize,
    pub width: usize,
    pub step: usize,
}

/// How the work is cut: `groups` of pixels with a left factor each, cut into chunks of `panels` panels, each cut
/// into `row_parts` of rows.
#[derive(Clone, Copy)]
struct Cut {
    groups: usize,
    pixels: usize,
    panels: usize,
    row_parts: usize,
    rows: usize,
    depth: usize,
}

impl Cut {
    fn new(window: &Window, samples: usize, left_per_sample: bool, rows: usize, threads: usize) -> Self {
        let groups = if left_per_sample || in_place(window) { samples } else { 1 };
        let pixels = samples / groups * window.out_pixels();
        let depth = window.depth().min(DEPTH);
        let all = pixels.div_ceil(PANEL);
        let at_most = (CORE_VALUES / (PANEL * (rows + depth))).max(1);
        let panels = at_most.min(all.div_ceil(threads.div_ceil(groups)));
        let panels = all.div_ceil(all.div_ceil(panels));
        let row_parts = threads.div_ceil(groups * all).min(rows.div_ceil(6));
        Self { groups, pixels, panels, row_parts, rows: rows.div_ceil(row_parts), depth }
    }

    const fn worker_len(&self) -> usize {
        self.panels * PANEL * (self.depth + self.rows)
    }
}

/// Whether chunks of columns keep to one sample, because planes of whole vectors can take products without a copy.
const fn in_place(window: &Window) -> bool {
    window.out_pixels().is_multiple_of(LANES) && window.out_pixels() >= 8 * PANEL
}

/// Scratch of [`multiply`] for `samples` samples.
pub(super) fn scratch(window: &Window, samples: usize, left_per_sample: bool, rows: usize, threads: usize) -> StackReq {
    let cut = Cut::new(window, samples, left_per_sample, rows, threads);
    StackReq::new_aligned::<f32>(threads * cut.worker_len(), 64)
}

/// Multiplies `left` with the expanded columns of `x`, `samples` samples long.
///
/// # Safety
/// `left` must hold `window.depth()` columns, and no one else may use the pixels of `target`.
pub(super) unsafe fn multiply(
    window: Window,
    samples: usize,
    x: &[f32],
    left: Left,
    target: Target,
    threads: usize,
    stack: &mut MemStack,
) {
    let cut = Cut::new(&window, samples, left.sample > 0, left.rows, threads);
    let (memory, _) = stack.make_aligned_uninit::<f32>(threads * cut.worker_len(), 64);
    let memory = Shared::uninit(memory);
    let chunk = cut.panels * PANEL;
    let chunks = cut.pixels.div_ceil(chunk);
    let rows = left.rows;
    for_each(threads, cut.groups * chunks * cut.row_parts, |worker, task| {
        let (part, row) = (task / cut.row_parts, task % cut.row_parts * cut.rows);
        if row >= rows {
            return;
        }
        let (group, start) = (part / chunks, part % chunks * chunk);
        let left = left.part(group, row, cut.rows.min(rows - row));
        let columns = Columns { window, x, first: group * cut.pixels + start, count: chunk.min(cut.pixels - start) };
        let memory = memory.part(worker * cut.worker_len(), cut.worker_len());
        let products = memory.at(chunk * cut.depth);
        if in_place(&window) && target.step == 1 && target.width == window.out_width {
            let to = target.start.at((group * target.planes + row) * target.plane + start);
            // SAFETY: the pixels of `target` belong to this task, whole vectors of one sample.
            return unsafe { columns.multiply(left, memory.ptr(), to, target.plane) };
        }
        // SAFETY: the buffers hold the panels and products of this task, the pixels of `target` are its own.
        unsafe {
            columns.multiply(left, memory.ptr(), products, chunk);
            dispatch(&Deliver { products, pitch: chunk, columns: &columns, rows: left.rows, row, target });
        }
    });
}

/// Some columns of the expanded batch.
struct Columns<'a> {
    window: Window,
    x: &'a [f32],
    first: usize,
    count: usize,
}

impl Columns<'_> {
    /// `products = left · columns`, rows `pitch` apart.
    unsafe fn multiply(&self, left: Left, panels: *mut f32, products: *mut f32, pitch: usize) {
        let depth = self.window.depth();
        let segment_depth = depth / left.segments;
        let mut done = 0;
        while done < depth {
            // Blocks of whole segments, or of a part of one, so that the left factor is regular.
            let in_segment = done % segment_depth;
            let count = if segment_depth > DEPTH {
                segment_depth.div_ceil(segment_depth.div_ceil(DEPTH)).min(segment_depth - in_segment)
            } else {
                (DEPTH / segment_depth * segment_depth).min(depth - done)
            };
            let segments = count.div_ceil(segment_depth);
            // SAFETY: the caller vouches for the buffers and the left factor.
            unsafe {
                dispatch(&Expand {
                    window: self.window,
                    x: self.x,
                    first: self.first,
                    count: self.count,
                    rows: done..done + count,
                    whole: false,
                    to: panels,
                    to_panel: count * PANEL,
                });
                dispatch(&Gemm {
                    a: left.start.add(done / segment_depth * left.segment + in_segment),
                    a_row: left.row,
                    a_depth: 1,
                    a_segment: left.segment,
                    b: panels,
                    b_row: PANEL,
                    b_panel: count * PANEL,
                    c: products,
                    c_row: pitch,
                    rows: left.rows,
                    depth: count / segments,
                    segments,
                    columns: self.count.next_multiple_of(LANES),
                    add: done > 0,
                });
            }
            done += count;
        }
    }
}

/// Copies products to where they belong.
struct Deliver<'a> {
    products: *const f32,
    pitch: usize,
    columns: &'a Columns<'a>,
    rows: usize,
    row: usize,
    target: Target,
}

impl Kernel for Deliver<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let window = &self.columns.window;
        let t = &self.target;
        // Without gaps between rows a whole plane is one row.
        let contiguous = t.step == 1 && t.width == window.out_width;
        let (height, width) = if contiguous { (1, window.out_pixels()) } else { (window.out_height, window.out_width) };
        for panel in 0..self.columns.count.div_ceil(PANEL) {
            let count = PANEL.min(self.columns.count - panel * PANEL);
            let (runs, used) = runs(self.columns.first + panel * PANEL, count, height, width);
            for row in 0..self.rows {
                let mut from = self.products.wrapping_add(row * self.pitch + panel * PANEL);
                for run in &runs[..used] {
                    let plane = run.sample * t.planes + self.row + row;
                    let to = t.start.at(plane * t.plane + t.step * (run.row * t.width + run.first));
                    // SAFETY: the runs cover the columns of the products; the caller vouches for the target.
                    unsafe {
                        deliver_run::<S>(from, to, run.len, t.step);
                        from = from.add(run.len);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn deliver_run<S: Simd>(from: *const f32, to: *mut f32, len: usize, step: usize) {
    // SAFETY: the caller vouches for `len` values on both sides.
    unsafe {
        if step == 1 {
            return copy::<S>(from, to, len);
        }
        for j in 0..len {
            *to.add(step * j) = *from.add(j);
        }
    }
}
