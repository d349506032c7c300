//! Recovery of an activation from its residual, where ReLU left zeros.
//!
//! R = X − A·V is orthogonal to A, so the left null space of R is span(A). At a pixel, X = R + U·c with U a basis of that space and r
//! unknowns c. Where X is zero, U·c = −R: r such channels give c, and all others tell whether it is right, for X ≥ 0 with many
//! zeros. A basis of N channels needs at least N pixels to show in R.

use asymflow_residual::backend::{Pass, Unit, UnitId};
use asymflow_zoo::network::Shape;
use faer::{Mat, Side};
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::attack::{Attack, AuditError, Budget, Guess, Sight};
use crate::tape::Kind;

/// Completes the input of a unit from its residual in inference, by zeros that it finds itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The unit.
    pub unit: UnitId,
    /// The same batch was sent so many times, with fresh noise each time, which is averaged.
    pub repeats: usize,
}

impl Attack for Completion {
    fn name(&self) -> &'static str {
        "completion"
    }

    fn guess(&self, sight: &Sight<'_>, budget: Budget) -> Result<Guess, AuditError> {
        let missing = |why: &str| AuditError::NotApplicable { attack: "completion", why: why.to_owned() };
        let index = self.unit.0 as usize;
        let Some(Unit::Conv(conv)) = sight.public.model.units.get(index) else {
            return Err(missing("the unit is no convolution"));
        };
        let rank = *sight.public.ranks.get(index).ok_or_else(|| missing("nothing is split"))?;
        let sent = sight.tape.values(self.unit, Kind::Input(Pass::Inference));
        let residual = averaged(&sent, self.repeats.max(1));
        if residual.is_empty() || !residual.len().is_multiple_of(conv.input.len()) {
            return Err(missing("no residual was sent"));
        }
        let task = Task { shape: conv.input, rank, tries: budget.tries };
        let shared = sight.public.shares_basis.then(|| NullBasis::of(&residual, conv.input, rank));
        let mut guess = residual.clone();
        let samples = guess.par_chunks_exact_mut(conv.input.len()).zip(residual.par_chunks_exact(conv.input.len()));
        samples.enumerate().for_each(|(number, (guess, residual))| {
            let own = || NullBasis::of(residual, conv.input, rank);
            if let Some(basis) = shared.clone().unwrap_or_else(own) {
                let rng = ChaCha8Rng::seed_from_u64(budget.seed ^ (number as u64) << 20);
                task.complete(residual, &basis, guess, rng);
            }
        });
        Ok(Guess::Activations(self.unit, guess))
    }
}

/// The mean of `repeats` copies that follow each other.
fn averaged(sent: &[f32], repeats: usize) -> Vec<f32> {
    let len = sent.len() / repeats;
    let mean = |i: usize| sent.iter().skip(i).step_by(len.max(1)).map(|&v| f64::from(v)).sum::<f64>() / repeats as f64;
    (0..len).map(|i| mean(i) as f32).collect()
}

/// The directions in which a residual has least energy, channels × rank: those that the low-rank part took, and noise alone is left.
#[derive(Clone)]
struct NullBasis {
    /// The channels that are not zero everywhere; others are no part of it.
    live: Vec<usize>,
    vectors: Vec<f64>,
    /// Standard deviation of what is left.
    noise: f64,
}

impl NullBasis {
    /// Of samples × channels × pixels; `None` where there are too few pixels to tell these directions from others that are absent by
    /// chance.
    fn of(residual: &[f32], shape: Shape, rank: usize) -> Option<Self> {
        let (n, pixels) = (shape.channels, shape.pixels());
        let columns = residual.len() / n;
        let energy = |channel: usize| -> f64 {
            let maps = residual.chunks_exact(pixels).skip(channel).step_by(n);
            maps.flatten().map(|&v| f64::from(v).powi(2)).sum()
        };
        let energies: Vec<f64> = (0..n).map(energy).collect();
        let least = 1e-9 * energies.iter().sum::<f64>() / n as f64;
        let live: Vec<usize> = (0..n).filter(|&channel| energies[channel] > least).collect();
        let n = live.len();
        if columns < n || rank == 0 || rank >= n {
            return None;
        }
        let mut gram = Mat::<f64>::zeros(n, n);
        for sample in residual.chunks_exact(shape.len()) {
            let sample = Mat::from_fn(n, pixels, |i, j| f64::from(sample[live[i] * pixels + j]));
            gram += &sample * sample.transpose();
        }
        let eigen = gram.self_adjoint_eigen(Side::Lower).ok()?;
        let ascending = eigen.S().column_vector();
        let left = (0..rank).map(|i| ascending[i].max(0.0)).sum::<f64>() / (rank * columns) as f64;
        let entries = (0..n).flat_map(|i| (0..rank).map(move |j| (i, j)));
        Some(Self { live, vectors: entries.map(|(i, j)| eigen.U()[(i, j)]).collect(), noise: left.sqrt() })
    }
}

/// The recovery of one activation.
#[derive(Clone, Copy)]
struct Task {
    shape: Shape,
    rank: usize,
    tries: usize,
}

impl Task {
    fn complete(&self, residual: &[f32], basis: &NullBasis, guess: &mut [f32], mut rng: ChaCha8Rng) {
        let pixels = self.shape.pixels();
        let energy = residual.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / residual.len() as f64;
        let tolerance = (3.0 * basis.noise).max(2e-3 * energy.sqrt());
        let mut before: Vec<usize> = Vec::new();
        for pixel in 0..pixels {
            let y: Vec<f64> = basis.live.iter().map(|channel| f64::from(residual[channel * pixels + pixel])).collect();
            if let Some((x, zeros)) = self.solve(&y, &basis.vectors, tolerance, &before, &mut rng) {
                let places = basis.live.iter().zip(&x);
                places.for_each(|(channel, x)| guess[channel * pixels + pixel] = x.max(0.0) as f32);
                before = zeros;
            }
        }
    }

    /// x = y + U·c with x ≥ 0 and the most zeros that tries find, and where they are. Half the tries take channels that were zero at
    /// the pixel before.
    fn solve(
        &self,
        y: &[f64],
        basis: &[f64],
        tolerance: f64,
        before: &[usize],
        rng: &mut ChaCha8Rng,
    ) -> Option<(Vec<f64>, Vec<usize>)> {
        let (n, r) = (y.len(), self.rank);
        let mut best: Option<(Vec<f64>, Vec<usize>)> = None;
        // Fewer zeros beyond those solved for occur by chance.
        let (needed, enough) = (r + 2 + n / 16, r + n / 3);
        for attempt in 0..self.tries {
            let drawn: Vec<usize> = if before.len() >= r && attempt.is_multiple_of(2) {
                sample(rng, before.len(), r).into_iter().map(|i| before[i]).collect()
            } else {
                sample(rng, n, r).into_vec()
            };
            let Some(c) = least_squares(&drawn, y, basis, r) else { continue };
            let Some(zeros) = zeros_of(&fitted(y, basis, &c), tolerance) else { continue };
            if zeros.len() >= needed && best.as_ref().is_none_or(|(_, most)| zeros.len() > most.len()) {
                let refined = least_squares(&zeros, y, basis, r).unwrap_or(c);
                let is_enough = zeros.len() >= enough;
                best = Some((fitted(y, basis, &refined), zeros));
                if is_enough {
                    break;
                }
            }
        }
        best
    }
}

/// Channels that are zero, where none is negative.
fn zeros_of(x: &[f64], tolerance: f64) -> Option<Vec<usize>> {
    let is_possible = x.iter().all(|&x| x >= -tolerance);
    is_possible.then(|| (0..x.len()).filter(|&i| x[i].abs() <= tolerance).collect())
}

fn fitted(y: &[f64], basis: &[f64], c: &[f64]) -> Vec<f64> {
    let dot = |row: &[f64]| row.iter().zip(c).map(|(u, c)| u * c).sum::<f64>();
    y.iter().zip(basis.chunks_exact(c.len())).map(|(y, row)| y + dot(row)).collect()
}

/// The c for which y + U·c is least over `rows`.
fn least_squares(rows: &[usize], y: &[f64], basis: &[f64], r: usize) -> Option<Vec<f64>> {
    let mut normal = vec![0.0; r * (r + 1)];
    for &row in rows {
        let u = &basis[row * r..(row + 1) * r];
        for i in 0..r {
            for j in 0..r {
                normal[i * (r + 1) + j] += u[i] * u[j];
            }
            normal[i * (r + 1) + r] -= u[i] * y[row];
        }
    }
    eliminated(normal, r)
}

/// The solution of the r equations with r unknowns in the rows of `system`, the right-hand side last.
fn eliminated(mut system: Vec<f64>, r: usize) -> Option<Vec<f64>> {
    let width = r + 1;
    let scale = (0..r).map(|i| system[i * width + i].abs()).fold(0.0, f64::max);
    for k in 0..r {
        let pivot = (k..r).max_by(|&a, &b| system[a * width + k].abs().total_cmp(&system[b * width + k].abs()))?;
        if system[pivot * width + k].abs() <= 1e-10 * scale {
            return None;
        }
        (0..width).for_each(|j| system.swap(k * width + j, pivot * width + j));
        for i in k + 1..r {
            let factor = system[i * width + k] / system[k * width + k];
            (k..width).for_each(|j| system[i * width + j] -= factor * system[k * width + j]);
        }
    }
    let mut x = vec![0.0; r];
    for k in (0..r).rev() {
        let known: f64 = (k + 1..r).map(|j| system[k * width + j] * x[j]).sum();
        x[k] = (system[k * width + r] - known) / system[k * width + k];
    }
    Some(x)
}

/// Completes the input of a unit from its residual in training, with zeros that a gradient shows: behind a ReLU without normalisation
/// the gradient of the convolution before is exactly zero where the activation was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskedCompletion {
    /// The unit.
    pub unit: UnitId,
    /// The unit whose output its input is, after ReLU.
    pub before: UnitId,
}

impl Attack for MaskedCompletion {
    fn name(&self) -> &'static str {
        "completion by the gradient's zeros"
    }

    fn guess(&self, sight: &Sight<'_>, _budget: Budget) -> Result<Guess, AuditError> {
        let missing = |why: &str| AuditError::NotApplicable { attack: self.name(), why: why.to_owned() };
        let index = self.unit.0 as usize;
        let Some(Unit::Conv(conv)) = sight.public.model.units.get(index) else {
            return Err(missing("the unit is no convolution"));
        };
        let rank = *sight.public.ranks.get(index).ok_or_else(|| missing("nothing is split"))?;
        let residual = sight.tape.values(self.unit, Kind::Input(Pass::Training));
        let gradient = sight.tape.values(self.before, Kind::Gradient);
        if residual.is_empty() || residual.len() != gradient.len() {
            return Err(missing("the gradient before is of another shape, or was not sent"));
        }
        let zeros = gradient.iter().filter(|&&g| g == 0.0).count();
        if zeros * 100 < gradient.len() {
            return Err(missing("the gradient has no exact zeros: a normalisation lies between"));
        }
        let pixels = conv.input.pixels();
        let mut guess = residual.clone();
        let samples = residual.par_chunks_exact(conv.input.len()).zip(gradient.par_chunks_exact(conv.input.len()));
        samples.zip(guess.par_chunks_exact_mut(conv.input.len())).for_each(|((residual, gradient), guess)| {
            let Some(NullBasis { live, vectors: basis, .. }) = NullBasis::of(residual, conv.input, rank) else {
                return;
            };
            for pixel in 0..pixels {
                let y: Vec<f64> = live.iter().map(|channel| f64::from(residual[channel * pixels + pixel])).collect();
                let is_cut = |i: &usize| gradient[live[*i] * pixels + pixel] == 0.0;
                let cut: Vec<usize> = (0..live.len()).filter(is_cut).collect();
                let Some(c) = least_squares(&cut, &y, &basis, rank).filter(|_| cut.len() >= rank) else { continue };
                let x = fitted(&y, &basis, &c);
                live.iter().zip(&x).for_each(|(channel, x)| guess[channel * pixels + pixel] = x.max(0.0) as f32);
            }
        });
        Ok(Guess::Activations(self.unit, guess))
    }
}
