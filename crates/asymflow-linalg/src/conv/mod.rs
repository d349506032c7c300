//! The trusted convolution kernels: forward, input gradient and weight gradient, plain and folded.

use thiserror::Error;

/// Shape of a batched square convolution without dilation or groups, NCHW, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Samples in the batch.
    pub samples: usize,
    /// Input channels N.
    pub in_channels: usize,
    /// Input rows h.
    pub height: usize,
    /// Input columns w.
    pub width: usize,
    /// Output channels M.
    pub out_channels: usize,
    /// Side k of the kernel.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zero padding on every side.
    pub padding: usize,
}

impl ConvShape {
    /// Output rows.
    pub const fn out_height(&self) -> usize {
        (self.height + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Output columns.
    pub const fn out_width(&self) -> usize {
        (self.width + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Values of the input batch.
    pub const fn input_len(&self) -> usize {
        self.samples * self.in_channels * self.height * self.width
    }

    /// Values of the output batch.
    pub const fn output_len(&self) -> usize {
        self.samples * self.out_channels * self.out_height() * self.out_width()
    }

    /// Values of the weight, `out × in × k × k`.
    pub const fn weight_len(&self) -> usize {
        self.out_channels * self.in_channels * self.kernel * self.kernel
    }
}

/// Why a convolution could not be computed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConvError {
    /// A slice has another length than the shape says.
    #[error("{what} holds {got} values, the shape needs {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// What the shape needs.
        expected: usize,
        /// What it holds.
        got: usize,
    },
    /// A size is zero, or the kernel does not fit into the padded input.
    #[error("kernel {kernel} with stride {stride} and padding {padding} does not fit into {height}x{width}")]
    Shape {
        /// Side of the kernel.
        kernel: usize,
        /// Stride.
        stride: usize,
        /// Padding.
        padding: usize,
        /// Input rows.
        height: usize,
        /// Input columns.
        width: usize,
    },
}
