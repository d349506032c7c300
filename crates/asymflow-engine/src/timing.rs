//! Where the time of a run goes.

use std::time::{Duration, Instant};

use asymflow_linalg::conv::Folding;
use serde::{Deserialize, Serialize};

/// Seconds of one convolution, or of a whole run, by part.
///
/// Trusted and worker computation overlap, so the parts may add up to more than the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Decomposing activations.
    pub decompose: f64,
    /// Applying the coefficients of decompositions: folding kernels (thesis eq 2.6) and recombining weight gradients
    /// (eq 2.7), or writing the low-rank input out where that costs less. Zero in measurements from before it was told
    /// apart from `trusted`.
    #[serde(default)]
    pub fold: f64,
    /// Trusted convolutions.
    pub trusted: f64,
    /// The worker's device.
    pub worker: f64,
    /// Waiting for the worker after the trusted work was done.
    pub wait: f64,
    /// Moving bytes.
    pub transfer: f64,
    /// Mechanisms: noise and encoding.
    pub release: f64,
}

impl Seconds {
    /// Adds `other` to every part.
    pub fn add(&mut self, other: &Self) {
        self.decompose += other.decompose;
        self.fold += other.fold;
        self.trusted += other.trusted;
        self.worker += other.worker;
        self.wait += other.wait;
        self.transfer += other.transfer;
        self.release += other.release;
    }

    /// Every part less that of `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            decompose: self.decompose - earlier.decompose,
            fold: self.fold - earlier.fold,
            trusted: self.trusted - earlier.trusted,
            worker: self.worker - earlier.worker,
            wait: self.wait - earlier.wait,
            transfer: self.transfer - earlier.transfer,
            release: self.release - earlier.release,
        }
    }
}

/// Runs `f` and adds its wall-clock seconds to `total`.
pub fn timed<T>(total: &mut f64, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = f();
    *total += start.elapsed().as_secs_f64();
    result
}

/// Runs a trusted convolution that marks when it folds: adds that time to `fold`, and the rest of its wall-clock seconds
/// to `trusted`.
///
/// # Errors
/// Those of `convolution`; then nothing is added.
pub fn timed_folding<E>(
    seconds: &mut Seconds,
    convolution: impl FnOnce(&mut dyn FnMut(Folding)) -> Result<(), E>,
) -> Result<(), E> {
    let start = Instant::now();
    let (mut begun, mut folding) = (start, Duration::ZERO);
    convolution(&mut |mark| match mark {
        Folding::Begins => begun = Instant::now(),
        Folding::Ends => folding += begun.elapsed(),
    })?;
    seconds.fold += folding.as_secs_f64();
    seconds.trusted += start.elapsed().saturating_sub(folding).as_secs_f64();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_is_told_apart_from_the_rest_of_a_convolution() {
        let mut seconds = Seconds::default();
        let wait = |milliseconds| std::thread::sleep(Duration::from_millis(milliseconds));
        timed_folding(&mut seconds, |mark| {
            wait(2);
            mark(Folding::Begins);
            wait(3);
            mark(Folding::Ends);
            wait(2);
            Ok::<_, ()>(())
        })
        .unwrap();
        assert!(seconds.fold >= 0.003 && seconds.trusted >= 0.004, "{seconds:?}");
        let before = seconds;
        assert_eq!(timed_folding(&mut seconds, |_| Err("refused")), Err("refused"));
        assert_eq!(seconds, before);
    }
}
