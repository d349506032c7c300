//! The operations that networks are lowered to. Each file says all of one: its shape rule with its limits, its parameters and
//! how they begin, what it costs, and what it computes, forward and backward, in plain f64.

use crate::network::limits;
pub use crate::param::{Init, ParamKind, ParamSpec, rate_factors};
use crate::shape::{NetworkError, Shape};

mod add;
mod avg_pool;
mod conv;
mod dropout;
mod easing;
mod flatten;
mod group_norm;
mod linear;
mod max_pool;
mod norm;
mod operation;
mod pointwise;
mod quadratic;
mod rectifier;
mod shared_relu;

pub use avg_pool::AvgPool;
pub use conv::Conv;
pub use dropout::Dropout;
pub use easing::{Easing, RangePenalty};
pub use group_norm::GroupNorm;
pub use linear::Linear;
pub use max_pool::MaxPool;
pub use norm::{NORM_EPSILON, NORM_MOMENTUM, Norm};
pub use operation::OpCost;
use operation::Operation;
pub(crate) use operation::{At, Gradient};
pub use pointwise::Pointwise;
pub use quadratic::{Coefficients, Form, Quadratic};
pub use rectifier::PRelu;
pub use shared_relu::{Choice, Decision, Gate, Grouping, Groups, SharedRelu};

/// What one node of a lowered network computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Convolution.
    Conv(Conv),
    /// Batch normalisation.
    Norm(Norm),
    /// Group normalisation.
    GroupNorm(GroupNorm),
    /// max(x, 0).
    Relu,
    /// Rectification with trained slopes below zero.
    PRelu(PRelu),
    /// A fixed function of each value.
    Pointwise(Pointwise),
    /// A trained polynomial of degree two.
    Quadratic(Quadratic),
    /// A rectification gated by groups.
    SharedRelu(SharedRelu),
    /// Maximum over windows.
    MaxPool(MaxPool),
    /// Mean over windows.
    AvgPool(AvgPool),
    /// Fully connected.
    Linear(Linear),
    /// Dropout.
    Dropout(Dropout),
    /// C×H×W to one row of features.
    Flatten,
    /// The sum of two inputs.
    Add,
}

impl Op {
    /// The file that says all of this operation.
    fn operation(&self) -> &dyn Operation {
        match self {
            Self::Conv(op) => op,
            Self::Norm(op) => op,
            Self::GroupNorm(op) => op,
            Self::Relu => &rectifier::Relu,
            Self::PRelu(op) => op,
            Self::Pointwise(op) => op,
            Self::Quadratic(op) => op,
            Self::SharedRelu(op) => op,
            Self::MaxPool(op) => op,
            Self::AvgPool(op) => op,
            Self::Linear(op) => op,
            Self::Dropout(op) => op,
            Self::Flatten => &flatten::Flatten,
            Self::Add => &add::Add,
        }
    }

    /// Prefix of its parameters' names, or its kind where it has none.
    pub fn label(&self) -> &str {
        self.operation().label()
    }

    /// Shape of one output sample given that of (every) input sample.
    ///
    /// # Errors
    /// Channels, windows or settings that do not fit `input`, and sizes beyond [`limits`].
    pub fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        limits::check_shape(self.label(), input)?;
        limits::check_shape(self.label(), self.operation().output(input)?)
    }

    /// Its parameter tensors, buffers included, in order.
    pub fn parameters(&self) -> Vec<ParamSpec> {
        self.operation().parameters()
    }

    /// What it costs for one sample, between shapes that fit.
    pub fn cost(&self, input: Shape, output: Shape) -> OpCost {
        self.operation().cost(input, output)
    }

    /// What it computes, in f64.
    pub(crate) fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        self.operation().forward(at, inputs)
    }

    /// The gradients of Σ y·dy.
    pub(crate) fn backward(&self, at: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        self.operation().backward(at, inputs, dy)
    }

    /// Running statistics as a training pass leaves them, with their places among the parameters.
    pub(crate) fn statistics(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<(usize, Vec<f64>)> {
        self.operation().statistics(at, inputs)
    }
}
