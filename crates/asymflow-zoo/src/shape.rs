//! Shapes of samples, and why layers do not fit them.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

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

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}×{}", self.channels, self.height, self.width)
    }
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

    /// Row and column of every pixel, row by row.
    pub(crate) fn places(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.height).flat_map(move |row| (0..self.width).map(move |column| (row, column)))
    }

    /// This shape, where it has `channels`.
    pub(crate) fn expect_channels(self, layer: &str, channels: usize) -> Result<Self, NetworkError> {
        NetworkError::expect(layer, channels, self.channels).map(|()| self)
    }

    /// The map that a window of `kernel` makes, sliding by `stride` over the padded map.
    pub(crate) fn windows(
        self,
        layer: &str,
        channels: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
    ) -> Result<Self, NetworkError> {
        let out = |side| window_out(side, kernel, stride, padding);
        let Self { height, width, .. } = self;
        let sides = out(height).zip(out(width));
        let (rows, columns) = sides.ok_or_else(|| NetworkError::Window {
            layer: layer.to_owned(),
            window: kernel,
            padding,
            height,
            width,
        })?;
        Ok(Self::new(channels, rows, columns))
    }
}

/// Why a network is not executable.
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
    /// Average pooling in place of maximum pooling would have to make a map that is not square.
    #[error("layer {layer}: makes a map of {height}x{width}, and average pooling makes square ones only")]
    NotSquare {
        /// The layer before, and its kind.
        layer: String,
        /// Rows of the map.
        height: usize,
        /// Columns of the map.
        width: usize,
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
fn window_out(side: usize, kernel: usize, stride: usize, padding: usize) -> Option<usize> {
    (kernel > 0 && stride > 0 && side + 2 * padding >= kernel).then(|| (side + 2 * padding - kernel) / stride + 1)
}

impl NetworkError {
    pub(crate) fn out_of_range(layer: &str, what: &'static str) -> Self {
        Self::OutOfRange { layer: layer.to_owned(), what }
    }

    /// Channels or features as a layer expects them.
    pub(crate) fn expect(layer: &str, expected: usize, got: usize) -> Result<(), Self> {
        if expected == got { Ok(()) } else { Err(Self::Channels { layer: layer.to_owned(), expected, got }) }
    }
}
