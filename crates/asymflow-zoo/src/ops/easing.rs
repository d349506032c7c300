//! What eases the training of activations that are made for secret shares and ciphertexts.

use serde::{Deserialize, Serialize};

/// What eases the training of activations. The default is each activation as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Easing {
    /// λ of annealed sharing: y = λ·(the layer) + (1 − λ)·ReLU, of [`SharedRelu`](super::SharedRelu) layers; 1 in evaluation.
    pub sharing: f32,
    /// Whether a group's decision passes a gradient to its votes, as if it were clamp(vote/2 + 1/2, 0, 1). Published networks
    /// hold decisions constant.
    pub straight_through: bool,
    /// A penalty on large inputs of quadratics.
    pub range: Option<RangePenalty>,
}

impl Default for Easing {
    fn default() -> Self {
        Self { sharing: 1.0, straight_through: false, range: None }
    }
}

/// weight · Σ |x / limit|^exponent, the sum over the inputs of a [`Quadratic`](super::Quadratic), the mean over samples and layers: what keeps
/// activations where a quadratic is tame (after PILLAR, USENIX Security 2024).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangePenalty {
    /// Magnitude from which on it grows fast.
    pub limit: f32,
    /// Weight beside the loss.
    pub weight: f32,
    /// Even exponent.
    pub exponent: i32,
}

impl RangePenalty {
    /// Ratio x / limit beyond which the gradient stays as it is there, so that one outlier cannot overflow a step.
    pub const SATURATION: f32 = 4.0;

    /// The penalty's gradient with respect to x, before it is divided by samples and layers.
    pub fn gradient(&self, x: f32) -> f32 {
        let ratio = (x / self.limit).clamp(-Self::SATURATION, Self::SATURATION);
        self.weight * self.exponent as f32 * ratio.powi(self.exponent - 1) / self.limit
    }
}
