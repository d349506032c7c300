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
    /// Packs `rows × depth` row-major `values`.
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
        let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
        // The low half of a product of 52 bits is all that rings of 33 to 52 bits need.
        if (33..=52).contains(&R::BITS) && wide && is_x86_feature_detected!("avx512ifma") {
            // SAFETY: the processor has these instructions; the words have 64 bits.
            return unsafe { wide::tile_52(left, right) };
        }
        if wide && size_of::<R>() == 8 {
            // SAFETY: the processor has these instructions; the words have 64 bits.
            return unsafe { wide::tile_64(left, right) };
        }
        if wide {
            // SAFETY: the processor has these instructions; words have 64 or 32 bits, and these have not 64.
            return unsafe { wide::tile_32(left, right) };
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

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::*;

    use super::{COLUMNS, ROWS, Tile};
    use crate::ring::Ring;

    /// Bytes of a register.
    const REGISTER: usize = 64;

    macro_rules! tile {
        ($(#[$doc:meta])* $name:ident, $features:literal, $registers:literal, $splat:expr, $multiply_add:expr) => {
            $(#[$doc])*
            #[target_feature(enable = $features)]
            pub(super) fn $name<R: Ring>(left: &[[R; ROWS]], right: &[[R; COLUMNS]]) -> Tile<R> {
                assert_eq!(size_of::<[R; COLUMNS]>(), $registers * REGISTER);
                let mut sums = [[_mm512_setzero_si512(); $registers]; ROWS];
                for (left, right) in left.iter().zip(right) {
                    let mut columns = [_mm512_setzero_si512(); $registers];
                    for (index, columns) in columns.iter_mut().enumerate() {
                        // SAFETY: this register lies inside the row, whose size was just checked.
                        *columns = unsafe { _mm512_loadu_si512(right.as_ptr().byte_add(index * REGISTER).cast()) };
                    }
                    for (sums, left) in sums.iter_mut().zip(left) {
                        let left = $splat(left.to_i64());
                        for (sum, columns) in sums.iter_mut().zip(columns) {
                            *sum = $multiply_add(*sum, left, columns);
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
        };
    }

    tile!(
        /// Words of 64 bits.
        tile_64,
        "avx512f,avx512dq",
        2,
        |value| _mm512_set1_epi64(value),
        |sum, a, b| _mm512_add_epi64(sum, _mm512_mullo_epi64(a, b))
    );
    tile!(
        /// Words of 64 bits of which 52 matter at most.
        tile_52,
        "avx512f,avx512dq,avx512ifma",
        2,
        |value| _mm512_set1_epi64(value),
        |sum, a, b| _mm512_madd52lo_epu64(sum, a, b)
    );
    tile!(
        /// Words of 32 bits.
        tile_32,
        "avx512f,avx512dq",
        1,
        |value| _mm512_set1_epi32(value as i32),
        |sum, a, b| _mm512_add_epi32(sum, _mm512_mullo_epi32(a, b))
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prg::{Prg, Purpose, Seed};
    use crate::ring::Z48;

    fn tiles_agree<R: Ring>() {
        let mut prg = Prg::new(&Seed::from_bytes([4; 32]), &[0; 32], Purpose::Mask, 0, 0);
        let (left, right) = (prg.words::<R>(77 * ROWS), prg.words::<R>(77 * COLUMNS));
        assert_eq!(tile(&left, &right), tile_plain(left.as_chunks().0, right.as_chunks().0));
    }

    #[test]
    fn every_instruction_set_gives_the_same_tile() {
        tiles_agree::<u32>();
        tiles_agree::<u64>();
        tiles_agree::<Z48>();
    }
}
