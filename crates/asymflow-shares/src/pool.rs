//! Average pooling over PyTorch's adaptive windows.

use asymflow_zoo::network::Shape;

use crate::ring::Ring;

/// Sums of the windows of each channel, times 2^bits / size, rounded to an integer.
pub(crate) fn pool<R: Ring>(shape: Shape, out: usize, bits: u32, input: &[R]) -> Vec<R> {
    let window = |side: usize, index: usize| index * side / out..((index + 1) * side).div_ceil(out);
    let mut output = Vec::with_capacity(input.len() / shape.pixels().max(1) * out * out);
    for channel in input.chunks_exact(shape.pixels()) {
        for (y, x) in (0..out).flat_map(|y| (0..out).map(move |x| (y, x))) {
            let (rows, columns) = (window(shape.height, y), window(shape.width, x));
            let size = rows.len() * columns.len();
            let mut sum = R::ZERO;
            for row in rows {
                for value in &channel[row * shape.width..][columns.clone()] {
                    sum = sum.plus(*value);
                }
            }
            output.push(sum.times(R::from_u64(((1 << bits) + size as u64 / 2) / size as u64)));
        }
    }
    output
}
