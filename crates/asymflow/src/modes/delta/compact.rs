//! What a compact release is made from: statistics of the residual's channels, projected to what tells classes apart; and the gate on
//! what comes back.

use asymflow_zoo::Weights;
use asymflow_zoo::models::delta::{CompactShape, DeltaShape};
use asymflow_zoo::network::Shape;
use faer::prelude::*;
use faer::{Mat, Side};
use rayon::prelude::*;

use super::spec::Codebook;
use crate::modes::ExecError;

/// Part by which covariances are shrunk, so that few records do not make up directions.
const SHRINKAGE: f64 = 0.02;

/// The projection and the gate of one run.
///
/// The projection is linear discriminant analysis of the pooled residuals, fitted to the training records without noise at the
/// end of stage 1: what it tells of them is taken as given, as the backbone is.
#[derive(Debug)]
pub(super) struct Compact {
    features: Shape,
    codebook: Codebook,
    values: usize,
    /// Projection, row-major and followed by its offsets, and the gate.
    flat: Vec<f32>,
}

/// Sums over the pooled residuals of records of known classes.
#[derive(Debug)]
pub(super) struct Scatter {
    counts: Vec<f64>,
    /// Classes × pooled values.
    sums: Mat<f64>,
    products: Mat<f64>,
}

impl Scatter {
    pub(super) fn new(classes: usize, pooled: usize) -> Self {
        Self { counts: vec![0.0; classes], sums: Mat::zeros(classes, pooled), products: Mat::zeros(pooled, pooled) }
    }

    pub(super) fn add(&mut self, pooled: &[f32], labels: &[u32]) {
        let width = self.sums.ncols();
        let rows = Mat::from_fn(labels.len(), width, |i, j| f64::from(pooled[i * width + j]));
        self.products += rows.transpose() * &rows;
        for (row, &label) in rows.row_iter().zip(labels) {
            self.counts[label as usize] += 1.0;
            let mut sum = self.sums.row_mut(label as usize);
            sum += row;
        }
    }
}

impl Compact {
    /// With what `weights` have for it.
    pub(super) fn new(shape: &DeltaShape, features: Shape, codebook: Codebook, weights: &Weights) -> Option<Self> {
        let CompactShape { values, .. } = shape.compact?;
        let names = ["compact.projection.weight", "compact.projection.bias", "compact.gate.weight"];
        let flat = names.iter().filter_map(|name| weights.tensors.get(*name)).flat_map(|tensor| tensor.data.clone());
        Some(Self { features, codebook, values, flat: flat.collect() })
    }

    /// Parameters, as the list of all layers has them.
    pub(super) fn flat(&self) -> &[f32] {
        &self.flat
    }

    pub(super) fn set_flat(&mut self, flat: &[f32]) {
        self.flat.copy_from_slice(flat);
    }

    pub(super) fn scatter(&self, classes: usize) -> Scatter {
        Scatter::new(classes, CompactShape::pooled(self.features))
    }

    /// What [`CompactShape::STATISTICS`] says of every channel in every cell of a grid. A residual has hardly a mean, but texture.
    pub(super) fn pool(&self, residual: &[f32]) -> Vec<f32> {
        let Shape { height, width, .. } = self.features;
        let side = CompactShape::grid(self.features);
        let (rows, columns) = (height / side, width / side);
        let channel = |map: &[f32]| {
            let mut cells = vec![[0.0_f32; CompactShape::STATISTICS]; side * side];
            for y in 0..height {
                let row = &map[y * width..(y + 1) * width];
                let below = map.get((y + 1) * width..(y + 2) * width);
                for (x, &value) in row.iter().enumerate() {
                    let sums = &mut cells[y / rows * side + x / columns];
                    let right = row.get(x + 1).map_or(0.0, |right| value * right);
                    let under = below.map_or(0.0, |below| value * below[x]);
                    let left = below.filter(|_| x > 0).map_or(0.0, |below| (value - below[x - 1]).abs());
                    let statistics = [value, value.abs(), value * value, right, under, left];
                    sums.iter_mut().zip(statistics).for_each(|(sum, value)| *sum += value);
                }
            }
            let scale = 1.0 / (rows * columns) as f32;
            cells.into_iter().flatten().map(move |sum| sum * scale)
        };
        residual.par_chunks_exact(self.features.pixels()).flat_map_iter(channel).collect()
    }

    /// What the mechanism is given of each residual.
    pub(super) fn project(&self, residual: &[f32]) -> Vec<f32> {
        let (pooled, width) = (self.pool(residual), CompactShape::pooled(self.features));
        let (weight, rest) = self.flat.split_at(self.values * width);
        let one = |record: &[f32]| {
            let row = |(row, offset): (&[f32], &f32)| offset + row.iter().zip(record).map(|(w, x)| w * x).sum::<f32>();
            weight.chunks_exact(width).zip(rest).map(row).collect::<Vec<f32>>()
        };
        pooled.chunks_exact(width).flat_map(one).collect()
    }

    /// Fits the projection. With class means M, centred, and the covariance Σ within classes, rows are M·Σ⁻¹ and their offsets
    /// those of equal priors (linear discriminants); or the directions of M in the metric Σ⁻¹, most first.
    ///
    /// # Errors
    /// Features that are all constant.
    pub(super) fn fit(&mut self, scatter: &Scatter) -> Result<(), ExecError> {
        let Scatter { counts, sums, products } = scatter;
        let (classes, width) = (counts.len(), sums.ncols());
        let all: f64 = counts.iter().sum();
        let means = Mat::from_fn(classes, width, |i, j| sums[(i, j)] / counts[i].max(1.0));
        let within = Mat::from_fn(width, width, |i, j| {
            let between: f64 = (0..classes).map(|c| counts[c] * means[(c, i)] * means[(c, j)]).sum();
            (products[(i, j)] - between) / all
        });
        // Values differ in scale, so covariances shrink and variances stay; those of a constant are not told apart from others.
        let least = (0..width).map(|i| within[(i, i)]).fold(0.0, f64::max) * 1e-9;
        let within = Mat::from_fn(width, width, |i, j| {
            if i == j { within[(i, i)].max(least) } else { within[(i, j)] * (1.0 - SHRINKAGE) }
        });
        let centre: Vec<f64> =
            (0..width).map(|j| (0..classes).map(|c| means[(c, j)]).sum::<f64>() / classes as f64).collect();
        let centred = Mat::from_fn(classes, width, |i, j| means[(i, j)] - centre[j]);
        let unfit = |_| ExecError::Unfit { what: "pooled residuals that do not vary" };
        let solved = within.llt(Side::Lower).map_err(unfit)?.solve(centred.transpose());
        let discriminants = solved.transpose().to_owned();
        let gram = &discriminants * centred.transpose();
        let rows = match self.codebook {
            Codebook::Classes => discriminants,
            Codebook::Sphere => {
                let unfit = |_| ExecError::Unfit { what: "pooled residuals that do not vary" };
                let evd = gram.self_adjoint_eigen(Side::Lower).map_err(unfit)?;
                let (vectors, lengths) = (evd.U(), evd.S().column_vector());
                let turned = Mat::from_fn(self.values, classes, |i, c| {
                    let at = (classes - 1).saturating_sub(i);
                    vectors[(c, at)] / lengths[at].max(1e-12).sqrt()
                });
                turned * discriminants
            }
        };
        let offset = |i: usize| {
            let shift: f64 = (0..width).map(|j| rows[(i, j)] * centre[j]).sum();
            -shift - if self.codebook == Codebook::Classes { 0.5 * gram[(i, i)] } else { 0.0 }
        };
        let gate = self.gate();
        let fitted = (0..self.values).flat_map(|i| (0..width).map(move |j| (i, j))).map(|at| rows[at] as f32);
        self.flat = fitted.chain((0..self.values).map(|i| offset(i) as f32)).chain([gate]).collect();
        Ok(())
    }

    /// What M_res' logits count for.
    pub(super) fn gate(&self) -> f32 {
        self.flat.last().copied().unwrap_or_default()
    }

    /// A step of the gate along the gradient of the loss at the sum of logits. It does not go below nothing.
    pub(super) fn step_gate(&mut self, d_logits: &[f32], from_worker: &[f32], learning_rate: f32) {
        let gradient: f32 = d_logits.iter().zip(from_worker).map(|(d, z)| d * z).sum();
        if let Some(gate) = self.flat.last_mut() {
            *gate = (*gate - learning_rate * gradient).max(0.0);
        }
    }
}

/// Adds `gate` times M_res' logits.
pub(super) fn add_gated(logits: &mut [f32], from_worker: &[f32], gate: f32) {
    logits.iter_mut().zip(from_worker).for_each(|(logit, z)| *logit += gate * z);
}

#[cfg(test)]
mod tests {
    use asymflow_zoo::by_name;
    use asymflow_zoo::models::delta::delta;

    use super::*;

    fn of(codebook: Codebook) -> (Compact, usize) {
        let network = by_name("resnet8-cifar", 3, None).unwrap();
        let shape = DeltaShape { compact: Some(codebook.shape(3)), ..DeltaShape::published(&network).unwrap() };
        let networks = delta(&network, &shape).unwrap();
        let weights = Weights::init(&networks.all_layers(true), 1);
        let compact = Compact::new(&shape, networks.features, codebook, &weights).unwrap();
        (compact, networks.features.len())
    }

    /// Residuals of class c: alternating signs, of a magnitude and a mean that depend on the class and the channel.
    fn residual(class: usize, record: usize, len: usize) -> Vec<f32> {
        let value = |i: usize| {
            let (channel, noise) = (i / 1024, ((i * 7919 + record * 104_729) % 1000) as f32 / 1000.0 - 0.5);
            let sign = if i.is_multiple_of(2) { 1.0 } else { -1.0 };
            sign * (1.0 + if channel % 3 == class { 0.3 } else { 0.0 }) + noise + 0.01 * ((record * channel) % 7) as f32
        };
        (0..len).map(value).collect()
    }

    #[test]
    fn pooling_takes_six_statistics_of_a_cell() {
        let (compact, len) = of(Codebook::Classes);
        let record: Vec<f32> = (0..len).map(|i| if i % 32 < 16 { 2.0 } else { -1.0 }).collect();
        let pooled = compact.pool(&record);
        assert_eq!(pooled.len(), 6 * 16 * 4);
        // Of 16 columns: each has a neighbour to the right, of which the last is of the other cell, or none.
        let right = (15.0 * 4.0 - 2.0) / 16.0;
        assert_eq!(pooled[..6], [2.0, 2.0, 4.0, right, 4.0, 0.0]);
        let down_left = 3.0 / 16.0;
        assert_eq!(pooled[6..12], [-1.0, 1.0, 1.0, 15.0 / 16.0, 1.0, down_left]);
        // The lowest row has none below it.
        assert_eq!(pooled[12..18], [2.0, 2.0, 4.0, right, 4.0 * 15.0 / 16.0, 0.0]);
    }

    #[test]
    fn a_fitted_projection_tells_classes_apart_that_it_was_not_fitted_to() {
        for codebook in [Codebook::Classes, Codebook::Sphere] {
            let (mut compact, len) = of(codebook);
            let mut scatter = compact.scatter(3);
            for record in 0..60 {
                scatter.add(&compact.pool(&residual(record % 3, record, len)), &[(record % 3) as u32]);
            }
            let gate = compact.gate();
            compact.fit(&scatter).unwrap();
            assert_eq!(compact.gate(), gate);
            let projected = |record: usize| compact.project(&residual(record % 3, record, len));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            for record in 60..90 {
                let values = projected(record);
                match codebook {
                    Codebook::Classes => {
                        let best = (0..3).max_by(|&a, &b| values[a].total_cmp(&values[b]));
                        assert_eq!(best, Some(record % 3));
                    }
                    Codebook::Sphere => {
                        let near = |class: usize| dot(&values, &projected(class));
                        assert!((0..3).all(|class| near(class) <= near(record % 3) + 1e-3), "record {record}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_gate_descends_along_its_gradient_and_stops_at_nothing() {
        let (mut compact, _) = of(Codebook::Classes);
        let before = compact.gate();
        compact.step_gate(&[0.5, -0.5], &[1.0, -2.0], 0.1);
        assert!((compact.gate() - (before - 0.15)).abs() < 1e-6);
        compact.step_gate(&[0.5, -0.5], &[1.0, -2.0], 10.0);
        assert_eq!(compact.gate(), 0.0);
        let mut logits = [1.0, 2.0];
        add_gated(&mut logits, &[4.0, 8.0], 0.25);
        assert_eq!(logits, [2.0, 4.0]);
    }
}
