//! The files that `torch.save` makes of a state dict: a zip archive of stored entries, one pickle (protocol 2) that
//! describes the tensors, and one entry of little-endian numbers a tensor.
//!
//! Checked against `torch.load(weights_only=True)` of PyTorch 2.15 by `scripts/check_pytorch.py`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::Path;

use pytorch_reader::{DType, PytorchReader};
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{Convert, Found, WeightFault, numbers};
use crate::network::Network;
use crate::param::ParamKind;
use crate::weights::{WeightTensor, Weights};

/// `collections.OrderedDict()`, the state dict itself and the empty hooks of every tensor.
const ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
/// Where PyTorch wants the numbers to begin, so that they can be mapped into memory.
const ALIGNMENT: u16 = 64;

/// The type of a tensor's numbers, by the name of its storage.
#[derive(Clone, Copy)]
enum Storage {
    F32,
    I64,
}

/// The tensors of a file. Numbers are read when they are asked for.
///
/// # Errors
/// It is no file of PyTorch.
pub(super) fn tensors<'a>(path: &Path) -> Result<BTreeMap<String, Found<'a>>, WeightFault> {
    let reader = PytorchReader::new(path).map_err(|error| WeightFault::Format(error.to_string()))?;
    let one = |(name, tensor): (String, pytorch_reader::Tensor)| {
        let convert: Result<Convert, String> = match tensor.dtype() {
            DType::F32 => Ok(|bytes| numbers(bytes, f32::from_ne_bytes)),
            DType::F64 => Ok(|bytes| numbers(bytes, |b| f64::from_ne_bytes(b) as f32)),
            DType::F16 => Ok(|bytes| numbers(bytes, |b| half::f16::from_ne_bytes(b).to_f32())),
            DType::BF16 => Ok(|bytes| numbers(bytes, |b| half::bf16::from_ne_bytes(b).to_f32())),
            other => Err(format!("{other:?}")),
        };
        let shape = tensor.shape().to_vec();
        (name, Found { shape, convert, read: Box::new(move || tensor.read().map(Cow::Owned)) })
    };
    Ok(reader.into_tensors().into_iter().map(one).collect())
}

/// The bytes of a file that holds the tensors of `network`, and a zero for each counter `num_batches_tracked` that
/// PyTorch's strict loading asks for.
///
/// # Errors
/// Weights that are not those of the network, or more data than a zip archive holds.
pub(super) fn encode(network: &Network, weights: &Weights) -> Result<Vec<u8>, WeightFault> {
    weights.fit(network)?;
    let mut pickle = [&[0x80, 2], ORDERED_DICT, b"("].concat();
    let mut entries = Vec::new();
    for spec in network.parameters() {
        let Some(WeightTensor { shape, data }) = weights.tensors.get(&spec.name) else { continue };
        put_tensor(&mut pickle, &spec.name, Storage::F32, entries.len(), shape);
        entries.push(data.iter().flat_map(|v| v.to_le_bytes()).collect());
        if let (ParamKind::RunningVar, Some(norm)) = (spec.kind, spec.name.strip_suffix("running_var")) {
            put_tensor(&mut pickle, &format!("{norm}num_batches_tracked"), Storage::I64, entries.len(), &[]);
            entries.push(0i64.to_le_bytes().to_vec());
        }
    }
    pickle.extend_from_slice(b"u.");
    archive(&pickle, &entries).map_err(|error| WeightFault::Format(error.to_string()))
}

fn archive(pickle: &[u8], entries: &[Vec<u8>]) -> Result<Vec<u8>, ZipError> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut put = |name: &str, bytes: &[u8]| -> Result<(), ZipError> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(u32::try_from(bytes.len()).is_err());
        zip.start_file(format!("archive/{name}"), options)?;
        Ok(zip.write_all(bytes)?)
    };
    put("data.pkl", pickle)?;
    put("byteorder", b"little")?;
    for (number, bytes) in entries.iter().enumerate() {
        put(&format!("data/{number}"), bytes)?;
    }
    put("version", b"3\n")?;
    Ok(zip.finish()?.into_inner())
}

/// Key and value of one tensor:
/// `_rebuild_tensor_v2(('storage', type, entry, 'cpu', values), 0, shape, strides, False, OrderedDict())`.
fn put_tensor(pickle: &mut Vec<u8>, name: &str, storage: Storage, entry: usize, shape: &[usize]) {
    put_text(pickle, name);
    pickle.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    put_text(pickle, "storage");
    pickle.extend_from_slice(match storage {
        Storage::F32 => b"ctorch\nFloatStorage\n",
        Storage::I64 => b"ctorch\nLongStorage\n",
    });
    put_text(pickle, &entry.to_string());
    put_text(pickle, "cpu");
    put_number(pickle, shape.iter().product());
    // The end of the tuple, its persistent id, and the offset in the storage.
    pickle.extend_from_slice(b"tQ");
    put_number(pickle, 0);
    put_tuple(pickle, shape);
    let strides: Vec<usize> = (1..=shape.len()).map(|next| shape[next..].iter().product()).collect();
    put_tuple(pickle, &strides);
    // False; then the hooks, the end of the arguments, and the call.
    pickle.push(0x89);
    pickle.extend_from_slice(ORDERED_DICT);
    pickle.extend_from_slice(b"tR");
}

fn put_text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend_from_slice(&(text.len() as u32).to_le_bytes());
    pickle.extend_from_slice(text.as_bytes());
}

/// Four bytes where they suffice, else a long of nine, whose last keeps it positive.
fn put_number(pickle: &mut Vec<u8>, number: usize) {
    if let Ok(number) = i32::try_from(number) {
        pickle.push(b'J');
        pickle.extend_from_slice(&number.to_le_bytes());
    } else {
        pickle.extend_from_slice(&[0x8a, 9]);
        pickle.extend_from_slice(&(number as u64).to_le_bytes());
        pickle.push(0);
    }
}

fn put_tuple(pickle: &mut Vec<u8>, numbers: &[usize]) {
    pickle.push(b'(');
    numbers.iter().for_each(|&number| put_number(pickle, number));
    pickle.push(b't');
}
