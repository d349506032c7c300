//! Rényi differential privacy: a bound on D_α for every order α of a fixed list, added up over releases.

use serde::{Deserialize, Serialize};

use crate::accountant::{Accountant, AccountantError, Event, checked_delta};
use crate::loss::Loss;

/// Adds up Rényi divergences order by order (Mironov 2017) and converts the sum to (ε, δ).
///
/// The orders are those of Opacus 1.6 and dp-accounting 0.6 together: 1.1 to 10.9 in tenths, 11 to 63, and 128 to 1024.
/// Serialised, it keeps what was spent; numbers that are no loss are read as infinite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredRdp", into = "StoredRdp")]
pub struct RdpAccountant {
    /// ε(α) for the orders of [`orders`].
    rdp: Vec<f64>,
}

#[derive(Serialize, Deserialize)]
struct StoredRdp {
    /// `None` is infinite, for which JSON has no number.
    rdp: Vec<Option<f64>>,
}

impl From<StoredRdp> for RdpAccountant {
    fn from(stored: StoredRdp) -> Self {
        let known = orders().count();
        let intact = stored.rdp.len() == known;
        let loss = |value: Option<f64>| value.filter(|&v| intact && v >= 0.0).unwrap_or(f64::INFINITY);
        Self { rdp: stored.rdp.into_iter().chain(std::iter::repeat(None)).take(known).map(loss).collect() }
    }
}

impl From<RdpAccountant> for StoredRdp {
    fn from(accountant: RdpAccountant) -> Self {
        Self { rdp: accountant.rdp.into_iter().map(|value| value.is_finite().then_some(value)).collect() }
    }
}

/// Rényi orders α at which the curve is kept, ascending.
fn orders() -> impl Iterator<Item = f64> {
    let tenths = (11..110).map(|tenths| f64::from(tenths) / 10.0);
    tenths.chain((11..64).map(f64::from)).chain([128.0, 256.0, 512.0, 1024.0])
}

impl Default for RdpAccountant {
    fn default() -> Self {
        Self { rdp: orders().map(|_| 0.0).collect() }
    }
}

impl RdpAccountant {
    /// Counts `count` uses of a mechanism.
    ///
    /// # Errors
    /// A number of the event is out of range; then nothing has changed.
    pub fn compose(&mut self, event: Event, count: u64) -> Result<(), AccountantError> {
        let event = event.checked()?;
        if count > 0 {
            for (total, order) in self.rdp.iter_mut().zip(orders()) {
                *total += count as f64 * divergence(event, order);
            }
        }
        Ok(())
    }

    /// The order that gives the least ε at `delta`, and that ε.
    ///
    /// ε = D_α + ln(1 − 1/α) − (ln δ + ln α)/(α − 1) (Canonne, Kamath and Steinke 2020; Balle et al. 2020, theorem
    /// 21), at least 0.
    ///
    /// # Errors
    /// `delta` outside (0, 1).
    pub fn best_order(&self, delta: f64) -> Result<(f64, f64), AccountantError> {
        let log_delta = checked_delta(delta)?.ln();
        if self.rdp.iter().all(|&rdp| rdp == 0.0) {
            return Ok((f64::INFINITY, 0.0)); // nothing was released: D_∞ = 0
        }
        let epsilons = self.rdp.iter().zip(orders()).map(|(rdp, order)| {
            let epsilon = rdp + (-1.0 / order).ln_1p() - (log_delta + order.ln()) / (order - 1.0);
            (order, epsilon.max(0.0))
        });
        Ok(epsilons.fold((f64::INFINITY, f64::INFINITY), |best, next| if next.1 < best.1 { next } else { best }))
    }
}

impl Accountant for RdpAccountant {
    fn absorb(&mut self, loss: Loss) {
        let composed = Event::of_loss(loss).map(|event| self.compose(event, 1));
        if !matches!(composed, Some(Ok(()))) {
            self.rdp.fill(f64::INFINITY);
        }
    }

    fn epsilon(&self, delta: f64) -> Result<f64, AccountantError> {
        self.best_order(delta).map(|(_, epsilon)| epsilon)
    }
}

/// D_α of one use of a mechanism, the larger of the two directions.
fn divergence(event: Event, order: f64) -> f64 {
    match event {
        Event::Gaussian { noise_multiplier } => 0.5 * order / (noise_multiplier * noise_multiplier),
        Event::Zcdp { rho } => order * rho,
        // Sampling that is replaced in has no closed bound here; without sampling it costs more.
        Event::ReplacementSampled { noise_multiplier, .. } => 0.5 * order / (noise_multiplier * noise_multiplier),
        Event::DiscreteGaussian { sigma, sensitivity } => 0.5 * order * (f64::from(sensitivity) / sigma).powi(2),
        Event::Pure { epsilon } => pure(epsilon, order),
        Event::Approximate { .. } => f64::INFINITY,
        Event::PoissonSampled { q, noise_multiplier } if order.fract() == 0.0 => {
            sampled_integer(q, noise_multiplier, order as u32) / (order - 1.0)
        }
        Event::PoissonSampled { q, noise_multiplier } => {
            sampled_by_quadrature(q, noise_multiplier, order) / (order - 1.0)
        }
    }
}

/// D_α between Bernoulli(e^ε/(1 + e^ε)) and its complement, which dominates every ε-DP mechanism (Kairouz, Oh and
/// Viswanath 2015): (p^α·r^(1−α) + r^α·p^(1−α)) with p/r = e^ε, divided by p^α·r^(1−α) so that nothing overflows.
fn pure(epsilon: f64, order: f64) -> f64 {
    let log_p = -(-epsilon).exp().ln_1p();
    let ratio = (-(2.0 * order - 1.0) * epsilon).exp();
    (((order - 1.0) * epsilon + log_p + ratio.ln_1p()) / (order - 1.0)).clamp(0.0, epsilon)
}

/// ln A_α for an integer order: A_α = Σ_k C(α,k)·(1−q)^(α−k)·q^k·exp(k(k−1)/(2σ²)) (Mironov, Talwar and Zhang 2019,
/// §3.3, where theorem 5 shows that the other direction is no larger).
fn sampled_integer(q: f64, sigma: f64, order: u32) -> f64 {
    let alpha = f64::from(order);
    let mut log_binomial = 0.0;
    let mut terms = Vec::with_capacity(order as usize + 1);
    for k in 0..=order {
        let k = f64::from(k);
        terms.push(log_binomial + k * q.ln() + (alpha - k) * (-q).ln_1p() + 0.5 * k * (k - 1.0) / (sigma * sigma));
        log_binomial += ((alpha - k) / (k + 1.0)).ln();
    }
    log_sum_exp(&terms)
}

/// Reached at a noise multiplier of about 0.03, where nothing useful is protected.
const MAX_QUADRATURE_POINTS: f64 = 131_072.0;

/// ln A_α for any order, or an upper bound: A_α = E[((1−q) + q·exp((2z−1)/(2σ²)))^α] for z ~ N(0, σ²), by the trapezoidal rule.
///
/// The integrand is analytic within πσ² of the real line (where the base vanishes) and decays like a Gaussian, so the
/// rule with step h errs by about exp(−2π²·σ²/h) or exp(−2π²·σ²/h²): below 2⁻²⁰⁰ at h = min(σ, σ²)/8.
fn sampled_by_quadrature(q: f64, sigma: f64, order: f64) -> f64 {
    let step = sigma.min(sigma * sigma) / 8.0;
    // ((1−q) + q·e^…)^α·φ is at most 2^α times a Gaussian at 0 or at α: nothing counts 12σ + √(2α)·σ beyond them.
    let margin = sigma * (12.0 + (2.0 * order).sqrt());
    let points = ((order + 2.0 * margin) / step).ceil();
    if points > MAX_QUADRATURE_POINTS {
        // Very little noise. D_α does not fall with α, and the next integer order needs no quadrature.
        let above = order.ceil();
        return sampled_integer(q, sigma, above as u32) * (order - 1.0) / (above - 1.0);
    }
    let points = points as u32;
    let terms: Vec<f64> = (0..=points)
        .map(|i| {
            let z = f64::from(i) * step - margin;
            let shifted = q.ln() + (2.0 * z - 1.0) / (2.0 * sigma * sigma);
            order * log_add_exp((-q).ln_1p(), shifted) - 0.5 * (z / sigma).powi(2)
        })
        .collect();
    log_sum_exp(&terms) + (step / (sigma * (2.0 * std::f64::consts::PI).sqrt())).ln()
}

fn log_add_exp(a: f64, b: f64) -> f64 {
    a.max(b) + (-(a - b).abs()).exp().ln_1p()
}

fn log_sum_exp(terms: &[f64]) -> f64 {
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + terms.iter().map(|term| (term - largest).exp()).sum::<f64>().ln()
}
