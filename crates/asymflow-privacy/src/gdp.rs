//! μ-GDP and (ε, δ), exactly.

use crate::normal::{cdf, density, mills};

/// δ of a μ-GDP mechanism at `epsilon` ≥ 0: Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ) (Balle and Wang 2018, theorem 8, with μ
/// = Δ/σ).
///
/// Both terms share the factor φ(μ/2 − ε/μ) when written with Mills ratios, which leaves no overflow, and little
/// cancellation: the relative error is about 2⁻⁵²/μ for small μ.
pub(crate) fn gdp_delta(mu: f64, epsilon: f64) -> f64 {
    if mu == 0.0 {
        return 0.0;
    }
    let (near, far) = (epsilon / mu - 0.5 * mu, epsilon / mu + 0.5 * mu);
    let far_term = density(near) * mills(far);
    let delta = if near < 0.0 { cdf(-near) - far_term } else { density(near) * mills(near) - far_term };
    delta.clamp(0.0, 1.0)
}

/// The least ε ≥ 0, rounded up, at which a μ-GDP mechanism has at most `delta`.
pub(crate) fn gdp_epsilon(mu: f64, delta: f64) -> f64 {
    if gdp_delta(mu, 0.0) <= delta {
        return 0.0;
    }
    // zCDP bounds it from above (Bun and Steinke 2016, proposition 1.3).
    let rho = 0.5 * mu * mu;
    let mut high = 1.01 * (rho + 2.0 * (rho * -delta.ln()).sqrt());
    if !high.is_finite() {
        return f64::INFINITY;
    }
    let mut low = 0.0;
    while high - low > 1e-14 * high {
        let middle = 0.5 * (low + high);
        if gdp_delta(mu, middle) <= delta { high = middle } else { low = middle }
    }
    high
}
