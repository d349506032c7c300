//! Convolutions and fully connected layers over a ring, as products of matrices.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::gemm::{COLUMNS, Left, multiply_add};
use crate::ring::Ring;

/// Shape of a square convolution; a fully connected layer is one of kernel 1 on 1×1 maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvShape {
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
    /// Input rows.
    pub height: usize,
    /// Input columns.
    pub width: usize,
}

impl ConvShape {
    /// Output rows. The kernel must fit and the stride be positive.
    pub const fn out_height(&self) -> usize {
        (self.height + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Output columns. The kernel must fit and the stride be positive.
    pub const fn out_width(&self) -> usize {
        (self.width + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Values of one input sample.
    pub const fn input_len(&self) -> usize {
        self.in_channels * self.height * self.width
    }

    /// Values of one output sample.
    pub const fn output_len(&self) -> usize {
        self.out_channels * self.out_height() * self.out_width()
    }

    /// Values of the weight.
    pub const fn weight_len(&self) -> usize {
        self.out_channels * self.depth()
    }

    /// Multiplications of one sample.
    pub const fn multiplications(&self) -> usize {
        self.output_len() * self.depth()
    }

    const fn depth(&self) -> usize {
        self.in_channels * self.kernel * self.kernel
    }
}

/// A weight made ready for products.
#[derive(Clone)]
pub(crate) struct Kernel<R> {
    pub(crate) shape: ConvShape,
    weight: Left<R>,
}

impl<R: Ring> Kernel<R> {
    /// From `out × in × kernel × kernel` values.
    pub(crate) fn new(shape: ConvShape, weight: &[R]) -> Self {
        Self { shape, weight: Left::new(shape.out_channels, shape.depth(), weight) }
    }

    /// Adds the convolution of `samples` inputs to `output`.
    pub(crate) fn apply(&self, input: &[R], output: &mut [R]) {
        let (inputs, outputs) = (self.shape.input_len(), self.shape.output_len());
        let columns = self.shape.out_height() * self.shape.out_width();
        for (input, output) in input.chunks_exact(inputs).zip(output.chunks_exact_mut(outputs)) {
            multiply_add(&self.weight, &panels(self.shape, input), columns, output);
        }
    }
}

/// The windows of one sample as columns, in the panels of [`multiply_add`].
fn panels<R: Ring>(shape: ConvShape, input: &[R]) -> Vec<R> {
    let padded = pad(shape, input);
    let width = shape.width + 2 * shape.padding;
    let plane = width * (shape.height + 2 * shape.padding);
    let columns = shape.out_height() * shape.out_width();
    let mut panels = vec![R::ZERO; columns.div_ceil(COLUMNS) * COLUMNS * shape.depth()];
    panels.par_chunks_mut(COLUMNS * shape.depth()).enumerate().for_each(|(panel, rows)| {
        // Where the window of each column begins; beyond the last column, the first window again.
        let starts: [usize; COLUMNS] = std::array::from_fn(|lane| {
            let column = panel * COLUMNS + lane;
            let column = if column < columns { column } else { 0 };
            (column / shape.out_width() * width + column % shape.out_width()) * shape.stride
        });
        let contiguous = starts.iter().enumerate().all(|(lane, start)| *start == starts[0] + lane);
        let taps = shape.kernel * shape.kernel;
        for (index, row) in rows.chunks_exact_mut(COLUMNS).enumerate() {
            let (channel, tap) = (index / taps, index % taps);
            let offset = channel * plane + tap / shape.kernel * width + tap % shape.kernel;
            if contiguous {
                row.copy_from_slice(&padded[offset + starts[0]..][..COLUMNS]);
            } else {
                for (to, start) in row.iter_mut().zip(starts) {
                    *to = padded[offset + start];
                }
            }
        }
    });
    panels
}

fn pad<R: Ring>(shape: ConvShape, input: &[R]) -> Vec<R> {
    let padding = shape.padding;
    let width = shape.width + 2 * padding;
    let plane = width * (shape.height + 2 * padding);
    let mut padded = vec![R::ZERO; shape.in_channels * plane];
    for (channel, rows) in input.chunks_exact(shape.height * shape.width).enumerate() {
        for (y, row) in rows.chunks_exact(shape.width).enumerate() {
            padded[channel * plane + (y + padding) * width + padding..][..shape.width].copy_from_slice(row);
        }
    }
    padded
}

/// Adds one bias a channel to samples of `len` values.
pub(crate) fn add_bias<R: Ring>(bias: &[R], len: usize, sums: &mut [R]) {
    for sample in sums.chunks_exact_mut(len) {
        for (channel, bias) in sample.chunks_exact_mut(len / bias.len()).zip(bias) {
            channel.iter_mut().for_each(|sum| *sum = sum.plus(*bias));
        }
    }
}

/// The convolution with bias in floating point, straight from the definition.
pub(crate) fn float_conv(s: ConvShape, weight: &[f64], bias: &[f64], x: &[f64]) -> Vec<f64> {
    let columns = s.out_width();
    let mut y = Vec::new();
    for x in x.chunks_exact(s.input_len()) {
        for (filter, bias) in weight.chunks_exact(s.depth()).zip(bias) {
            let mut map = vec![*bias; s.out_height() * columns];
            for (index, tap) in filter.iter().enumerate() {
                let (ky, kx) = (index / s.kernel % s.kernel, index % s.kernel);
                let plane = &x[index / (s.kernel * s.kernel) * s.height * s.width..];
                for (oy, row) in map.chunks_exact_mut(columns).enumerate() {
                    let iy = (oy * s.stride + ky).wrapping_sub(s.padding);
                    if iy >= s.height {
                        continue;
                    }
                    let from = &plane[iy * s.width..][..s.width];
                    for (ox, sum) in row.iter_mut().enumerate() {
                        *sum += tap * from.get((ox * s.stride + kx).wrapping_sub(s.padding)).unwrap_or(&0.0);
                    }
                }
            }
            y.extend(map);
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prg::{Prg, Purpose, Seed};

    fn naive(s: ConvShape, weight: &[u64], x: &[u64]) -> Vec<u64> {
        let mut y = Vec::new();
        for o in 0..s.out_channels {
            for (oy, ox) in (0..s.out_height()).flat_map(|oy| (0..s.out_width()).map(move |ox| (oy, ox))) {
                let mut sum = 0_u64;
                for c in 0..s.in_channels {
                    for (ky, kx) in (0..s.kernel).flat_map(|ky| (0..s.kernel).map(move |kx| (ky, kx))) {
                        let (iy, ix) = (oy * s.stride + ky, ox * s.stride + kx);
                        let (iy, ix) = (iy.wrapping_sub(s.padding), ix.wrapping_sub(s.padding));
                        if iy < s.height && ix < s.width {
                            let w = weight[((o * s.in_channels + c) * s.kernel + ky) * s.kernel + kx];
                            sum = sum.wrapping_add(w.wrapping_mul(x[(c * s.height + iy) * s.width + ix]));
                        }
                    }
                }
                y.push(sum);
            }
        }
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn convolutions_are_those_of_the_definition(
            in_channels in 1usize..5, out_channels in 1usize..20, kernel in 1usize..4, stride in 1usize..3,
            padding in 0usize..2, height in 3usize..20, width in 3usize..20, samples in 1usize..3, seed: u8,
        ) {
            let shape = ConvShape { in_channels, out_channels, kernel, stride, padding, height, width };
            let mut prg = Prg::new(&Seed::from_bytes([seed; 32]), &[0; 32], Purpose::Mask, 0, 0);
            let weight: Vec<u64> = prg.words(shape.weight_len());
            let x: Vec<u64> = prg.words(samples * shape.input_len());
            let mut y = vec![0; samples * shape.output_len()];
            Kernel::new(shape, &weight).apply(&x, &mut y);
            let expected: Vec<u64> = x.chunks(shape.input_len()).flat_map(|x| naive(shape, &weight, x)).collect();
            prop_assert_eq!(&y, &expected);
            // Modulo 2³² the same sums come out of 32-bit words.
            let narrow = |values: &[u64]| values.iter().map(|&v| v as u32).collect::<Vec<u32>>();
            let mut y = vec![0; samples * shape.output_len()];
            Kernel::new(shape, &narrow(&weight)).apply(&narrow(&x), &mut y);
            prop_assert_eq!(y, narrow(&expected));
        }
    }
}
