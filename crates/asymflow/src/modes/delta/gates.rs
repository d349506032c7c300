//! What guards the one crossing: residuals become bits, labels or their gradients what the policy lets out.

use asymflow_privacy::{
    accountants::{Relation, Sensitivity},
    calibration::{calibrate_losses, gaussian_sigma, thesis_local_epsilon, thesis_sigma},
    door::Gate,
    mechanisms::{DiscreteGaussian, InsecureLaplaceSign, InsecureSign, Mechanism, MechanismError, OneBit},
    payload::PackedBits,
};

use super::spec::{Codebook, DeltaSpec, Feed, Labels, Variant};
use crate::modes::{ModeError, PrivacyTerms, Sampling};

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
            Variant::Compact | Variant::ReleasedCode => None,
        })
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

/// The noise on everything that is released of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// σ on residuals; none where they carry no noise.
    pub bits: Option<f64>,
    /// σ on the gradient g_res = o_res − y of one record, which passes anew every epoch; none where labels are released otherwise.
    pub gradient: Option<f64>,
    clip: f64,
    relation: Relation,
    codewords: Option<CodewordNoise>,
}

/// The mechanism of a compact release.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CodewordNoise {
    codebook: Codebook,
    values: usize,
    /// ε of one view of a record; none without noise.
    epsilon: Option<f64>,
}

impl CodewordNoise {
    fn of(spec: &DeltaSpec) -> Option<Self> {
        let shape = spec.shape.compact.filter(|_| spec.variant == Variant::Compact)?;
        // A uniform word in place of the record's is what no ε at all gives.
        let epsilon = if spec.feed == Feed::Null { Some(f64::MIN_POSITIVE) } else { spec.epsilon };
        let epsilon = epsilon.map(|epsilon| (epsilon / spec.views as f64).max(f64::MIN_POSITIVE));
        Some(Self { codebook: spec.codebook, values: shape.values, epsilon })
    }
}

impl Noise {
    /// The noise of `spec` over so many epochs of stage 2. What variant `strict` promises of residuals and gradients together is
    /// calibrated with the ledger that will judge it: where both, each calibrated alone, would exceed their sum, both get more.
    ///
    /// # Errors
    /// Settings out of range, or a promise that no noise keeps.
    pub fn of(
        spec: &DeltaSpec,
        terms: &PrivacyTerms,
        sampling: Sampling,
        stage2_epochs: usize,
    ) -> Result<Self, ModeError> {
        let (clip, relation) = (spec.clip, terms.relation);
        let codewords = CodewordNoise::of(spec);
        let mut noise = Self { bits: spec.sigma(terms, sampling)?, gradient: None, clip, relation, codewords };
        let (Labels::NoisyGradient { epsilon }, true) = (spec.labels, stage2_epochs > 0) else { return Ok(noise) };
        let gradient = calibrate_losses(epsilon, terms.delta, |sigma| {
            let loss = Self { gradient: Some(sigma), ..noise }.gradient_gate(1)?.loss()?;
            Ok(vec![loss; stage2_epochs])
        })?;
        noise.gradient = Some(gradient);
        if let (Variant::Strict, Some(residuals), Some(bits)) = (spec.variant, spec.epsilon, noise.bits) {
            let factor = calibrate_losses(residuals + epsilon, terms.delta, |factor| {
                let scaled = Self { bits: Some(factor * bits), gradient: Some(factor * gradient), ..noise };
                let bits = vec![scaled.bit_gate()?.loss()?; spec.views];
                let gradients = vec![scaled.gradient_gate(1)?.loss()?; stage2_epochs];
                Ok([bits, gradients].concat())
            })?;
            let factor = factor.max(1.0);
            (noise.bits, noise.gradient) = (Some(factor * bits), Some(factor * gradient));
        }
        Ok(noise)
    }

    /// The gate of residuals: clip, noise, one bit a value (thesis eq 3.6); or the bits of a codeword.
    ///
    /// # Errors
    /// A σ or clip out of range.
    pub fn bit_gate(&self) -> Result<Gate<PackedBits>, MechanismError> {
        if let Some(CodewordNoise { codebook, values, epsilon }) = self.codewords {
            return Gate::new(Box::new(codebook.mechanism(values, epsilon)?), Some(self.clip), Relation::Replace);
        }
        let mechanism: Box<dyn Mechanism<Output = PackedBits>> = match self.bits {
            Some(sigma) => Box::new(OneBit::new(sigma)?),
            None => Box::new(InsecureSign),
        };
        Gate::new(mechanism, Some(self.clip), self.relation)
    }

    /// The gate of the mean gradient over `samples` records: noise and sensitivity shrink alike, so the loss is that of one record.
    ///
    /// # Errors
    /// No noise, or too little for its grid.
    pub fn gradient_gate(&self, samples: usize) -> Result<Gate<Vec<f32>>, MechanismError> {
        let sigma = self.gradient.ok_or(MechanismError::Sigma { sigma: f64::NAN })?;
        let sensitivity = Sensitivity::of_label_gradient(samples, self.relation);
        let mechanism = DiscreteGaussian::fine(sigma / samples.max(1) as f64)?;
        Ok(Gate::new(Box::new(mechanism), Some(sensitivity.l2()), self.relation)?.with_sensitivity(sensitivity))
    }
}
