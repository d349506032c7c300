//! From ρ-zCDP to (ε, δ), tightly.

use crate::gdp::gdp_epsilon;
use crate::search::golden_minimum;

/// The least ε over all orders α > 1 of ρα + ln(1 − 1/α) − (ln δ + ln α)/(α − 1) (Canonne, Kamath and Steinke 2020),
/// at least 0.
pub(crate) fn zcdp_epsilon(rho: f64, delta: f64) -> f64 {
    if rho == 0.0 || !rho.is_finite() {
        return rho;
    }
    let at = |log_excess: f64| {
        let excess = log_excess.exp(); // α − 1
        rho * (1.0 + excess) - (1.0 / excess).ln_1p() - (delta.ln() + excess.ln_1p()) / excess
    };
    // Around the order √(ln(1/δ)/ρ), which is best without the logarithms of α.
    let centre = 0.5 * (-delta.ln() / rho).ln();
    golden_minimum(centre - 10.0, centre + 10.0, 80, at).max(0.0)
}

/// ε of μ-GDP and ρ-zCDP together, an upper bound: the Gaussian part as the zCDP that it has, or exactly with half of
/// δ, whichever is less.
pub(crate) fn gdp_with_zcdp_epsilon(mu_squared: f64, rho: f64, delta: f64) -> f64 {
    if rho == 0.0 {
        return gdp_epsilon(mu_squared.sqrt(), delta);
    }
    let together = zcdp_epsilon(0.5 * mu_squared + rho, delta);
    together.min(gdp_epsilon(mu_squared.sqrt(), 0.5 * delta) + zcdp_epsilon(rho, 0.5 * delta))
}
