//! Weight files under torchvision's names: safetensors, and with the feature `pytorch` what `torch.save` writes, in one
//! file or in the parts that an index names.
//!
//! A file is read strictly, as `load_state_dict` does: every tensor of the network has to be there, in its shape, and no
//! other. What a file is, its content says and not its name. Names may stand behind what wrappers and checkpoints put
//! before them (`module.`, `_orig_mod.`, `state_dict.`, …), one prefix for all; what does not stand behind it, such as the
//! state of an optimiser, is not looked at. The counters `num_batches_tracked` are ignored when read, and zero when
//! written. Numbers may be f16, bf16, f32 or f64.

#[cfg(feature = "pytorch")]
mod pytorch;
mod shards;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use thiserror::Error;

use crate::network::Network;
use crate::weights::{Misfit, WeightTensor, Weights, WeightsError};

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 8 << 30;
/// Enough of a file to tell what it is.
const HEAD_BYTES: u64 = 1 << 10;

/// A file of weights that cannot be read or written.
#[derive(Debug, Error)]
#[error("{path}: {fault}", path = path.display())]
pub struct WeightFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    #[source]
    pub fault: WeightFault,
}

/// What is wrong with a file of weights.
#[derive(Debug, Error)]
pub enum WeightFault {
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is longer than is ever read.
    #[error("{bytes} bytes exceed the limit of {MAX_FILE_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: u64,
    },
    /// The file is of another kind.
    #[error("{0}")]
    Kind(&'static str),
    /// The content is not of its format.
    #[error("{0}")]
    Format(String),
    /// The tensors stand in it more than once.
    #[error("its tensors stand behind both {first:?} and {second:?}; keep one of them")]
    Twice {
        /// One prefix.
        first: String,
        /// The other.
        second: String,
    },
    /// The tensors are not those of the network.
    #[error(transparent)]
    Misfit(#[from] Misfit),
}

/// Reads the weights of `network` from a file.
///
/// # Errors
/// What is wrong with the file, or everything in which its tensors differ from those of the network.
pub fn read(path: &Path, network: &Network) -> Result<Weights, WeightFileError> {
    read_kind(path, network).map_err(|fault| WeightFileError { path: path.to_owned(), fault })
}

fn read_kind(path: &Path, network: &Network) -> Result<Weights, WeightFault> {
    let file = Kind::of(path)?;
    if let Kind::Index(json) = &file {
        let kinds = shards::parts(path, json)?.into_iter().map(|part| Ok((Kind::of(&part)?, part)));
        let kinds: Vec<(Kind, PathBuf)> = kinds.collect::<Result<_, WeightFault>>()?;
        let mut found = BTreeMap::new();
        for (kind, part) in &kinds {
            found.extend(kind.tensors(part)?);
        }
        return assemble(network, found);
    }
    assemble(network, file.tensors(path)?)
}

/// What a file is, by its content.
enum Kind {
    Safetensors(Vec<u8>),
    PyTorch,
    /// Perhaps of a file in parts.
    Index(Vec<u8>),
}

impl Kind {
    fn of(path: &Path) -> Result<Self, WeightFault> {
        let mut file = std::fs::File::open(path)?;
        let bytes = file.metadata()?.len();
        if bytes > MAX_FILE_BYTES {
            return Err(WeightFault::TooLarge { bytes });
        }
        let mut content = Vec::new();
        file.by_ref().take(HEAD_BYTES).read_to_end(&mut content)?;
        let rest = |mut content: Vec<u8>| file.take(MAX_FILE_BYTES).read_to_end(&mut content).map(|_| content);
        match content.as_slice() {
            // A length that fits into 32 bits, then a header in JSON.
            [_, _, _, _, 0, 0, 0, 0, b'{', ..] => Ok(Self::Safetensors(rest(content)?)),
            [b'P', b'K', ..] | [0x80, ..] => Ok(Self::PyTorch),
            // A tar archive, as PyTorch wrote before 0.1.10.
            head if head.get(257..262) == Some(b"ustar") => Ok(Self::PyTorch),
            head if head.starts_with(b"version https://git-lfs") => {
                Err(WeightFault::Kind("a pointer of git-lfs and not the file: fetch it with `git lfs pull`"))
            }
            head if head.starts_with(b"\x89HDF") => {
                Err(WeightFault::Kind("HDF5, as Keras writes: convert it to safetensors"))
            }
            [0x08, ..] => Err(WeightFault::Kind("perhaps ONNX: `asymflow import` makes weights of it")),
            head if head.starts_with(b"<") => Err(WeightFault::Kind("HTML, perhaps an error page of a download")),
            head if head.trim_ascii_start().starts_with(b"{") => Ok(Self::Index(rest(content)?)),
            _ => Err(WeightFault::Kind("neither safetensors nor a file of PyTorch")),
        }
    }

    fn tensors(&self, path: &Path) -> Result<BTreeMap<String, Found<'_>>, WeightFault> {
        match self {
            Self::Safetensors(bytes) => safetensors_in(bytes),
            Self::PyTorch => pytorch_file(path),
            Self::Index(_) => Err(WeightFault::Kind("an index within an index")),
        }
    }
}

#[cfg(feature = "pytorch")]
fn pytorch_file<'a>(path: &Path) -> Result<BTreeMap<String, Found<'a>>, WeightFault> {
    pytorch::tensors(path)
}

#[cfg(not(feature = "pytorch"))]
fn pytorch_file<'a>(_path: &Path) -> Result<BTreeMap<String, Found<'a>>, WeightFault> {
    Err(WeightFault::Kind("a file of PyTorch, which this program was built without (feature `pytorch`)"))
}

/// Writes the tensors of `network`: as safetensors, or, where the name ends in `.pth` or `.pt`, as a PyTorch state dict,
/// which `torch.load(weights_only=True)` reads and `load_state_dict` takes strictly.
///
/// # Errors
/// Weights that are not those of the network, or a file that cannot be written.
pub fn write(path: &Path, network: &Network, weights: &Weights) -> Result<(), WeightFileError> {
    let file = match path.extension().and_then(|extension| extension.to_str()) {
        #[cfg(feature = "pytorch")]
        Some("pth" | "pt") => pytorch::encode(network, weights),
        #[cfg(not(feature = "pytorch"))]
        Some("pth" | "pt") => Err(WeightFault::Kind("this program was built without PyTorch's files")),
        _ => encode(network, weights),
    };
    let written = file.and_then(|file| Ok(std::fs::write(path, file)?));
    written.map_err(|fault| WeightFileError { path: path.to_owned(), fault })
}

/// A safetensors file of the tensors of `network`.
///
/// # Errors
/// Weights that are not those of the network.
pub fn encode(network: &Network, weights: &Weights) -> Result<Vec<u8>, WeightFault> {
    weights.fit(network)?;
    let bytes: Vec<Vec<u8>> =
        weights.tensors.values().map(|tensor| tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let named = weights.tensors.iter().zip(&bytes);
    let views: Result<Vec<_>, _> = named
        .map(|((name, tensor), data)| Ok((name, TensorView::new(Dtype::F32, tensor.shape.clone(), data)?)))
        .collect();
    let file = views.and_then(|views| safetensors::serialize(views, None));
    file.map_err(|error| WeightFault::Format(error.to_string()))
}

/// The weights of `network` in the bytes of a safetensors file.
///
/// # Errors
/// A truncated or foreign file, or everything in which its tensors differ from those of the network.
pub fn decode(network: &Network, bytes: &[u8]) -> Result<Weights, WeightFault> {
    assemble(network, safetensors_in(bytes)?)
}

fn safetensors_in(bytes: &[u8]) -> Result<BTreeMap<String, Found<'_>>, WeightFault> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| WeightFault::Format(format!("no complete safetensors file: {error}")))?;
    Ok(file.tensors().into_iter().map(|(name, view)| (name, found(&view))).collect())
}

fn found<'a>(view: &TensorView<'a>) -> Found<'a> {
    let convert: Result<Convert, String> = match view.dtype() {
        Dtype::F32 => Ok(|bytes| numbers(bytes, f32::from_le_bytes)),
        Dtype::F64 => Ok(|bytes| numbers(bytes, |b| f64::from_le_bytes(b) as f32)),
        Dtype::F16 => Ok(|bytes| numbers(bytes, |b| half::f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Ok(|bytes| numbers(bytes, |b| half::bf16::from_le_bytes(b).to_f32())),
        other => Err(format!("{other:?}")),
    };
    let data = view.data();
    Found { shape: view.shape().to_vec(), convert, read: Box::new(move || Ok(Cow::Borrowed(data))) }
}

type Convert = fn(&[u8]) -> Vec<f32>;

/// A tensor of a file.
struct Found<'a> {
    shape: Vec<usize>,
    /// How its bytes become numbers, or the name of a type that is not one of ours.
    convert: Result<Convert, String>,
    read: Box<dyn Fn() -> io::Result<Cow<'a, [u8]>> + 'a>,
}

fn numbers<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)).collect()
}

/// What stands before the names of the network's tensors: the prefix that most of them have.
fn prefix<'a>(names: impl Iterator<Item = &'a str>, network: &Network) -> Result<&'a str, WeightFault> {
    let needed: std::collections::HashSet<String> = network.parameters().into_iter().map(|spec| spec.name).collect();
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        let ends = name.match_indices('.').map(|(at, _)| at + 1);
        for (before, rest) in std::iter::once(0).chain(ends).map(|at| name.split_at(at)) {
            *found.entry(before).or_default() += usize::from(needed.contains(rest));
        }
    }
    let most = found.values().copied().max().unwrap_or_default();
    let mut best = found.into_iter().filter(|&(_, count)| count == most).map(|(before, _)| before);
    match (best.next(), best.next()) {
        (Some(first), Some(second)) if most == needed.len() && most > 0 => {
            Err(WeightFault::Twice { first: first.to_owned(), second: second.to_owned() })
        }
        (first, _) => Ok(first.unwrap_or_default()),
    }
}

/// The tensors of `network` out of those of a file.
fn assemble(network: &Network, found: BTreeMap<String, Found<'_>>) -> Result<Weights, WeightFault> {
    let before = prefix(found.keys().map(String::as_str), network)?.to_owned();
    let mut found: BTreeMap<&str, &Found<'_>> =
        found.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&before)?, tensor))).collect();
    found.retain(|name, _| !name.ends_with("num_batches_tracked"));
    let (mut weights, mut misfit) = (Weights::default(), Misfit::default());
    for spec in network.parameters() {
        let Some(tensor) = found.remove(spec.name.as_str()) else {
            misfit.missing.push(spec.name);
            continue;
        };
        if tensor.shape != spec.shape {
            let (expected, got) = (spec.shape, tensor.shape.clone());
            misfit.wrong.push(WeightsError::Shape { name: spec.name, expected, got });
            continue;
        }
        match &tensor.convert {
            Err(got) => misfit.wrong.push(WeightsError::Type { name: spec.name, got: got.clone() }),
            Ok(convert) => {
                let data = convert(&(tensor.read)()?);
                weights.tensors.insert(spec.name, WeightTensor { shape: spec.shape, data });
            }
        }
    }
    misfit.left_over.extend(found.into_keys().map(str::to_owned));
    misfit.none()?;
    weights.fit(network)?;
    Ok(weights)
}
