//! The loss, and what a network decides for.

use crate::error::EngineError;

/// Mean cross-entropy of softmax over a batch, and how many samples were classified correctly.
/// `gradient` receives (softmax − one-hot)/samples.
///
/// # Errors
/// Logits or a gradient that are not of `labels.len()` samples of `classes`, or a label that is none.
pub fn softmax_cross_entropy(
    logits: &[f32],
    classes: usize,
    labels: &[u32],
    gradient: &mut [f32],
) -> Result<(f64, usize), EngineError> {
    let expected = labels.len() * classes;
    for (what, got) in [("logits", logits.len()), ("gradient of the logits", gradient.len())] {
        if got != expected || expected == 0 {
            return Err(EngineError::Length { what, got, expected });
        }
    }
    if let Some(&label) = labels.iter().find(|&&label| label as usize >= classes) {
        return Err(EngineError::Label { label, classes });
    }
    let samples = labels.len() as f32;
    let (mut loss, mut correct) = (0.0, 0);
    for ((row, &label), gradient) in logits.chunks_exact(classes).zip(labels).zip(gradient.chunks_exact_mut(classes)) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = row.iter().map(|&v| (v - max).exp()).sum();
        let label = label as usize;
        loss += f64::from(max + sum.ln() - row[label]);
        correct += usize::from(argmax(row) == label);
        for (j, (g, &v)) in gradient.iter_mut().zip(row).enumerate() {
            let hot = if j == label { 1.0 } else { 0.0 };
            *g = ((v - max).exp() / sum - hot) / samples;
        }
    }
    Ok((loss / f64::from(samples), correct))
}

/// Index of the first largest value; of the first NaN, where there is one.
pub fn argmax(row: &[f32]) -> usize {
    let larger = |best: f32, v: f32| v > best || (v.is_nan() && !best.is_nan());
    let first = (0, f32::NEG_INFINITY);
    row.iter().enumerate().fold(first, |best, (i, &v)| if larger(best.1, v) { (i, v) } else { best }).0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thesis §3.4.4: the gradient of the merged logits is softmax(z_main + z_res) − y.
    #[test]
    fn the_gradient_of_the_merge_is_softmax_minus_label() {
        let (main, from_worker) = ([0.2f32, -1.0, 0.5, 2.0, 0.0, -3.0], [1.0f32, 0.3, -0.2, 0.1, 0.4, 2.5]);
        let labels = [2, 0];
        let mut logits = main;
        logits.iter_mut().zip(from_worker).for_each(|(z, more)| *z += more);
        let mut gradient = [0.0; 6];
        let (loss, correct) = softmax_cross_entropy(&logits, 3, &labels, &mut gradient).unwrap();
        let mut expected_loss = 0.0;
        for (row, &label) in labels.iter().enumerate() {
            let z: Vec<f64> =
                (0..3).map(|k| f64::from(main[3 * row + k]) + f64::from(from_worker[3 * row + k])).collect();
            let sum: f64 = z.iter().map(|z| z.exp()).sum();
            for class in 0..3 {
                let y = f64::from(u8::from(class == label as usize));
                let expected = (z[class].exp() / sum - y) / 2.0;
                assert!((f64::from(gradient[3 * row + class]) - expected).abs() < 1e-6);
            }
            expected_loss -= (z[label as usize].exp() / sum).ln() / 2.0;
        }
        assert!((loss - expected_loss).abs() < 1e-6);
        assert_eq!(correct, 1);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let mut gradient = [0.0; 20];
        let refused = |logits: &[f32], labels: &[u32], gradient: &mut [f32]| {
            softmax_cross_entropy(logits, 10, labels, gradient).unwrap_err().to_string()
        };
        assert_eq!(refused(&[0.0; 20], &[3, 10], &mut gradient), "label 10 is none of 10 classes");
        assert_eq!(refused(&[0.0; 19], &[3, 1], &mut gradient), "logits of 19 values, expected 20");
        assert_eq!(
            refused(&[0.0; 20], &[3, 1], &mut gradient[1..]),
            "gradient of the logits of 19 values, expected 20"
        );
        assert!(softmax_cross_entropy(&[], 10, &[], &mut []).is_err());
    }

    #[test]
    fn nan_is_the_largest() {
        assert_eq!(argmax(&[0.5, f32::NAN, 2.0, f32::NAN]), 1);
        assert_eq!((argmax(&[1.0, 3.0, 3.0]), argmax(&[f32::NEG_INFINITY])), (1, 0));
    }
}
