//! Block DCT-II of a map: a smaller low-frequency map and the high-frequency rest (thesis §3.3, Delta).

use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::prelude::*;
use faer::{Accum, Mat};
use thiserror::Error;

/// Why a map could not be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DctError {
    /// The blocks have no side, or more is kept than there is.
    #[error("keeping {kept} of a block of {block} is out of range 1..={block}")]
    Kept {
        /// Side of a block, t.
        block: usize,
        /// Side of what is kept, t'.
        kept: usize,
    },
    /// The map is not made of whole blocks.
    #[error("a map of {height}x{width} is not made of whole blocks of {block}x{block}")]
    Blocks {
        /// Height of the map.
        height: usize,
        /// Width of the map.
        width: usize,
        /// Side of a block.
        block: usize,
    },
    /// A slice has another length than the shape says.
    #[error("{what} holds {got} values, the shape needs {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// What the shape needs.
        expected: usize,
        /// What it holds.
        got: usize,
    },
    /// The scratch is smaller than [`BlockDct::scratch`] says.
    #[error("the scratch holds {got_bytes} bytes, {needed_bytes} are needed")]
    Scratch {
        /// What is needed.
        needed_bytes: usize,
        /// What was given.
        got_bytes: usize,
    },
}

/// Orthonormal DCT-II of t×t blocks with the top-left t'×t' coefficients kept.
///
/// The low part is inverted with the t'-point transform, so it is a map of (h·t'/t) × (w·t'/t); the high part is
/// inverted with the t-point transform and has the size of the map. Energy is preserved:
/// ‖map‖² = ‖low‖² + ‖high‖². Amplitudes of the low part are larger by t/t' (a constant 3 becomes 6 for 16 → 8).
#[derive(Clone, Debug, PartialEq)]
pub struct BlockDct {
    block: usize,
    kept: usize,
    /// t'-point inverse after the first t' rows of the t-point transform: t' × t, orthonormal rows.
    reduce: Mat<f32>,
}

/// Entry (i, j) of the n-point orthonormal DCT-II.
fn coefficient(n: usize, i: usize, j: usize) -> f64 {
    let (n, i, j) = (n as f64, i as f64, j as f64);
    let scale = if i == 0.0 { 1.0 } else { 2.0 };
    (scale / n).sqrt() * (std::f64::consts::PI * (2.0 * j + 1.0) * i / (2.0 * n)).cos()
}

impl BlockDct {
    /// Blocks of `block`×`block` (t), of which `kept`×`kept` (t') coefficients are low.
    ///
    /// # Errors
    /// `kept` is zero or larger than `block`.
    pub fn new(block: usize, kept: usize) -> Result<Self, DctError> {
        if kept == 0 || kept > block {
            return Err(DctError::Kept { block, kept });
        }
        let reduce = Mat::from_fn(kept, block, |to, from| {
            (0..kept).map(|i| coefficient(kept, i, to) * coefficient(block, i, from)).sum::<f64>() as f32
        });
        Ok(Self { block, kept, reduce })
    }

    /// Values in the low part of a map of `height`×`width`.
    ///
    /// # Errors
    /// The map is not made of whole blocks.
    pub fn low_len(&self, height: usize, width: usize) -> Result<usize, DctError> {
        let Self { block, kept, .. } = *self;
        if height == 0 || width == 0 || !height.is_multiple_of(block) || !width.is_multiple_of(block) {
            return Err(DctError::Blocks { height, width, block });
        }
        Ok((height / block * kept) * (width / block * kept))
    }

    /// Scratch that [`BlockDct::split`] and [`BlockDct::adjoint`] need.
    pub fn scratch(&self) -> StackReq {
        StackReq::new::<f32>(self.kept * self.block)
    }

    fn check(
        &self,
        (height, width): (usize, usize),
        low: (&'static str, usize),
        full: [(&'static str, usize); 2],
        stack: &MemStack,
    ) -> Result<(), DctError> {
        let expected = self.low_len(height, width)?;
        if low.1 != expected {
            return Err(DctError::Length { what: low.0, expected, got: low.1 });
        }
        for (what, got) in full {
            if got != height * width {
                return Err(DctError::Length { what, expected: height * width, got });
            }
        }
        if !stack.can_hold(self.scratch()) {
            let needed_bytes = self.scratch().size_bytes();
            return Err(DctError::Scratch { needed_bytes, got_bytes: stack.len_bytes() });
        }
        Ok(())
    }

    /// Splits the row-major `map` of `height`×`width` into `low` and `high`.
    ///
    /// # Errors
    /// The map is not made of whole blocks, a slice or the scratch has the wrong length.
    pub fn split(
        &self,
        map: &[f32],
        (height, width): (usize, usize),
        low: &mut [f32],
        high: &mut [f32],
        stack: &mut MemStack,
    ) -> Result<(), DctError> {
        self.check((height, width), ("low", low.len()), [("map", map.len()), ("high", high.len())], stack)?;
        high.copy_from_slice(map);
        let map = MatRef::from_row_major_slice(map, height, width);
        let mut low =
            MatMut::from_row_major_slice_mut(low, height / self.block * self.kept, width / self.block * self.kept);
        let mut high = MatMut::from_row_major_slice_mut(high, height, width);
        self.reduce_into(low.rb_mut(), Accum::Replace, map, 1.0, stack);
        self.expand_into(high.rb_mut(), low.rb(), -1.0, stack);
        Ok(())
    }

    /// Adjoint of [`BlockDct::split`]: the gradient at the map from those at `low` and `high`.
    ///
    /// `low_gradient` serves as working memory and is overwritten.
    ///
    /// # Errors
    /// As for [`BlockDct::split`].
    pub fn adjoint(
        &self,
        low_gradient: &mut [f32],
        high_gradient: &[f32],
        (height, width): (usize, usize),
        gradient: &mut [f32],
        stack: &mut MemStack,
    ) -> Result<(), DctError> {
        let full = [("high gradient", high_gradient.len()), ("gradient", gradient.len())];
        self.check((height, width), ("low gradient", low_gradient.len()), full, stack)?;
        gradient.copy_from_slice(high_gradient);
        let high = MatRef::from_row_major_slice(high_gradient, height, width);
        let (low_height, low_width) = (height / self.block * self.kept, width / self.block * self.kept);
        let mut low = MatMut::from_row_major_slice_mut(low_gradient, low_height, low_width);
        // high = map − expand(reduce(map)), and expand is the transpose of reduce.
        self.reduce_into(low.rb_mut(), Accum::Add, high, -1.0, stack);
        self.expand_into(MatMut::from_row_major_slice_mut(gradient, height, width), low.rb(), 1.0, stack);
        Ok(())
    }

    /// For each block: low (+)= alpha · R·block·Rᵀ.
    fn reduce_into(
        &self,
        mut low: MatMut<'_, f32>,
        accumulate: Accum,
        map: MatRef<'_, f32>,
        alpha: f32,
        stack: &mut MemStack,
    ) {
        let Self { block, kept, ref reduce } = *self;
        let (mut half, _) = stack.make_with(kept * block, |_| 0.0f32);
        let mut half = MatMut::from_row_major_slice_mut(&mut half, kept, block);
        for y in 0..map.nrows() / block {
            for x in 0..map.ncols() / block {
                let from = map.submatrix(y * block, x * block, block, block);
                let to = low.rb_mut().submatrix_mut(y * kept, x * kept, kept, kept);
                matmul(half.rb_mut(), Accum::Replace, reduce, from, 1.0, Par::Seq);
                matmul(to, accumulate, half.rb(), reduce.transpose(), alpha, Par::Seq);
            }
        }
    }

    /// For each block: map += alpha · Rᵀ·low·R.
    fn expand_into(&self, mut map: MatMut<'_, f32>, low: MatRef<'_, f32>, alpha: f32, stack: &mut MemStack) {
        let Self { block, kept, ref reduce } = *self;
        let (mut half, _) = stack.make_with(kept * block, |_| 0.0f32);
        let mut half = MatMut::from_row_major_slice_mut(&mut half, kept, block);
        for y in 0..map.nrows() / block {
            for x in 0..map.ncols() / block {
                let from = low.submatrix(y * kept, x * kept, kept, kept);
                let to = map.rb_mut().submatrix_mut(y * block, x * block, block, block);
                matmul(half.rb_mut(), Accum::Replace, from, reduce, 1.0, Par::Seq);
                matmul(to, Accum::Add, reduce.transpose(), half.rb(), alpha, Par::Seq);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use faer::dyn_stack::{MemBuffer, MemStack};
    use proptest::prelude::*;

    use super::*;

    fn split(dct: &BlockDct, map: &[f32], size: (usize, usize)) -> (Vec<f32>, Vec<f32>) {
        let mut low = vec![f32::NAN; dct.low_len(size.0, size.1).unwrap()];
        let mut high = vec![f32::NAN; map.len()];
        let mut memory = MemBuffer::new(dct.scratch());
        dct.split(map, size, &mut low, &mut high, MemStack::new(&mut memory)).unwrap();
        (low, high)
    }

    /// One block by the definition in f64: transform, cut, invert with the transform of `side` points.
    fn by_definition(map: &[f32], block: usize, kept: usize) -> (Vec<f64>, Vec<f64>) {
        let transform = |k: usize, l: usize| -> f64 {
            (0..block * block)
                .map(|at| {
                    let (i, j) = (at / block, at % block);
                    coefficient(block, k, i) * coefficient(block, l, j) * f64::from(map[at])
                })
                .sum()
        };
        let coefficients: Vec<f64> = (0..block * block).map(|at| transform(at / block, at % block)).collect();
        let invert = |side: usize, keep: &dyn Fn(usize, usize) -> bool| -> Vec<f64> {
            (0..side * side)
                .map(|at| {
                    let mut sum = 0.0;
                    for k in 0..side {
                        for l in 0..side {
                            if keep(k, l) {
                                sum += coefficients[k * block + l]
                                    * coefficient(side, k, at / side)
                                    * coefficient(side, l, at % side);
                            }
                        }
                    }
                    sum
                })
                .collect()
        };
        (invert(kept, &|_, _| true), invert(block, &|k, l| k >= kept || l >= kept))
    }

    fn energy(values: &[f32]) -> f64 {
        values.iter().map(|v| f64::from(*v).powi(2)).sum()
    }

    #[test]
    fn a_constant_grows_by_the_ratio_of_the_sides() {
        let dct = BlockDct::new(16, 8).unwrap();
        let (low, high) = split(&dct, &vec![3.0; 32 * 48], (32, 48));
        assert_eq!(low.len(), 16 * 24);
        assert!(low.iter().all(|v| (v - 6.0).abs() < 1e-5), "{low:?}");
        assert!(high.iter().all(|v| v.abs() < 1e-5));
    }

    #[test]
    fn keeping_everything_leaves_nothing_high() {
        let map: Vec<f32> = (0..64).map(|i| (i as f32).sin()).collect();
        let (low, high) = split(&BlockDct::new(4, 4).unwrap(), &map, (8, 8));
        assert!(low.iter().zip(&map).all(|(a, b)| (a - b).abs() < 1e-5));
        assert!(high.iter().all(|v| v.abs() < 1e-5));
    }

    #[test]
    fn bad_input_is_refused() {
        assert_eq!(BlockDct::new(0, 0), Err(DctError::Kept { block: 0, kept: 0 }));
        assert_eq!(BlockDct::new(4, 0), Err(DctError::Kept { block: 4, kept: 0 }));
        assert_eq!(BlockDct::new(4, 5), Err(DctError::Kept { block: 4, kept: 5 }));
        let dct = BlockDct::new(4, 2).unwrap();
        assert_eq!(dct.low_len(8, 6), Err(DctError::Blocks { height: 8, width: 6, block: 4 }));
        assert_eq!(dct.low_len(0, 4), Err(DctError::Blocks { height: 0, width: 4, block: 4 }));
        let mut memory = MemBuffer::new(dct.scratch());
        let stack = MemStack::new(&mut memory);
        let run = |map: usize, low: usize, high: usize, stack: &mut MemStack| {
            dct.split(&vec![0.0; map], (4, 4), &mut vec![0.0; low], &mut vec![0.0; high], stack)
        };
        assert_eq!(run(15, 4, 16, stack), Err(DctError::Length { what: "map", expected: 16, got: 15 }));
        assert_eq!(run(16, 5, 16, stack), Err(DctError::Length { what: "low", expected: 4, got: 5 }));
        assert_eq!(run(16, 4, 17, stack), Err(DctError::Length { what: "high", expected: 16, got: 17 }));
        let none = run(16, 4, 16, MemStack::new(&mut []));
        assert_eq!(none, Err(DctError::Scratch { needed_bytes: 32, got_bytes: 0 }));
    }

    proptest! {
        #[test]
        fn split_matches_the_definition(
            block in 1usize..9, share in 0.0f64..1.0, seed in prop::collection::vec(-3.0f32..3.0, 64),
        ) {
            let kept = 1 + (share * block as f64) as usize;
            let kept = kept.min(block);
            let map = &seed[..block * block];
            let (low, high) = split(&BlockDct::new(block, kept).unwrap(), map, (block, block));
            let (low_expected, high_expected) = by_definition(map, block, kept);
            for (got, expected) in low.iter().chain(&high).zip(low_expected.iter().chain(&high_expected)) {
                prop_assert!((f64::from(*got) - expected).abs() < 2e-5, "{got} {expected}");
            }
        }

        #[test]
        fn energy_is_preserved(kept in 1usize..5, map in prop::collection::vec(-3.0f32..3.0, 8 * 12)) {
            let (low, high) = split(&BlockDct::new(4, kept).unwrap(), &map, (8, 12));
            let (parts, whole) = (energy(&low) + energy(&high), energy(&map));
            prop_assert!((parts - whole).abs() <= 1e-5 * whole, "{parts} {whole}");
        }

        /// ⟨split(x), (g, h)⟩ = ⟨x, adjoint(g, h)⟩.
        #[test]
        fn adjoint_is_adjoint(
            kept in 1usize..5,
            map in prop::collection::vec(-3.0f32..3.0, 8 * 12),
            high_gradient in prop::collection::vec(-3.0f32..3.0, 8 * 12),
            gradients in prop::collection::vec(-3.0f32..3.0, 8 * 12),
        ) {
            let dct = BlockDct::new(4, kept).unwrap();
            let (low, high) = split(&dct, &map, (8, 12));
            let low_gradient = &gradients[..low.len()];
            let mut gradient = vec![f32::NAN; map.len()];
            let mut memory = MemBuffer::new(dct.scratch());
            let stack = MemStack::new(&mut memory);
            dct.adjoint(&mut low_gradient.to_vec(), &high_gradient, (8, 12), &mut gradient, stack).unwrap();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let (forward, backward) = (dot(&low, low_gradient) + dot(&high, &high_gradient), dot(&map, &gradient));
            prop_assert!((forward - backward).abs() < 1e-3, "{forward} {backward}");
        }
    }
}
