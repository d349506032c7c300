//! Expansion of the pixels under a moving window into panels of columns (im2col), a few at a time.

use crate::gemm::PANEL;
use crate::simd::{Kernel, LANES, Lanes, Simd};

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

/// Up to sixteen columns of a panel that lie in one row of output.
#[derive(Clone, Copy, Default)]
struct Piece {
    /// First plane of the sample, and the window's corner for the first lane.
    plane: usize,
    top: isize,
    left: isize,
    to: usize,
    len: usize,
    /// For the tap at hand: place of the first lane's pixel, from the first plane of the batch, perhaps outside.
    from: isize,
    /// For the tap at hand: the lanes that read a pixel.
    lanes: Lanes,
}

/// `⌈n / step⌉`, without a division for the common steps.
#[inline(always)]
const fn steps(n: usize, step: usize) -> usize {
    match step {
        1 => n,
        2 => n.div_ceil(2),
        _ => n.div_ceil(step),
    }
}

impl Expand<'_> {
    /// Writes the pieces of `count` columns and returns their number.
    #[inline(always)]
    fn cut(&self, first: usize, count: usize, pieces: &mut [Piece; PANEL]) -> usize {
        let w = &self.window;
        let (runs, used) = runs(first, count, w.out_height, w.out_width);
        let (mut cut, mut to) = (0, 0);
        for run in &runs[..used] {
            for first in (run.first..run.first + run.len).step_by(LANES) {
                let len = LANES.min(run.first + run.len - first);
                pieces[cut] = Piece {
                    plane: run.sample * w.channels * w.height * w.width,
                    top: (run.row * w.step) as isize + w.top,
                    left: (first * w.step) as isize + w.left,
                    to,
                    len,
                    ..Piece::default()
                };
                cut += 1;
                to += len;
            }
        }
        cut
    }

    /// Points the pieces at the pixels of a tap.
    #[inline(always)]
    fn aim(&self, pieces: &mut [Piece], tap: usize) {
        let w = &self.window;
        let down = w.tap_step * (tap / w.tap_columns) as isize;
        let right = w.tap_step * (tap % w.tap_columns) as isize;
        for piece in pieces {
            let (y, x) = (piece.top + down, piece.left + right);
            let before = if x < 0 { steps(x.unsigned_abs(), w.step) } else { 0 };
            let space = (w.width as isize - x).max(0) as usize;
            let end = if y >= 0 && (y as usize) < w.height { steps(space, w.step).min(piece.len) } else { 0 };
            piece.from = piece.plane as isize + y * w.width as isize + x;
            piece.lanes = Lanes::new(before, end);
        }
    }
}

impl Kernel for Expand<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let w = &self.window;
        let taps = w.taps();
        let mut pieces = [Piece::default(); PANEL];
        for panel in 0..self.count.div_ceil(PANEL) {
            let count = PANEL.min(self.count - panel * PANEL);
            let cut = self.cut(self.first + panel * PANEL, count, &mut pieces);
            let filled = if self.whole { PANEL } else { count.next_multiple_of(LANES) };
            let to = self.to.wrapping_add(panel * self.to_panel);
            for tap in 0..taps {
                // The rows of this tap: one for each channel, `stride` apart.
                let (first, stride) = if w.tap_major { (tap * w.channels, 1) } else { (tap, taps) };
                let start = self.rows.start.saturating_sub(first).div_ceil(stride);
                let end = self.rows.end.saturating_sub(first).div_ceil(stride).min(w.channels);
                if start >= end {
                    continue;
                }
                self.aim(&mut pieces[..cut], tap);
                for channel in start..end {
                    let row = first + channel * stride - self.rows.start;
                    // SAFETY: the lanes of a piece lie inside its plane; the row has 64 places.
                    unsafe { self.row::<S>(&pieces[..cut], channel, to.add(row * PANEL), count, filled) };
                }
            }
        }
    }
}

impl Expand<'_> {
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, pieces: &[Piece], channel: usize, to: *mut f32, count: usize, filled: usize) {
        let plane = self.x.as_ptr().wrapping_add(channel * self.window.height * self.window.width);
        for piece in pieces {
            // SAFETY: the caller vouches for the lanes. A whole vector stays inside the row of 64, and what it writes
            // beyond the piece is written again.
            unsafe {
                let v = S::load_some(plane.wrapping_offset(piece.from), self.window.step, &piece.lanes);
                if piece.to + LANES <= PANEL {
                    S::store(to.add(piece.to), v);
                } else {
                    S::store_first(to.add(piece.to), v, piece.len);
                }
            }
        }
        // Lanes beyond a piece are zero, but its vector may be clipped and does not reach a whole panel.
        for column in count..filled {
            // SAFETY: `filled ≤ 64`.
            unsafe { *to.add(column) = 0.0 };
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
