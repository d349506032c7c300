//! Fixed functions of each value by itself.

use serde::{Deserialize, Serialize};

use super::operation::{At, Gradient, Operation};
use crate::shape::{NetworkError, Shape};

/// A function of each value by itself, without parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pointwise {
    /// y = x / (1 + e⁻ˣ), SiLU or swish (Elfwing, Uchibe and Doya, 2018).
    Silu,
    /// y = tanh x.
    Tanh,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Pointwise {
    /// All of them: by these they are named, and held to the reference in every executor.
    pub const ALL: [Self; 2] = [Self::Silu, Self::Tanh];

    /// Its name, as in `model.activation`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Tanh => "tanh",
        }
    }

    /// y.
    pub fn value(self, x: f64) -> f64 {
        match self {
            Self::Silu => x * sigmoid(x),
            Self::Tanh => x.tanh(),
        }
    }

    /// dy/dx.
    pub fn slope(self, x: f64) -> f64 {
        match self {
            Self::Silu => sigmoid(x) * (1.0 + x * sigmoid(-x)),
            Self::Tanh => 1.0 - x.tanh().powi(2),
        }
    }
}

impl Operation for Pointwise {
    fn label(&self) -> &str {
        self.name()
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        Ok(input)
    }

    fn forward(&self, _: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        inputs[0].iter().map(|&x| self.value(x)).collect()
    }

    fn backward(&self, _: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        Gradient::of(inputs[0].iter().zip(dy).map(|(&x, &dy)| self.slope(x) * dy).collect())
    }
}
