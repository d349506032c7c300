//! Guesses held to the truth, by the one who has it.

use std::collections::BTreeMap;

use asymflow_residual::backend::UnitId;
use asymflow_zoo::network::Shape;

use crate::attack::{AuditError, Guess};
use crate::figures::Interval;

/// What the attacks are after. Attacks never see it.
#[derive(Clone, Debug)]
pub struct Truth {
    /// Images, samples × C×H×W.
    pub images: Vec<f32>,
    /// Shape of one.
    pub shape: Shape,
    /// Their labels.
    pub labels: Vec<u32>,
    /// Inputs of units, samples × shape, with that shape.
    pub activations: BTreeMap<UnitId, (Shape, Vec<f32>)>,
}

/// A pixel counts as recovered below this relative error.
const EXACT: f64 = 0.02;

impl Truth {
    /// The figures of a guess, by name.
    ///
    /// # Errors
    /// A guess of another shape than the targets'.
    pub fn judge(&self, attack: &'static str, guess: &Guess) -> Result<Vec<(&'static str, Interval)>, AuditError> {
        let fits = |got: usize, expected: usize| {
            if got == expected && got > 0 { Ok(()) } else { Err(AuditError::Length { attack, got, expected }) }
        };
        match guess {
            Guess::Labels(labels) => {
                fits(labels.len(), self.labels.len())?;
                let right = labels.iter().zip(&self.labels).filter(|(guess, label)| guess == label).count();
                Ok(vec![("labels right", Interval::share(right, labels.len()))])
            }
            Guess::Activations(unit, values) => {
                let (shape, truth) =
                    self.activations.get(unit).ok_or(AuditError::Length { attack, got: values.len(), expected: 0 })?;
                fits(values.len(), truth.len())?;
                Ok(vec![
                    ("relative error", relative_error(values, truth, *shape)),
                    ("pixels recovered", recovered(values, truth, *shape)),
                ])
            }
            Guess::Images(values) => {
                fits(values.len(), self.images.len())?;
                let pairs = || values.chunks_exact(self.shape.len()).zip(self.images.chunks_exact(self.shape.len()));
                let ssim: Vec<f64> =
                    pairs().map(|(guess, image)| crate::picture::ssim(guess, image, self.shape)).collect();
                let psnr: Vec<f64> = pairs().map(|(guess, image)| crate::picture::psnr(guess, image)).collect();
                Ok(vec![("SSIM", Interval::mean(&ssim)), ("PSNR", Interval::mean(&psnr))])
            }
        }
    }
}

/// ‖guess − truth‖ / ‖truth‖, the mean over samples.
fn relative_error(guess: &[f32], truth: &[f32], shape: Shape) -> Interval {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let of = |(guess, truth): (&[f32], &[f32])| {
        let off = norm(&mut guess.iter().zip(truth).map(|(g, t)| f64::from(g - t)));
        off / norm(&mut truth.iter().map(|&t| f64::from(t))).max(f64::MIN_POSITIVE)
    };
    let errors: Vec<f64> = guess.chunks_exact(shape.len()).zip(truth.chunks_exact(shape.len())).map(of).collect();
    Interval::mean(&errors)
}

/// Share of pixels at which all channels together are within [`EXACT`]; blank pixels do not count.
fn recovered(guess: &[f32], truth: &[f32], shape: Shape) -> Interval {
    let pixels = shape.pixels();
    let (mut right, mut all) = (0, 0);
    for (guess, truth) in guess.chunks_exact(shape.len()).zip(truth.chunks_exact(shape.len())) {
        for pixel in 0..pixels {
            let column = || (pixel..shape.len()).step_by(pixels);
            let whole: f64 = column().map(|i| f64::from(truth[i]).powi(2)).sum();
            let off: f64 = column().map(|i| f64::from(guess[i] - truth[i]).powi(2)).sum();
            if whole > 0.0 {
                all += 1;
                right += usize::from(off <= EXACT * EXACT * whole);
            }
        }
    }
    Interval::share(right, all)
}
