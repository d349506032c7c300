//! Weight files: safetensors and PyTorch checkpoints, in and out.
//!
//! Names are torchvision's. `num_batches_tracked` is ignored when read, and zero when written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn_store::pytorch_reader::{DType, PytorchReader};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use thiserror::Error;

use crate::network::Network;
use crate::pytorch_file;
use crate::weights::{WeightTensor, Weights, WeightsError};

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 8 << 30;

/// Keys under which checkpoints nest the weights of a model, and prefixes that wrappers add.
const PREFIXES: [&str; 5] = ["state_dict.", "model_state_dict.", "model.", "module.", "_orig_mod."];

/// Why weights could not be read or written.
#[derive(Debug, Error)]
pub enum WeightFileError {
    /// The file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is longer than is ever read.
    #[error("{path}: {bytes} bytes exceed the limit of {limit}", path = path.display(), limit = MAX_FILE_BYTES)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// The name of the file ends in none of the known ways.
    #[error("{path}: expected a name ending in .safetensors, .pth or .pt", path = path.display())]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// The content is not of its format.
    #[error("{path}: {reason}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor holds no floating-point numbers.
    #[error("{path}: tensor {name} is of type {dtype}, expected f16, bf16, f32 or f64", path = path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// The tensors are not those of the network.
    #[error("{path}: {source}", path = path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// The first that does not fit.
        source: WeightsError,
    },
}

/// Reads the weights of `network` from a `.safetensors`, `.pth` or `.pt` file.
///
/// # Errors
/// What is wrong with the file, or the first tensor that is missing, misshapen or not finite.
pub fn read(path: &Path, network: &Network) -> Result<Weights, WeightFileError> {
    let io = |source| WeightFileError::Io { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(WeightFileError::TooLarge { path: path.to_owned(), bytes });
    }
    let tensors = match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => read_safetensors(path, &std::fs::read(path).map_err(io)?)?,
        Some("pth" | "pt") => read_pytorch(path)?,
        _ => return Err(WeightFileError::Extension { path: path.to_owned() }),
    };
    let weights = Weights { tensors: strip(tensors) };
    weights.validate(network).map_err(|source| WeightFileError::Weights { path: path.to_owned(), source })?;
    Ok(weights)
}

/// Writes `weights` as safetensors.
///
/// # Errors
/// A tensor whose values do not fill its shape, or a file that cannot be written.
pub fn write_safetensors(path: &Path, weights: &Weights) -> Result<(), WeightFileError> {
    let bytes: Vec<(&String, &WeightTensor, Vec<u8>)> = weights
        .tensors
        .iter()
        .map(|(name, tensor)| (name, tensor, tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let format = |reason: String| WeightFileError::Format { path: path.to_owned(), reason };
    let mut views = Vec::with_capacity(bytes.len());
    for (name, tensor, data) in &bytes {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), data)
            .map_err(|e| format(format!("tensor {name}: {e}")))?;
        views.push((name.as_str(), view));
    }
    let file = safetensors::serialize(views, None).map_err(|e| format(e.to_string()))?;
    std::fs::write(path, file).map_err(|source| WeightFileError::Io { path: path.to_owned(), source })
}

/// Writes the tensors of `network` as a PyTorch state dict, which `torch.load(weights_only=True)` reads and
/// `load_state_dict` takes strictly.
///
/// # Errors
/// The first tensor that is missing, misshapen or not finite, or a file that cannot be written.
pub fn write_pytorch(path: &Path, network: &Network, weights: &Weights) -> Result<(), WeightFileError> {
    weights.validate(network).map_err(|source| WeightFileError::Weights { path: path.to_owned(), source })?;
    let file = pytorch_file::encode(network, weights)
        .map_err(|e| WeightFileError::Format { path: path.to_owned(), reason: e.to_string() })?;
    std::fs::write(path, file).map_err(|source| WeightFileError::Io { path: path.to_owned(), source })
}

/// Drops counters and the keys under which the weights are nested.
fn strip(mut tensors: BTreeMap<String, WeightTensor>) -> BTreeMap<String, WeightTensor> {
    for prefix in PREFIXES {
        if tensors.keys().any(|name| name.starts_with(prefix)) {
            tensors = tensors
                .into_iter()
                .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor)))
                .collect();
        }
    }
    tensors
}

fn is_counter(name: &str) -> bool {
    name.ends_with("num_batches_tracked")
}

fn read_safetensors(path: &Path, file: &[u8]) -> Result<BTreeMap<String, WeightTensor>, WeightFileError> {
    let parsed = SafeTensors::deserialize(file)
        .map_err(|e| WeightFileError::Format { path: path.to_owned(), reason: e.to_string() })?;
    let one = |(name, view): (String, TensorView<'_>)| {
        let data = match view.dtype() {
            Dtype::F32 => numbers(view.data(), f32::from_le_bytes),
            Dtype::F64 => numbers(view.data(), |b| f64::from_le_bytes(b) as f32),
            Dtype::F16 => numbers(view.data(), |b| half::f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => numbers(view.data(), |b| half::bf16::from_le_bytes(b).to_f32()),
            other => {
                return Err(WeightFileError::Type { path: path.to_owned(), name, dtype: format!("{other:?}") });
            }
        };
        Ok((name, WeightTensor { shape: view.shape().to_vec(), data }))
    };
    parsed.tensors().into_iter().filter(|(name, _)| !is_counter(name)).map(one).collect()
}

fn read_pytorch(path: &Path) -> Result<BTreeMap<String, WeightTensor>, WeightFileError> {
    let format = |reason: String| WeightFileError::Format { path: path.to_owned(), reason };
    let reader = PytorchReader::new(path).map_err(|e| format(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in reader.into_tensors().into_iter().filter(|(name, _)| !is_counter(name)) {
        let shape = tensor.shape().to_vec();
        let values = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim as u64));
        // A strided view repeats what is stored, so a small file can announce a huge tensor.
        if values.is_none_or(|values| values > MAX_FILE_BYTES / 4) {
            return Err(format(format!("tensor {name}: shape {shape:?} is too large")));
        }
        let convert: fn(&[u8]) -> Vec<f32> = match tensor.dtype() {
            DType::F32 => |bytes| numbers(bytes, f32::from_ne_bytes),
            DType::F64 => |bytes| numbers(bytes, |b| f64::from_ne_bytes(b) as f32),
            DType::F16 => |bytes| numbers(bytes, |b| half::f16::from_ne_bytes(b).to_f32()),
            DType::BF16 => |bytes| numbers(bytes, |b| half::bf16::from_ne_bytes(b).to_f32()),
            other => {
                let dtype = format!("{other:?}");
                return Err(WeightFileError::Type { path: path.to_owned(), name, dtype });
            }
        };
        let bytes = tensor.read().map_err(|source| WeightFileError::Io { path: path.to_owned(), source })?;
        tensors.insert(name, WeightTensor { shape, data: convert(&bytes) });
    }
    Ok(tensors)
}

fn numbers<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)).collect()
}
