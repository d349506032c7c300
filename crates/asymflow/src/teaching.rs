//! What a training step aims at beside its labels, and how its activations are eased: the settings of
//! [`TrainSpec`](crate::job::TrainSpec) as a step has them.

use std::fs::File;
use std::io::BufReader;

use asymflow_engine::{Engine, LocalConv};
use asymflow_residual::Pass;
use asymflow_zoo::{Easing, RangePenalty};
use faer::Par;
use thiserror::Error;

use crate::ExecError;
use crate::job::{EasingSpec, ModeKind, TeacherSpec};
use crate::service::{ModelFile, ReadModel};

/// Exponents of the range penalty and shares of its weight in the first epochs (after PILLAR, USENIX Security 2024), which
/// begins where weights made by seed would overflow the last ones.
const RANGE_WARM_UP: [(i32, f32); 4] = [(4, 0.01), (6, 0.02), (8, 0.1), (10, 0.2)];
/// Exponent after that.
const RANGE_EXPONENT: i32 = 10;

/// Why there is no teacher.
#[derive(Debug, Error)]
pub enum TeacherError {
    /// The file cannot be read.
    #[error("cannot read the teacher {path}: {error}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        error: String,
    },
    /// It answers other images, or with other classes.
    #[error("the teacher {path} takes {teacher}, the network {network}")]
    Shape {
        /// The file.
        path: String,
        /// What the teacher takes and gives.
        teacher: String,
        /// What the network takes and gives.
        network: String,
    },
    /// A temperature or weight of no use.
    #[error("teacher's {what} of {got} is out of range {range}")]
    Setting {
        /// Which.
        what: &'static str,
        /// Its value.
        got: f32,
        /// What it may be.
        range: &'static str,
    },
}

impl EasingSpec {
    /// What `step` of `epoch` is eased by.
    pub fn at(&self, epoch: usize, step: usize, steps: usize) -> Easing {
        let done = epoch * steps + step;
        let sharing = (done as f32 / (self.anneal_epochs * steps).max(1) as f32).min(1.0);
        let range = self.range_limit.map(|limit| {
            let (exponent, share) = RANGE_WARM_UP.get(epoch).copied().unwrap_or((RANGE_EXPONENT, 1.0));
            RangePenalty { limit, weight: self.range_weight * share, exponent }
        });
        let sharing = if self.anneal_epochs == 0 { 1.0 } else { sharing };
        Easing { sharing, straight_through: self.straight_through, range }
    }
}

/// A teacher's logits for one batch.
#[derive(Clone, Copy, Debug)]
pub struct Lesson<'a> {
    /// Samples × classes.
    pub logits: &'a [f32],
    /// T.
    pub temperature: f32,
    /// Share of the teacher's loss.
    pub weight: f32,
}

impl Lesson<'_> {
    /// Blends the teacher's loss and gradient into those of the labels, each the mean over samples. `logits` are the student's,
    /// samples × classes.
    pub fn blend(&self, classes: usize, logits: &[f32], loss: &mut f64, d_logits: &mut [f32]) {
        let samples = (logits.len() / classes).max(1) as f64;
        let (t, weight) = (f64::from(self.temperature), f64::from(self.weight));
        let mut taught = 0.0;
        let rows = logits.chunks_exact(classes).zip(self.logits.chunks_exact(classes));
        for ((student, teacher), gradient) in rows.zip(d_logits.chunks_exact_mut(classes)) {
            let (p, q) = (log_softmax(teacher, t), log_softmax(student, t));
            for ((p, q), gradient) in p.iter().zip(&q).zip(gradient) {
                taught += t * t * p.exp() * (p - q) / samples;
                let own = f64::from(*gradient) * (1.0 - weight);
                *gradient = (own + weight * t * (q.exp() - p.exp()) / samples) as f32;
            }
        }
        *loss = *loss * (1.0 - weight) + weight * taught;
    }
}

/// log softmax(x / t).
fn log_softmax(x: &[f32], t: f64) -> Vec<f64> {
    let scaled: Vec<f64> = x.iter().map(|&x| f64::from(x) / t).collect();
    let largest = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = scaled.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() + largest;
    scaled.into_iter().map(|x| x - log_sum).collect()
}

/// A trained network inside the trusted part.
#[derive(Debug)]
pub struct Teacher {
    engine: Engine,
    convolver: LocalConv,
    spec: TeacherSpec,
}

impl Teacher {
    /// Reads the teacher of `spec` for a network of `input` values and `classes`.
    ///
    /// # Errors
    /// A file that is none, a network that does not fit, or settings of no use.
    pub fn read(spec: &TeacherSpec, input: usize, classes: usize, par: Par) -> Result<Self, TeacherError> {
        let path = spec.model.display().to_string();
        let positive = spec.temperature.is_finite() && spec.temperature > 0.0;
        if !positive {
            return Err(TeacherError::Setting { what: "temperature", got: spec.temperature, range: "above 0" });
        }
        if !(0.0..=1.0).contains(&spec.weight) {
            return Err(TeacherError::Setting { what: "weight", got: spec.weight, range: "0 to 1" });
        }
        let unreadable = |error: String| TeacherError::Unreadable { path: path.clone(), error };
        let file = File::open(&spec.model).map_err(|e| unreadable(e.to_string()))?;
        let read = ModelFile::open(BufReader::new(file)).and_then(ModelFile::held);
        let ReadModel { model, weights, .. } = read.map_err(|e| unreadable(e.to_string()))?;
        if model.mode == ModeKind::Delta {
            return Err(unreadable("it is split by Delta: take a network that is whole".to_owned()));
        }
        let network = model.network;
        if (network.input.len(), network.classes) != (input, classes) {
            let says = |input, classes| format!("{input} values and {classes} classes");
            let (teacher, network) = (says(network.input.len(), network.classes), says(input, classes));
            return Err(TeacherError::Shape { path, teacher, network });
        }
        let engine = Engine::with_weights(network, weights, par).map_err(|e| unreadable(e.to_string()))?;
        let convolver = LocalConv::new(engine.program.convs, engine.pool.clone(), par);
        Ok(Self { engine, convolver, spec: spec.clone() })
    }

    /// Its logits for a batch.
    ///
    /// # Errors
    /// Bad input.
    pub fn logits(&mut self, images: &[f32], samples: usize) -> Result<Vec<f32>, ExecError> {
        Ok(self.engine.forward(images, samples, Pass::Inference, 0, &mut self.convolver)?)
    }

    /// Logits as a step is given them.
    pub const fn lesson<'a>(&self, logits: &'a [f32]) -> Lesson<'a> {
        Lesson { logits, temperature: self.spec.temperature, weight: self.spec.weight }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cross_entropy(logits: &[f64], label: usize) -> f64 {
        logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[label]
    }

    /// T²·KL(p ‖ q) as written.
    fn taught(student: &[f64], teacher: &[f64], t: f64) -> f64 {
        let softmax = |x: &[f64]| {
            let sum: f64 = x.iter().map(|x| (x / t).exp()).sum();
            x.iter().map(|x| (x / t).exp() / sum).collect::<Vec<f64>>()
        };
        let (p, q) = (softmax(teacher), softmax(student));
        t * t * p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>()
    }

    #[test]
    fn the_gradient_of_a_lesson_is_that_of_its_loss() {
        let (student, teacher, labels) =
            ([0.3_f64, -1.2, 0.8, 2.0, 0.1, -0.4], [1.0, 0.5, -2.0, 0.0, 3.0, 0.2], [2, 0]);
        let (t, weight) = (4.0, 0.7);
        let total = |x: &[f64]| {
            let row = |i: usize| {
                let own = cross_entropy(&x[3 * i..3 * i + 3], labels[i]);
                let other = taught(&x[3 * i..3 * i + 3], &teacher[3 * i..3 * i + 3], t);
                ((1.0 - weight) * own + weight * other) / 2.0
            };
            row(0) + row(1)
        };
        let logits: Vec<f32> = student.iter().map(|&x| x as f32).collect();
        let said: Vec<f32> = teacher.iter().map(|&x| x as f32).collect();
        let mut gradient = vec![0.0; 6];
        let (mut loss, _) = asymflow_engine::ops::softmax_cross_entropy(&logits, 3, &[2, 0], &mut gradient);
        let lesson = Lesson { logits: &said, temperature: t as f32, weight: weight as f32 };
        lesson.blend(3, &logits, &mut loss, &mut gradient);
        assert!((loss - total(&student)).abs() < 1e-6, "{loss} {}", total(&student));
        for i in 0..6 {
            let moved = |by: f64| {
                let mut x = student;
                x[i] += by;
                total(&x)
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((f64::from(gradient[i]) - expected).abs() < 1e-6, "{i}: {} {expected}", gradient[i]);
        }
    }

    #[test]
    fn sharing_grows_and_the_penalty_warms_up() {
        let spec = EasingSpec { anneal_epochs: 2, range_limit: Some(5.0), range_weight: 1.0, ..EasingSpec::default() };
        assert_eq!(spec.at(0, 0, 10).sharing, 0.0);
        assert_eq!(spec.at(1, 5, 10).sharing, 0.75);
        assert_eq!(spec.at(7, 0, 10).sharing, 1.0);
        assert_eq!(EasingSpec::default().at(0, 0, 10), Easing::default());
        let exponents: Vec<i32> = (0..6).map(|epoch| spec.at(epoch, 0, 10).range.unwrap().exponent).collect();
        assert_eq!(exponents, [4, 6, 8, 10, 10, 10]);
        assert_eq!(spec.at(4, 0, 10).range.unwrap().weight, 1.0);
    }

    #[test]
    fn a_teacher_is_refused_with_its_reason() {
        let spec = |temperature, weight| TeacherSpec { model: "nowhere".into(), temperature, weight };
        let refused = |spec: &TeacherSpec| Teacher::read(spec, 4, 2, Par::Seq).unwrap_err().to_string();
        assert!(refused(&spec(0.0, 0.5)).starts_with("teacher's temperature of 0"));
        assert!(refused(&spec(4.0, 1.5)).starts_with("teacher's weight of 1.5"));
        assert!(refused(&spec(4.0, 0.5)).starts_with("cannot read the teacher nowhere"));
    }
}
