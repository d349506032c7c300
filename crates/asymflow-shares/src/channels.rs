//! Local operations that move values about, or scale whole channels.

use asymflow_zoo::network::Shape;

use crate::program::Part;
use crate::ring::Ring;

/// factor · x + offset for each channel; one of either serves all channels.
pub(crate) fn affine<R: Ring>(shape: Shape, factor: &[i64], offset: &[i64], x: &[R]) -> Vec<R> {
    let of = |values: &[i64], channel: usize| {
        let index = if values.len() == 1 { 0 } else { channel % shape.channels };
        R::from_i64(values.get(index).copied().unwrap_or_default())
    };
    let mut output = Vec::with_capacity(x.len());
    for (channel, plane) in x.chunks_exact(shape.pixels()).enumerate() {
        let (factor, offset) = (of(factor, channel), of(offset, channel));
        output.extend(plane.iter().map(|x| x.times(factor).plus(offset)));
    }
    output
}

/// The channels named of samples of `shape`.
pub(crate) fn select<R: Ring>(shape: Shape, channels: &[u32], x: &[R]) -> Vec<R> {
    let sample = |sample: &[R]| -> Vec<R> {
        channels.iter().flat_map(|&c| sample[c as usize * shape.pixels()..][..shape.pixels()].iter().copied()).collect()
    };
    x.chunks_exact(shape.len()).flat_map(sample).collect()
}

/// The rows and columns named, in their order, of every channel.
pub(crate) fn take<R: Ring>(shape: Shape, rows: &[u32], columns: &[u32], x: &[R]) -> Vec<R> {
    let mut output = Vec::with_capacity(x.len() / shape.pixels().max(1) * rows.len() * columns.len());
    for plane in x.chunks_exact(shape.pixels()) {
        for &row in rows {
            let row = &plane[row as usize * shape.width..][..shape.width];
            output.extend(columns.iter().map(|&column| row[column as usize]));
        }
    }
    output
}

/// `samples` of `shape` with the channels of each part at their places.
pub(crate) fn join<R: Ring>(shape: Shape, samples: usize, parts: &[Part], registers: &[Vec<R>]) -> Vec<R> {
    let mut output = vec![R::ZERO; samples * shape.len()];
    for Part { input, shift, channels } in parts {
        for (index, plane) in registers[*input].chunks_exact(shape.pixels()).enumerate() {
            let (sample, channel) = (index / channels.len(), channels[index % channels.len()] as usize);
            let at = sample * shape.len() + channel * shape.pixels();
            output[at..][..shape.pixels()].iter_mut().zip(plane).for_each(|(to, x)| *to = x.shifted_left(*shift));
        }
    }
    output
}
