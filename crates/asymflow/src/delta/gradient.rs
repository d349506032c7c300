//! Label privacy by noise: the gradient of M_res' logits, released anew every epoch.

use asymflow_privacy::{DiscreteGaussian, Loss, Mechanism, Private, Receipt, Relation, Released, Sensitivity, release};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

use super::door::DoorError;
use crate::release::{clip_records, zcdp_sigma};

/// ‖softmax(z) − y‖₂ is at most √2, whatever the logits.
const NORM: f64 = std::f64::consts::SQRT_2;

/// Releases g_res = o_res − y with discrete Gaussian noise.
#[derive(Debug)]
pub struct GradientDoor {
    /// Standard deviation of the noise on the gradient of one record.
    sigma: f64,
    relation: Relation,
    rng: ChaCha20Rng,
}

impl GradientDoor {
    /// A door by which a record may pass `releases` times for `epsilon` in all, at `delta`.
    ///
    /// # Errors
    /// Settings out of range, or no randomness.
    pub fn new(epsilon: f64, delta: f64, relation: Relation, releases: usize) -> Result<Self, DoorError> {
        let all = (releases.max(1) as f64).sqrt();
        let sigma = zcdp_sigma(epsilon, delta, Sensitivity::of_clipped(NORM, relation).l2() * all)?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| DoorError::Randomness(e.to_string()))?;
        Ok(Self { sigma, relation, rng: ChaCha20Rng::from_seed(seed) })
    }

    /// Mechanism and sensitivity of the mean over `samples` records: both shrink alike, so the loss is that of one record.
    fn mechanism(&self, samples: usize) -> Result<(DiscreteGaussian, Sensitivity), DoorError> {
        let samples = samples.max(1) as f64;
        let mechanism = DiscreteGaussian::fine(self.sigma / samples)?;
        Ok((mechanism, Sensitivity::of_clipped(NORM / samples, self.relation)))
    }

    /// Loss of one release for each of its `samples` records.
    ///
    /// # Errors
    /// A mechanism that is not defined for the sensitivity.
    pub fn loss(&self, samples: usize) -> Result<Loss, DoorError> {
        let (mechanism, sensitivity) = self.mechanism(samples)?;
        Ok(mechanism.loss(sensitivity)?)
    }

    /// Releases the gradient of the mean cross-entropy of a batch.
    ///
    /// # Errors
    /// Logits that are not finite; then nothing leaves.
    pub fn release(
        &mut self,
        logits: &[f32],
        classes: usize,
        labels: &[u32],
    ) -> Result<(Released<Vec<f32>>, Receipt), DoorError> {
        let mut gradient = vec![0.0; logits.len()];
        asymflow_engine::ops::softmax_cross_entropy(logits, classes, labels, &mut gradient);
        let (mechanism, sensitivity) = self.mechanism(labels.len())?;
        // Rounding may have left a row a little above its bound.
        clip_records(&mut gradient, labels.len(), NORM / labels.len().max(1) as f64)?;
        Ok(release(Private::new(gradient), sensitivity, &mechanism, &mut self.rng)?)
    }
}
