//! Matrix product of a strided left factor and a right factor packed in panels.

use crate::simd::{Kernel, LANES, Simd};

/// Columns of a panel.
pub(crate) const PANEL: usize = 64;

/// Rows of a register tile, and of one whose columns leave registers for more: the taps of a 3×3 kernel.
const TILE_ROWS: usize = 6;
const MOST_ROWS: usize = 9;

/// C = A·B or C += A·B. Columns count in whole vectors.
///
/// The inner index runs over `segments` of `depth`: its k-th value in segment g is g·depth + k for B. A\[i, (g, k)\]
/// lies at `a + i·a_row + g·a_segment + k·a_depth`; B\[k, j\] at `b + (j / 64)·b_panel + k·b_row + j % 64`;
/// C\[i, j\] at `c + i·c_row + j`.
#[derive(Clone, Copy)]
pub(crate) struct Gemm {
    pub a: *const f32,
    pub a_row: usize,
    pub a_depth: usize,
    pub a_segment: usize,
    pub b: *const f32,
    pub b_row: usize,
    pub b_panel: usize,
    pub c: *mut f32,
    pub c_row: usize,
    pub rows: usize,
    pub depth: usize,
    pub segments: usize,
    pub columns: usize,
    pub add: bool,
}

impl Kernel for Gemm {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let mut column = 0;
        while column < self.columns {
            let in_panel = PANEL - column % PANEL;
            let vectors = (in_panel.min(self.columns - column) / LANES).min(S::TILE_VECTORS);
            // SAFETY: `column + vectors · 16 ≤ columns`; the caller vouches for the three matrices.
            unsafe {
                match vectors {
                    4 => self.run_columns::<S, 4>(column),
                    3 => self.run_columns::<S, 3>(column),
                    2 => self.run_columns::<S, 2>(column),
                    _ => self.run_columns::<S, 1>(column),
                }
            }
            column += vectors.max(1) * LANES;
        }
    }
}

impl Gemm {
    /// All rows of `V` vectors of columns, in tiles of nearly equal height.
    #[inline(always)]
    unsafe fn run_columns<S: Simd, const V: usize>(&self, column: usize) {
        let most = (TILE_ROWS * S::TILE_VECTORS / V).clamp(TILE_ROWS, MOST_ROWS);
        let tiles = self.rows.div_ceil(most);
        let mut row = 0;
        for tile in 0..tiles {
            let height = (self.rows - row).div_ceil(tiles - tile);
            // SAFETY: `row + height ≤ rows`.
            unsafe {
                match height {
                    9 => self.run_tile::<S, 9, V>(row, column),
                    8 => self.run_tile::<S, 8, V>(row, column),
                    7 => self.run_tile::<S, 7, V>(row, column),
                    6 => self.run_tile::<S, 6, V>(row, column),
                    5 => self.run_tile::<S, 5, V>(row, column),
                    4 => self.run_tile::<S, 4, V>(row, column),
                    3 => self.run_tile::<S, 3, V>(row, column),
                    2 => self.run_tile::<S, 2, V>(row, column),
                    _ => self.run_tile::<S, 1, V>(row, column),
                }
            }
            row += height;
        }
    }

    #[inline(always)]
    unsafe fn run_tile<S: Simd, const R: usize, const V: usize>(&self, row: usize, column: usize) {
        // SAFETY: the tile lies inside the matrices for which the caller vouches.
        unsafe {
            let mut a = [self.a; R];
            for (r, left) in a.iter_mut().enumerate() {
                *left = self.a.add((row + r) * self.a_row);
            }
            let mut b = self.b.add(column / PANEL * self.b_panel + column % PANEL);
            let mut acc = [[S::splat(0.0); V]; R];
            for segment in 0..self.segments {
                let mut at = segment * self.a_segment;
                for _ in 0..self.depth {
                    let mut right = [S::splat(0.0); V];
                    for (v, value) in right.iter_mut().enumerate() {
                        *value = S::load(b.add(v * LANES));
                    }
                    for (left, sums) in a.iter().zip(&mut acc) {
                        let left = S::splat(*left.add(at));
                        for (sum, right) in sums.iter_mut().zip(&right) {
                            *sum = S::mul_add(left, *right, *sum);
                        }
                    }
                    at += self.a_depth;
                    b = b.add(self.b_row);
                }
            }
            for (r, sums) in acc.iter().enumerate() {
                let c = self.c.add((row + r) * self.c_row + column);
                for (v, sum) in sums.iter().enumerate() {
                    let c = c.add(v * LANES);
                    S::store(c, if self.add { S::add(S::load(c), *sum) } else { *sum });
                }
            }
        }
    }
}
