//! Tiles of a strip (a row of tiles) gathered from planes and transformed.

use super::layout::gather;
use super::transforms::{Input, OutputGradient, POINTS, SIDE, TILE, Transform};
use crate::simd::{Kernel, LANES, Simd};

/// A matrix for each of the 36 points, `rows × pitch`, a little apart so that the points do not share cache sets.
#[derive(Clone, Copy)]
pub(super) struct Points {
    pub rows: usize,
    pub pitch: usize,
}

impl Points {
    pub(super) const fn apart(&self) -> usize {
        self.rows * self.pitch + LANES
    }

    pub(super) const fn len(&self) -> usize {
        POINTS * self.apart()
    }
}

/// Sixteen planes, or what is left of them, of one sample.
#[derive(Clone, Copy)]
pub(super) struct Planes<'a> {
    from: &'a [f32],
    channels: usize,
    height: usize,
    width: usize,
}

impl<'a> Planes<'a> {
    pub(super) fn new(
        x: &'a [f32],
        channels: usize,
        height: usize,
        width: usize,
        sample: usize,
        channel: usize,
    ) -> Self {
        let from = &x[(sample * channels + channel) * height * width..];
        Self { from, channels: LANES.min(channels - channel), height, width }
    }

    /// Transposes the rows of `top..top + count` that exist into vectors over channels; returns the first such row
    /// and their number.
    ///
    /// # Safety
    /// `to` must hold [`gathered_len`] of `count · width` values.
    #[inline(always)]
    unsafe fn gather<S: Simd>(&self, top: isize, count: usize, to: *mut f32) -> (usize, usize) {
        let first = top.max(0) as usize;
        let end = (top + count as isize).clamp(0, self.height as isize) as usize;
        let rows = end.saturating_sub(first);
        if rows > 0 {
            let from = &self.from[first * self.width..];
            let pitch = self.height * self.width;
            // SAFETY: the rows exist in all the planes, which lie inside `from`.
            unsafe { gather::<S>(from.as_ptr(), from.len(), pitch, self.channels, rows * self.width, to, LANES) };
        }
        (first, rows)
    }
}

/// Tiles of a strip to transform: the tile t has its corner at (`top`, `left + 4t`) of the planes.
pub(super) struct Tiles<'a> {
    pub planes: Planes<'a>,
    pub top: isize,
    pub left: isize,
    pub count: usize,
    pub staging: *mut f32,
    pub to: *mut f32,
    pub to_point: usize,
    pub to_tile: usize,
}

impl Tiles<'_> {
    /// Applies `T` to tiles of `I × I`, with zeros outside the planes.
    #[inline(always)]
    unsafe fn transform<S: Simd, T: Transform<I, SIDE>, const I: usize>(&self) {
        // SAFETY: loads stay inside the gathered rows; stores go where the maker of this value has vouched.
        unsafe {
            let (first, rows) = self.planes.gather::<S>(self.top, I, self.staging);
            let width = self.planes.width;
            let zero = S::splat(0.0);
            for tile in 0..self.count {
                let left = self.left + (tile * TILE) as isize;
                let inside = left >= 0 && left as usize + I <= width && rows == I;
                let mut d = [[zero; I]; I];
                for (i, line) in d.iter_mut().enumerate() {
                    let row = (self.top + i as isize).wrapping_sub(first as isize);
                    let base = row.wrapping_mul(width as isize).wrapping_add(left).wrapping_mul(LANES as isize);
                    let from = self.staging.wrapping_offset(base);
                    if inside {
                        for (j, value) in line.iter_mut().enumerate() {
                            *value = S::load(from.add(j * LANES));
                        }
                    } else if row >= 0 && (row as usize) < rows {
                        for (j, value) in line.iter_mut().enumerate() {
                            let column = left + j as isize;
                            if column >= 0 && (column as usize) < width {
                                *value = S::load(from.wrapping_add(j * LANES));
                            }
                        }
                    }
                }
                let transformed = T::square::<S>(d);
                let to = self.to.add(tile * self.to_tile);
                for (i, line) in transformed.iter().enumerate() {
                    for (j, value) in line.iter().enumerate() {
                        S::store(to.add((i * SIDE + j) * self.to_point), *value);
                    }
                }
            }
        }
    }
}

/// Tiles of the input.
pub(super) struct InputTiles<'a>(pub Tiles<'a>);

impl Kernel for InputTiles<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        // SAFETY: the maker of the tiles vouches for them.
        unsafe { self.0.transform::<S, Input, 6>() }
    }
}

/// Tiles of the output gradient.
pub(super) struct GradientTiles<'a>(pub Tiles<'a>);

impl Kernel for GradientTiles<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        // SAFETY: the maker of the tiles vouches for them.
        unsafe { self.0.transform::<S, OutputGradient, 4>() }
    }
}
