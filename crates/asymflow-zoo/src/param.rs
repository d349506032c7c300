//! What a parameter is, how it begins and how fast it moves.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// What a parameter tensor is, which decides whether and how fast it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// Convolution kernel, `out × in × k × k`.
    ConvWeight,
    /// Fully connected weight, `out × in`.
    LinearWeight,
    /// Bias of a convolution or fully connected layer.
    Bias,
    /// Scale of a batch normalisation.
    NormScale,
    /// Shift of a batch normalisation.
    NormShift,
    /// Slopes of a rectification below zero.
    Slope,
    /// Coefficients of a quadratic, once or one row for each channel.
    Coefficient,
    /// What each place of a block contributes to a learned decision.
    Vote,
    /// Running mean: a buffer, not trained.
    RunningMean,
    /// Running variance: a buffer, not trained.
    RunningVar,
}

impl ParamKind {
    /// Whether the optimiser moves it.
    pub const fn is_trained(self) -> bool {
        !matches!(self, Self::RunningMean | Self::RunningVar)
    }

    /// Whether it shapes an activation made for secret shares, and so may have a learning rate of its own.
    pub const fn is_activation(self) -> bool {
        matches!(self, Self::Coefficient | Self::Vote)
    }
}

/// How the values of a tensor begin.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// These values, again and again.
    Rows(Vec<f32>),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Uniform in ±bound.
    Uniform {
        /// The bound.
        bound: f32,
    },
}

impl Init {
    /// Every value the same.
    pub fn constant(value: f32) -> Self {
        Self::Rows(vec![value])
    }

    pub(crate) fn values(&self, len: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        match self {
            Self::Rows(row) => row.iter().copied().cycle().take(len).collect(),
            Self::Normal { std } => (0..len).map(|_| std * Distribution::<f32>::sample(&StandardNormal, rng)).collect(),
            Self::Uniform { bound } => (0..len).map(|_| bound * (2.0 * rng.random::<f32>() - 1.0)).collect(),
        }
    }
}

/// Name, shape, kind and beginning of one parameter tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Full torchvision name, e.g. `layer1.0.conv1.weight`.
    pub name: String,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: ParamKind,
    /// How it begins.
    pub init: Init,
}

impl ParamSpec {
    /// Tensor `suffix` of the layer `prefix`.
    pub fn new(prefix: &str, suffix: &str, shape: Vec<usize>, kind: ParamKind, init: Init) -> Self {
        Self { name: format!("{prefix}.{suffix}"), shape, kind, init }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Factor of the learning rate of every parameter, in the order of [`Network::parameters`](crate::Network::parameters): `coefficient_rate` for those of
/// activations ([`ParamKind::is_activation`]), times `first_layer_rate` in the first layer that has parameters and 1 in the last,
/// growing geometrically between.
pub fn rate_factors(specs: &[ParamSpec], coefficient_rate: f32, first_layer_rate: f32) -> Vec<f32> {
    fn layer(spec: &ParamSpec) -> &str {
        spec.name.rsplit_once('.').map_or("", |(layer, _)| layer)
    }
    let is_new = |pair: &[ParamSpec]| layer(&pair[0]) != layer(&pair[1]);
    let last = specs.windows(2).filter(|pair| is_new(pair)).count();
    let mut at = 0;
    let factor = |(i, spec): (usize, &ParamSpec)| {
        at += usize::from(i > 0 && is_new(&specs[i - 1..=i]));
        let depth = at as f32 / last.max(1) as f32;
        let kind = if spec.kind.is_activation() { coefficient_rate } else { 1.0 };
        kind * first_layer_rate.powf(1.0 - depth)
    };
    specs.iter().enumerate().map(factor).collect()
}
