//! What a pass keeps, and how a step moves the parameters: said once for every executor.

use serde::{Deserialize, Serialize};

/// What is kept of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pass {
    /// Nothing is kept; batch normalisation uses running statistics.
    Inference,
    /// The input (or the autodiff graph) is kept until its gradient was computed; batch normalisation uses and updates batch statistics.
    Training,
}

/// One step of stochastic gradient descent with momentum, as PyTorch defines it:
/// `g ← g + weight_decay·w; m ← momentum·m + g; w ← w − learning_rate·m`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SgdStep {
    /// Learning rate.
    pub learning_rate: f32,
    /// Momentum.
    pub momentum: f32,
    /// l2 penalty.
    pub weight_decay: f32,
    /// The largest l2 norm of the gradient of all parameters together, penalty aside; a longer one is scaled down to it.
    /// Infinite for none.
    pub clip_norm: f32,
    /// Factor of the learning rate of coefficients and votes of activations ([`ParamKind::is_activation`](crate::ops::ParamKind::is_activation)).
    pub coefficient_rate: f32,
    /// Factor of the learning rate of the first layer; that of the last is 1, those between grow geometrically
    /// ([`rate_factors`](crate::ops::rate_factors)).
    pub first_layer_rate: f32,
}

impl SgdStep {
    /// A step that neither clips nor treats any parameter differently.
    pub const fn plain(learning_rate: f32, momentum: f32, weight_decay: f32) -> Self {
        let (coefficient_rate, first_layer_rate) = (1.0, 1.0);
        Self { learning_rate, momentum, weight_decay, clip_norm: f32::INFINITY, coefficient_rate, first_layer_rate }
    }
}
