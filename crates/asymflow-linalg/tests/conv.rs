//! The convolution kernels against a naive f64 loop, and the identities that tie them together.

use asymflow_linalg::LowRank;
use asymflow_linalg::conv::{self, ConvError, ConvShape, Folding};
use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use proptest::prelude::*;

/// Largest error that any kernel may show, relative to the largest magnitude of the exact result.
const TOLERANCE: f64 = 2e-5;

fn with_scratch<T>(request: StackReq, run: impl FnOnce(&mut MemStack) -> T) -> T {
    run(MemStack::new(&mut MemBuffer::new(request)))
}

/// Uniform values in −1..1 from a xorshift generator.
fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

/// Calls `visit(x, w, y)` with the indices of every product of the convolution.
fn for_each_product(s: ConvShape, mut visit: impl FnMut(usize, usize, usize)) {
    let (rows, cols, k) = (s.out_height(), s.out_width(), s.kernel);
    for (n, m, c) in
        (0..s.samples).flat_map(|n| (0..s.out_channels).flat_map(move |m| (0..s.in_channels).map(move |c| (n, m, c))))
    {
        for (ky, kx) in (0..k).flat_map(|ky| (0..k).map(move |kx| (ky, kx))) {
            for (oy, ox) in (0..rows).flat_map(|oy| (0..cols).map(move |ox| (oy, ox))) {
                let (iy, ix) = (oy * s.stride + ky, ox * s.stride + kx);
                let inside =
                    (s.padding..s.padding + s.height).contains(&iy) && (s.padding..s.padding + s.width).contains(&ix);
                if inside {
                    let x = ((n * s.in_channels + c) * s.height + iy - s.padding) * s.width + ix - s.padding;
                    let w = ((m * s.in_channels + c) * k + ky) * k + kx;
                    visit(x, w, ((n * s.out_channels + m) * rows + oy) * cols + ox);
                }
            }
        }
    }
}

fn exact_forward(s: ConvShape, x: &[f32], w: &[f32]) -> Vec<f64> {
    let mut y = vec![0.0; s.output_len()];
    for_each_product(s, |i, j, o| y[o] += f64::from(x[i]) * f64::from(w[j]));
    y
}

fn exact_input_gradient(s: ConvShape, dy: &[f32], w: &[f32]) -> Vec<f64> {
    let mut dx = vec![0.0; s.input_len()];
    for_each_product(s, |i, j, o| dx[i] += f64::from(dy[o]) * f64::from(w[j]));
    dx
}

fn exact_weight_gradient(s: ConvShape, x: &[f32], dy: &[f32]) -> Vec<f64> {
    let mut dw = vec![0.0; s.weight_len()];
    for_each_product(s, |i, j, o| dw[j] += f64::from(x[i]) * f64::from(dy[o]));
    dw
}

fn relative_error(got: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(got.len(), exact.len());
    let largest = exact.iter().fold(1e-30_f64, |m, v| m.max(v.abs()));
    got.iter().zip(exact).fold(0.0_f64, |m, (g, e)| {
        let error = (f64::from(*g) - e).abs();
        if error.is_nan() { f64::INFINITY } else { m.max(error) }
    }) / largest
}

fn forward(s: ConvShape, x: &[f32], w: &[f32], par: Par) -> Vec<f32> {
    let mut y = vec![f32::NAN; s.output_len()];
    let request = conv::forward_scratch(s, par);
    assert_eq!(with_scratch(request, |stack| conv::forward(s, x, w, &mut y, par, stack)), Ok(()));
    y
}

fn input_gradient(s: ConvShape, dy: &[f32], w: &[f32], par: Par) -> Vec<f32> {
    let mut dx = vec![f32::NAN; s.input_len()];
    let request = conv::input_gradient_scratch(s, par);
    assert_eq!(with_scratch(request, |stack| conv::input_gradient(s, dy, w, &mut dx, par, stack)), Ok(()));
    dx
}

fn weight_gradient(s: ConvShape, x: &[f32], dy: &[f32], par: Par) -> Vec<f32> {
    let mut dw = vec![f32::NAN; s.weight_len()];
    let request = conv::weight_gradient_scratch(s, par);
    assert_eq!(with_scratch(request, |stack| conv::weight_gradient(s, x, dy, &mut dw, par, stack)), Ok(()));
    dw
}

fn low_rank(s: ConvShape, rank: usize, shared: bool, seed: u64) -> LowRank {
    let mixings = if shared { 1 } else { s.samples };
    LowRank {
        rank,
        shared,
        coefficients: random(mixings * s.in_channels * rank, seed),
        principal: random(s.samples * rank * s.height * s.width, seed + 1),
    }
}

/// X_main = A · V, dense.
fn dense(s: ConvShape, l: &LowRank) -> Vec<f32> {
    let pixels = s.height * s.width;
    let mut x = vec![0.0; s.input_len()];
    for (row, values) in x.chunks_mut(pixels).enumerate() {
        let (n, c) = (row / s.in_channels, row % s.in_channels);
        let a = if l.shared { c } else { n * s.in_channels + c };
        for p in 0..l.rank {
            let coefficient = l.coefficients[a * l.rank + p];
            let principal = &l.principal[(n * l.rank + p) * pixels..][..pixels];
            for (value, v) in values.iter_mut().zip(principal) {
                *value += coefficient * v;
            }
        }
    }
    x
}

fn check_plain(s: ConvShape, seed: u64, par: Par) {
    let (x, w, dy) = (random(s.input_len(), seed), random(s.weight_len(), seed + 1), random(s.output_len(), seed + 2));
    let (y, dx, dw) = (forward(s, &x, &w, par), input_gradient(s, &dy, &w, par), weight_gradient(s, &x, &dy, par));
    assert!(relative_error(&y, &exact_forward(s, &x, &w)) < TOLERANCE, "forward {s:?}");
    assert!(relative_error(&dx, &exact_input_gradient(s, &dy, &w)) < TOLERANCE, "input gradient {s:?}");
    assert!(relative_error(&dw, &exact_weight_gradient(s, &x, &dy)) < TOLERANCE, "weight gradient {s:?}");
}

fn check_folded(s: ConvShape, rank: usize, shared: bool, seed: u64, par: Par) {
    let l = low_rank(s, rank, shared, seed);
    let (w, dy) = (random(s.weight_len(), seed + 2), random(s.output_len(), seed + 3));
    let (mut y, mut dw) = (vec![f32::NAN; s.output_len()], vec![f32::NAN; s.weight_len()]);
    let x_main = dense(s, &l);
    let exact_y = exact_forward(s, &x_main, &w);
    let exact_dw = exact_weight_gradient(s, &x_main, &dy);

    let request = conv::folded_forward_scratch(s, rank, par);
    let mut marks = Vec::new();
    let mark: &mut dyn FnMut(Folding) = &mut |folding| marks.push(folding);
    let result = with_scratch(request, |stack| conv::folded_forward(s, &l, &w, &mut y, par, stack, mark));
    assert_eq!(result, Ok(()));
    assert_eq!(marks, [Folding::Begins, Folding::Ends]);
    assert!(relative_error(&y, &exact_y) < TOLERANCE, "folded forward {s:?} rank {rank} shared {shared}");
    if shared {
        let low = ConvShape { in_channels: rank, ..s };
        let mut folded = vec![f32::NAN; low.weight_len()];
        let run = |stack: &mut MemStack| conv::fold(s, &l.coefficients, &w, &mut folded, par, stack);
        assert_eq!(with_scratch(conv::fold_scratch(s, rank), run), Ok(()));
        let y = forward(low, &l.principal, &folded, par);
        assert!(relative_error(&y, &exact_y) < TOLERANCE, "folded once {s:?} rank {rank}");
    }
    let request = conv::folded_weight_gradient_scratch(s, rank, par);
    let mut marks = Vec::new();
    let mark: &mut dyn FnMut(Folding) = &mut |folding| marks.push(folding);
    let run = |stack: &mut MemStack| conv::folded_weight_gradient(s, &l, &dy, &mut dw, par, stack, mark);
    assert_eq!(with_scratch(request, run), Ok(()));
    assert_eq!(marks, [Folding::Begins, Folding::Ends]);
    assert!(relative_error(&dw, &exact_dw) < TOLERANCE, "folded weight gradient {s:?} rank {rank} shared {shared}");
}

fn shapes(max_channels: usize) -> impl Strategy<Value = ConvShape> {
    let sizes = (1..4_usize, 1..=max_channels, 1..12_usize, 1..12_usize, 1..=max_channels);
    let kernels = (prop::sample::select(vec![1_usize, 3, 5, 7]), 1..3_usize, 0..4_usize);
    (sizes, kernels)
        .prop_map(|((samples, in_channels, height, width, out_channels), (kernel, stride, padding))| ConvShape {
            samples,
            in_channels,
            height,
            width,
            out_channels,
            kernel,
            stride,
            padding,
        })
        .prop_filter("the kernel must fit", |s| s.validate().is_ok())
}

fn pars() -> impl Strategy<Value = Par> {
    prop::sample::select(vec![Par::Seq, Par::rayon(2), Par::rayon(3)])
}

proptest! {
    #[test]
    fn plain_kernels_match_the_naive_loop(s in shapes(24), seed in 0..1000_u64, par in pars()) {
        check_plain(s, seed, par);
    }

    #[test]
    fn folded_kernels_match_the_dense_convolution(
        s in shapes(20), rank in 1..20_usize, shared in any::<bool>(), seed in 0..1000_u64, par in pars(),
    ) {
        check_folded(s, rank, shared, seed, par);
    }

    #[test]
    fn gradients_are_adjoint_to_the_forward_pass(s in shapes(24), seed in 0..1000_u64) {
        let (x, w, dy) = (random(s.input_len(), seed), random(s.weight_len(), seed + 1), random(s.output_len(), seed + 2));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let norm = |a: &[f32]| dot(a, a).sqrt();
        let y = forward(s, &x, &w, Par::Seq);
        let forward = dot(&y, &dy);
        let bound = TOLERANCE * norm(&y).max(1.0) * norm(&dy).max(1.0);
        prop_assert!((forward - dot(&x, &input_gradient(s, &dy, &w, Par::Seq))).abs() < bound);
        prop_assert!((forward - dot(&w, &weight_gradient(s, &x, &dy, Par::Seq))).abs() < bound);
    }

    /// W_main + W_res: the gradient of a split input is the sum of the gradients of its parts.
    #[test]
    fn split_weight_gradient_adds_up(s in shapes(16), rank in 1..5_usize, shared in any::<bool>(), seed in 0..1000_u64) {
        let l = low_rank(s, rank, shared, seed);
        let (x, dy) = (random(s.input_len(), seed + 2), random(s.output_len(), seed + 3));
        let residual: Vec<f32> = x.iter().zip(dense(s, &l)).map(|(x, main)| x - main).collect();
        let mut dw = vec![f32::NAN; s.weight_len()];
        let request = conv::folded_weight_gradient_scratch(s, rank, Par::Seq);
        let run = |stack: &mut MemStack| conv::folded_weight_gradient(s, &l, &dy, &mut dw, Par::Seq, stack, &mut |_| {});
        prop_assert_eq!(with_scratch(request, run), Ok(()));
        dw.iter_mut().zip(weight_gradient(s, &residual, &dy, Par::Seq)).for_each(|(dw, residual)| *dw += residual);
        let scale = exact_weight_gradient(s, &residual, &dy).iter().fold(1.0_f64, |m, v| m.max(v.abs()));
        let exact = exact_weight_gradient(s, &x, &dy);
        for (got, exact) in dw.iter().zip(&exact) {
            prop_assert!((f64::from(*got) - exact).abs() < 4.0 * TOLERANCE * scale);
        }
    }
}

/// A layer with square images and the usual padding.
const fn shape(samples: usize, channels: usize, side: usize, out: usize, kernel: usize, stride: usize) -> ConvShape {
    let (height, width, padding) = (side, side, kernel / 2);
    ConvShape { samples, in_channels: channels, height, width, out_channels: out, kernel, stride, padding }
}

#[test]
fn network_layers_match_the_naive_loop() {
    let layers = [
        shape(2, 3, 32, 64, 3, 1),
        shape(2, 64, 32, 64, 3, 1),
        shape(3, 64, 16, 128, 3, 2),
        shape(3, 64, 16, 128, 1, 2),
        shape(2, 128, 8, 256, 3, 1),
        shape(5, 256, 4, 512, 3, 1),
        shape(7, 512, 2, 512, 3, 1),
        shape(1, 3, 64, 64, 7, 2),
        shape(1, 64, 37, 80, 3, 1),
        shape(2, 96, 14, 100, 3, 1),
    ];
    for (i, layer) in layers.into_iter().enumerate() {
        check_plain(layer, i as u64, Par::Seq);
        check_plain(layer, i as u64, Par::rayon(2));
        check_folded(layer, 8.min(layer.in_channels), i % 2 == 0, i as u64, Par::rayon(2));
        check_folded(layer, 2, i % 2 == 1, i as u64, Par::Seq);
        check_folded(layer, 16, true, i as u64, Par::rayon(2));
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let s = shape(2, 3, 8, 4, 3, 1);
    let (x, w, y) = (vec![0.0; s.input_len()], vec![0.0; s.weight_len()], vec![0.0; s.output_len()]);
    let length = |what, expected, got| Err(ConvError::Length { what, expected, got });
    let mut memory = MemBuffer::new(conv::forward_scratch(s, Par::Seq));
    let stack = MemStack::new(&mut memory);
    let result = conv::forward(s, &x[1..], &w, &mut y.clone(), Par::Seq, stack);
    assert_eq!(result, length("x", x.len(), x.len() - 1));
    let result = conv::forward(s, &x, &w[1..], &mut y.clone(), Par::Seq, stack);
    assert_eq!(result, length("weight", w.len(), w.len() - 1));
    let result = conv::forward(s, &x, &w, &mut y.clone()[1..], Par::Seq, stack);
    assert_eq!(result, length("y", y.len(), y.len() - 1));
    let result = conv::input_gradient(s, &y[1..], &w, &mut x.clone(), Par::Seq, stack);
    assert_eq!(result, length("dy", y.len(), y.len() - 1));
    let result = conv::input_gradient(s, &y, &w, &mut x.clone()[1..], Par::Seq, stack);
    assert_eq!(result, length("dx", x.len(), x.len() - 1));
    let result = conv::weight_gradient(s, &x, &y, &mut w.clone()[1..], Par::Seq, stack);
    assert_eq!(result, length("dw", w.len(), w.len() - 1));
    let l = low_rank(s, 2, false, 0);
    let short = LowRank { coefficients: l.coefficients[1..].to_vec(), ..l.clone() };
    let result = conv::folded_forward(s, &short, &w, &mut y.clone(), Par::Seq, stack, &mut |_| {});
    assert_eq!(result, length("the coefficients", 12, 11));
    let result = conv::fold(s, &short.coefficients, &w, &mut [], Par::Seq, stack);
    assert_eq!(result, length("the basis", 9, 11));
    let short = LowRank { principal: l.principal[1..].to_vec(), ..l.clone() };
    let result = conv::folded_weight_gradient(s, &short, &y, &mut w.clone(), Par::Seq, stack, &mut |_| {});
    assert_eq!(result, length("the principal channels", 256, 255));
    let empty = LowRank { rank: 0, ..l };
    let result = conv::folded_forward(s, &empty, &w, &mut y.clone(), Par::Seq, stack, &mut |_| {});
    assert_eq!(result, Err(ConvError::Rank { rank: 0 }));
}

#[test]
fn impossible_shapes_are_refused() {
    let s = shape(2, 3, 8, 4, 3, 1);
    let refused = |s: ConvShape| matches!(s.validate(), Err(ConvError::Shape { .. }));
    assert_eq!(s.validate(), Ok(()));
    assert!(refused(ConvShape { samples: 0, ..s }));
    assert!(refused(ConvShape { in_channels: 0, ..s }));
    assert!(refused(ConvShape { out_channels: 0, ..s }));
    assert!(refused(ConvShape { height: 0, ..s }));
    assert!(refused(ConvShape { width: 0, ..s }));
    assert!(refused(ConvShape { kernel: 0, ..s }));
    assert!(refused(ConvShape { stride: 0, ..s }));
    assert!(refused(ConvShape { kernel: 11, ..s }));
    let large = |s: ConvShape| matches!(s.validate(), Err(ConvError::TooLarge { .. }));
    assert!(large(ConvShape { samples: usize::MAX, ..s }));
    assert!(large(ConvShape { padding: usize::MAX, ..s }));
    assert!(large(ConvShape { height: 1 << 30, width: 1 << 30, ..s }));
    let bad = ConvShape { kernel: 11, ..s };
    assert_eq!(conv::forward_scratch(bad, Par::Seq), StackReq::empty());
    let mut memory = MemBuffer::new(StackReq::new::<f32>(1));
    let result = conv::forward(bad, &[], &[], &mut [], Par::Seq, MemStack::new(&mut memory));
    assert!(matches!(result, Err(ConvError::Shape { .. })));
}

#[test]
fn too_little_scratch_is_refused() {
    let s = shape(2, 3, 8, 4, 3, 1);
    let (x, w, mut y) = (vec![0.0; s.input_len()], vec![0.0; s.weight_len()], vec![0.0; s.output_len()]);
    let mut memory = MemBuffer::new(StackReq::new::<u8>(16));
    let result = conv::forward(s, &x, &w, &mut y, Par::Seq, MemStack::new(&mut memory));
    assert!(matches!(result, Err(ConvError::Scratch { got: 16, .. })));
}
