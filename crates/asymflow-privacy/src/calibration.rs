//! Calibration: how much Gaussian noise an (ε, δ) takes, and what given noise costs.

use thiserror::Error;

use crate::accountant::AccountantError;
use crate::budget::RecordLedger;
use crate::gdp::{gdp_delta, gdp_epsilon};
use crate::loss::Loss;
use crate::mechanism::MechanismError;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CalibrationError {
    /// A parameter is not positive and finite.
    #[error("{what} must be positive and finite, got {value}")]
    NotPositive {
        /// Which parameter.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// A parameter is not a probability strictly between 0 and 1.
    #[error("{what} must lie strictly between 0 and 1, got {value}")]
    NotProbability {
        /// Which parameter.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// No noise that was tried reaches the target.
    #[error("no sigma up to {to} gives an epsilon of at most {target}")]
    Unreachable {
        /// The ε asked for.
        target: f64,
        /// Most σ tried.
        to: f64,
    },
    /// The accountant refused.
    #[error(transparent)]
    Accountant(#[from] AccountantError),
    /// A mechanism has no loss at a σ that was tried.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
}

fn positive(what: &'static str, value: f64) -> Result<f64, CalibrationError> {
    if value > 0.0 && value.is_finite() { Ok(value) } else { Err(CalibrationError::NotPositive { what, value }) }
}

fn probability(what: &'static str, value: f64) -> Result<f64, CalibrationError> {
    if value > 0.0 && value < 1.0 { Ok(value) } else { Err(CalibrationError::NotProbability { what, value }) }
}

/// δ of Gaussian noise of standard deviation `sigma` at `epsilon`, for an l2 sensitivity in the same unit: exact
/// (Balle and Wang 2018, theorem 8).
///
/// # Errors
/// `sigma` or `sensitivity` not positive and finite, `epsilon` negative or not finite.
pub fn gaussian_delta(sigma: f64, sensitivity: f64, epsilon: f64) -> Result<f64, CalibrationError> {
    if !(epsilon >= 0.0 && epsilon.is_finite()) {
        return Err(CalibrationError::NotPositive { what: "epsilon", value: epsilon });
    }
    Ok(gdp_delta(positive("sensitivity", sensitivity)? / positive("sigma", sigma)?, epsilon))
}

/// ε of Gaussian noise of standard deviation `sigma` at `delta`, for an l2 sensitivity in the same unit: the root of
/// [`gaussian_delta`], rounded up.
///
/// # Errors
/// `sigma` or `sensitivity` not positive and finite, `delta` outside (0, 1).
pub fn gaussian_epsilon(sigma: f64, sensitivity: f64, delta: f64) -> Result<f64, CalibrationError> {
    let mu = positive("sensitivity", sensitivity)? / positive("sigma", sigma)?;
    Ok(gdp_epsilon(mu, probability("delta", delta)?))
}

/// The least standard deviation, rounded up, at which Gaussian noise is (`epsilon`, `delta`)-differentially private for
/// an l2 `sensitivity` in the same unit: the analytic Gaussian mechanism (Balle and Wang 2018, algorithm 1).
///
/// # Errors
/// `epsilon` or `sensitivity` not positive and finite, `delta` outside (0, 1).
pub fn gaussian_sigma(epsilon: f64, delta: f64, sensitivity: f64) -> Result<f64, CalibrationError> {
    let epsilon = positive("epsilon", epsilon)?;
    let delta = probability("delta", delta)?;
    let sensitivity = positive("sensitivity", sensitivity)?;
    let multiplier = least(1e-13, |sigma| Ok::<_, CalibrationError>(gdp_delta(1.0 / sigma, epsilon) <= delta))?;
    multiplier.map(|multiplier| multiplier * sensitivity).ok_or(unreachable_target(epsilon))
}

/// The least σ, rounded up, for which `epsilon_at(σ)` is at most `target_epsilon`; `epsilon_at` must not increase
/// with σ.
///
/// For a composition, let `epsilon_at` fill an accountant and ask it:
///
/// ```
/// # use asymflow_privacy::accountants::{Accountant, Event, RdpAccountant};
/// # use asymflow_privacy::calibration::calibrate_sigma;
/// let sigma = calibrate_sigma(1.0, |sigma| {
///     let mut accountant = RdpAccountant::default();
///     accountant.compose(Event::PoissonSampled { q: 0.01, noise_multiplier: sigma }, 1000)?;
///     accountant.epsilon(1e-5)
/// })?;
/// assert!(sigma > 1.0 && sigma < 2.0);
/// # Ok::<(), asymflow_privacy::calibration::CalibrationError>(())
/// ```
///
/// # Errors
/// `target_epsilon` not positive and finite, an error of `epsilon_at`, or no σ that reaches the target.
pub fn calibrate_sigma(
    target_epsilon: f64,
    mut epsilon_at: impl FnMut(f64) -> Result<f64, AccountantError>,
) -> Result<f64, CalibrationError> {
    let target = positive("target epsilon", target_epsilon)?;
    let found = least(1e-6, |sigma| Ok::<_, CalibrationError>(epsilon_at(sigma)? <= target))?;
    found.ok_or(unreachable_target(target))
}

/// The least σ, rounded up, at which one record loses at most `epsilon` at `delta` by everything in `losses_at(σ)`
/// together, by the [`RecordLedger`] that holds a run to its budget. No loss may grow with σ; those that do not depend on
/// it are part of the promise.
///
/// What several mechanisms release of a record has to be calibrated together: ε of different kinds do not simply add up,
/// and a run whose parts were each calibrated alone may be refused once a part has left. Here bits at ε = 9 and three
/// noised gradients at ε = 0.5, each with its own noise, are scaled by one factor so that they cost 9.5 together:
///
/// ```
/// # use asymflow_privacy::{Loss, calibration::{calibrate_losses, gaussian_sigma}};
/// let delta = 1e-5;
/// let bits = gaussian_sigma(9.0, delta, 1.0)?;
/// let gradient = |sigma: f64| Loss::Zcdp { rho: 0.5 * (1.0 / sigma).powi(2) };
/// let gradients = calibrate_losses(0.5, delta, |sigma| Ok(vec![gradient(sigma); 3]))?;
/// let factor = calibrate_losses(9.0 + 0.5, delta, |factor| {
///     let mut losses = vec![gradient(factor * gradients); 3];
///     losses.push(Loss::Gaussian { mu: 1.0 / (factor * bits) });
///     Ok(losses)
/// })?;
/// assert!(factor > 1.0 && factor < 1.03);
/// # Ok::<(), asymflow_privacy::calibration::CalibrationError>(())
/// ```
///
/// # Errors
/// `epsilon` not positive and finite, `delta` outside (0, 1), an error of `losses_at`, or losses that no σ brings down to
/// `epsilon` ([`CalibrationError::Unreachable`]).
pub fn calibrate_losses(
    epsilon: f64,
    delta: f64,
    mut losses_at: impl FnMut(f64) -> Result<Vec<Loss>, MechanismError>,
) -> Result<f64, CalibrationError> {
    let (target, delta) = (positive("epsilon", epsilon)?, probability("delta", delta)?);
    let enough = |sigma| {
        let mut ledger = RecordLedger::default();
        losses_at(sigma)?.into_iter().for_each(|loss| ledger.add(loss));
        Ok::<_, CalibrationError>(ledger.epsilon(delta)? <= target)
    };
    least(1e-9, enough)?.ok_or(unreachable_target(target))
}

fn unreachable_target(target: f64) -> CalibrationError {
    CalibrationError::Unreachable { target, to: 2.0_f64.powi(DOUBLINGS) }
}

/// σ as the thesis prints it: σ² = 2·C²·ln(2/δ′)/ε′ (Niu 2024, section 3, theorems 7 to 9, with local ε′ and δ′;
/// [`thesis_local_epsilon`] gives ε′). For comparison with its figures only.
///
/// **It is no guarantee.** The classical formula divides by ε′², this one by ε′: it adds too little noise for ε′ below
/// about 0.5 (at ε′ = 0.1 and δ′ = 1e-5 the real ε is 0.210), and too much above. Use [`gaussian_sigma`].
///
/// # Errors
/// `epsilon` or `clip` not positive and finite, `delta` outside (0, 1).
pub fn thesis_sigma(epsilon: f64, delta: f64, clip: f64) -> Result<f64, CalibrationError> {
    let epsilon = positive("epsilon", epsilon)?;
    let delta = probability("delta", delta)?;
    Ok(positive("clip", clip)? * (2.0 * (2.0 / delta).ln() / epsilon).sqrt())
}

/// ε = ln(1 + p·(e^ε′ − 1)): what sampling every record with probability `p` makes of a local ε′ (Niu 2024,
/// theorems 7 to 9).
///
/// **It does not apply** where every record is released once, as in the system of the thesis: who sees all releases
/// knows that a record took part. It exists to map its published figures.
///
/// # Errors
/// `epsilon` not positive and finite, `p` outside (0, 1).
pub fn thesis_amplified_epsilon(epsilon: f64, p: f64) -> Result<f64, CalibrationError> {
    let (epsilon, p) = (positive("epsilon", epsilon)?, probability("p", p)?);
    Ok(if epsilon < 1.0 { (p * epsilon.exp_m1()).ln_1p() } else { epsilon + (p + (1.0 - p) * (-epsilon).exp()).ln() })
}

/// ε′ such that [`thesis_amplified_epsilon`] is `epsilon`: ln(1 + (e^ε − 1)/p), the loss of a record that is released.
///
/// # Errors
/// `epsilon` not positive and finite, `p` outside (0, 1).
pub fn thesis_local_epsilon(epsilon: f64, p: f64) -> Result<f64, CalibrationError> {
    let (epsilon, p) = (positive("epsilon", epsilon)?, probability("p", p)?);
    Ok(if epsilon < 1.0 {
        (epsilon.exp_m1() / p).ln_1p()
    } else {
        epsilon + ((1.0 - (1.0 - p) * (-epsilon).exp()) / p).ln()
    })
}

/// How often the search may double, or halve, the σ of 1 that it starts from.
const DOUBLINGS: i32 = 60;

/// Least σ, within 2^±[`DOUBLINGS`] and to a relative `tolerance` rounded up, at which `enough` holds, if it does for
/// all larger ones.
fn least<E>(tolerance: f64, mut enough: impl FnMut(f64) -> Result<bool, E>) -> Result<Option<f64>, E> {
    let (smallest, largest) = (2.0_f64.powi(-DOUBLINGS), 2.0_f64.powi(DOUBLINGS));
    let (mut low, mut high) = (1.0, 1.0);
    while low >= smallest && enough(low)? {
        (low, high) = (0.5 * low, low);
    }
    if low == high {
        high = 2.0;
        while !enough(high)? {
            if high >= largest {
                return Ok(None);
            }
            (low, high) = (high, 2.0 * high);
        }
    }
    while high - low > tolerance * high {
        let middle = 0.5 * (low + high);
        if enough(middle)? { high = middle } else { low = middle }
    }
    Ok(Some(high))
}
