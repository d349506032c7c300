//! How private batches become released payloads: clip every record, apply the mechanism, encode, account.

use asymflow_privacy::{
    CalibrationError, ClipError, DiscreteGaussian, InsecureFloatNoise, InsecureNone, Loss, Mechanism, MechanismError,
    Payload, Precision, Private, RecordLedger, Relation, ReleaseError, Released, Sensitivity, calibrate_sigma, clip_l2,
    release,
};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::accounting::{self, RecordAccountant};

/// Which mechanism guards what leaves, and its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrivacySpec {
    /// One of [`MECHANISMS`].
    pub mechanism: String,
    /// Standard deviation of the noise on every released value; for all but `insecure_none`.
    pub sigma: Option<f64>,
    /// l2 norm to which every record's release is clipped; without it no ε can be given.
    pub clip: Option<f64>,
    /// Which inputs count as neighbours.
    pub relation: Relation,
    /// δ at which ε is reported.
    pub delta: f64,
    /// The largest ε that any record may lose at that δ; without one only what `delta` promises is held to.
    pub budget_epsilon: Option<f64>,
}

/// Names of mechanisms that release numbers: exact noise, floating-point noise for studies, and none.
pub const MECHANISMS: [&str; 3] = ["discrete_gaussian", "insecure_float_noise", "insecure_none"];

/// Why privacy settings are unusable.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum PrivacySpecError {
    /// No such mechanism.
    #[error("unknown mechanism {0:?}, expected one of {MECHANISMS:?}")]
    Mechanism(String),
    /// A parameter of the mechanism is missing or out of range.
    #[error("{what} must be positive and finite, got {got:?}")]
    Parameter {
        /// Which parameter.
        what: &'static str,
        /// What was given.
        got: Option<f64>,
    },
    /// No randomness from the operating system.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(String),
}

/// Standard deviation of discrete Gaussian noise that costs at most `epsilon` at `delta` for an l2 `sensitivity`, by the
/// conversion from zCDP.
///
/// # Errors
/// Numbers out of range.
pub fn zcdp_sigma(epsilon: f64, delta: f64, sensitivity: f64) -> Result<f64, CalibrationError> {
    calibrate_sigma(epsilon, |sigma| {
        let mut ledger = RecordLedger::default();
        ledger.add(Loss::Zcdp { rho: 0.5 * (sensitivity / sigma).powi(2) });
        ledger.epsilon(delta)
    })
}

/// The door between a private batch and the worker.
#[derive(Debug)]
pub struct Door {
    mechanism: Box<dyn Mechanism<Output = Vec<f32>>>,
    clip: Option<f64>,
    sensitivity: Sensitivity,
    precision: Precision,
    rng: ChaCha20Rng,
}

impl Door {
    /// A door as `spec` says, its randomness seeded by the operating system.
    ///
    /// # Errors
    /// Unknown mechanism, parameters out of range, or no randomness.
    pub fn new(spec: &PrivacySpec, precision: Precision) -> Result<Self, PrivacySpecError> {
        let positive = |what, value: Option<f64>| match value {
            Some(v) if v.is_finite() && v > 0.0 => Ok(v),
            got => Err(PrivacySpecError::Parameter { what, got }),
        };
        let mechanism: Box<dyn Mechanism<Output = Vec<f32>>> = match spec.mechanism.as_str() {
            "insecure_none" => Box::new(InsecureNone),
            name @ ("discrete_gaussian" | "insecure_float_noise") => {
                let sigma = positive("privacy.sigma", spec.sigma)?;
                let refused = |_| PrivacySpecError::Parameter { what: "privacy.sigma", got: spec.sigma };
                if name == "discrete_gaussian" {
                    Box::new(DiscreteGaussian::fine(sigma).map_err(refused)?)
                } else {
                    Box::new(InsecureFloatNoise::new(sigma).map_err(refused)?)
                }
            }
            other => return Err(PrivacySpecError::Mechanism(other.to_owned())),
        };
        if spec.clip.is_some() {
            positive("privacy.clip", spec.clip)?;
        }
        let sensitivity = spec
            .clip
            .map_or(Sensitivity::unbounded(spec.relation), |clip| Sensitivity::of_clipped(clip, spec.relation));
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| PrivacySpecError::Randomness(e.to_string()))?;
        Ok(Self { mechanism, clip: spec.clip, sensitivity, precision, rng: ChaCha20Rng::from_seed(seed) })
    }

    /// Precision of what leaves.
    pub const fn precision(&self) -> Precision {
        self.precision
    }

    /// Loss of one release for each of its records.
    ///
    /// # Errors
    /// A mechanism that is not defined for the sensitivity.
    pub fn loss(&self) -> Result<Loss, MechanismError> {
        self.mechanism.loss(self.sensitivity)
    }

    /// Releases a batch of `samples` records for `layer`; its receipt is absorbed before the data can be sent.
    ///
    /// # Errors
    /// Non-finite values or a mechanism that refuses; then nothing leaves.
    pub fn release(
        &mut self,
        mut batch: Vec<f32>,
        samples: usize,
        layer: &str,
        what: accounting::Released,
        accountant: &mut RecordAccountant,
    ) -> Result<Released<Payload>, ReleaseError> {
        if let Some(clip) = self.clip {
            clip_records(&mut batch, samples, clip).map_err(|error| match error {
                ClipError::NonFinite { index } => ReleaseError::NonFinite { index },
                ClipError::Limit { .. } => MechanismError::Sensitivity { l2: clip }.into(),
            })?;
        }
        let (released, receipt) = release(Private::new(batch), self.sensitivity, &*self.mechanism, &mut self.rng)?;
        accountant.absorb_for(layer, what, receipt);
        Ok(released.encode(self.precision))
    }
}

/// Scales every record with an l2 norm above `clip` down to it; rounding leaves no norm above it.
///
/// # Errors
/// A value that is not finite; then nothing may be released.
pub fn clip_records(batch: &mut [f32], samples: usize, clip: f64) -> Result<(), ClipError> {
    let (record, clip) = (batch.len() / samples.max(1), at_most(clip));
    batch.par_chunks_exact_mut(record.max(1)).try_for_each(|record| clip_l2(record, clip).map(drop))
}

/// The largest f32 that does not exceed `value`, which is positive.
fn at_most(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) > value { nearest.next_down() } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rounding_leaves_a_norm_above_the_bound() {
        for clip in [0.1, 1.0, std::f64::consts::SQRT_2, 1e-3] {
            let mut batch: Vec<f32> = (0..3000).map(|i| (i as f32 * 0.7).sin()).collect();
            clip_records(&mut batch, 3, clip).unwrap();
            for record in batch.chunks(1000) {
                let squares: f64 = record.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
                assert!(squares <= clip * clip, "{squares} above {}", clip * clip);
            }
        }
        assert!(clip_records(&mut [f32::NAN], 1, 1.0).is_err());
    }
}
