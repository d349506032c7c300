//! Kernel orthogonality: a penalty that keeps the filters of M_main apart (thesis §3.4, after Wang et al., CVPR 2020).

use asymflow_zoo::ops::{ParamKind, ParamSpec};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

/// Whether a kernel is regularised: the k×k convolutions that double their channels, up to 256 of them, as in the
/// authors' code (the text of the thesis names the first convolution of a block instead).
fn is_regularised(spec: &ParamSpec) -> bool {
    let (ParamKind::ConvWeight, &[out, inputs, kernel, _]) = (spec.kind, spec.shape.as_slice()) else { return false };
    out == 2 * inputs && out <= 256 && kernel > 1
}

/// Adds the gradient of `weight`·‖WWᵀ − I‖² to the gradients of every regularised kernel, W being the kernel as a matrix
/// of out × (in·k·k), or its transpose where that has fewer rows.
pub(super) fn add_gradient<'a>(
    weight: f32,
    params: impl Iterator<Item = (&'a ParamSpec, &'a [f32], &'a mut [f32])>,
    par: Par,
) {
    if weight == 0.0 {
        return;
    }
    for (spec, values, gradient) in params {
        if is_regularised(spec) {
            let (rows, columns) = (spec.shape[0], values.len() / spec.shape[0]);
            let w = MatRef::from_row_major_slice(values, rows, columns);
            let into = MatMut::from_row_major_slice_mut(gradient, rows, columns);
            // ∇‖WWᵀ − I‖² = 4(WWᵀ − I)W.
            if rows <= columns {
                let gram = gram_less_identity(w, par);
                matmul(into, Accum::Add, gram.as_ref(), w, 4.0 * weight, par);
            } else {
                let gram = gram_less_identity(w.transpose(), par);
                matmul(into, Accum::Add, w, gram.as_ref(), 4.0 * weight, par);
            }
        }
    }
}

fn gram_less_identity(w: MatRef<'_, f32>, par: Par) -> Mat<f32> {
    let mut gram = Mat::zeros(w.nrows(), w.nrows());
    matmul(gram.as_mut(), Accum::Replace, w, w.transpose(), 1.0, par);
    for i in 0..w.nrows() {
        gram[(i, i)] -= 1.0;
    }
    gram
}

#[cfg(test)]
mod tests {
    use asymflow_zoo::ops::Init;

    use super::*;

    fn spec(shape: [usize; 4]) -> ParamSpec {
        ParamSpec::new("w", "weight", shape.to_vec(), ParamKind::ConvWeight, Init::constant(0.0))
    }

    /// The penalty by its definition, in f64.
    fn penalty(values: &[f32], rows: usize, columns: usize) -> f64 {
        let at = |i: usize, j: usize| {
            let (i, j) = if rows <= columns { (i, j) } else { (j, i) };
            f64::from(values[i * columns + j])
        };
        let (short, long) = (rows.min(columns), rows.max(columns));
        let entry = |i, k| (0..long).map(|j| at(i, j) * at(k, j)).sum::<f64>() - f64::from(u8::from(i == k));
        (0..short).flat_map(|i| (0..short).map(move |k| (i, k))).map(|(i, k)| entry(i, k).powi(2)).sum()
    }

    #[test]
    fn the_gradient_is_that_of_the_penalty() {
        for shape in [[4, 2, 3, 3], [40, 20, 3, 3], [64, 32, 2, 2]] {
            let specs = [spec(shape)];
            let len = specs[0].len();
            let values: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 0.3).collect();
            let mut gradients = [vec![0.0; len]];
            add_gradient(1.0, [(&specs[0], &values[..], &mut gradients[0][..])].into_iter(), Par::Seq);
            let (rows, columns) = (shape[0], len / shape[0]);
            for index in [0, 5, len - 1] {
                let moved = |by: f32| {
                    let mut values = values.clone();
                    values[index] += by;
                    (penalty(&values, rows, columns), f64::from(values[index]))
                };
                let ((above, x1), (below, x0)) = (moved(1e-3), moved(-1e-3));
                let expected = (above - below) / (x1 - x0);
                let got = f64::from(gradients[0][index]);
                assert!((got - expected).abs() < 1e-3 * (1.0 + expected.abs()), "{shape:?}: {got} against {expected}");
            }
        }
    }

    #[test]
    fn only_doubling_kernels_are_regularised() {
        assert!(is_regularised(&spec([32, 16, 3, 3])));
        for other in [[32, 16, 1, 1], [32, 32, 3, 3], [512, 256, 3, 3]] {
            assert!(!is_regularised(&spec(other)), "{other:?}");
        }
    }
}
