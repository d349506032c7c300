//! What a training step aims at beside its labels, and how its activations are eased: the settings of
//! [`TrainSpec`](crate::job::TrainSpec) as a step has them.

use std::fs::File;
use std::io::BufReader;

use asymflow_engine::{Engine, local::LocalConv};
use asymflow_residual::backend::Pass;
use asymflow_zoo::ops::{Easing, RangePenalty};
use faer::Par;
use thiserror::Error;

use crate::job::{EasingSpec, TeacherSpec};
use crate::modes::{ExecError, Lesson, Registry};
use crate::service::{ModelFile, ReadModel};

/// Exponents of the range penalty and shares of its weight in the first epochs (after PILLAR, USENIX Security 2024), which
/// begins where weights made by seed would overflow the last ones.
const RANGE_WARM_UP: [(i32, f32); 4] = [(4, 0.01), (6, 0.02), (8, 0.1), (10, 0.2)];
/// Exponent from the fifth epoch on.
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
    pub fn read(
        spec: &TeacherSpec,
        (input, classes): (usize, usize),
        registry: &Registry,
        par: Par,
    ) -> Result<Self, TeacherError> {
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
        let read = ModelFile::open(BufReader::new(file), registry).and_then(ModelFile::held);
        let ReadModel { model, weights, .. } = read.map_err(|e| unreadable(e.to_string()))?;
        let mode = registry.decode(&model.mode).map_err(|e| unreadable(e.to_string()))?;
        if !mode.is_whole() {
            let name = mode.name();
            return Err(unreadable(format!("mode {name} has split its network: take one that is whole")));
        }
        let network = model.network;
        if (network.input.len(), network.classes) != (input, classes) {
            let says = |input, classes| format!("{input} values and {classes} classes");
            let (teacher, network) = (says(network.input.len(), network.classes), says(input, classes));
            return Err(TeacherError::Shape { path, teacher, network });
        }
        let engine = Engine::with_weights(network, weights, par).map_err(|e| unreadable(e.to_string()))?;
        let convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), par);
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
        let refused =
            |spec: &TeacherSpec| Teacher::read(spec, (4, 2), &Registry::default(), Par::Seq).unwrap_err().to_string();
        assert!(refused(&spec(0.0, 0.5)).starts_with("teacher's temperature of 0"));
        assert!(refused(&spec(4.0, 1.5)).starts_with("teacher's weight of 1.5"));
        assert!(refused(&spec(4.0, 0.5)).starts_with("cannot read the teacher nowhere"));
    }
}
