//! The numerical accountant: privacy loss distributions composed by Fourier transform.

use serde::{Deserialize, Serialize};

use crate::accountant::{Accountant, AccountantError, Event, checked_delta};
use crate::fourier::{Complex, Fourier};
use crate::gdp::gdp_epsilon;
use crate::loss::Loss;
use crate::privacy_loss::{Direction, LossDistribution};
use crate::rdp::RdpAccountant;
use crate::search::golden_minimum;
use crate::zcdp::{gdp_with_zcdp_epsilon, zcdp_epsilon};

/// Grid points that a composition is spread over, up to a factor of two.
const TARGET_POINTS: f64 = 262_144.0;
/// Most points of a transform: 2^19 complex numbers, of which there are two and a half arrays (20 MiB).
const MAX_TRANSFORM: usize = 1 << 19;
/// Most different events; each takes up to 2 MiB and two transforms.
const MAX_EVENTS: usize = 16;
/// Part of δ given away at every cut of a distribution.
const CUT: f64 = 1e-6;

/// Composes privacy loss distributions numerically; the ε it gives is an upper bound, and tight.
///
/// Gaussian releases are composed in closed form (√Σμ²), and alone give the exact ε. For the rest, distributions are
/// discretised so that they dominate the real ones, both directions of neighbouring are composed, and what truncation
/// and rounding could hide is taken off δ. What it keeps is a short list of events; the work happens in
/// [`epsilon`](Accountant::epsilon), in at most about 50 MiB.
///
/// Serialised, it keeps what was spent; what is no event is read as infinite.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredPld", into = "StoredPld")]
pub struct PldAccountant {
    /// Σμ² of Gaussian releases.
    mu_squared: f64,
    /// Σρ of releases of which no more is known.
    rho: f64,
    /// Other events, each with its count.
    events: Vec<(Event, u64)>,
    /// Whether a release had no guarantee.
    infinite: bool,
}

/// `None` is infinite, for which JSON has no number.
#[derive(Serialize, Deserialize)]
struct StoredPld {
    mu_squared: Option<f64>,
    rho: Option<f64>,
    events: Vec<(Event, u64)>,
    infinite: bool,
}

impl From<StoredPld> for PldAccountant {
    fn from(stored: StoredPld) -> Self {
        let loss = |value: Option<f64>| value.filter(|&v| v >= 0.0).unwrap_or(f64::INFINITY);
        let (mu_squared, rho) = (loss(stored.mu_squared), loss(stored.rho));
        let intact = stored.events.iter().all(|(event, count)| *count > 0 && composable(*event));
        let infinite = stored.infinite || !intact || !mu_squared.is_finite() || !rho.is_finite();
        Self { mu_squared, rho, events: stored.events, infinite }
    }
}

impl From<PldAccountant> for StoredPld {
    fn from(accountant: PldAccountant) -> Self {
        let stored = |value: f64| value.is_finite().then_some(value);
        let (mu_squared, rho) = (stored(accountant.mu_squared), stored(accountant.rho));
        Self { mu_squared, rho, events: accountant.events, infinite: accountant.infinite }
    }
}

/// Whether `event` is one that [`PldAccountant::compose`] keeps in its list.
fn composable(event: Event) -> bool {
    let is_kept = match event {
        Event::Gaussian { .. } | Event::Zcdp { .. } => false,
        Event::PoissonSampled { .. }
        | Event::ReplacementSampled { .. }
        | Event::DiscreteGaussian { .. }
        | Event::Pure { .. }
        | Event::Approximate { .. } => true,
    };
    is_kept && event.checked() == Ok(event)
}

impl PldAccountant {
    /// Counts `count` uses of a mechanism.
    ///
    /// # Errors
    /// A number of the event is out of range; then nothing has changed.
    pub fn compose(&mut self, event: Event, count: u64) -> Result<(), AccountantError> {
        let event = event.checked()?;
        if count == 0 {
            return Ok(());
        }
        match event {
            Event::Gaussian { noise_multiplier } => {
                self.mu_squared += count as f64 / (noise_multiplier * noise_multiplier);
            }
            Event::Zcdp { rho } => self.rho += count as f64 * rho,
            Event::Pure { epsilon: 0.0 } => {}
            other @ (Event::PoissonSampled { .. }
            | Event::ReplacementSampled { .. }
            | Event::DiscreteGaussian { .. }
            | Event::Pure { .. }
            | Event::Approximate { .. }) => match self.events.iter_mut().find(|(event, _)| *event == other) {
                Some((_, total)) => *total = total.saturating_add(count),
                None => self.events.push((other, count)),
            },
        }
        self.infinite |= !(self.mu_squared.is_finite() && self.rho.is_finite());
        Ok(())
    }

    /// Everything, as Rényi divergences.
    fn by_rdp(&self) -> Result<RdpAccountant, AccountantError> {
        let mut rdp = RdpAccountant::default();
        rdp.compose(Event::Zcdp { rho: self.rho + 0.5 * self.mu_squared }, 1)?;
        for &(event, count) in &self.events {
            rdp.compose(event, count)?;
        }
        Ok(rdp)
    }

    /// ε at `delta` of everything but zCDP.
    fn numerical_epsilon(&self, delta: f64) -> Result<f64, AccountantError> {
        if self.events.is_empty() {
            return Ok(gdp_epsilon(self.mu_squared.sqrt(), delta));
        }
        if self.events.len() > MAX_EVENTS {
            let needed = self.events.len() as f64;
            return Err(AccountantError::TooLarge { what: "different events", needed, limit: MAX_EVENTS });
        }
        let mut events = self.events.clone();
        if self.mu_squared > 0.0 {
            events.push((Event::Gaussian { noise_multiplier: self.mu_squared.sqrt().recip() }, 1));
        }
        let removed = Composition { events: &events, direction: Direction::Removed, delta }.epsilon()?;
        if events.iter().all(|(event, _)| !matches!(event, Event::PoissonSampled { .. })) {
            return Ok(removed); // the others look the same from both sides
        }
        let added = Composition { events: &events, direction: Direction::Added, delta }.epsilon()?;
        Ok(removed.max(added))
    }
}

impl Accountant for PldAccountant {
    fn absorb(&mut self, loss: Loss) {
        let composed = Event::of_loss(loss).map(|event| self.compose(event, 1));
        self.infinite |= !matches!(composed, Some(Ok(())));
    }

    fn epsilon(&self, delta: f64) -> Result<f64, AccountantError> {
        checked_delta(delta)?;
        if self.infinite {
            return Ok(f64::INFINITY);
        }
        if self.rho == 0.0 {
            return self.numerical_epsilon(delta);
        }
        if self.events.is_empty() {
            return Ok(gdp_with_zcdp_epsilon(self.mu_squared, self.rho, delta));
        }
        // A loss that is only known as ρ has no distribution: the lesser of two bounds.
        let apart = zcdp_epsilon(self.rho, 0.5 * delta) + self.numerical_epsilon(0.5 * delta)?;
        Ok(apart.min(self.by_rdp()?.epsilon(delta)?))
    }
}

/// One direction of a composition.
struct Composition<'a> {
    events: &'a [(Event, u64)],
    direction: Direction,
    delta: f64,
}

/// The grid and the window of losses that a composition needs.
struct Window {
    interval: f64,
    /// Grid index of the lowest loss.
    first: i64,
    /// Number of points, a power of two.
    points: usize,
}

impl Composition<'_> {
    fn epsilon(&self) -> Result<f64, AccountantError> {
        let (distributions, window) = self.discretise()?;
        let (masses, error) = self.convolve(&distributions, &window);
        let finite: f64 =
            distributions.iter().zip(self.events).map(|(d, (_, count))| *count as f64 * (-d.infinite).ln_1p()).sum();
        let given_away = -finite.exp_m1() + 2.0 * CUT * self.delta + error;
        if given_away > 0.5 * self.delta {
            return Err(AccountantError::Precision { delta: self.delta, least: 2.0 * given_away });
        }
        Ok(epsilon_of(&masses, &window, self.delta - given_away))
    }

    /// Distributions on a grid so fine that the composition fills the transform, and the window that holds all of it
    /// but a cut.
    fn discretise(&self) -> Result<(Vec<LossDistribution>, Window), AccountantError> {
        let mut interval = self.coarse_interval();
        let mut distributions = self.distributions(interval)?;
        let (low, high) = self.bounds(&distributions);
        let widest = distributions.iter().map(|d| d.masses.len() as f64 * d.interval).fold(0.0, f64::max);
        interval = (high - low).max(widest) / TARGET_POINTS;
        distributions = self.distributions(interval)?;
        let (low, high) = self.bounds(&distributions);
        let (first, last) = ((low / interval).floor() - 1.0, (high / interval).ceil() + 1.0);
        let needed = last - first + 1.0;
        if needed.is_nan() || needed > MAX_TRANSFORM as f64 {
            return Err(AccountantError::TooLarge { what: "transform points", needed, limit: MAX_TRANSFORM });
        }
        let points = (needed as usize).next_power_of_two();
        Ok((distributions, Window { interval, first: first as i64, points }))
    }

    /// A first interval: 2^15 points for the widest event. (All losses may round to one number.)
    fn coarse_interval(&self) -> f64 {
        let widths = self.events.iter().map(|(event, _)| LossDistribution::width(*event, self.direction, self.tail()));
        widths.fold(1e-9, f64::max) / 32_768.0
    }

    /// Tail to cut from one use, such that all cuts together stay below the cut of δ.
    fn tail(&self) -> f64 {
        let uses: f64 = self.events.iter().map(|(_, count)| *count as f64).sum();
        CUT * self.delta / uses
    }

    fn distributions(&self, interval: f64) -> Result<Vec<LossDistribution>, AccountantError> {
        let tail = self.tail();
        self.events.iter().map(|(event, _)| LossDistribution::of(*event, self.direction, interval, tail)).collect()
    }

    /// Losses that the composition falls below, or exceeds, with probability at most the cut each: Chernoff's bound, by
    /// golden section on the logarithm of its parameter.
    fn bounds(&self, distributions: &[LossDistribution]) -> (f64, f64) {
        let log_cut = (CUT * self.delta).ln();
        let bound = |sign: f64| {
            let at = |log_t: f64| {
                let t = log_t.exp();
                let moments = distributions.iter().zip(self.events);
                let log_moment: f64 = moments.map(|(d, (_, count))| *count as f64 * d.log_moment(sign * t)).sum();
                (log_moment - log_cut) / t
            };
            golden_minimum(-12.0, 12.0, 24, at)
        };
        (-bound(-1.0), bound(1.0))
    }

    /// The composition within the window, and a bound on how far rounding may have moved its masses, in sum.
    ///
    /// A transform of masses that add up to 1 is off by at most η = 4·log2(points) + 3 roundings at every frequency,
    /// and by η‖F‖₂ in all. Powers multiply that by n·|F|^(n−1). By Parseval's theorem and Cauchy's inequality the
    /// sum of errors of masses is at most the l2 norm of the errors of the spectrum.
    fn convolve(&self, distributions: &[LossDistribution], window: &Window) -> (Vec<f64>, f64) {
        let fourier = Fourier::new(window.points);
        let rounding = (4.0 * (window.points as f64).log2() + 3.0) * 0.5 * f64::EPSILON;
        let mut product = vec![Complex::ONE; window.points];
        let mut shift = 0_i64; // of index 0 of the product, in grid points
        let mut error = 0.0;
        for (distribution, (_, count)) in distributions.iter().zip(self.events) {
            let mut values = vec![Complex::default(); window.points];
            for (index, mass) in distribution.masses.iter().enumerate() {
                values[index % window.points].re += mass;
            }
            fourier.forward(&mut values);
            let (mut once, mut rest) = (0.0, 0.0);
            for (total, value) in product.iter_mut().zip(values) {
                let others = value.power(count - 1);
                once += value.norm_squared();
                rest += others.norm_squared();
                *total = total.times(others.times(value));
            }
            error += rounding * *count as f64 * once.min(rest).sqrt();
            // Only the remainder by the window counts, a power of two, and wrapping keeps that.
            shift = shift.wrapping_add(distribution.first.wrapping_mul((*count).cast_signed()));
        }
        error += rounding * product.iter().map(|v| v.norm_squared()).sum::<f64>().sqrt();
        fourier.backward(&mut product);
        let scale = 1.0 / window.points as f64;
        // Index i of the product holds the loss (shift + i)·interval, up to multiples of the window.
        let start = window.first.wrapping_sub(shift).rem_euclid(window.points as i64) as usize;
        let masses = (0..window.points).map(|i| (product[(start + i) % window.points].re * scale).max(0.0)).collect();
        (masses, error)
    }
}

/// The least ε ≥ 0 at which the masses have a hockey-stick divergence of at most `delta`: Σ m·(1 − e^(ε−loss)) over
/// losses above ε.
fn epsilon_of(masses: &[f64], window: &Window, delta: f64) -> f64 {
    let decay = (-window.interval).exp();
    let mut loss = (window.first + masses.len() as i64 - 1) as f64 * window.interval;
    // Mass above `loss`, and that mass weighted by e^(loss − its own).
    let (mut mass, mut weighted) = (0.0, 0.0);
    for (index, here) in masses.iter().enumerate().rev() {
        if mass - weighted > delta || loss <= 0.0 {
            break;
        }
        mass += here;
        weighted = (weighted + here) * decay;
        loss = (window.first + index as i64 - 1) as f64 * window.interval;
    }
    // From here to the next grid point, or down from the lowest one, the divergence is mass − e^(ε − loss)·weighted.
    if mass > delta { (loss + ((mass - delta) / weighted).ln()).max(0.0) } else { 0.0 }
}
