//! Membership: whether an image was trained on, by whoever can ask for logits or holds the weights.

use asymflow_engine::EngineError;
use asymflow_engine::loss::softmax_cross_entropy;
use asymflow_zoo::Network;
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

pub use crate::fit::Fit;
use crate::fit::Own;

/// Shadow networks: trained on halves of public data, so that none has seen a target.
#[derive(Debug)]
pub struct Shadows {
    networks: Vec<Own>,
    classes: usize,
}

impl Shadows {
    /// Trains `count` of them as the target was.
    ///
    /// # Errors
    /// A network that cannot be computed.
    pub fn train(
        network: &Network,
        images: &[f32],
        labels: &[u32],
        (count, fit): (usize, Fit),
    ) -> Result<Self, EngineError> {
        let (len, classes) = (network.input.len(), network.classes);
        let mut networks = Vec::with_capacity(count);
        for number in 0..count as u64 {
            let mut rng = ChaCha8Rng::seed_from_u64(fit.seed ^ (number + 1) << 32);
            let half = sample(&mut rng, labels.len(), labels.len() * 4 / 5);
            let chosen: Vec<usize> = half.into_iter().collect();
            let own: Vec<f32> = chosen.iter().flat_map(|&i| &images[i * len..(i + 1) * len]).copied().collect();
            let mut gradient = |outputs: &[f32], numbers: &[usize]| {
                let labels: Vec<u32> = numbers.iter().map(|&i| labels[chosen[i]]).collect();
                let mut d_outputs = vec![0.0; outputs.len()];
                softmax_cross_entropy(outputs, classes, &labels, &mut d_outputs)?;
                Ok(d_outputs)
            };
            networks.push(Own::fitted(network, &own, Fit { seed: fit.seed + 1 + number, ..fit }, &mut gradient)?);
        }
        Ok(Self { networks, classes })
    }

    /// Confidences of all of them in the labels of `images`, network by network.
    ///
    /// # Errors
    /// Images of another shape.
    pub fn confidences(&mut self, images: &[f32], labels: &[u32]) -> Result<Vec<Vec<f64>>, EngineError> {
        let classes = self.classes;
        let of = |own: &mut Own| Ok(confidences(&own.outputs(images)?, labels, classes));
        self.networks.iter_mut().map(of).collect()
    }
}

/// ln(p/(1 − p)) of the labels' probabilities.
pub fn confidences(logits: &[f32], labels: &[u32], classes: usize) -> Vec<f64> {
    let of = |(row, &label): (&[f32], &u32)| {
        let label = label as usize;
        let others = row.iter().enumerate().filter(|(class, _)| *class != label).map(|(_, &z)| f64::from(z));
        let most = others.clone().fold(f64::NEG_INFINITY, f64::max);
        f64::from(row[label]) - most - others.map(|z| (z - most).exp()).sum::<f64>().ln()
    };
    logits.chunks_exact(classes.max(1)).zip(labels).map(of).collect()
}

/// Scores of the offline attack of Carlini and others (2022): how far the target's confidence lies above those of networks that have not
/// seen the image, in standard deviations, which all images share because there are few networks.
pub fn lira(target: &[f64], shadows: &[Vec<f64>]) -> Vec<f64> {
    let n = shadows.len().max(1) as f64;
    let mean = |i: usize| shadows.iter().map(|shadow| shadow[i]).sum::<f64>() / n;
    let means: Vec<f64> = (0..target.len()).map(mean).collect();
    let squares = shadows.iter().flat_map(|shadow| shadow.iter().zip(&means)).map(|(s, mean)| (s - mean).powi(2));
    let variance = squares.sum::<f64>() / ((n - 1.0).max(1.0) * target.len().max(1) as f64);
    target.iter().zip(&means).map(|(t, mean)| (t - mean) / variance.sqrt().max(1e-9)).collect()
}

/// Scores of the offline attack of Zarifzadeh, Liu and Shokri (2024): the share of `population` that the image's likelihood ratio exceeds.
/// Confidences of both are of the target first, then of the shadows.
pub fn rmia(target: &[f64], shadows: &[Vec<f64>], population: (&[f64], &[Vec<f64>])) -> Vec<f64> {
    let (ours, theirs) = (ratios(target, shadows), ratios(population.0, population.1));
    let mut sorted = theirs;
    sorted.sort_unstable_by(f64::total_cmp);
    ours.iter().map(|ratio| sorted.partition_point(|z| z <= ratio) as f64 / sorted.len().max(1) as f64).collect()
}

/// p(x | target) / p(x), the latter from networks that have not seen x as the authors correct it, with a = 0.3.
fn ratios(target: &[f64], shadows: &[Vec<f64>]) -> Vec<f64> {
    const A: f64 = 0.3;
    let p = |confidence: f64| 1.0 / (1.0 + (-confidence).exp());
    let mean = |i: usize| shadows.iter().map(|shadow| p(shadow[i])).sum::<f64>() / shadows.len().max(1) as f64;
    let of = |(i, &t): (usize, &f64)| p(t) / (0.5 * ((1.0 + A) * mean(i) + (1.0 - A)));
    target.iter().enumerate().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confidences_are_log_odds() {
        let logits = [1.0_f32, 2.0, 0.5];
        let p = f64::exp(2.0) / (f64::exp(1.0) + f64::exp(2.0) + f64::exp(0.5));
        assert!((confidences(&logits, &[1], 3)[0] - (p / (1.0 - p)).ln()).abs() < 1e-9);
    }
}
