//! Labels: randomised response over k classes.

use crate::codewords::probability_of_others;
use crate::exact::Words;
use crate::mechanism::MechanismError;

/// Keeps a label with probability e^ε/(e^ε + k − 1) and otherwise names one of the k − 1 others, each as likely.
///
/// # Guarantee
/// Pure ε-differential privacy of every label on its own, whichever other label it is replaced by (Warner 1965; for k
/// classes Kairouz, Bonawitz and Ramage 2016). The probability of a change is an integer multiple of 2⁻⁶⁴, rounded
/// up, so that the real ε is at most the stated one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomisedResponse {
    classes: u32,
    epsilon: f64,
    /// Probability of a change, in units of 2⁻⁶⁴.
    change: u64,
}

impl RandomisedResponse {
    /// Randomised response over labels 0 to `classes` − 1 at `epsilon`.
    ///
    /// # Errors
    /// Fewer than two classes, or `epsilon` not positive and finite.
    pub fn new(classes: u32, epsilon: f64) -> Result<Self, MechanismError> {
        if classes < 2 {
            return Err(MechanismError::Classes { classes });
        }
        if !(epsilon.is_finite() && epsilon > 0.0) {
            return Err(MechanismError::Epsilon { epsilon });
        }
        Ok(Self { classes, epsilon, change: probability_of_others(classes, 1, epsilon) })
    }

    /// Number of classes.
    pub const fn classes(&self) -> u32 {
        self.classes
    }

    /// ε of one label.
    pub const fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// Probability that a label stays as it is.
    pub fn keep_probability(&self) -> f64 {
        1.0 - self.change as f64 / 18_446_744_073_709_551_616.0
    }

    /// One label. The same words are drawn and the same instructions run whatever it is, up to the rejections in
    /// drawing a uniform integer, which do not depend on it.
    pub(crate) fn respond(&self, label: u32, words: &mut Words<'_>) -> u32 {
        let changed = u64::from(words.long_word() < self.change);
        // Adding 1 to k − 1 modulo k reaches every other label once.
        let offset = changed * (1 + u64::from(words.below(self.classes - 1)));
        let sum = u64::from(label) + offset;
        let classes = u64::from(self.classes);
        let wrapped = u64::from(sum >= classes) * classes;
        (sum - wrapped) as u32
    }
}
