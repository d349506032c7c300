//! Networks and weights out of ONNX files: what PyTorch exports of convolutional classifiers, opsets 13 to 21.
//!
//! A graph of the file becomes a [`Network`] and its [`Weights`]; forks that join in a sum become residual blocks. What has no
//! counterpart here (grouped or dilated convolutions, concatenations, other activations, …) is refused by the name of its node. The
//! messages are decoded by `prost`.

mod error;
mod export;
mod import;
mod layers;
mod proto;
mod tensors;

use std::path::Path;

pub use error::OnnxError;
pub use export::encode;
use prost::Message;

use crate::network::Network;
use crate::shape::Shape;
use crate::weights::Weights;

/// Versions of the operators that are understood.
const OPSETS: std::ops::RangeInclusive<i64> = 13..=21;

/// Reads a network called `name` and its weights.
///
/// # Errors
/// No ONNX file, or one of a network that cannot be expressed, with the node.
pub fn read(path: &Path, name: &str) -> Result<(Network, Weights), OnnxError> {
    let failed = |source| OnnxError::Io { path: path.to_owned(), source };
    let bytes = path.metadata().map_err(failed)?.len();
    if bytes > error::MAX_FILE_BYTES {
        return Err(OnnxError::TooLarge { bytes });
    }
    decode(&std::fs::read(path).map_err(failed)?, path.parent(), name)
}

/// A network called `name` and its weights in the bytes of an ONNX file; weights outside of it lie in `beside`.
///
/// # Errors
/// As [`read`].
pub fn decode(bytes: &[u8], beside: Option<&Path>, name: &str) -> Result<(Network, Weights), OnnxError> {
    let model = proto::Model::decode(bytes).map_err(|error| OnnxError::Format(error.to_string()))?;
    let opset = model.opset_import.iter().find(|opset| matches!(opset.domain.as_str(), "" | "ai.onnx"));
    let Some(graph) = model.graph else { return Err(OnnxError::Format("no graph".to_owned())) };
    let got = opset.map_or(0, |opset| opset.version);
    if !OPSETS.contains(&got) {
        return Err(OnnxError::Opset { got });
    }
    let tensors = tensors::Tensors::new(&graph, beside);
    let input = input(&graph, &tensors)?;
    let (layers, weights) = import::layers(&graph, &tensors, input)?;
    let classes = crate::network::output_of(&layers, input.1)?;
    let network = Network { name: name.to_owned(), input: input.1, classes: classes.len(), layers };
    network.validate()?;
    weights.fit(&network)?;
    Ok((network, weights))
}

/// Name and shape of the images.
fn input<'a>(graph: &'a proto::Graph, tensors: &tensors::Tensors<'_>) -> Result<(&'a str, Shape), OnnxError> {
    let mut inputs = graph.input.iter().filter(|value| !tensors.has(&value.name));
    let (Some(value), None) = (inputs.next(), inputs.next()) else {
        return Err(OnnxError::Format("expected one input, the images".to_owned()));
    };
    let shape = value.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref()?.shape.as_ref());
    let sides: Vec<i64> = shape.map(|shape| shape.dim.iter().map(|dim| dim.dim_value).collect()).unwrap_or_default();
    let side = |side: i64| usize::try_from(side).ok().filter(|side| *side > 0);
    match sides[..] {
        [_, channels, height, width] => side(channels).zip(side(height)).zip(side(width)),
        _ => None,
    }
    .map(|((channels, height), width)| (value.name.as_str(), Shape::new(channels, height, width)))
    .ok_or_else(|| OnnxError::Input { name: value.name.clone(), shape: sides })
}
