//! The one crossing: residuals become bits, labels become what the policy lets out.

use asymflow_privacy::{
    CalibrationError, ClipError, InsecureLaplaceSign, InsecureNone, InsecureSign, LabelError, Loss, Mechanism,
    MechanismError, OneBit, PackedBits, Private, RandomisedResponse, Receipt, Relation, ReleaseError, Released,
    Sensitivity, disclose_labels, gaussian_sigma, release, release_labels, thesis_local_epsilon, thesis_sigma,
};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::spec::{DeltaSpec, Labels, Variant};
use crate::release::clip_records;

/// Why a door could not be made, or what it refused. Then nothing left.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum DoorError {
    /// No noise is known for these settings.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// A mechanism's parameters are out of range.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// A residual could not be clipped.
    #[error(transparent)]
    Clip(#[from] ClipError),
    /// The release was refused.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// Labels that are none.
    #[error(transparent)]
    Labels(#[from] LabelError),
    /// No randomness from the operating system.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(String),
    /// A record's bits do not fill whole bytes.
    #[error("{values} values a record do not fill whole bytes")]
    Bytes {
        /// Values of a record.
        values: usize,
    },
    /// A checkpoint's record of what was released cannot be read.
    #[error("what was released before cannot be read from the checkpoint, and is not drawn anew")]
    Cache,
    /// A number must be positive.
    #[error("{what} must be positive and finite, got {got}")]
    Parameter {
        /// Which.
        what: &'static str,
        /// What was given.
        got: f64,
    },
}

/// Clips, noises and quantises residuals (thesis eq 3.6), and releases labels.
#[derive(Debug)]
pub struct BitDoor {
    mechanism: Box<dyn Mechanism<Output = PackedBits>>,
    clip: f64,
    sensitivity: Sensitivity,
    sigma: Option<f64>,
    rng: ChaCha20Rng,
}

/// Labels that have left, and what that cost each record.
pub type ReleasedLabels = (Released<Vec<u32>>, Receipt);

/// What the thesis' formulas take beside the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampling {
    /// Samples in a batch.
    pub batch: usize,
    /// Records in the training set.
    pub records: usize,
}

/// σ of the noise for `spec`; `None` where there is none.
fn sigma(spec: &DeltaSpec, relation: Relation, delta: f64, sampling: Sampling) -> Result<Option<f64>, DoorError> {
    let Some(epsilon) = spec.epsilon else { return Ok(None) };
    let sensitivity = Sensitivity::of_clipped(spec.clip, relation).l2();
    Ok(Some(match spec.variant {
        // K releases of one record compose as one release of √K times the sensitivity.
        Variant::Strict => gaussian_sigma(epsilon, delta, sensitivity * (spec.views as f64).sqrt())?,
        Variant::Paper => {
            let p = (sampling.batch as f64 / sampling.records.max(1) as f64).min(1.0);
            thesis_sigma(thesis_local_epsilon(epsilon, p)?, delta / p, spec.clip)?
        }
        Variant::ReleasedCode => return Ok(None),
    }))
}

impl BitDoor {
    /// A door as `spec` says, its randomness seeded by the operating system.
    ///
    /// # Errors
    /// Settings out of range, or no randomness.
    pub fn new(spec: &DeltaSpec, relation: Relation, delta: f64, sampling: Sampling) -> Result<Self, DoorError> {
        if !(spec.clip.is_finite() && spec.clip > 0.0) {
            return Err(DoorError::Parameter { what: "delta.clip", got: spec.clip });
        }
        let sigma = sigma(spec, relation, delta, sampling)?;
        let mechanism: Box<dyn Mechanism<Output = PackedBits>> = match sigma {
            Some(sigma) => Box::new(OneBit::new(sigma)?),
            None => Box::new(InsecureSign),
        };
        let sensitivity = Sensitivity::of_clipped(spec.clip, relation);
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| DoorError::Randomness(e.to_string()))?;
        let rng = ChaCha20Rng::from_seed(seed);
        Ok(Self { mechanism, clip: spec.clip, sensitivity, sigma, rng })
    }

    /// Standard deviation of the noise; `None` without any.
    pub const fn sigma(&self) -> Option<f64> {
        self.sigma
    }

    /// Loss of one release for each of its records.
    ///
    /// # Errors
    /// A mechanism that is not defined for the sensitivity.
    pub fn loss(&self) -> Result<Loss, DoorError> {
        Ok(self.mechanism.loss(self.sensitivity)?)
    }

    /// Releases the residuals of a batch of `samples` records.
    ///
    /// # Errors
    /// Values that are not finite; then nothing leaves.
    pub fn release(
        &mut self,
        mut residuals: Vec<f32>,
        samples: usize,
    ) -> Result<(Released<PackedBits>, Receipt), DoorError> {
        clip_records(&mut residuals, samples, self.clip)?;
        Ok(release(Private::new(residuals), self.sensitivity, &*self.mechanism, &mut self.rng)?)
    }

    /// Releases the channel means of a batch of `samples` residuals as the authors' code does: signs after Laplace noise of
    /// scale p·(‖x̄‖₁/b)/ε, both norm and b being those of the batch. No guarantee.
    ///
    /// # Errors
    /// Values that are not finite, or all zero; then nothing leaves.
    pub fn release_as_in_code(
        &mut self,
        means: Vec<f32>,
        samples: usize,
        epsilon: Option<f64>,
        p: f64,
    ) -> Result<(Released<PackedBits>, Receipt), DoorError> {
        let sensitivity = Sensitivity::unbounded(self.sensitivity.relation());
        let norm = means.iter().map(|&v| f64::from(v).abs()).sum::<f64>() / samples.max(1) as f64;
        let means = Private::new(means);
        Ok(match epsilon {
            Some(epsilon) => {
                let mechanism = InsecureLaplaceSign::new(p * norm / epsilon)?;
                release(means, sensitivity, &mechanism, &mut self.rng)?
            }
            None => release(means, sensitivity, &InsecureSign, &mut self.rng)?,
        })
    }

    /// Releases the gradient of a batch's logits as it is. No guarantee.
    ///
    /// # Errors
    /// Values that are not finite; then nothing leaves.
    pub fn release_gradient_in_clear(
        &mut self,
        gradient: Vec<f32>,
    ) -> Result<(Released<Vec<f32>>, Receipt), DoorError> {
        let sensitivity = Sensitivity::unbounded(self.sensitivity.relation());
        Ok(release(Private::new(gradient), sensitivity, &InsecureNone, &mut self.rng)?)
    }

    /// Releases labels by a policy under which the worker holds labels; `None` where it holds none.
    ///
    /// # Errors
    /// A policy out of range or a label beyond `classes`; then nothing leaves.
    pub fn release_labels(
        &mut self,
        labels: Vec<u32>,
        classes: usize,
        policy: Labels,
    ) -> Result<Option<ReleasedLabels>, DoorError> {
        Ok(match policy {
            Labels::Public => Some(disclose_labels(labels)),
            Labels::RandomisedResponse { epsilon } => {
                let response = RandomisedResponse::new(classes as u32, epsilon)?;
                Some(release_labels(Private::new(labels), &response, &mut self.rng)?)
            }
            Labels::NoisyGradient { .. } => None,
        })
    }
}
