//! Max-pooling of an NCHW batch, without a branch that depends on a value.

use asymflow_zoo::network::Shape;
use asymflow_zoo::ops::MaxPool;
use rayon::prelude::*;

/// Max-pooling of every plane; `argmax` receives the index of each maximum within its input plane.
pub fn forward(x: &[f32], input: Shape, y: &mut [f32], output: Shape, window: MaxPool, argmax: &mut [u32]) {
    let planes = y.par_chunks_exact_mut(output.pixels()).zip(argmax.par_chunks_exact_mut(output.pixels()));
    planes.zip(x.par_chunks_exact(input.pixels())).for_each_init(
        || RowPool::new(window, input),
        |pool, ((y, argmax), x)| {
            let rows = y.chunks_exact_mut(output.width).zip(argmax.chunks_exact_mut(output.width)).enumerate();
            rows.for_each(|(row, (y, argmax))| pool.pool(x, row, y, argmax));
        },
    );
}

/// Maxima of columns, and where in the plane they were found.
struct Maxima {
    values: Vec<f32>,
    at: Vec<u32>,
}

impl Maxima {
    fn none(len: usize) -> Self {
        Self { values: vec![f32::NEG_INFINITY; len], at: vec![0; len] }
    }
}

/// Puts into `best` and `at` what is greater, is equal and comes earlier in the plane, or is NaN. Without a branch: which is the
/// greater cannot be foreseen.
fn keep_better(best: &mut [f32], at: &mut [u32], values: &[f32], indices: &[u32]) {
    for (((best, at), &value), &index) in best.iter_mut().zip(at).zip(values).zip(indices) {
        let is_better = (value > *best) | ((value == *best) & (index < *at)) | value.is_nan();
        let mask = u32::from(is_better).wrapping_neg();
        *best = f32::from_bits(value.to_bits() & mask | best.to_bits() & !mask);
        *at = index & mask | *at & !mask;
    }
}

/// What the rows of a plane are pooled with: of all columns the maxima of the lines of a window first, then those of its places.
struct RowPool {
    window: MaxPool,
    /// Indices of the values of a plane.
    indices: Vec<u32>,
    width: usize,
    lines: Maxima,
    /// The maxima of lines with padding, those columns one behind the other that are a stride apart.
    strided: Maxima,
}

impl RowPool {
    fn new(window: MaxPool, input: Shape) -> Self {
        let width = input.width;
        let strided = Maxima::none((width + 2 * window.padding).next_multiple_of(window.stride));
        let indices = (0..).take(input.pixels()).collect();
        Self { window, indices, width, lines: Maxima::none(width), strided }
    }

    /// One row of output.
    fn pool(&mut self, x: &[f32], row: usize, y: &mut [f32], argmax: &mut [u32]) {
        let MaxPool { kernel, stride, padding } = self.window;
        let Self { width, lines, strided, .. } = self;
        let top = (row * stride).saturating_sub(padding) * *width;
        let covered = top..((row * stride + kernel - padding) * *width).min(x.len());
        lines.values.fill(f32::NEG_INFINITY);
        for (line, indices) in x[covered.clone()].chunks_exact(*width).zip(self.indices[covered].chunks_exact(*width)) {
            keep_better(&mut lines.values, &mut lines.at, line, indices);
        }
        let places = strided.values.len() / stride;
        for phase in 0..stride {
            // The first column of this phase that is no padding.
            let column = (phase + stride * padding - padding) % stride;
            let to = phase * places + (column + padding) / stride;
            let from = lines.values.iter().zip(&lines.at).skip(column).step_by(stride);
            let to = strided.values[to..].iter_mut().zip(&mut strided.at[to..]);
            to.zip(from).for_each(|(to, from)| (*to.0, *to.1) = (*from.0, *from.1));
        }
        y.fill(f32::NEG_INFINITY);
        argmax.fill(0);
        for place in 0..kernel {
            let from = place % stride * places + place / stride;
            keep_better(y, argmax, &strided.values[from..], &strided.at[from..]);
        }
    }
}

/// Backward of [`forward`]: routes every gradient to its maximum.
pub fn backward(dy: &[f32], output: Shape, argmax: &[u32], dx: &mut [f32], input: Shape) {
    dx.par_chunks_exact_mut(input.pixels())
        .zip(dy.par_chunks_exact(output.pixels()))
        .zip(argmax.par_chunks_exact(output.pixels()))
        .for_each(|((dx, dy), argmax)| {
            dx.fill(0.0);
            for (&index, &dy) in argmax.iter().zip(dy) {
                dx[index as usize] += dy;
            }
        });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Value and index of the first maximum of a window; NaN is larger than every number.
    fn naive(x: &[f32], input: Shape, window: MaxPool, row: usize, column: usize) -> (f32, usize) {
        let places = (0..window.kernel * window.kernel).filter_map(|place| {
            let i = (row * window.stride + place / window.kernel).checked_sub(window.padding)?;
            let j = (column * window.stride + place % window.kernel).checked_sub(window.padding)?;
            (i < input.height && j < input.width).then_some(i * input.width + j)
        });
        places.fold((f32::NEG_INFINITY, 0), |best, i| if x[i] > best.0 || x[i].is_nan() { (x[i], i) } else { best })
    }

    proptest! {
        /// With values that are often equal and sometimes NaN.
        #[test]
        fn every_window_has_the_maximum_of_a_naive_loop(
            (kernel, stride) in (1_usize..5, 1_usize..5),
            padding in 0_usize..3,
            (height, width) in (4_usize..12, 4_usize..12),
            pick in prop::collection::vec(0_usize..9, 2 * 3 * 12 * 12),
        ) {
            let window = MaxPool { kernel, stride, padding: padding.min(kernel / 2) };
            let input = Shape::new(3, height, width);
            let side = |side: usize| (side + 2 * window.padding - kernel) / stride + 1;
            let output = Shape::new(3, side(height), side(width));
            let values = [-1.0, 0.0, 0.5, 2.0, -0.0, 2.0, -3.0, 0.0, f32::NAN];
            let x: Vec<f32> = pick[..2 * input.len()].iter().map(|&i| values[i]).collect();
            let (mut y, mut argmax) = (vec![7.0; 2 * output.len()], vec![7; 2 * output.len()]);
            forward(&x, input, &mut y, output, window, &mut argmax);

            for (i, (&y, &at)) in y.iter().zip(&argmax).enumerate() {
                let (plane, place) = (i / output.pixels(), i % output.pixels());
                let x = &x[plane * input.pixels()..][..input.pixels()];
                let (expected, first) = naive(x, input, window, place / output.width, place % output.width);
                prop_assert!(y == expected || (y.is_nan() && expected.is_nan()));
                prop_assert!(y.is_nan() || at as usize == first, "{at} {first}");
            }
        }
    }
}
