//! ε from below: releases of two neighbours are told apart, and how well that goes bounds ε.
//!
//! A test that says "with" of a share t of the releases of one neighbour and f of the other's shows ε ≥ ln((t − δ)/f) (Kairouz, Oh and
//! Viswanath 2015), and of a mechanism that claims μ-Gaussian differential privacy μ ≥ Φ⁻¹(t) − Φ⁻¹(f) (Nasr and others 2023). The
//! threshold of the first is chosen on a fifth of the releases and counted on the others; that of the second is the median. t and f are ends of intervals of 97.5 % each, so that
//! a bound is above the truth in one audit of twenty at most.

use asymflow_privacy::{
    Door, Loss, Private,
    calibration::gaussian_epsilon,
    door::{Gate, ReleaseError, Source},
    mechanisms::{MechanismError, RandomisedResponse},
    records::{Flow, RecordAccountant},
};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use crate::attack::AuditError;
use crate::figures::clopper_pearson;

/// A fault that an audit must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Half the noise that is charged for; of labels, twice the ε.
    HalfNoise,
    /// The clip is left out.
    NoClip,
    /// Every release draws its noise from the same seed.
    FixedSeed,
    /// Noise is drawn twice, and what is released is the mean of both.
    DrawnTwice,
    /// One record leaves as two, each of which is charged for itself.
    ChargedForTwo,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::HalfNoise, Self::NoClip, Self::FixedSeed, Self::DrawnTwice, Self::ChargedForTwo];
}

/// What an audit of one setting found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpsilonRow {
    /// The mechanism and its setting.
    pub mechanism: String,
    /// ε that is claimed; null for none.
    pub claimed: Option<f64>,
    /// ε that there is at least, at 95 %.
    pub measured_low: f64,
    /// δ of both.
    pub delta: f64,
    /// Releases of each neighbour.
    pub trials: usize,
    /// The fault that was planted.
    pub fault: Option<Fault>,
}

impl EpsilonRow {
    /// Whether the claim is refuted: ε is larger than it says.
    pub fn is_refuted(&self) -> bool {
        self.claimed.is_some_and(|claimed| self.measured_low > claimed)
    }
}

/// A statistic of releases of two neighbours, higher for the one with the record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Of the neighbour without it.
    pub without: Vec<f64>,
    /// Of the neighbour with it.
    pub with: Vec<f64>,
}

impl Scores {
    /// ε that any mechanism with these scores has at least.
    pub fn epsilon_low(&self, delta: f64) -> f64 {
        let bound = |(t, f): (f64, f64)| ((t - delta).max(0.0) / f.max(f64::MIN_POSITIVE)).ln();
        let (chosen, counted) = (self.part(true), self.part(false));
        let mut scores = [&chosen.without[..], &chosen.with].concat();
        scores.sort_unstable_by(f64::total_cmp);
        let thresholds = (0..=128).filter_map(|i| scores.get(i * scores.len().saturating_sub(1) / 128));
        let candidates = thresholds.flat_map(|&threshold| [(threshold, true), (threshold, false)]);
        let judged =
            candidates.map(|(threshold, is_above)| (bound(chosen.ends(threshold, is_above)), threshold, is_above));
        let best = judged.max_by(|a, b| a.0.total_cmp(&b.0));
        best.map_or(0.0, |(_, threshold, is_above)| bound(counted.ends(threshold, is_above))).max(0.0)
    }

    /// ε at `delta` of the least μ-Gaussian pair that is as far apart at the median of all scores: every threshold has the same μ there.
    pub fn gaussian_epsilon_low(&self, delta: f64) -> f64 {
        let mut all = [&self.without[..], &self.with].concat();
        all.sort_unstable_by(f64::total_cmp);
        let Some(&median) = all.get(all.len().saturating_sub(1) / 2) else { return 0.0 };
        let (t, f) = self.ends(median, true);
        let mu = probit(t) - probit(f);
        if mu > 0.0 { gaussian_epsilon(1.0 / mu, 1.0, delta).unwrap_or(0.0) } else { 0.0 }
    }

    /// The least share of the one neighbour's scores, and the most of the other's, that lie beyond a threshold.
    fn ends(&self, threshold: f64, is_above: bool) -> (f64, f64) {
        let share = |values: &[f64]| values.iter().filter(|&&v| (v > threshold) == is_above).count();
        let (with, without) = ((share(&self.with), self.with.len()), (share(&self.without), self.without.len()));
        let (hits, alarms) = if is_above { (with, without) } else { (without, with) };
        (clopper_pearson(hits.0, hits.1, 0.025).0, clopper_pearson(alarms.0, alarms.1, 0.025).1)
    }

    /// Those trials of which one in [`CHOOSING`] is, or those of the others.
    fn part(&self, is_chosen: bool) -> Self {
        let of = |values: &[f64]| -> Vec<f64> {
            let numbered = values.iter().enumerate().filter(|(i, _)| i.is_multiple_of(CHOOSING) == is_chosen);
            numbered.map(|(_, &value)| value).collect()
        };
        Self { without: of(&self.without), with: of(&self.with) }
    }
}

/// One trial of so many chooses the threshold.
const CHOOSING: usize = 5;

fn probit(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p.clamp(1e-12, 1.0 - 1e-12))
}

/// A gate under audit, and the record that is told from none.
#[derive(Clone, Copy)]
pub struct Gated<'a, O> {
    /// Mechanism and setting.
    pub name: &'a str,
    /// The gate with so many times the noise that it should have, with its clip or without.
    pub gate: &'a dyn Fn(f64, bool) -> Result<Gate<O>, MechanismError>,
    /// What is released, as numbers.
    pub read: &'a dyn Fn(O) -> Vec<f32>,
    /// A record of the norm that the gate clips to.
    pub record: &'a [f32],
    /// δ at which ε is claimed.
    pub delta: f64,
}

impl<O> std::fmt::Debug for Gated<'_, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gated").field("name", &self.name).finish_non_exhaustive()
    }
}

const SOURCE: Source<'_> = Source { layer: "audit", flow: Flow::Residual };
/// Releases in one call.
const PIECE: usize = 2048;

impl<O> Gated<'_, O> {
    /// Releases the record and zeros `trials` times each, by the door that all releases pass, and bounds ε.
    ///
    /// # Errors
    /// A gate that cannot be made or refuses.
    pub fn audit(&self, trials: usize, fault: Option<Fault>, seed: u64) -> Result<EpsilonRow, AuditError> {
        let honest = (self.gate)(1.0, true).map_err(ReleaseError::from)?;
        let loss = honest.loss().map_err(ReleaseError::from)?;
        let claimed = {
            let mut door = door(1, seed);
            door.release(&honest, SOURCE, &[0], Private::new(self.record.to_vec()))?;
            door.accountant().epsilon(self.delta)?
        };
        let factor = if fault == Some(Fault::NoClip) { 4.0 } else { 1.0 };
        let with: Vec<f32> = self.record.iter().map(|v| factor * v).collect();
        let without = vec![0.0; with.len()];
        let scores = Scores {
            without: self.scores(&without, trials, fault, 2 * seed + 1)?,
            with: self.scores(&with, trials, fault, 2 * seed + 2)?,
        };
        let measured_low = match loss {
            Loss::Gaussian { .. } | Loss::Zcdp { .. } => {
                scores.gaussian_epsilon_low(self.delta).max(scores.epsilon_low(self.delta))
            }
            Loss::Pure { .. } | Loss::Approximate { .. } | Loss::Sampled { .. } | Loss::Infinite => {
                scores.epsilon_low(self.delta)
            }
        };
        let claimed = Some(claimed).filter(|claimed| claimed.is_finite());
        Ok(EpsilonRow { mechanism: self.name.to_owned(), claimed, measured_low, delta: self.delta, trials, fault })
    }

    /// What is released of `record`, projected onto the audited one: the likelihood ratio where all its values are alike or only one is
    /// not zero.
    fn scores(&self, record: &[f32], trials: usize, fault: Option<Fault>, seed: u64) -> Result<Vec<f64>, AuditError> {
        let noise = if fault == Some(Fault::HalfNoise) { 0.5 } else { 1.0 };
        let gate = (self.gate)(noise, fault != Some(Fault::NoClip)).map_err(ReleaseError::from)?;
        let (copies, fixed) = (self.copies(fault), fault == Some(Fault::FixedSeed));
        let mut scores = Vec::with_capacity(trials);
        while scores.len() < trials {
            let piece = if fixed { 1 } else { PIECE.min(trials - scores.len()) };
            let mut door = door(piece * copies, if fixed { 0 } else { seed + ((scores.len() as u64) << 32) });
            let records: Vec<usize> = (0..piece * copies).collect();
            let values = record.repeat(records.len());
            let released = (self.read)(door.release(&gate, SOURCE, &records, Private::new(values))?.into_inner());
            let of = |out: &[f32]| {
                let each = out.iter().zip(self.record.iter().cycle());
                each.map(|(&out, &r)| f64::from(out) * f64::from(r)).sum::<f64>()
            };
            scores.extend(released.chunks_exact(record.len() * copies).map(of));
        }
        Ok(scores)
    }

    /// How often the record leaves in one trial.
    fn copies(&self, fault: Option<Fault>) -> usize {
        match fault {
            Some(Fault::DrawnTwice | Fault::ChargedForTwo) => 2,
            None | Some(Fault::HalfNoise | Fault::NoClip | Fault::FixedSeed) => 1,
        }
    }
}

fn door(records: usize, seed: u64) -> Door {
    Door::new(RecordAccountant::new(records), ChaCha20Rng::seed_from_u64(seed))
}

/// Audits randomised response of a label: the label, or another in its place. Faults that labels cannot have leave it as it is.
///
/// # Errors
/// An ε out of range.
pub fn audit_labels(
    (classes, epsilon): (u32, f64),
    trials: usize,
    fault: Option<Fault>,
    seed: u64,
) -> Result<EpsilonRow, AuditError> {
    let factor = if fault == Some(Fault::HalfNoise) { 2.0 } else { 1.0 };
    let response = RandomisedResponse::new(classes, factor * epsilon).map_err(ReleaseError::from)?;
    let copies = if fault == Some(Fault::ChargedForTwo) { 2 } else { 1 };
    let scores = |label: u32, seed: u64| -> Result<Vec<f64>, AuditError> {
        let piece = if fault == Some(Fault::FixedSeed) { 1 } else { trials };
        let mut scores = Vec::with_capacity(trials);
        while scores.len() < trials {
            let records: Vec<usize> = (0..piece * copies).collect();
            let mut door = door(records.len(), seed);
            let labels = Private::new(vec![label; records.len()]);
            let told = door.release_labels(&response, &records, &labels)?.into_inner();
            // The likelihood ratio, and among answers of the same ratio which one it is: from a known seed that tells.
            let ratio = |&told: &u32| f64::from(u8::from(told == 1)) - f64::from(u8::from(told == 0));
            let score = |told: &u32| ratio(told) + 1e-6 * f64::from(*told);
            scores.extend(told.chunks_exact(copies).map(|told| told.iter().map(score).sum::<f64>()));
        }
        Ok(scores)
    };
    // The seed of a fixed one does not depend on what is released.
    let seeds = if fault == Some(Fault::FixedSeed) { (0, 0) } else { (2 * seed + 1, 2 * seed + 2) };
    let found = Scores { without: scores(0, seeds.0)?, with: scores(1, seeds.1)? };
    Ok(EpsilonRow {
        mechanism: format!("randomised_response ε = {epsilon}"),
        claimed: Some(epsilon),
        measured_low: found.epsilon_low(0.0),
        delta: 0.0,
        trials,
        fault,
    })
}
