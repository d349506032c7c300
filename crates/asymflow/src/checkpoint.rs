//! Checkpoints: what a run needs to go on as if it had never stopped, as one safetensors file.

use std::collections::HashMap;

use asymflow_privacy::records::RecordLedger;
use asymflow_zoo::data::Dataset;
use asymflow_zoo::data::Split;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::job::{JobSpec, TrainSpec};
use crate::modes::TrainState;

const SCHEMA: u32 = 4;
const META: &str = "asymflow";

/// A point in training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// Weights and optimiser state.
    pub state: TrainState,
    /// Losses of every record so far; empty where nothing is released.
    pub spent: Vec<RecordLedger>,
    /// Where training was.
    pub position: Position,
    /// Of which run.
    pub identity: Identity,
}

/// What makes a run this one and no other: its data, order and labels included, its network, mode, privacy and schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity(Value);

impl Identity {
    /// Of a job that trains as `spec` says on `data`.
    ///
    /// # Errors
    /// Settings that cannot be written.
    pub fn of(data: &Split, job: &JobSpec, spec: &TrainSpec) -> Result<Self, CheckpointError> {
        let settings: Value = serde_json::from_str(&job.mode.settings)?;
        Ok(Self(serde_json::json!({
            "data": { "train": part(&data.train), "test": part(&data.test), "augment": job.data.augment },
            "network": serde_json::to_value(&job.network)?,
            "mode": { "name": job.mode.name, "settings": settings },
            "privacy": serde_json::to_value(job.terms)?,
            "schedule": serde_json::to_value(spec)?,
        })))
    }
}

/// A part of the data by its size and its contents.
fn part(data: &Dataset) -> Value {
    let mut hash = Sha256::new();
    let shape = data.shape();
    for number in [shape.channels, shape.height, shape.width, data.len()] {
        hash.update((number as u64).to_le_bytes());
    }
    hash.update(data.images());
    data.labels().iter().for_each(|label| hash.update(label.to_le_bytes()));
    for name in data.class_names() {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
    }
    serde_json::json!({ "images": data.len(), "sha256": crate::hex::hex(&hash.finalize()) })
}

/// The first place where two values differ, and what stands there in each.
fn difference<'a>(path: &str, a: &'a Value, b: &'a Value) -> Option<(String, &'a Value, &'a Value)> {
    const ABSENT: &Value = &Value::Null;
    let at = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            let value = |of: &'a serde_json::Map<String, Value>, key: &str| of.get(key).unwrap_or(ABSENT);
            keys.into_iter().find_map(|key| difference(&at(key), value(a, key), value(b, key)))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| difference(&at(&i.to_string()), a, b))
        }
        (a, b) => (a != b).then(|| (path.to_owned(), a, b)),
    }
}

/// Where training was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Whole epochs done.
    pub epoch: usize,
    /// Steps done of the next epoch.
    pub step: usize,
    /// Sum of the losses of those steps, weighted by samples.
    pub loss_sum: f64,
    /// Samples classified correctly in those steps.
    pub correct: usize,
    /// Samples in those steps.
    pub samples: usize,
}

#[derive(Serialize, Deserialize)]
struct Meta {
    schema: u32,
    position: Position,
    identity: Identity,
}

/// Why a checkpoint could not be read or written.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// Not a whole safetensors file: truncated or something else.
    #[error("not a complete checkpoint: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// It lacks our header.
    #[error("not a checkpoint of asymflow: no header")]
    NoHeader,
    /// Another version of the format.
    #[error("checkpoint schema {got}, expected {expected}")]
    Schema {
        /// Found.
        got: u32,
        /// Ours.
        expected: u32,
    },
    /// The header does not parse.
    #[error("malformed header: {0}")]
    Header(#[from] serde_json::Error),
    /// The losses cannot be read or written.
    #[error("malformed losses: {0}")]
    Losses(#[from] postcard::Error),
    /// A tensor has another type or length.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// It belongs to another run.
    #[error("the checkpoint is of another run: {what} was {was} there, and is {is} here")]
    Other {
        /// What differs first.
        what: String,
        /// Its value in the checkpoint's run.
        was: String,
        /// Its value in this one.
        is: String,
    },
    /// A value is NaN or infinite: it is not written over one that can be gone on from.
    #[error("a weight or its momentum is not finite, so this state is not kept")]
    NonFinite,
    /// Losses of another number of records: the accountant must not begin anew.
    #[error("losses of {got} records, expected {expected}")]
    Records {
        /// Found.
        got: usize,
        /// Records of the run.
        expected: usize,
    },
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

impl Checkpoint {
    /// The file's bytes.
    ///
    /// # Errors
    /// Serialisation failed.
    pub fn encode(&self) -> Result<Vec<u8>, CheckpointError> {
        if !self.state.is_finite() {
            return Err(CheckpointError::NonFinite);
        }
        let (position, identity) = (self.position.clone(), self.identity.clone());
        let meta = serde_json::to_string(&Meta { schema: SCHEMA, position, identity })?;
        let weights = f32_bytes(&self.state.weights);
        let momentum = f32_bytes(&self.state.momentum);
        let spent = postcard::to_stdvec(&self.spent)?;
        let released = &self.state.released;
        let tensors = [
            ("weights", TensorView::new(Dtype::F32, vec![self.state.weights.len()], &weights)?),
            ("momentum", TensorView::new(Dtype::F32, vec![self.state.momentum.len()], &momentum)?),
            ("spent", TensorView::new(Dtype::U8, vec![spent.len()], &spent)?),
            ("released", TensorView::new(Dtype::U8, vec![released.len()], released)?),
        ];
        Ok(safetensors::serialize(tensors, Some(HashMap::from([(META.to_owned(), meta)])))?)
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// Truncated, foreign or malformed bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let meta = header.metadata().as_ref().and_then(|m| m.get(META)).ok_or(CheckpointError::NoHeader)?;
        let meta: Meta = serde_json::from_str(meta)?;
        if meta.schema != SCHEMA {
            return Err(CheckpointError::Schema { got: meta.schema, expected: SCHEMA });
        }
        let file = SafeTensors::deserialize(bytes)?;
        let values = |name: &'static str, dtype| -> Result<Vec<u8>, CheckpointError> {
            let view = file.tensor(name)?;
            if view.dtype() != dtype {
                return Err(CheckpointError::Tensor { name, reason: format!("type {:?}", view.dtype()) });
            }
            Ok(view.data().to_vec())
        };
        let f32s = |name| values(name, Dtype::F32).map(|bytes| from_f32_bytes(&bytes));
        let (weights, momentum) = (f32s("weights")?, f32s("momentum")?);
        if !momentum.is_empty() && momentum.len() != weights.len() {
            let reason = format!("{} values, expected {} or none", momentum.len(), weights.len());
            return Err(CheckpointError::Tensor { name: "momentum", reason });
        }
        let spent = values("spent", Dtype::U8)?;
        let spent = match postcard::take_from_bytes(&spent)? {
            (spent, []) => spent,
            (_, rest) => {
                let reason = format!("{} bytes too many", rest.len());
                return Err(CheckpointError::Tensor { name: "spent", reason });
            }
        };
        let released = values("released", Dtype::U8)?;
        let state = TrainState { weights, momentum, released };
        if !state.is_finite() {
            return Err(CheckpointError::NonFinite);
        }
        Ok(Self { state, spent, position: meta.position, identity: meta.identity })
    }

    /// Checks that it belongs to the run of `identity`.
    ///
    /// # Errors
    /// It does not; the first difference is named.
    pub fn belongs_to(&self, identity: &Identity) -> Result<(), CheckpointError> {
        match difference("", &self.identity.0, &identity.0) {
            None => Ok(()),
            Some((what, was, is)) => Err(CheckpointError::Other { what, was: was.to_string(), is: is.to_string() }),
        }
    }

    /// Its losses, one a record.
    ///
    /// # Errors
    /// They are of another number of records.
    pub fn losses_of(&self, records: usize) -> Result<&[RecordLedger], CheckpointError> {
        let (got, expected) = (self.spent.len(), records);
        if got == expected { Ok(&self.spent) } else { Err(CheckpointError::Records { got, expected }) }
    }
}

/// Little-endian f32 values; a trailing partial value is dropped.
pub fn from_f32_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(learning_rate: f64) -> Identity {
        Identity(serde_json::json!({ "data": { "images": 3 }, "schedule": { "learning_rate": learning_rate } }))
    }

    fn sample() -> Checkpoint {
        let mut lost = RecordLedger::default();
        lost.add(asymflow_privacy::Loss::Infinite);
        Checkpoint {
            state: TrainState { weights: vec![1.0, -2.5], momentum: vec![0.0, 3.0], released: vec![7, 0, 255] },
            spent: vec![RecordLedger::default(), lost],
            position: Position { epoch: 3, step: 7, ..Position::default() },
            identity: identity(0.1),
        }
    }

    #[test]
    fn it_survives_a_round_trip() {
        assert_eq!(Checkpoint::decode(&sample().encode().unwrap()).unwrap(), sample());
    }

    #[test]
    fn truncation_at_every_byte_is_an_error() {
        let bytes = sample().encode().unwrap();
        for end in 0..bytes.len() {
            assert!(Checkpoint::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn what_differs_from_another_run_is_named() {
        let error = sample().belongs_to(&identity(0.5)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the checkpoint is of another run: schedule.learning_rate was 0.1 there, and is 0.5 here"
        );
        assert!(sample().belongs_to(&Identity::default()).is_err());
        assert!(sample().belongs_to(&identity(0.1)).is_ok());
    }

    #[test]
    fn what_is_not_finite_is_not_written() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut weights = sample();
            weights.state.weights[1] = bad;
            assert!(matches!(weights.encode(), Err(CheckpointError::NonFinite)));
            let mut momentum = sample();
            momentum.state.momentum[0] = bad;
            assert!(matches!(momentum.encode(), Err(CheckpointError::NonFinite)));
        }
    }

    #[test]
    fn losses_of_another_number_of_records_are_an_error() {
        assert_eq!(sample().losses_of(2).unwrap().len(), 2);
        assert!(matches!(sample().losses_of(3), Err(CheckpointError::Records { got: 2, expected: 3 })));
    }
}
