//! What guards the one crossing: residuals become bits, labels or their gradients what the policy lets out.

use asymflow_privacy::{
    DiscreteGaussian, Gate, InsecureLaplaceSign, InsecureSign, Mechanism, MechanismError, OneBit, PackedBits, Relation,
    Sensitivity, gaussian_sigma, thesis_local_epsilon, thesis_sigma,
};

use super::spec::{DeltaSpec, Variant};
use crate::modes::{ModeError, PrivacyTerms, Sampling, zcdp_sigma};

/// ‖softmax(z) − y‖₂ is at most √2, whatever the logits.
const GRADIENT_NORM: f64 = std::f64::consts::SQRT_2;

impl DeltaSpec {
    /// σ of the noise on residuals; `None` where there is none.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn sigma(&self, terms: &PrivacyTerms, sampling: Sampling) -> Result<Option<f64>, ModeError> {
        let Some(epsilon) = self.epsilon else { return Ok(None) };
        let sensitivity = Sensitivity::of_clipped(self.clip, terms.relation).l2();
        Ok(match self.variant {
            // K releases of one record compose as one release of √K times the sensitivity.
            Variant::Strict => Some(gaussian_sigma(epsilon, terms.delta, sensitivity * (self.views as f64).sqrt())?),
            Variant::Paper => {
                let p = (sampling.batch as f64 / sampling.records.max(1) as f64).min(1.0);
                Some(thesis_sigma(thesis_local_epsilon(epsilon, p)?, terms.delta / p, self.clip)?)
            }
            Variant::ReleasedCode => None,
        })
    }

    /// The gate of residuals: clip, noise, one bit a value (thesis eq 3.6).
    ///
    /// # Errors
    /// Settings out of range.
    pub fn bit_gate(&self, terms: &PrivacyTerms, sampling: Sampling) -> Result<Gate<PackedBits>, ModeError> {
        let mechanism: Box<dyn Mechanism<Output = PackedBits>> = match self.sigma(terms, sampling)? {
            Some(sigma) => Box::new(OneBit::new(sigma)?),
            None => Box::new(InsecureSign),
        };
        Ok(Gate::new(mechanism, Some(self.clip), terms.relation)?)
    }
}

/// The gate of a batch's channel means as the authors' code has it: signs after Laplace noise of scale p·(‖x̄‖₁/b)/ε, both norm and
/// b being those of the batch. No guarantee.
pub(super) fn gate_as_in_code(
    means: &[f32],
    samples: usize,
    epsilon: Option<f64>,
    p: f64,
) -> Result<Gate<PackedBits>, MechanismError> {
    let norm = means.iter().map(|&v| f64::from(v).abs()).sum::<f64>() / samples.max(1) as f64;
    let mechanism: Box<dyn Mechanism<Output = PackedBits>> = match epsilon {
        Some(epsilon) => Box::new(InsecureLaplaceSign::new(p * norm / epsilon)?),
        None => Box::new(InsecureSign),
    };
    Gate::new(mechanism, None, Relation::Remove)
}

/// Label privacy by noise: the gate of g_res = o_res − y, which passes anew every epoch.
#[derive(Clone, Copy, Debug)]
pub struct GradientNoise {
    /// Standard deviation of the noise on the gradient of one record.
    sigma: f64,
    relation: Relation,
}

impl GradientNoise {
    /// Noise with which a record may pass `releases` times for `epsilon` in all.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(epsilon: f64, terms: &PrivacyTerms, releases: usize) -> Result<Self, ModeError> {
        let all = (releases.max(1) as f64).sqrt();
        let sensitivity = Sensitivity::of_clipped(GRADIENT_NORM, terms.relation).l2() * all;
        Ok(Self { sigma: zcdp_sigma(epsilon, terms.delta, sensitivity)?, relation: terms.relation })
    }

    /// The gate of the mean over `samples` records: noise and sensitivity shrink alike, so the loss is that of one record.
    ///
    /// # Errors
    /// Noise too small for its grid.
    pub fn gate(&self, samples: usize) -> Result<Gate<Vec<f32>>, MechanismError> {
        let samples = samples.max(1) as f64;
        let mechanism = DiscreteGaussian::fine(self.sigma / samples)?;
        Gate::new(Box::new(mechanism), Some(GRADIENT_NORM / samples), self.relation)
    }
}
