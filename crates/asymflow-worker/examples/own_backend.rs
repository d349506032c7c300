//! A residual backend of one's own, with the whole command line of the worker.

use std::process::ExitCode;
use std::sync::Arc;

use asymflow_residual::backend::ConvUnit;
use asymflow_residual::units::{ConvolutionBackend, Convolve, Product};
use asymflow_worker::{Backends, main_with};

/// Convolutions by loops, one multiplication after the other.
#[derive(Clone, Debug)]
pub struct Loops;

impl Convolve for Loops {
    fn convolve(&mut self, conv: &ConvUnit, samples: usize, product: Product<'_>) -> Result<Vec<f32>, String> {
        let len = match product {
            Product::Outputs { .. } => samples * conv.output().len(),
            Product::InputGradient { .. } => samples * conv.input.len(),
            Product::WeightGradient { .. } => conv.weights(),
        };
        let mut result = vec![0.0; len];
        each_tap(conv, samples, |x_at, w_at, y_at| match product {
            Product::Outputs { x, w } => result[y_at] += x[x_at] * w[w_at],
            Product::InputGradient { dy, w } => result[x_at] += dy[y_at] * w[w_at],
            Product::WeightGradient { x, dy } => result[w_at] += x[x_at] * dy[y_at],
        });
        Ok(result)
    }
}

/// Every multiplication of the convolution, as places in x, w and y.
fn each_tap(conv: &ConvUnit, samples: usize, mut visit: impl FnMut(usize, usize, usize)) {
    let (input, output, k) = (conv.input, conv.output(), conv.kernel);
    for y_at in 0..samples * output.len() {
        let (plane, pixel) = (y_at / output.pixels(), y_at % output.pixels());
        let (sample, out) = (plane / output.channels, plane % output.channels);
        for tap in 0..input.channels * k * k {
            let (channel, row, column) = (tap / (k * k), tap / k % k, tap % k);
            // Places in the padded image.
            let (row, column) = (pixel / output.width * conv.stride + row, pixel % output.width * conv.stride + column);
            let (row, column) = (row.checked_sub(conv.padding), column.checked_sub(conv.padding));
            if let (Some(row), Some(column)) = (row, column)
                && row < input.height
                && column < input.width
            {
                let x_at = ((sample * input.channels + channel) * input.height + row) * input.width + column;
                visit(x_at, out * input.channels * k * k + tap, y_at);
            }
        }
    }
}

/// The backend that a worker is given.
pub fn backend() -> ConvolutionBackend<Loops> {
    ConvolutionBackend { name: "loops", device: "loops (CPU)".to_owned(), convolve: Loops }
}

fn main() -> ExitCode {
    main_with(&Backends::standard().with("loops", |_| Ok(Arc::new(backend()))))
}
