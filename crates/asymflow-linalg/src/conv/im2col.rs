//! Convolutions as one matrix product per sample over expanded columns.

use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::ConvShape;
use crate::LowRank;

fn columns_len(shape: ConvShape) -> usize {
    shape.in_channels * shape.kernel * shape.kernel * shape.out_height() * shape.out_width()
}

pub(super) fn scratch(shape: ConvShape, _par: Par) -> StackReq {
    if shape.validate().is_err() {
        return StackReq::empty();
    }
    StackReq::new::<f32>(columns_len(shape))
}

pub(super) fn folded_scratch(shape: ConvShape, rank: usize, par: Par) -> StackReq {
    let folded = ConvShape { in_channels: rank, ..shape };
    scratch(folded, par).and(StackReq::new::<f32>(folded.weight_len()))
}

/// Calls `visit(column, pixel)` for every pair of an expanded value and the input pixel it copies.
fn for_each_pair(shape: ConvShape, mut visit: impl FnMut(usize, usize)) {
    let (rows, cols, k) = (shape.out_height(), shape.out_width(), shape.kernel);
    for c in 0..shape.in_channels {
        for tap in 0..k * k {
            for oy in 0..rows {
                let iy = (oy * shape.stride + tap / k).wrapping_sub(shape.padding);
                if iy >= shape.height {
                    continue;
                }
                for ox in 0..cols {
                    let ix = (ox * shape.stride + tap % k).wrapping_sub(shape.padding);
                    if ix < shape.width {
                        let column = ((c * k * k + tap) * rows + oy) * cols + ox;
                        visit(column, (c * shape.height + iy) * shape.width + ix);
                    }
                }
            }
        }
    }
}

fn expand(shape: ConvShape, x: &[f32], columns: &mut [f32]) {
    columns.fill(0.0);
    for_each_pair(shape, |column, pixel| columns[column] = x[pixel]);
}

fn row_major(data: &[f32], cols: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(data, data.len() / cols, cols)
}

fn row_major_mut(data: &mut [f32], cols: usize) -> MatMut<'_, f32> {
    let rows = data.len() / cols;
    MatMut::from_row_major_slice_mut(data, rows, cols)
}

fn forward_sample(s: ConvShape, x: &[f32], weight: &[f32], y: &mut [f32], columns: &mut [f32], add: Accum, par: Par) {
    let pixels = s.out_height() * s.out_width();
    expand(s, x, columns);
    matmul(
        row_major_mut(y, pixels),
        add,
        row_major(weight, weight.len() / s.out_channels),
        row_major(columns, pixels),
        1.0,
        par,
    );
}

pub(super) fn forward(s: ConvShape, x: &[f32], weight: &[f32], y: &mut [f32], par: Par, stack: &mut MemStack) {
    let (mut columns, _) = stack.make_with(columns_len(s), |_| 0.0_f32);
    for (x, y) in x.chunks(s.input_len() / s.samples).zip(y.chunks_mut(s.output_len() / s.samples)) {
        forward_sample(s, x, weight, y, &mut columns, Accum::Replace, par);
    }
}

pub(super) fn input_gradient(s: ConvShape, dy: &[f32], weight: &[f32], dx: &mut [f32], par: Par, stack: &mut MemStack) {
    let pixels = s.out_height() * s.out_width();
    let (mut columns, _) = stack.make_with(columns_len(s), |_| 0.0_f32);
    for (dy, dx) in dy.chunks(s.output_len() / s.samples).zip(dx.chunks_mut(s.input_len() / s.samples)) {
        let weight = row_major(weight, weight.len() / s.out_channels);
        let target = row_major_mut(&mut columns, pixels);
        matmul(target, Accum::Replace, weight.transpose(), row_major(dy, pixels), 1.0, par);
        dx.fill(0.0);
        for_each_pair(s, |column, pixel| dx[pixel] += columns[column]);
    }
}

fn add_weight_gradient_sample(s: ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32], columns: &mut [f32], par: Par) {
    let pixels = s.out_height() * s.out_width();
    expand(s, x, columns);
    let cols = dw.len() / s.out_channels;
    let columns = row_major(columns, pixels);
    matmul(row_major_mut(dw, cols), Accum::Add, row_major(dy, pixels), columns.transpose(), 1.0, par);
}

pub(super) fn weight_gradient(s: ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32], par: Par, stack: &mut MemStack) {
    let (mut columns, _) = stack.make_with(columns_len(s), |_| 0.0_f32);
    dw.fill(0.0);
    for (x, dy) in x.chunks(s.input_len() / s.samples).zip(dy.chunks(s.output_len() / s.samples)) {
        add_weight_gradient_sample(s, x, dy, dw, &mut columns, par);
    }
}

/// `weight` as `out` matrices of `channels × k²`, `a` as `in × rank`: the folded kernel is aᵀ · weight for each.
fn fold(s: ConvShape, a: &[f32], rank: usize, weight: &[f32], folded: &mut [f32], par: Par) {
    let taps = s.kernel * s.kernel;
    for (full, low) in weight.chunks(s.in_channels * taps).zip(folded.chunks_mut(rank * taps)) {
        let target = row_major_mut(low, taps);
        matmul(target, Accum::Replace, row_major(a, rank).transpose(), row_major(full, taps), 1.0, par);
    }
}

fn recombine(s: ConvShape, a: &[f32], rank: usize, folded: &[f32], dw: &mut [f32], par: Par) {
    let taps = s.kernel * s.kernel;
    for (full, low) in dw.chunks_mut(s.in_channels * taps).zip(folded.chunks(rank * taps)) {
        matmul(row_major_mut(full, taps), Accum::Add, row_major(a, rank), row_major(low, taps), 1.0, par);
    }
}

pub(super) fn folded_forward(s: ConvShape, l: &LowRank, weight: &[f32], y: &mut [f32], par: Par, stack: &mut MemStack) {
    let low = ConvShape { in_channels: l.rank, ..s };
    let (mut columns, stack) = stack.make_with(columns_len(low), |_| 0.0_f32);
    let (mut folded, _) = stack.make_with(low.weight_len(), |_| 0.0_f32);
    let inputs = l.principal.chunks(low.input_len() / s.samples);
    for (sample, (x, y)) in inputs.zip(y.chunks_mut(s.output_len() / s.samples)).enumerate() {
        if sample == 0 || !l.shared {
            let a = &l.coefficients[sample * s.in_channels * l.rank..][..s.in_channels * l.rank];
            fold(s, a, l.rank, weight, &mut folded, par);
        }
        forward_sample(low, x, &folded, y, &mut columns, Accum::Add, par);
    }
}

pub(super) fn folded_weight_gradient(
    s: ConvShape,
    l: &LowRank,
    dy: &[f32],
    dw: &mut [f32],
    par: Par,
    stack: &mut MemStack,
) {
    let low = ConvShape { in_channels: l.rank, ..s };
    let (mut columns, stack) = stack.make_with(columns_len(low), |_| 0.0_f32);
    let (mut folded, _) = stack.make_with(low.weight_len(), |_| 0.0_f32);
    let inputs = l.principal.chunks(low.input_len() / s.samples);
    for (sample, (x, dy)) in inputs.zip(dy.chunks(s.output_len() / s.samples)).enumerate() {
        add_weight_gradient_sample(low, x, dy, &mut folded, &mut columns, par);
        if !l.shared {
            let a = &l.coefficients[sample * s.in_channels * l.rank..][..s.in_channels * l.rank];
            recombine(s, a, l.rank, &folded, dw, par);
            folded.fill(0.0);
        }
    }
    if l.shared {
        recombine(s, &l.coefficients, l.rank, &folded, dw, par);
    }
}
