//! Checkpoints: what a run needs to go on as if it had never stopped, as one safetensors file.

use std::collections::HashMap;

use asymflow_privacy::RecordLedger;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::modes::TrainState;

const SCHEMA: u32 = 2;
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
}

/// Where training was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Name of the network.
    pub network: String,
    /// Name of the mode.
    pub mode: String,
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
    #[error("checkpoint of {got}, expected {expected}")]
    Other {
        /// Network and mode found.
        got: String,
        /// Network and mode of the job.
        expected: String,
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
        let meta = serde_json::to_string(&Meta { schema: SCHEMA, position: self.position.clone() })?;
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
        if weights.iter().chain(&momentum).any(|v| !v.is_finite()) {
            return Err(CheckpointError::Tensor { name: "weights", reason: "a value is not finite".to_owned() });
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
        Ok(Self { state: TrainState { weights, momentum, released }, spent, position: meta.position })
    }

    /// Checks that it belongs to `network` in `mode`.
    ///
    /// # Errors
    /// It does not.
    pub fn belongs_to(&self, network: &str, mode: &str) -> Result<(), CheckpointError> {
        if self.position.network == network && self.position.mode == mode {
            return Ok(());
        }
        Err(CheckpointError::Other {
            got: format!("{} in mode {}", self.position.network, self.position.mode),
            expected: format!("{network} in mode {mode}"),
        })
    }
}

/// Little-endian f32 values; a trailing partial value is dropped.
pub fn from_f32_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Checkpoint {
        let mut lost = RecordLedger::default();
        lost.add(asymflow_privacy::Loss::Infinite);
        Checkpoint {
            state: TrainState { weights: vec![1.0, -2.5], momentum: vec![0.0, 3.0], released: vec![7, 0, 255] },
            spent: vec![RecordLedger::default(), lost],
            position: Position { network: "n".into(), mode: "m".into(), epoch: 3, step: 7, ..Position::default() },
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
    fn another_network_is_named() {
        let error = sample().belongs_to("other", "m").unwrap_err();
        assert_eq!(error.to_string(), "checkpoint of n in mode m, expected other in mode m");
    }
}
