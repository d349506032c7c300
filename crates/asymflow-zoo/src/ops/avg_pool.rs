//! Average pooling to a fixed map.

use std::ops::Range;

use super::operation::{At, Gradient, Operation};
use crate::network::limits;
use crate::shape::{NetworkError, Shape};

/// Average pooling to a fixed `out × out` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvgPool {
    /// Side of the output map.
    pub out: usize,
}

impl AvgPool {
    /// PyTorch's adaptive window `i` of `out` over `side`: ⌊i·side/out⌋ .. ⌈(i+1)·side/out⌉.
    pub fn window(self, i: usize, side: usize) -> Range<usize> {
        i * side / self.out..((i + 1) * side).div_ceil(self.out)
    }

    /// Calls `visit` with the index of every output, of an input in its window, and the window's size.
    fn taps(self, at: &At<'_>, mut visit: impl FnMut(usize, usize, f64)) {
        let Shape { channels, height, width } = at.input;
        for plane in 0..at.samples * channels {
            for (oy, ox) in at.output.places() {
                let (rows, columns) = (self.window(oy, height), self.window(ox, width));
                let size = (rows.len() * columns.len()) as f64;
                let y = (plane * self.out + oy) * self.out + ox;
                for (iy, ix) in rows.flat_map(|iy| columns.clone().map(move |ix| (iy, ix))) {
                    visit(y, (plane * height + iy) * width + ix, size);
                }
            }
        }
    }
}

impl Operation for AvgPool {
    fn label(&self) -> &str {
        "avg-pool"
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        limits::check_settings("avg-pool", &[self.out])?;
        if self.out == 0 {
            return Err(NetworkError::out_of_range("avg-pool", "output side"));
        }
        Ok(Shape::new(input.channels, self.out, self.out))
    }

    fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        let mut y = vec![0.0; at.samples * at.output.len()];
        self.taps(at, |to, from, size| y[to] += inputs[0][from] / size);
        y
    }

    fn backward(&self, at: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        let mut dx = vec![0.0; inputs[0].len()];
        self.taps(at, |from, to, size| dx[to] += dy[from] / size);
        Gradient::of(dx)
    }
}
