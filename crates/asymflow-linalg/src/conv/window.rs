//! Expansion of the pixels under a moving window into panels of columns (im2col), a few at a time.

use super::gemm::PANEL;
use super::simd::{Kernel, LANES, Simd};

/// Which input pixels each output pixel reads: for tap (i, j), the pixel
/// (`step`·oy + `top` + `tap_step`·i, `step`·ox + `left` + `tap_step`·j), zero outside the planes.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub step: usize,
    pub top: isize,
    pub left: isize,
    pub tap_step: isize,
    pub tap_rows: usize,
    pub tap_columns: usize,
    /// Whether the rows of a panel count taps slower than channels.
    pub tap_major: bool,
    pub out_height: usize,
    pub out_width: usize,
}

impl Window {
    pub(super) const fn taps(&self) -> usize {
        self.tap_rows * self.tap_columns
    }

    /// Rows of a panel: an input channel and a tap each.
    pub(super) const fn depth(&self) -> usize {
        self.channels * self.taps()
    }

    pub(super) const fn out_pixels(&self) -> usize {
        self.out_height * self.out_width
    }
}

/// Consecutive columns that lie in one row of output.
#[derive(Clone, Copy, Default)]
pub(super) struct Run {
    pub sample: usize,
    pub row: usize,
    pub first: usize,
    pub len: usize,
}

/// Cuts `count ≤ 64` pixels of a batch from `first` on into runs that do not cross a row of `width`.
#[inline(always)]
pub(super) fn runs(first: usize, count: usize, height: usize, width: usize) -> ([Run; PANEL], usize) {
    let mut runs = [Run::default(); PANEL];
    let (mut at, mut used) = (first, 0);
    while at < first + count && used < PANEL {
        let column = at % width;
        let len = (width - column).min(first + count - at);
        runs[used] = Run { sample: at / width / height, row: at / width % height, first: column, len };
        at += len;
        used += 1;
    }
    (runs, used)
}

/// Writes rows `rows` of the panels of pixels `first..first + count` of the batch `x`: `to + panel · to_panel` holds
/// `rows × 64`. Columns beyond `count` become zeros up to a whole vector, or a whole panel where `whole`.
pub(super) struct Expand<'a> {
    pub window: Window,
    pub x: &'a [f32],
    pub first: usize,
    pub count: usize,
    pub rows: std::ops::Range<usize>,
    pub whole: bool,
    pub to: *mut f32,
    pub to_panel: usize,
}

impl Kernel for Expand<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let w = &self.window;
        for panel in 0..self.count.div_ceil(PANEL) {
            let count = PANEL.min(self.count - panel * PANEL);
            let (runs, used) = runs(self.first + panel * PANEL, count, w.out_height, w.out_width);
            let filled = if self.whole { PANEL } else { count.next_multiple_of(LANES) };
            for (i, row) in self.rows.clone().enumerate() {
                let (channel, tap) =
                    if w.tap_major { (row % w.channels, row / w.channels) } else { (row / w.taps(), row % w.taps()) };
                let down = w.top + w.tap_step * (tap / w.tap_columns) as isize;
                let right = w.left + w.tap_step * (tap % w.tap_columns) as isize;
                // SAFETY: the caller vouches for `to`: this row has 64 places.
                let mut to = unsafe { self.to.add(panel * self.to_panel + i * PANEL) };
                for run in &runs[..used] {
                    let plane = (run.sample * w.channels + channel) * w.height * w.width;
                    let y = (run.row * w.step) as isize + down;
                    let x = (run.first * w.step) as isize + right;
                    let inside = y >= 0 && (y as usize) < w.height;
                    let line = if inside { &self.x[plane + y as usize * w.width..][..w.width] } else { &[] };
                    // SAFETY: the runs of a panel have at most 64 columns together.
                    unsafe {
                        copy_run::<S>(line, x, w.step, to, run.len);
                        to = to.add(run.len);
                    }
                }
                for column in count..filled {
                    // SAFETY: `filled ≤ 64`.
                    unsafe { *self.to.add(panel * self.to_panel + i * PANEL + column) = 0.0 };
                }
            }
        }
    }
}

/// `to[j] = line[x + j · step]` for `len` values, zero outside the line.
#[inline(always)]
unsafe fn copy_run<S: Simd>(line: &[f32], x: isize, step: usize, to: *mut f32, len: usize) {
    let left = if x < 0 { x.unsigned_abs().div_ceil(step).min(len) } else { 0 };
    let start = (x + (left * step) as isize) as usize;
    let right = if start < line.len() { (left + (line.len() - start).div_ceil(step)).min(len) } else { left };
    // SAFETY: `left ≤ right ≤ len`, and the values between lie inside the line.
    unsafe {
        for j in 0..left {
            *to.add(j) = 0.0;
        }
        let from = line.as_ptr().wrapping_add(start);
        let (to_inside, inside) = (to.add(left), right - left);
        if step == 1 {
            copy::<S>(from, to_inside, inside);
        } else if step == 2 {
            for j in 0..inside {
                *to_inside.add(j) = *from.add(2 * j);
            }
        } else {
            for j in 0..inside {
                *to_inside.add(j) = *from.add(step * j);
            }
        }
        for j in right..len {
            *to.add(j) = 0.0;
        }
    }
}

/// Copies `len` values; no call, because the runs are short.
#[inline(always)]
pub(super) unsafe fn copy<S: Simd>(from: *const f32, to: *mut f32, len: usize) {
    let mut j = 0;
    // SAFETY: the caller vouches for `len` values on both sides.
    unsafe {
        while j + LANES <= len {
            S::store(to.add(j), S::load(from.add(j)));
            j += LANES;
        }
        while j + 4 <= len {
            to.add(j).cast::<[f32; 4]>().write_unaligned(from.add(j).cast::<[f32; 4]>().read_unaligned());
            j += 4;
        }
        while j < len {
            *to.add(j) = *from.add(j);
            j += 1;
        }
    }
}
