//! Weights as a safetensors file under torchvision's names, for the programs that link no burn.
//!
//! PyTorch state dicts are read by `asymflow_zoo::weight_files`, which needs burn.

use std::collections::BTreeMap;

use asymflow_zoo::{Network, WeightTensor, Weights, WeightsError};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use thiserror::Error;

use crate::checkpoint::from_f32_bytes;

/// Why a file of weights could not be read or written.
#[derive(Debug, Error)]
pub enum WeightsFileError {
    /// Not a whole safetensors file.
    #[error("not a complete safetensors file: {0}")]
    Format(#[from] SafeTensorError),
    /// A tensor of another type.
    #[error("tensor {name}: expected F32, got {got:?}")]
    Type {
        /// Its name.
        name: String,
        /// Its type.
        got: Dtype,
    },
    /// The tensors do not fit the network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// The bytes of a file that holds `weights`, which must fit `network`.
///
/// # Errors
/// Weights that do not fit.
pub fn encode(network: &Network, weights: &Weights) -> Result<Vec<u8>, WeightsFileError> {
    weights.validate(network)?;
    let bytes: BTreeMap<&String, Vec<u8>> = weights
        .tensors
        .iter()
        .map(|(name, tensor)| (name, tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let mut views = Vec::new();
    for (name, data) in &bytes {
        views.push((name.as_str(), TensorView::new(Dtype::F32, weights.tensors[*name].shape.clone(), data)?));
    }
    Ok(safetensors::serialize(views, None)?)
}

/// The weights of `network` in a file's bytes; further tensors in it are left out.
///
/// # Errors
/// A truncated or foreign file, and tensors that are missing, misshapen, of another type or not finite.
pub fn decode(network: &Network, bytes: &[u8]) -> Result<Weights, WeightsFileError> {
    let file = SafeTensors::deserialize(bytes)?;
    let mut weights = Weights::default();
    for spec in network.parameters() {
        let Ok(view) = file.tensor(&spec.name) else {
            return Err(WeightsError::Missing { name: spec.name }.into());
        };
        if view.dtype() != Dtype::F32 {
            return Err(WeightsFileError::Type { name: spec.name, got: view.dtype() });
        }
        let tensor = WeightTensor { shape: view.shape().to_vec(), data: from_f32_bytes(view.data()) };
        weights.tensors.insert(spec.name, tensor);
    }
    weights.validate(network)?;
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_survive_a_file_and_a_cut_file_is_refused() {
        let network = asymflow_zoo::by_name("demo-cnn", 10, None).unwrap();
        let weights = Weights::init(&network, 3);
        let bytes = encode(&network, &weights).unwrap();
        assert_eq!(decode(&network, &bytes).unwrap(), weights);
        for end in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
            assert!(matches!(decode(&network, &bytes[..end]), Err(WeightsFileError::Format(_))), "cut at {end}");
        }
        let other = asymflow_zoo::by_name("resnet8-cifar", 10, None).unwrap();
        assert!(matches!(decode(&other, &bytes), Err(WeightsFileError::Weights(_))));
    }
}
