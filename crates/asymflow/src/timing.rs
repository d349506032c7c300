//! Where the time of a run goes.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Seconds of one convolution, or of a whole run, by part.
///
/// Trusted and worker computation overlap, so the parts may add up to more than the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Decomposing activations.
    pub decompose: f64,
    /// Trusted convolutions, folding of kernels included (thesis eq 2.6).
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
