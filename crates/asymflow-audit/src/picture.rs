//! How alike two images are.

use asymflow_zoo::network::Shape;

/// Side of the window of [`ssim`].
const WINDOW: usize = 7;

/// Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004) over windows of 7×7 pixels, the mean over windows and channels, with
/// the range of `truth` as that of the values.
pub fn ssim(guess: &[f32], truth: &[f32], shape: Shape) -> f64 {
    let range = range(truth);
    let (c1, c2) = ((0.01 * range).powi(2), (0.03 * range).powi(2));
    let (rows, columns) = (shape.height.saturating_sub(WINDOW - 1), shape.width.saturating_sub(WINDOW - 1));
    let mut total = 0.0;
    for channel in 0..shape.channels {
        for top in 0..rows {
            for left in 0..columns {
                let at = |i: usize| {
                    let (row, column) = (top + i / WINDOW, left + i % WINDOW);
                    (channel * shape.height + row) * shape.width + column
                };
                let (mut a, mut b, mut aa, mut bb, mut ab) = (0.0, 0.0, 0.0, 0.0, 0.0);
                for i in (0..WINDOW * WINDOW).map(at) {
                    let (x, y) = (f64::from(guess[i]), f64::from(truth[i]));
                    (a, b, aa, bb, ab) = (a + x, b + y, aa + x * x, bb + y * y, ab + x * y);
                }
                let n = (WINDOW * WINDOW) as f64;
                let (a, b) = (a / n, b / n);
                // Unbiased moments, as scikit-image has them.
                let of = |sum: f64, product: f64| (sum - n * product) / (n - 1.0);
                let (va, vb, cov) = (of(aa, a * a), of(bb, b * b), of(ab, a * b));
                total += (2.0 * a * b + c1) * (2.0 * cov + c2) / ((a * a + b * b + c1) * (va + vb + c2));
            }
        }
    }
    total / (shape.channels * rows * columns).max(1) as f64
}

/// Peak signal-to-noise ratio in decibels, with the range of `truth` as the peak.
pub fn psnr(guess: &[f32], truth: &[f32]) -> f64 {
    let error = guess.iter().zip(truth).map(|(g, t)| f64::from(g - t).powi(2)).sum::<f64>() / truth.len().max(1) as f64;
    20.0 * range(truth).log10() - 10.0 * error.max(1e-12).log10()
}

fn range(values: &[f32]) -> f64 {
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    f64::from((high - low).max(1e-6))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of scikit-image 0.26 on the same ramp and its disturbed copy: `structural_similarity(a, b, data_range=b.max() - b.min())` and
    /// `peak_signal_noise_ratio(b, a, data_range=...)`.
    #[test]
    fn figures_are_those_of_scikit_image() {
        let shape = Shape::new(1, 12, 12);
        let truth: Vec<f32> = (0..144).map(|i| (i % 12) as f32 * 0.05 + (i / 12) as f32 * 0.03).collect();
        let guess: Vec<f32> = truth.iter().enumerate().map(|(i, v)| v + if i % 3 == 0 { 0.1 } else { -0.02 }).collect();
        assert!((ssim(&guess, &truth, shape) - SSIM).abs() < 1e-4, "{}", ssim(&guess, &truth, shape));
        assert!((psnr(&guess, &truth) - PSNR).abs() < 1e-4, "{}", psnr(&guess, &truth));
    }

    const SSIM: f64 = 0.897_453;
    const PSNR: f64 = 23.326_628;
}
