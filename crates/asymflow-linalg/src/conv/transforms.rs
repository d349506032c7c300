//! The one- and two-dimensional transforms of Winograd's F(4×4, 3×3) and of its adjoint.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), interpolation points
//! 0, ±1, ±2 and ∞: Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A.

use crate::simd::Simd;

/// Side of the output tile.
pub(super) const TILE: usize = 4;
/// Side of the transformed tile and of the input tile.
pub(super) const SIDE: usize = 6;
/// Products of a tile.
pub(super) const POINTS: usize = SIDE * SIDE;

/// A linear map from `I` to `O` values.
pub(super) trait Transform<const I: usize, const O: usize> {
    unsafe fn line<S: Simd>(d: [S::V; I]) -> [S::V; O];

    /// The map applied to rows and columns.
    #[inline(always)]
    unsafe fn square<S: Simd>(d: [[S::V; I]; I]) -> [[S::V; O]; O] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let zero = S::splat(0.0);
            let mut rows = [[zero; O]; I];
            for i in 0..I {
                rows[i] = Self::line::<S>(d[i]);
            }
            let mut out = [[zero; O]; O];
            for column in 0..O {
                let mut line = [zero; I];
                for i in 0..I {
                    line[i] = rows[i][column];
                }
                let line = Self::line::<S>(line);
                for row in 0..O {
                    out[row][column] = line[row];
                }
            }
            out
        }
    }
}

/// Bᵀ, of input tiles.
pub(super) struct Input;

impl Transform<6, 6> for Input {
    #[inline(always)]
    unsafe fn line<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let (four, minus_four, minus_five, two) = (S::splat(4.0), S::splat(-4.0), S::splat(-5.0), S::splat(2.0));
            let even = S::mul_add(minus_four, d[2], d[4]);
            let odd = S::mul_add(minus_four, d[1], d[3]);
            let difference = S::sub(d[4], d[2]);
            let twice = S::mul(two, S::sub(d[3], d[1]));
            [
                S::mul_add(four, d[0], S::mul_add(minus_five, d[2], d[4])),
                S::add(even, odd),
                S::sub(even, odd),
                S::add(difference, twice),
                S::sub(difference, twice),
                S::mul_add(four, d[1], S::mul_add(minus_five, d[3], d[5])),
            ]
        }
    }
}

/// Aᵀ, which makes four outputs of six products.
pub(super) struct Output;

impl Transform<6, 4> for Output {
    #[inline(always)]
    unsafe fn line<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let (sum, difference) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            let (outer_sum, outer_difference) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            [
                S::add(S::add(m[0], sum), outer_sum),
                S::mul_add(S::splat(2.0), outer_difference, difference),
                S::mul_add(S::splat(4.0), outer_sum, sum),
                S::add(S::mul_add(S::splat(8.0), outer_difference, difference), m[5]),
            ]
        }
    }
}

/// G, which makes six points of a kernel's three.
pub(super) struct Weight;

impl Transform<3, 6> for Weight {
    #[inline(always)]
    unsafe fn line<S: Simd>(g: [S::V; 3]) -> [S::V; 6] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let minus_sixth = S::splat(-1.0 / 6.0);
            let outer = S::mul(minus_sixth, S::add(g[0], g[2]));
            let middle = S::mul(minus_sixth, g[1]);
            let far_outer = S::mul_add(S::splat(1.0 / 24.0), g[0], S::mul(S::splat(1.0 / 6.0), g[2]));
            let far_middle = S::mul(S::splat(1.0 / 12.0), g[1]);
            [
                S::mul(S::splat(0.25), g[0]),
                S::add(outer, middle),
                S::sub(outer, middle),
                S::add(far_outer, far_middle),
                S::sub(far_outer, far_middle),
                g[2],
            ]
        }
    }
}

/// A, of output gradients: the adjoint of [`Output`].
pub(super) struct OutputGradient;

impl Transform<4, 6> for OutputGradient {
    #[inline(always)]
    unsafe fn line<S: Simd>(y: [S::V; 4]) -> [S::V; 6] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let (even, odd) = (S::add(y[0], y[2]), S::add(y[1], y[3]));
            let far_even = S::mul_add(S::splat(4.0), y[2], y[0]);
            let far_odd = S::mul_add(S::splat(8.0), y[3], S::add(y[1], y[1]));
            [y[0], S::add(even, odd), S::sub(even, odd), S::add(far_even, far_odd), S::sub(far_even, far_odd), y[3]]
        }
    }
}

/// Gᵀ, of products: the adjoint of [`Weight`].
pub(super) struct WeightGradient;

impl Transform<6, 3> for WeightGradient {
    #[inline(always)]
    unsafe fn line<S: Simd>(z: [S::V; 6]) -> [S::V; 3] {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let (sum, difference) = (S::add(z[1], z[2]), S::sub(z[2], z[1]));
            let (far_sum, far_difference) = (S::add(z[3], z[4]), S::sub(z[3], z[4]));
            let (sixth, minus_sixth) = (S::splat(1.0 / 6.0), S::splat(-1.0 / 6.0));
            let first = S::mul_add(S::splat(0.25), z[0], S::mul(S::splat(1.0 / 24.0), far_sum));
            [
                S::mul_add(minus_sixth, sum, first),
                S::mul_add(sixth, difference, S::mul(S::splat(1.0 / 12.0), far_difference)),
                S::mul_add(minus_sixth, sum, S::mul_add(sixth, far_sum, z[5])),
            ]
        }
    }
}
