//! Privacy loss distributions on a grid, rounded so that they dominate the real ones.
//!
//! The privacy loss of a pair (P, Q) is ln(dP/dQ)(X) for X ~ P. A loss that lies between two grid points is split
//! over both so that P-mass and Q-mass are kept. The result has the privacy profile of (P, Q) at the grid points and
//! is linear in e^ε between them, so it lies above that convex profile everywhere: "connect the dots" (Doroshenko,
//! Ghazi, Kamath, Kumar and Manurangsi 2022). Domination carries over to compositions (Zhu, Dong and Wang 2022,
//! theorem 10).

use crate::accountant::{AccountantError, Event};
use crate::normal::{cdf, probability_between};

/// Most grid points of one distribution.
pub(crate) const MAX_POINTS: usize = 1 << 19;

/// Which neighbour is which: the record is in P's input, or in Q's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// P has the record: adding noise hides that it is removed.
    Removed,
    /// Q has the record.
    Added,
}

/// A privacy loss distribution: `masses[i]` at loss (`first` + i)·`interval`, `infinite` at +∞.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LossDistribution {
    pub(crate) interval: f64,
    pub(crate) first: i64,
    pub(crate) masses: Vec<f64>,
    pub(crate) infinite: f64,
}

impl LossDistribution {
    /// Of one use of a mechanism; as [`Self::sampled_gaussian`] for the tail. Where only ρ is known there is none.
    pub(crate) fn of(event: Event, direction: Direction, interval: f64, tail: f64) -> Result<Self, AccountantError> {
        match event {
            Event::Gaussian { noise_multiplier } => {
                Self::sampled_gaussian(1.0, noise_multiplier, direction, interval, tail)
            }
            Event::PoissonSampled { q, noise_multiplier } => {
                Self::sampled_gaussian(q, noise_multiplier, direction, interval, tail)
            }
            Event::ReplacementSampled { q, noise_multiplier } => {
                Self::sampled_gaussian(q, noise_multiplier, Direction::Removed, interval, tail)?.seen_from_both_sides()
            }
            Event::DiscreteGaussian { sigma, sensitivity } => {
                DiscreteGaussian { sigma, sensitivity: f64::from(sensitivity) }.distribution(interval, tail)
            }
            Event::Pure { epsilon } => Self::pure(epsilon, interval),
            Event::Approximate { epsilon, delta } => Ok(Self::pure(epsilon, interval)?.failing(delta)),
            Event::Zcdp { rho } => Err(AccountantError::Event { what: "rho", value: rho }),
        }
    }

    /// Width of the losses of [`Self::of`].
    pub(crate) fn width(event: Event, direction: Direction, tail: f64) -> f64 {
        let of = |q, sigma, direction| {
            let (lowest, highest) = SampledGaussian { q, sigma }.support(direction, tail);
            highest - lowest
        };
        match event {
            Event::Gaussian { noise_multiplier } => of(1.0, noise_multiplier, direction),
            Event::PoissonSampled { q, noise_multiplier } => of(q, noise_multiplier, direction),
            Event::ReplacementSampled { q, noise_multiplier } => 2.0 * of(q, noise_multiplier, Direction::Removed),
            Event::DiscreteGaussian { sigma, sensitivity } => {
                let sensitivity = f64::from(sensitivity);
                2.0 * sensitivity * DiscreteGaussian { sigma, sensitivity }.reach(tail) / (sigma * sigma)
            }
            Event::Pure { epsilon } | Event::Approximate { epsilon, .. } => 2.0 * epsilon,
            Event::Zcdp { .. } => 0.0,
        }
    }

    /// The distribution with the loss infinite with probability `delta` more: (ε, δ) is dominated by pure ε that fails so
    /// often (Kairouz, Oh and Viswanath 2015).
    fn failing(mut self, delta: f64) -> Self {
        self.masses.iter_mut().for_each(|mass| *mass *= 1.0 - delta);
        self.infinite = delta + (1.0 - delta) * self.infinite;
        self
    }

    /// The distribution of a pair that dominates both this one and the one with its neighbours exchanged, from the privacy
    /// profile at ε ≥ 0: a loss −l is to have e^(−l) times the mass of l, and the rest lies at 0.
    ///
    /// Records that are replaced by others at distance Δ₂, each taking part with probability q, have a profile, for ε ≥ 0, of
    /// at most that of one removed that moves the sum by Δ₂ (advanced joint convexity: Balle, Barthe and Gaboardi 2018,
    /// theorem 2, and N(x) is as far from N(x′) as from nothing at most); and they look the same from both sides.
    fn seen_from_both_sides(self) -> Result<Self, AccountantError> {
        let highest = self.loss(self.masses.len() - 1);
        let mut both = Self::empty(-highest, highest, self.interval)?;
        let mut rest = 1.0 - self.infinite;
        for (index, &mass) in self.masses.iter().enumerate() {
            let (at, loss) = (self.first + index as i64, self.loss(index));
            if at > 0 {
                both.masses[(at - both.first) as usize] += mass;
                both.masses[(-at - both.first) as usize] += mass * (-loss).exp();
                rest -= mass * (1.0 + (-loss).exp());
            }
        }
        both.masses[(-both.first) as usize] = rest.max(0.0);
        both.infinite = self.infinite;
        Ok(both)
    }

    /// No mass, with room for losses from `lowest` to `highest`.
    fn empty(lowest: f64, highest: f64, interval: f64) -> Result<Self, AccountantError> {
        let (first, last) = ((lowest / interval).floor(), (highest / interval).ceil());
        let points = last - first + 2.0;
        if points.is_nan() || points > MAX_POINTS as f64 + 2.0 {
            return Err(AccountantError::TooLarge { what: "grid points", needed: points, limit: MAX_POINTS });
        }
        Ok(Self { interval, first: first as i64, masses: vec![0.0; points as usize], infinite: 0.0 })
    }

    /// Loss at grid point `index`.
    pub(crate) fn loss(&self, index: usize) -> f64 {
        (self.first + index as i64) as f64 * self.interval
    }

    /// Splits P-mass `p` and Q-mass `q`, whose losses lie between grid points `index` and `index` + 1, over the two.
    ///
    /// Right mass r and left mass p − r keep Q-mass when r·e^(−ε−h) + (p − r)·e^(−ε) = q. Where that is beyond the
    /// range of f64, all goes to the right, which is pessimistic.
    fn split(&mut self, index: usize, p: f64, q: f64) {
        let right = (p - q * self.loss(index).exp()) / -(-self.interval).exp_m1();
        let right = if right.is_finite() { right.clamp(0.0, p) } else { p };
        self.masses[index] += p - right;
        self.masses[index + 1] += right;
    }

    /// Randomised response over two answers, which dominates every ε-DP mechanism (Kairouz, Oh and Viswanath 2015).
    fn pure(epsilon: f64, interval: f64) -> Result<Self, AccountantError> {
        let mut distribution = Self::empty(-epsilon, epsilon, interval)?;
        let likely = 1.0 / (1.0 + (-epsilon).exp());
        let unlikely = (-epsilon).exp() / (1.0 + (-epsilon).exp());
        let lowest = distribution.index_below(-epsilon);
        distribution.split(lowest, unlikely, likely);
        let highest = distribution.index_below(epsilon);
        distribution.split(highest, likely, unlikely);
        Ok(distribution)
    }

    fn index_below(&self, loss: f64) -> usize {
        let index = (loss / self.interval).floor() as i64 - self.first;
        (index.max(0) as usize).min(self.masses.len() - 2)
    }

    /// Σ mass·e^(t·loss) over finite losses, as a logarithm; infinite where f64 cannot tell.
    pub(crate) fn log_moment(&self, t: f64) -> f64 {
        let factor = (-(t * self.interval).abs()).exp();
        // Horner's scheme from the end where e^(t·loss) is least, so that nothing overflows.
        let horner = |sum: f64, mass: &f64| sum * factor + mass;
        let (sum, largest) = if t > 0.0 {
            (self.masses.iter().fold(0.0, horner), self.loss(self.masses.len() - 1))
        } else {
            (self.masses.iter().rev().fold(0.0, horner), self.loss(0))
        };
        // A sum that underflows would pass for a small moment.
        if sum > 1e-290 { t * largest + sum.ln() } else { f64::INFINITY }
    }

    /// The Poisson-subsampled Gaussian with sampling probability `q` (1 for no sampling) and noise multiplier `sigma`:
    /// (1−q)·N(0, σ²) + q·N(1, σ²) against N(0, σ²), in the order of `direction`. P-mass of at most `tail` becomes
    /// infinite loss; as much is moved up from below the lowest grid point.
    fn sampled_gaussian(
        q: f64,
        sigma: f64,
        direction: Direction,
        interval: f64,
        tail: f64,
    ) -> Result<Self, AccountantError> {
        let pair = SampledGaussian { q, sigma };
        let (lowest, highest) = pair.support(direction, tail);
        let mut distribution = Self::empty(lowest, highest, interval)?;
        let points = distribution.masses.len();
        let position = |index: usize| match direction {
            Direction::Removed => pair.position(distribution.loss(index)),
            Direction::Added => pair.position(-distribution.loss(index)),
        };
        let positions: Vec<f64> = (0..points).map(position).collect();
        for (index, pair_of_positions) in positions.windows(2).enumerate() {
            let (from, to) = (pair_of_positions[0], pair_of_positions[1]);
            match direction {
                Direction::Removed => {
                    let (with, without) = pair.masses(from, to);
                    distribution.split(index, with, without);
                }
                Direction::Added => {
                    let (with, without) = pair.masses(to, from);
                    distribution.split(index, without, with);
                }
            }
        }
        let (lowest, highest) = (positions[0], positions[points - 1]);
        let (below, above) = match direction {
            Direction::Removed => (pair.masses(f64::NEG_INFINITY, lowest).0, pair.masses(highest, f64::INFINITY).0),
            Direction::Added => (pair.masses(lowest, f64::INFINITY).1, pair.masses(f64::NEG_INFINITY, highest).1),
        };
        distribution.masses[0] += below;
        distribution.infinite += above;
        Ok(distribution)
    }
}

/// The pair behind the subsampled Gaussian, sensitivity 1.
#[derive(Clone, Copy)]
struct SampledGaussian {
    q: f64,
    sigma: f64,
}

impl SampledGaussian {
    /// Loss at output `x` when the record is in P: ln(1 − q + q·exp((2x − 1)/(2σ²))); it increases with x.
    fn loss(&self, x: f64) -> f64 {
        let (without, with) = ((-self.q).ln_1p(), self.q.ln() + (x - 0.5) / (self.sigma * self.sigma));
        without.max(with) + (-(without - with).abs()).exp().ln_1p()
    }

    /// The output whose loss is `loss`: −∞ below the least loss, ln(1 − q).
    fn position(&self, loss: f64) -> f64 {
        let odds = if loss < 1.0 {
            let ratio = loss.exp_m1() / self.q;
            if ratio > -1.0 { ratio.ln_1p() } else { f64::NEG_INFINITY }
        } else {
            loss - self.q.ln() + (-(1.0 - self.q) * (-loss).exp()).ln_1p()
        };
        self.sigma * self.sigma * odds + 0.5
    }

    /// Masses of the outputs between `from` and `to`, with and without the record.
    fn masses(&self, from: f64, to: f64) -> (f64, f64) {
        let without = probability_between(from / self.sigma, to / self.sigma);
        let shifted = probability_between((from - 1.0) / self.sigma, (to - 1.0) / self.sigma);
        ((1.0 - self.q) * without + self.q * shifted, without)
    }

    /// Losses that P exceeds, or falls below, with probability at most `tail` each.
    fn support(&self, direction: Direction, tail: f64) -> (f64, f64) {
        let mut deviations = 1.0;
        while cdf(-deviations) > tail {
            deviations += 0.125;
        }
        let reach = deviations * self.sigma;
        match direction {
            // Without sampling nothing of N(0, σ²) is in P.
            Direction::Removed if self.q == 1.0 => (self.loss(1.0 - reach), self.loss(1.0 + reach)),
            Direction::Removed => (self.loss(-reach), self.loss(1.0 + reach)),
            Direction::Added => (-self.loss(reach), -self.loss(-reach)),
        }
    }
}

/// The pair behind discrete Gaussian noise on one integer: Y against Y + `sensitivity`.
#[derive(Clone, Copy)]
struct DiscreteGaussian {
    sigma: f64,
    sensitivity: f64,
}

impl DiscreteGaussian {
    /// Unscaled probability of `y`.
    fn weight(self, y: f64) -> f64 {
        (-0.5 * (y / self.sigma).powi(2)).exp()
    }

    /// ln(P(y)/P(y − sensitivity)); it falls with y.
    fn loss(self, y: f64) -> f64 {
        self.sensitivity * (self.sensitivity - 2.0 * y) / (2.0 * self.sigma * self.sigma)
    }

    /// Y exceeds it with probability at most `tail`: it is subgaussian with σ (Canonne, Kamath and Steinke 2020, corollary
    /// 17).
    fn reach(self, tail: f64) -> f64 {
        (self.sigma * (-2.0 * tail.ln()).sqrt()).ceil()
    }

    /// Outcomes beyond the reach become infinite loss where the loss is large, and are moved up where it is small.
    fn distribution(self, interval: f64, tail: f64) -> Result<LossDistribution, AccountantError> {
        let reach = self.reach(tail);
        if 2.0 * reach > MAX_POINTS as f64 {
            return Err(AccountantError::TooLarge { what: "steps of noise", needed: 2.0 * reach, limit: MAX_POINTS });
        }
        let mut distribution = LossDistribution::empty(self.loss(reach), self.loss(-reach), interval)?;
        let outcomes = |from: f64| (0..).map(move |i| from + f64::from(i));
        // Beyond 40σ a weight is zero.
        let all = |from: f64| outcomes(from).take_while(|&y| y < 40.0 * self.sigma + 2.0).map(|y| self.weight(y));
        let total = 1.0 + 2.0 * all(1.0).sum::<f64>();
        let beyond = all(reach + 1.0).sum::<f64>() / total;
        for y in outcomes(-reach).take_while(|&y| y <= reach) {
            let (p, q) = (self.weight(y) / total, self.weight(y - self.sensitivity) / total);
            let index = distribution.index_below(self.loss(y));
            distribution.split(index, p, q);
        }
        distribution.masses[0] += beyond;
        distribution.infinite += beyond;
        Ok(distribution)
    }
}
