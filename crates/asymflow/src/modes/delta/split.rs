//! M_bb's features in two: a low-rank, low-frequency part and the residual (thesis eq 3.1 to 3.5).

use asymflow_engine::local::Scratch;
use asymflow_linalg::dct::{BlockDct, DctError};
use asymflow_linalg::{
    Decomposer, LowRank,
    decompose::{BatchShape, DecomposeError},
};
use asymflow_zoo::models::delta::{DeltaNetworks, DeltaShape};
use asymflow_zoo::network::Shape;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use thiserror::Error;

/// Why features could not be split.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SplitError {
    /// The decomposition failed.
    #[error(transparent)]
    Decompose(#[from] DecomposeError),
    /// The features are not made of whole blocks.
    #[error(transparent)]
    Dct(#[from] DctError),
}

/// Splits batches of features.
///
/// With X = A·V + X_SVDres of rank r, and V_lf, V_high the low and high part of each principal channel under the block
/// DCT: IR_main = A·V_lf, on a map smaller by t'/t, and IR_res = X_SVDres + A·V_high.
#[derive(Debug)]
pub struct FeatureSplit {
    features: Shape,
    low: Shape,
    rank: usize,
    dct: BlockDct,
    decomposer: Box<dyn Decomposer>,
    low_rank: LowRank,
    scratch: Scratch,
    par: Par,
}

impl FeatureSplit {
    /// A splitter for the features of `networks` on the threads of `par`.
    ///
    /// # Errors
    /// The features are not made of whole blocks.
    pub fn new(
        networks: &DeltaNetworks,
        shape: &DeltaShape,
        decomposer: Box<dyn Decomposer>,
        par: Par,
    ) -> Result<Self, SplitError> {
        let dct = BlockDct::new(shape.block, shape.kept)?;
        let DeltaNetworks { features, low, .. } = *networks;
        dct.low_len(features.height, features.width)?;
        let (low_rank, scratch) = (LowRank::default(), Scratch::default());
        Ok(Self { features, low, rank: shape.rank, dct, decomposer, low_rank, scratch, par })
    }

    /// Splits `x` (samples × features) into `main` (samples × low) and `residual` (samples × features).
    ///
    /// # Errors
    /// Values that are not finite, or slices of the wrong length.
    pub fn split(&mut self, x: &[f32], main: &mut [f32], residual: &mut [f32]) -> Result<(), SplitError> {
        let (features, low, rank) = (self.features, self.low, self.rank);
        let samples = x.len() / features.len();
        let shape = BatchShape { samples, channels: features.channels, pixels: features.pixels() };
        let stack = self.scratch.stack(self.decomposer.scratch(shape, rank, self.par));
        self.decomposer.decompose(x, shape, rank, &mut self.low_rank, residual, self.par, stack)?;
        let (low_rank, dct) = (&self.low_rank, &self.dct);
        let a_len = features.channels * rank;
        let one = |((sample, main), residual): ((usize, &mut [f32]), &mut [f32])| {
            let at = if low_rank.shared { 0 } else { sample * a_len };
            let a = MatRef::from_row_major_slice(&low_rank.coefficients[at..at + a_len], features.channels, rank);
            let principal = &low_rank.principal[sample * rank * features.pixels()..][..rank * features.pixels()];
            let (mut v_low, mut v_high) = (vec![0.0; rank * low.pixels()], vec![0.0; principal.len()]);
            let mut memory = MemBuffer::new(dct.scratch());
            let maps = principal.chunks_exact(features.pixels()).zip(v_low.chunks_exact_mut(low.pixels()));
            for ((map, v_low), v_high) in maps.zip(v_high.chunks_exact_mut(features.pixels())) {
                dct.split(map, (features.height, features.width), v_low, v_high, MemStack::new(&mut memory))?;
            }
            let v_low = MatRef::from_row_major_slice(&v_low, rank, low.pixels());
            let v_high = MatRef::from_row_major_slice(&v_high, rank, features.pixels());
            let main = MatMut::from_row_major_slice_mut(main, features.channels, low.pixels());
            matmul(main, Accum::Replace, a, v_low, 1.0, Par::Seq);
            let residual = MatMut::from_row_major_slice_mut(residual, features.channels, features.pixels());
            matmul(residual, Accum::Add, a, v_high, 1.0, Par::Seq);
            Ok(())
        };
        main.par_chunks_exact_mut(low.len())
            .enumerate()
            .zip(residual.par_chunks_exact_mut(features.len()))
            .try_for_each(one)
    }

    /// Gradient at the features from that at IR_main: the adjoint of the block DCT, channel by channel. The
    /// decomposition passes gradients straight through, as the thesis does.
    ///
    /// # Errors
    /// Slices of the wrong length.
    pub fn adjoint(&self, mut d_main: Vec<f32>, dx: &mut [f32]) -> Result<(), SplitError> {
        let (features, low) = (self.features, self.low);
        let none = vec![0.0; features.pixels()];
        let one = |(low, full): (&mut [f32], &mut [f32])| {
            let mut memory = MemBuffer::new(self.dct.scratch());
            let side = (features.height, features.width);
            self.dct.adjoint(low, &none, side, full, MemStack::new(&mut memory)).map_err(SplitError::from)
        };
        d_main.par_chunks_exact_mut(low.pixels()).zip(dx.par_chunks_exact_mut(features.pixels())).try_for_each(one)
    }
}

#[cfg(test)]
mod tests {
    use asymflow_linalg::decompose::by_name;
    use asymflow_zoo::by_name as network;
    use asymflow_zoo::models::delta::delta;
    use proptest::prelude::*;

    use super::*;

    fn splitter(decomposition: &str) -> FeatureSplit {
        let network = network("resnet8-cifar", 10, None).unwrap();
        let shape = DeltaShape::published(&network).unwrap();
        let networks = delta(&network, &shape).unwrap();
        FeatureSplit::new(&networks, &shape, by_name(decomposition).unwrap(), Par::Seq).unwrap()
    }

    fn energy(values: &[f32]) -> f64 {
        values.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
    }

    fn wave(len: usize, seed: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.37 + seed).sin() + 0.3 * (i as f32 * 1.13 * seed).cos()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        // The low-rank part, its low and its high frequencies are orthogonal to one another and to the rest.
        #[test]
        fn energy_is_kept(seed in 0.1f32..9.0, samples in 1usize..4) {
            for name in ["exact-svd", "gram"] {
                let mut split = splitter(name);
                let x = wave(samples * split.features.len(), seed);
                let (mut main, mut residual) = (vec![0.0; samples * split.low.len()], vec![0.0; x.len()]);
                split.split(&x, &mut main, &mut residual).unwrap();
                let (whole, parts) = (energy(&x), energy(&main) + energy(&residual));
                prop_assert!((whole - parts).abs() < 1e-4 * whole, "{name}: {whole} against {parts}");
            }
        }

        // ⟨split_main(x), g⟩ = ⟨x, adjoint(g)⟩ where the rank is not cut, so that the split is linear.
        #[test]
        fn the_adjoint_is_one(seed in 0.1f32..9.0) {
            let mut split = splitter("exact-svd");
            split.rank = split.features.channels;
            let x = wave(split.features.len(), seed);
            let g = wave(split.low.len(), seed + 1.0);
            let (mut main, mut residual) = (vec![0.0; g.len()], vec![0.0; x.len()]);
            split.split(&x, &mut main, &mut residual).unwrap();
            let mut dx = vec![0.0; x.len()];
            split.adjoint(g.clone(), &mut dx).unwrap();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            let (left, right) = (dot(&main, &g), dot(&x, &dx));
            let scale = (energy(&x) * energy(&g)).sqrt();
            prop_assert!((left - right).abs() < 1e-4 * scale, "{left} against {right} of {scale}");
        }
    }

    #[test]
    fn a_constant_gains_the_ratio_of_the_blocks() {
        // No rescaling: a constant 3 becomes 6 for 16 → 8, and nothing is left over.
        let mut split = splitter("exact-svd");
        let x = vec![3.0; split.features.len()];
        let (mut main, mut residual) = (vec![0.0; split.low.len()], vec![0.0; x.len()]);
        split.split(&x, &mut main, &mut residual).unwrap();
        assert!(main.iter().all(|v| (v - 6.0).abs() < 1e-3));
        assert!(residual.iter().all(|v| v.abs() < 1e-3));
    }

    #[test]
    fn a_nan_is_refused() {
        let mut split = splitter("gram");
        let mut x = wave(split.features.len(), 1.0);
        x[7] = f32::NAN;
        let (mut main, mut residual) = (vec![0.0; split.low.len()], vec![0.0; x.len()]);
        let error = split.split(&x, &mut main, &mut residual).unwrap_err();
        assert_eq!(error, SplitError::Decompose(DecomposeError::NonFinite { index: 7 }));
    }
}
