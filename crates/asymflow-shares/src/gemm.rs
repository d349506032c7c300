//! Products of matrices over a ring, in tiles that stay in registers.
//!
//! The inner loops are plain Rust, compiled once for each instruction set and chosen at run time.

use rayon::prelude::*;

use crate::ring::Ring;

/// Rows of a tile.
pub(crate) const ROWS: usize = 8;
/// Columns of a tile.
pub(crate) const COLUMNS: usize = 16;
/// Tiles of rows that a task takes.
const TILES: usize = 2;

/// A left operand of `rows` × `depth`, stored tile after tile, each by columns; missing rows are zero.
#[derive(Clone)]
pub(crate) struct Left<R> {
    depth: usize,
    values: Vec<R>,
}

impl<R: Ring> Left<R> {
    /// From row-major `values`.
    pub(crate) fn new(rows: usize, depth: usize, values: &[R]) -> Self {
        let mut packed = vec![R::ZERO; rows.div_ceil(ROWS) * ROWS * depth];
        if depth > 0 {
            for (row, from) in values.chunks_exact(depth).enumerate() {
                let tile = &mut packed[row / ROWS * ROWS * depth..][..ROWS * depth];
                for (to, from) in tile.chunks_exact_mut(ROWS).zip(from) {
                    to[row % ROWS] = *from;
                }
            }
        }
        Self { depth, values: packed }
    }
}

/// Adds the product to `output` (`rows` × `columns`, row-major). `right` holds `depth` × `columns` in panels of
/// [`COLUMNS`] columns, each row-major; what is beyond `columns` in the last panel is ignored.
pub(crate) fn multiply_add<R: Ring>(left: &Left<R>, right: &[R], columns: usize, output: &mut [R]) {
    if columns == 0 || left.depth == 0 {
        return;
    }
    output
        .par_chunks_mut(ROWS * TILES * columns)
        .zip(left.values.par_chunks(ROWS * TILES * left.depth))
        .for_each(|(output, left_tiles)| multiply_rows(left.depth, left_tiles, right, columns, output));
}

fn multiply_rows<R: Ring>(depth: usize, left: &[R], right: &[R], columns: usize, output: &mut [R]) {
    for (panel, right) in right.chunks_exact(depth * COLUMNS).enumerate() {
        let first = panel * COLUMNS;
        let used = COLUMNS.min(columns - first);
        for (left, output) in left.chunks_exact(depth * ROWS).zip(output.chunks_mut(ROWS * columns)) {
            let sums = tile(left, right);
            for (sums, row) in sums.iter().zip(output.chunks_exact_mut(columns)) {
                for (to, sum) in row[first..first + used].iter_mut().zip(sums) {
                    *to = to.plus(*sum);
                }
            }
        }
    }
}

type Tile<R> = [[R; COLUMNS]; ROWS];

fn tile<R: Ring>(left: &[R], right: &[R]) -> Tile<R> {
    let (left, _) = left.as_chunks();
    let (right, _) = right.as_chunks();
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            // SAFETY: the processor has these instructions.
            return unsafe { wide::tile(left, right) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has these instructions.
            return unsafe { tile_avx2(left, right) };
        }
    }
    tile_plain(left, right)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn tile_avx2<R: Ring>(left: &[[R; ROWS]], right: &[[R; COLUMNS]]) -> Tile<R> {
    tile_plain(left, right)
}

#[inline(always)]
fn tile_plain<R: Ring>(left: &[[R; ROWS]], right: &[[R; COLUMNS]]) -> Tile<R> {
    // Row after row, because compilers keep one row of sums in registers, but not eight.
    std::array::from_fn(|row| {
        let mut sums = [R::ZERO; COLUMNS];
        for (left, right) in left.iter().zip(right) {
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = sum.plus(left[row].times(*right));
            }
        }
        sums
    })
}

/// AVX-512, for rings of 32 and 64 bits.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::*;

    use super::{COLUMNS, ROWS, Tile};
    use crate::ring::Ring;

    /// Bytes of a register.
    const REGISTER: usize = 64;

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn splat<R: Ring>(value: R) -> __m512i {
        if R::BITS == 64 { _mm512_set1_epi64(value.to_i64()) } else { _mm512_set1_epi32(value.to_i64() as i32) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn multiply_add<R: Ring>(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        if R::BITS == 64 {
            _mm512_add_epi64(sum, _mm512_mullo_epi64(a, b))
        } else {
            _mm512_add_epi32(sum, _mm512_mullo_epi32(a, b))
        }
    }

    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) fn tile<R: Ring>(left: &[[R; ROWS]], right: &[[R; COLUMNS]]) -> Tile<R> {
        // A row of 16 values is one register of 32-bit values or two of 64-bit values.
        if R::BITS == 64 { tile_of::<R, 2>(left, right) } else { tile_of::<R, 1>(left, right) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn tile_of<R: Ring, const N: usize>(left: &[[R; ROWS]], right: &[[R; COLUMNS]]) -> Tile<R> {
        assert_eq!(size_of::<[R; COLUMNS]>(), N * REGISTER);
        let mut sums = [[_mm512_setzero_si512(); N]; ROWS];
        for (left, right) in left.iter().zip(right) {
            let mut columns = [_mm512_setzero_si512(); N];
            for (index, columns) in columns.iter_mut().enumerate() {
                // SAFETY: register `index` of N lies inside the row, whose size is that of N registers.
                *columns = unsafe { _mm512_loadu_si512(right.as_ptr().byte_add(index * REGISTER).cast()) };
            }
            for (sums, left) in sums.iter_mut().zip(left) {
                let left = splat(*left);
                for (sum, columns) in sums.iter_mut().zip(columns) {
                    *sum = multiply_add::<R>(*sum, left, columns);
                }
            }
        }
        let mut tile = [[R::ZERO; COLUMNS]; ROWS];
        for (sums, row) in sums.iter().zip(&mut tile) {
            for (index, sum) in sums.iter().enumerate() {
                // SAFETY: as above.
                unsafe { _mm512_storeu_si512(row.as_mut_ptr().byte_add(index * REGISTER).cast(), *sum) };
            }
        }
        tile
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prg::{Prg, Purpose, Seed};

    fn tiles_agree<R: Ring>() {
        let mut prg = Prg::new(&Seed::from_bytes([4; 32]), Purpose::Mask, 0, 0);
        let (left, right) = (prg.words::<R>(77 * ROWS), prg.words::<R>(77 * COLUMNS));
        assert_eq!(tile(&left, &right), tile_plain(left.as_chunks().0, right.as_chunks().0));
    }

    #[test]
    fn every_instruction_set_gives_the_same_tile() {
        tiles_agree::<u32>();
        tiles_agree::<u64>();
    }
}
