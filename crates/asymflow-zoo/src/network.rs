//! A network as data: layers, shapes and parameter names, free of any tensor library.
//!
//! Every executor of the workspace (burn on a device, the trusted engine, the split modes) computes what the same [`Network`] is
//! lowered to ([`crate::graph`]); names of parameters are torchvision's.

pub mod limits;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ops::{
    AvgPool, Conv, Dropout, GroupNorm, Linear, MaxPool, Norm, Op, PRelu, Pointwise, Quadratic, SharedRelu,
};
use crate::param::ParamSpec;
pub use crate::shape::{NetworkError, Shape};

/// One layer of a [`Network`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Layer {
    /// Convolution.
    Conv(Conv),
    /// Batch normalisation over channels: ε 1e-5, momentum 0.1 as PyTorch defines it.
    BatchNorm {
        /// Parameter prefix.
        name: String,
        /// Channels.
        channels: usize,
    },
    /// Rectified linear unit.
    Relu,
    /// Rectified linear unit with a trained slope for each channel below zero (He et al., 2015); weight `channels`.
    PRelu {
        /// Parameter prefix.
        name: String,
        /// Channels.
        channels: usize,
    },
    /// A trained quadratic in place of a ReLU.
    Quadratic(Quadratic),
    /// A ReLU whose decisions are shared by groups of activations.
    SharedRelu(SharedRelu),
    /// Maximum over `kernel × kernel` windows.
    MaxPool {
        /// Side of the window.
        kernel: usize,
        /// Stride.
        stride: usize,
        /// Padding with −∞.
        padding: usize,
    },
    /// Average pooling to a fixed `out × out` map (PyTorch's adaptive windows).
    AdaptiveAvgPool {
        /// Side of the output map.
        out: usize,
    },
    /// C×H×W to one row of features.
    Flatten,
    /// Fully connected layer.
    Linear(Linear),
    /// Dropout with probability `p`; the identity in evaluation.
    Dropout {
        /// Probability of zeroing, in [0, 1).
        p: f32,
    },
    /// `main(x) + shortcut(x)`; an empty shortcut is the identity.
    Residual {
        /// The longer branch.
        #[serde(deserialize_with = "limits::branch")]
        main: Vec<Layer>,
        /// The shorter branch, usually empty or a 1×1 convolution with its normalisation.
        #[serde(deserialize_with = "limits::branch")]
        shortcut: Vec<Layer>,
    },
    /// A fixed function of each value.
    Pointwise(Pointwise),
    /// Normalisation of groups of channels of each sample.
    GroupNorm(GroupNorm),
}

/// A feed-forward network with residual blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Name in the zoo, e.g. `resnet18-cifar`.
    pub name: String,
    /// Shape of one input sample.
    pub input: Shape,
    /// Number of classes (logits).
    pub classes: usize,
    /// The layers, in order.
    pub layers: Vec<Layer>,
}

impl Layer {
    /// The operation that the layer is; none for a residual block, which is its branches and a sum.
    pub fn op(&self) -> Option<Op> {
        Some(match self {
            Self::Conv(conv) => Op::Conv(conv.clone()),
            Self::BatchNorm { name, channels } => Op::Norm(Norm { name: name.clone(), channels: *channels }),
            Self::GroupNorm(norm) => Op::GroupNorm(norm.clone()),
            Self::Relu => Op::Relu,
            Self::PRelu { name, channels } => Op::PRelu(PRelu { name: name.clone(), channels: *channels }),
            &Self::Pointwise(function) => Op::Pointwise(function),
            Self::Quadratic(quadratic) => Op::Quadratic(quadratic.clone()),
            Self::SharedRelu(shared) => Op::SharedRelu(shared.clone()),
            &Self::MaxPool { kernel, stride, padding } => Op::MaxPool(MaxPool { kernel, stride, padding }),
            &Self::AdaptiveAvgPool { out } => Op::AvgPool(AvgPool { out }),
            Self::Flatten => Op::Flatten,
            Self::Linear(linear) => Op::Linear(linear.clone()),
            &Self::Dropout { p } => Op::Dropout(Dropout { p }),
            Self::Residual { .. } => return None,
        })
    }

    /// Name of the layer's parameters, or its kind where it has none.
    pub fn label(&self) -> String {
        self.op().unwrap_or(Op::Add).label().to_owned()
    }

    /// Shape of one output sample given that of one input sample.
    ///
    /// # Errors
    /// Channels, windows or settings that do not fit `input`, and sizes beyond [`limits`].
    pub fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        if let Self::Residual { main, shortcut } = self {
            let (main, shortcut) = (output_of(main, input)?, output_of(shortcut, input)?);
            return if main == shortcut { Ok(main) } else { Err(NetworkError::Branches { main, shortcut }) };
        }
        self.op().map_or(Ok(input), |op| op.output(input))
    }

    fn parameters(&self, out: &mut Vec<ParamSpec>) {
        if let Self::Residual { main, shortcut } = self {
            main.iter().chain(shortcut).for_each(|layer| layer.parameters(out));
        }
        out.extend(self.op().iter().flat_map(Op::parameters));
    }

    /// Layers that it is of, itself included.
    fn count(&self) -> usize {
        let Self::Residual { main, shortcut } = self else { return 1 };
        1 + main.iter().chain(shortcut).map(Self::count).sum::<usize>()
    }
}

/// Shape after `layers`.
///
/// # Errors
/// The first layer that does not fit.
pub fn output_of(layers: &[Layer], input: Shape) -> Result<Shape, NetworkError> {
    layers.iter().try_fold(input, |shape, layer| layer.output(shape))
}

impl Network {
    /// Checks every shape, that the network ends in `classes` logits, and that it is within [`limits`].
    ///
    /// # Errors
    /// The first layer that does not fit.
    pub fn validate(&self) -> Result<(), NetworkError> {
        let got = output_of(&self.layers, self.input)?;
        self.check_parameters()?;
        if got == Shape::new(self.classes, 1, 1) {
            Ok(())
        } else {
            Err(NetworkError::Logits { name: self.name.clone(), classes: self.classes, got })
        }
    }

    /// Checks the number of layers, the names of parameters and how many values they have together.
    fn check_parameters(&self) -> Result<(), NetworkError> {
        let too_large = |what, limit| NetworkError::TooLarge { layer: self.name.clone(), what, limit };
        if self.layers.iter().map(Layer::count).sum::<usize>() > limits::MAX_LAYERS {
            return Err(too_large("layers", limits::MAX_LAYERS));
        }
        let mut names = BTreeSet::new();
        let mut values = 0_usize;
        for spec in self.parameters() {
            let len = spec.shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side));
            values = len.and_then(|len| values.checked_add(len)).unwrap_or(usize::MAX);
            if values > limits::MAX_VALUES {
                return Err(too_large("parameters", limits::MAX_VALUES));
            }
            if names.contains(&spec.name) {
                return Err(NetworkError::Twice { name: spec.name });
            }
            names.insert(spec.name);
        }
        Ok(())
    }

    /// Every parameter tensor, buffers included, in the order of the layers (main branch before shortcut).
    /// This order is also that of flattened weights on the wire.
    pub fn parameters(&self) -> Vec<ParamSpec> {
        let mut out = Vec::new();
        self.layers.iter().for_each(|layer| layer.parameters(&mut out));
        out
    }
}
