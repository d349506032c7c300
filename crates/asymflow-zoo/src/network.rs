//! A network as data: layers, shapes and parameter names, free of any tensor library.
//!
//! Every executor of the workspace (burn on a device, the trusted engine, the split modes) interprets
//! the same [`Network`]; names of parameters are torchvision's.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::activation::{Quadratic, SharedRelu};
use crate::limits;

/// Shape of one sample: channels × height × width, stored row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Shape {
    /// Shape of `channels` × `height` × `width`.
    pub const fn new(channels: usize, height: usize, width: usize) -> Self {
        Self { channels, height, width }
    }

    /// Number of spatial positions, `height · width`.
    pub const fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Number of values, `channels · height · width`.
    pub const fn len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// [`Shape::len`] of a shape from outside; `None` where it overflows.
    pub fn checked_len(&self) -> Option<usize> {
        self.channels.checked_mul(self.height)?.checked_mul(self.width)
    }

    /// Whether the shape holds no value.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A square 2-D convolution without dilation or groups; weight `out × in × kernel × kernel`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conv {
    /// Parameter prefix, e.g. `layer1.0.conv1`.
    pub name: String,
    /// Input channels.
    pub in_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zero padding on every side.
    pub padding: usize,
    /// Whether `name.bias` exists.
    pub bias: bool,
}

/// A fully connected layer; weight `out × in`, with bias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linear {
    /// Parameter prefix, e.g. `fc`.
    pub name: String,
    /// Input features.
    pub in_features: usize,
    /// Output features.
    pub out_features: usize,
}

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
}

/// What a parameter tensor is, which decides its initialisation and whether it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Slopes of a [`Layer::PRelu`].
    Slope,
    /// Coefficients of a quadratic, once or one row for each channel. A row starts with as many of these values as it is
    /// long.
    Coefficient([f32; 3]),
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
        matches!(self, Self::Coefficient(_) | Self::Vote)
    }
}

/// Name, shape and kind of one parameter tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Full torchvision name, e.g. `layer1.0.conv1.weight`.
    pub name: String,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: ParamKind,
}

impl ParamSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Factor of the learning rate of every parameter, in the order of [`Network::parameters`]: `coefficient_rate` for those of
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

/// Why a [`Network`] is not executable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NetworkError {
    /// A layer expects other channels or features than it gets.
    #[error("layer {layer}: expects {expected} input channels or features, got {got}")]
    Channels {
        /// Name or kind of the layer.
        layer: String,
        /// What the layer is built for.
        expected: usize,
        /// What reaches it.
        got: usize,
    },
    /// A window or kernel does not fit into its input.
    #[error("layer {layer}: window of {window} with padding {padding} does not fit into {height}x{width}")]
    Window {
        /// Name or kind of the layer.
        layer: String,
        /// Side of the window.
        window: usize,
        /// Padding.
        padding: usize,
        /// Input rows.
        height: usize,
        /// Input columns.
        width: usize,
    },
    /// A size that must be positive is zero, or a probability is out of range.
    #[error("layer {layer}: {what} is out of range")]
    OutOfRange {
        /// Name or kind of the layer.
        layer: String,
        /// Which setting.
        what: &'static str,
    },
    /// A kernel, stride, padding, side or number of channels beyond any use.
    #[error("layer {layer}: {got} exceeds {limit}, the limit of every setting")]
    Setting {
        /// Name or kind of the layer.
        layer: String,
        /// The setting.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// More than an executor can be asked for.
    #[error("layer {layer}: more than {limit} {what}")]
    TooLarge {
        /// Name or kind of the layer, or name of the network.
        layer: String,
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// Two layers share a name.
    #[error("two parameters are named {name}")]
    Twice {
        /// The name.
        name: String,
    },
    /// The two branches of a residual block end in different shapes.
    #[error("residual block: main branch ends in {main:?}, shortcut in {shortcut:?}")]
    Branches {
        /// Shape of the main branch.
        main: Shape,
        /// Shape of the shortcut.
        shortcut: Shape,
    },
    /// The network does not end in one logit a class.
    #[error("network {name}: ends in {got:?}, expected {classes} logits")]
    Logits {
        /// Name of the network.
        name: String,
        /// Declared classes.
        classes: usize,
        /// Final shape.
        got: Shape,
    },
}

/// Output side of a window of `kernel` sliding by `stride` over `side` padded positions.
pub(crate) fn window_out(side: usize, kernel: usize, stride: usize, padding: usize) -> Option<usize> {
    (kernel > 0 && stride > 0 && side + 2 * padding >= kernel).then(|| (side + 2 * padding - kernel) / stride + 1)
}

impl Layer {
    /// Name of the layer's parameters, or its kind where it has none.
    pub fn label(&self) -> &str {
        match self {
            Self::Conv(c) => &c.name,
            Self::BatchNorm { name, .. } | Self::PRelu { name, .. } => name,
            Self::Linear(l) => &l.name,
            Self::Quadratic(q) => &q.name,
            Self::SharedRelu(s) => &s.name,
            Self::Relu => "relu",
            Self::MaxPool { .. } => "max-pool",
            Self::AdaptiveAvgPool { .. } => "avg-pool",
            Self::Flatten => "flatten",
            Self::Dropout { .. } => "dropout",
            Self::Residual { .. } => "residual",
        }
    }

    /// Shape of one output sample given that of one input sample.
    ///
    /// # Errors
    /// Channels, windows or settings that do not fit `input`, and sizes beyond [`limits`].
    pub fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        limits::check_settings(self)?;
        limits::check_shape(self.label(), input)?;
        limits::check_shape(self.label(), self.unchecked_output(input)?)
    }

    /// As [`Layer::output`], of numbers that do not overflow.
    fn unchecked_output(&self, input: Shape) -> Result<Shape, NetworkError> {
        let window = |window, stride, padding| {
            let (h, w) =
                (window_out(input.height, window, stride, padding), window_out(input.width, window, stride, padding));
            h.zip(w).ok_or_else(|| NetworkError::Window {
                layer: self.label().to_owned(),
                window,
                padding,
                height: input.height,
                width: input.width,
            })
        };
        let expect = |expected: usize, got: usize| {
            if expected == got {
                Ok(())
            } else {
                Err(NetworkError::Channels { layer: self.label().to_owned(), expected, got })
            }
        };
        match self {
            Self::Conv(c) => {
                expect(c.in_channels, input.channels)?;
                if c.out_channels == 0 {
                    return Err(NetworkError::OutOfRange { layer: c.name.clone(), what: "out_channels" });
                }
                let (h, w) = window(c.kernel, c.stride, c.padding)?;
                Ok(Shape::new(c.out_channels, h, w))
            }
            Self::BatchNorm { channels, .. } | Self::PRelu { channels, .. } => {
                expect(*channels, input.channels).map(|()| input)
            }
            Self::Quadratic(quadratic) => {
                expect(quadratic.channels, input.channels)?;
                quadratic.check().map(|()| input)
            }
            Self::SharedRelu(shared) => {
                expect(shared.channels, input.channels)?;
                shared.check(input).map(|()| input)
            }
            Self::Relu => Ok(input),
            Self::Dropout { p } if !(0.0..1.0).contains(p) => {
                Err(NetworkError::OutOfRange { layer: "dropout".to_owned(), what: "probability" })
            }
            Self::Dropout { .. } => Ok(input),
            Self::MaxPool { kernel, stride, padding } => {
                if 2 * padding > *kernel {
                    return Err(NetworkError::OutOfRange { layer: "max-pool".to_owned(), what: "padding" });
                }
                let (h, w) = window(*kernel, *stride, *padding)?;
                Ok(Shape::new(input.channels, h, w))
            }
            Self::AdaptiveAvgPool { out } => {
                if *out == 0 || input.is_empty() {
                    return Err(NetworkError::OutOfRange { layer: "avg-pool".to_owned(), what: "output side" });
                }
                Ok(Shape::new(input.channels, *out, *out))
            }
            Self::Flatten => Ok(Shape::new(input.len(), 1, 1)),
            Self::Linear(l) => {
                expect(l.in_features, input.len())?;
                Ok(Shape::new(l.out_features, 1, 1))
            }
            Self::Residual { main, shortcut } => {
                let main = output_of(main, input)?;
                let shortcut = output_of(shortcut, input)?;
                if main == shortcut { Ok(main) } else { Err(NetworkError::Branches { main, shortcut }) }
            }
        }
    }

    fn parameters(&self, out: &mut Vec<ParamSpec>) {
        match self {
            Self::Quadratic(quadratic) => return quadratic.parameters(out),
            Self::SharedRelu(shared) => return shared.parameters(out),
            _ => {}
        }
        let mut push = |name: &str, suffix: &str, shape: Vec<usize>, kind| {
            out.push(ParamSpec { name: format!("{name}.{suffix}"), shape, kind });
        };
        match self {
            Self::Conv(c) => {
                let shape = vec![c.out_channels, c.in_channels, c.kernel, c.kernel];
                push(&c.name, "weight", shape, ParamKind::ConvWeight);
                if c.bias {
                    push(&c.name, "bias", vec![c.out_channels], ParamKind::Bias);
                }
            }
            Self::BatchNorm { name, channels } => {
                push(name, "weight", vec![*channels], ParamKind::NormScale);
                push(name, "bias", vec![*channels], ParamKind::NormShift);
                push(name, "running_mean", vec![*channels], ParamKind::RunningMean);
                push(name, "running_var", vec![*channels], ParamKind::RunningVar);
            }
            Self::PRelu { name, channels } => push(name, "weight", vec![*channels], ParamKind::Slope),
            Self::Linear(l) => {
                push(&l.name, "weight", vec![l.out_features, l.in_features], ParamKind::LinearWeight);
                push(&l.name, "bias", vec![l.out_features], ParamKind::Bias);
            }
            Self::Residual { main, shortcut } => {
                main.iter().chain(shortcut).for_each(|layer| layer.parameters(out));
            }
            _ => {}
        }
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
        limits::check_parameters(self)?;
        if got == Shape::new(self.classes, 1, 1) {
            Ok(())
        } else {
            Err(NetworkError::Logits { name: self.name.clone(), classes: self.classes, got })
        }
    }

    /// Every parameter tensor, buffers included, in the order of the layers (main branch before shortcut).
    /// This order is also that of flattened weights on the wire.
    pub fn parameters(&self) -> Vec<ParamSpec> {
        let mut out = Vec::new();
        self.layers.iter().for_each(|layer| layer.parameters(&mut out));
        out
    }
}
