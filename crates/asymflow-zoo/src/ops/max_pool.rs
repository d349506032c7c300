//! Maximum pooling.

use super::operation::{At, Gradient, Operation};
use crate::network::limits;
use crate::shape::{NetworkError, Shape};

/// Maximum over `kernel × kernel` windows. NaN is larger than every number, as in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool {
    /// Side of the window.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Padding with −∞.
    pub padding: usize,
}

impl MaxPool {
    /// Index of the maximum of each window; the first of equals.
    fn argmax(&self, at: &At<'_>, x: &[f64]) -> Vec<usize> {
        let Shape { height, width, .. } = at.input;
        let planes = x.len() / at.input.pixels();
        let range = |i: usize, side: usize| {
            let first = i * self.stride;
            first.saturating_sub(self.padding)..(first + self.kernel).saturating_sub(self.padding).min(side)
        };
        let largest = |plane: usize, (oy, ox): (usize, usize)| {
            let rows = range(oy, height).map(|iy| (plane * height + iy) * width);
            let mut places = rows.flat_map(|row| range(ox, width).map(move |ix| row + ix));
            let first = places.next().unwrap_or_default();
            places.fold(first, |best, i| if x[i] > x[best] || (x[i].is_nan() && !x[best].is_nan()) { i } else { best })
        };
        (0..planes)
            .flat_map(|plane| at.output.places().map(move |place| (plane, place)))
            .map(|(p, at)| largest(p, at))
            .collect()
    }
}

impl Operation for MaxPool {
    fn label(&self) -> &str {
        "max-pool"
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        limits::check_settings("max-pool", &[self.kernel, self.stride, self.padding])?;
        if 2 * self.padding > self.kernel {
            return Err(NetworkError::out_of_range("max-pool", "padding"));
        }
        input.windows("max-pool", input.channels, self.kernel, self.stride, self.padding)
    }

    fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        self.argmax(at, inputs[0]).into_iter().map(|i| inputs[0][i]).collect()
    }

    fn backward(&self, at: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        let mut dx = vec![0.0; inputs[0].len()];
        self.argmax(at, inputs[0]).into_iter().zip(dy).for_each(|(i, dy)| dx[i] += dy);
        Gradient::of(dx)
    }
}
