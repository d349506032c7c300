//! Moves between planes of pixels and vectors over sixteen channels.

use crate::simd::{LANES, Simd};

/// Values that [`gather`] writes for `cols` columns.
pub(super) const fn gathered_len(cols: usize) -> usize {
    cols.next_multiple_of(LANES) * LANES
}

/// Transposes `rows ≤ 16` rows of `cols` values, `pitch` apart, into `cols` vectors, `to_pitch` apart; missing rows
/// become zeros. Up to the next multiple of 16, vectors beyond `cols` may be overwritten.
///
/// # Safety
/// `from` must be valid for `readable` values, which cover all the rows, and `to` for all the vectors.
#[inline(always)]
pub(super) unsafe fn gather<S: Simd>(
    from: *const f32,
    readable: usize,
    pitch: usize,
    rows: usize,
    cols: usize,
    to: *mut f32,
    to_pitch: usize,
) {
    let mut col = 0;
    while col < cols {
        if rows == LANES && col + (LANES - 1) * pitch + LANES <= readable {
            // SAFETY: the last row ends inside `readable`; `to` holds whole groups of sixteen vectors.
            unsafe { S::transpose(from.add(col), pitch, to.add(col * to_pitch), to_pitch) };
            col += LANES;
            continue;
        }
        for c in col..cols.min(col + LANES) {
            for r in 0..LANES {
                // SAFETY: row r and column c exist on both sides.
                unsafe { *to.add(c * to_pitch + r) = if r < rows { *from.add(r * pitch + c) } else { 0.0 } };
            }
        }
        col += LANES;
    }
}

/// The inverse of [`gather`]: transposes `cols` vectors, `from_pitch` apart, into `rows ≤ 16` rows of `cols` values,
/// `pitch` apart.
///
/// # Safety
/// `from` must be valid for `cols` vectors and `to` for all the rows.
#[inline(always)]
pub(super) unsafe fn scatter<S: Simd>(
    from: *const f32,
    from_pitch: usize,
    cols: usize,
    to: *mut f32,
    pitch: usize,
    rows: usize,
) {
    if rows == LANES && cols >= LANES {
        for group in 0..cols.div_ceil(LANES) {
            // The last group overlaps its neighbour instead of reaching beyond the rows.
            let col = (group * LANES).min(cols - LANES);
            // SAFETY: `col + 16 ≤ cols` on both sides.
            unsafe { S::transpose(from.add(col * from_pitch), from_pitch, to.add(col), pitch) };
        }
        return;
    }
    for r in 0..rows {
        for c in 0..cols {
            // SAFETY: row r and column c exist on both sides.
            unsafe { *to.add(r * pitch + c) = *from.add(c * from_pitch + r) };
        }
    }
}
