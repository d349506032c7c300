//! The constants of a graph.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path};

use super::error::OnnxError;
use super::proto::{Graph, Tensor};
use crate::network::limits::MAX_VALUES;
use crate::weights::WeightTensor;

/// Initialisers, and what nodes only hand on of them, by name.
pub(super) struct Tensors<'a> {
    by_name: HashMap<&'a str, &'a Tensor>,
    beside: Option<&'a Path>,
}

impl<'a> Tensors<'a> {
    pub fn new(graph: &'a Graph, beside: Option<&'a Path>) -> Self {
        let mut by_name: HashMap<&str, &Tensor> =
            graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        for node in &graph.node {
            let input = || by_name.get(node.input.first()?.as_str()).copied();
            let tensor = match node.op_type.as_str() {
                "Constant" => node.attribute.iter().find(|a| a.name == "value").and_then(|a| a.t.as_ref()),
                // The same numbers; sides of one do not matter to who reads them.
                "Identity" | "Unsqueeze" => input(),
                _ => None,
            };
            by_name.extend(node.output.first().map(String::as_str).zip(tensor));
        }
        Self { by_name, beside }
    }

    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Floats, and their shape.
    pub fn floats(&self, name: &str) -> Result<WeightTensor, OnnxError> {
        let (tensor, shape) = self.find(name)?;
        let wrong = |reason: &str| OnnxError::Tensor { name: name.to_owned(), reason: reason.to_owned() };
        let bytes = self.bytes(tensor)?;
        let data: Vec<f32> = match tensor.data_type {
            1 if bytes.is_empty() => tensor.float_data.clone(),
            1 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            10 => bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            11 if bytes.is_empty() => tensor.double_data.iter().map(|v| *v as f32).collect(),
            11 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            16 => bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            _ => return Err(wrong("expected f16, bf16, f32 or f64")),
        };
        if data.len() != shape.iter().product::<usize>() {
            return Err(wrong("another length than its shape says"));
        }
        Ok(WeightTensor { shape, data })
    }

    /// Whole numbers, such as a shape.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>, OnnxError> {
        let (tensor, _) = self.find(name)?;
        let bytes = self.bytes(tensor)?;
        match tensor.data_type {
            7 if bytes.is_empty() => Ok(tensor.int64_data.clone()),
            7 => Ok(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            _ => Err(OnnxError::Tensor { name: name.to_owned(), reason: "expected i64".to_owned() }),
        }
    }

    fn find(&self, name: &str) -> Result<(&'a Tensor, Vec<usize>), OnnxError> {
        let wrong = |reason: &str| OnnxError::Tensor { name: name.to_owned(), reason: reason.to_owned() };
        let tensor = self.by_name.get(name).ok_or_else(|| wrong("is computed, and no constant"))?;
        let sides: Option<Vec<usize>> = tensor.dims.iter().map(|side| usize::try_from(*side).ok()).collect();
        let sides = sides.ok_or_else(|| wrong("a negative side"))?;
        let len = sides.iter().try_fold(1_usize, |product, side| product.checked_mul(*side));
        if len.is_none_or(|len| len > MAX_VALUES) {
            return Err(wrong("too large"));
        }
        Ok((tensor, sides))
    }

    fn bytes(&self, tensor: &'a Tensor) -> Result<std::borrow::Cow<'a, [u8]>, OnnxError> {
        if tensor.data_location != 1 {
            return Ok((&tensor.raw_data[..]).into());
        }
        let wrong = |reason: String| OnnxError::Tensor { name: tensor.name.clone(), reason };
        let field = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &*entry.value);
        let location = Path::new(field("location").unwrap_or_default());
        let is_beside = matches!(location.components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        let Some(folder) = self.beside.filter(|_| is_beside) else {
            return Err(wrong(format!("its numbers lie in {location:?}, which is not beside the file")));
        };
        let number = |key: &str| field(key).map_or(Ok(0), str::parse::<u64>);
        let (Ok(offset), Ok(length)) = (number("offset"), number("length")) else {
            return Err(wrong("offset or length is no number".to_owned()));
        };
        let path = folder.join(location);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.take(length.min(8 * MAX_VALUES as u64)).read_to_end(&mut bytes)
        });
        read.map_err(|source| OnnxError::Io { path, source })?;
        Ok(bytes.into())
    }
}
