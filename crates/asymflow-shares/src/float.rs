//! Networks in floating point, activations replaced: what a client would like to have computed.

use std::collections::BTreeMap;

use asymflow_zoo::graph::reference::ReferenceError;
use asymflow_zoo::models::replace::map_activations;
use asymflow_zoo::{
    Network, Weights,
    graph::reference::Reference,
    network::Layer,
    ops::{Decision as ZooDecision, Form, Grouping, Quadratic, SharedRelu},
    weights::WeightTensor,
};

use crate::compile::{Activation, CompileError};
use crate::groups::Decision;

/// Logits of one image (channels × height × width) in double precision, activations replaced as by [`compile`](fn@crate::compile::compile):
/// the zoo's reference, which shares nothing with the programs that it is compared with.
///
/// # Errors
/// Weights or image do not fit, or an activation whose settings are none.
pub fn float_logits(
    network: &Network,
    weights: &Weights,
    activations: &BTreeMap<String, Activation>,
    image: &[f32],
) -> Result<Vec<f64>, CompileError> {
    let (got, expected) = (image.len() as u64, network.input.len() as u64);
    if got != expected {
        return Err(CompileError::Options {
            what: "number of values of an image",
            got,
            least: expected,
            most: expected,
        });
    }
    let (network, weights) = replaced(network, weights, activations)?;
    let image: Vec<f64> = image.iter().map(|&v| f64::from(v)).collect();
    let logits = Reference::new(&network, &weights.flatten(&network)?).and_then(|reference| reference.logits(&image));
    logits.map_err(|error| match error {
        ReferenceError::Network(error) => error.into(),
        ReferenceError::Weights(error) => error.into(),
        ReferenceError::Length { got, expected, .. } => {
            let (got, expected) = (got as u64, expected as u64);
            CompileError::Options { what: "number of values", got, least: expected, most: expected }
        }
    })
}

/// The network with the zoo's layers in place of its ReLUs, and their tensors beside its weights.
fn replaced(
    network: &Network,
    weights: &Weights,
    activations: &BTreeMap<String, Activation>,
) -> Result<(Network, Weights), CompileError> {
    let of = |name: &str| activations.get(&format!("{}.relu", name.strip_suffix(".act").unwrap_or(name)));
    let network = map_activations(network, &|name, shape| {
        let channels = shape.channels;
        match of(&name) {
            None | Some(Activation::Relu) => Layer::Relu,
            Some(Activation::Identity | Activation::Quadratic { .. }) => {
                Layer::Quadratic(Quadratic { name, channels, form: Form::REACT })
            }
            Some(Activation::SharedRelu { block: (rows, columns), channels: depth, decision }) => {
                let grouping = Grouping::Blocks { channels: *depth, rows: *rows, columns: *columns };
                let decision = match decision {
                    Decision::Corner => ZooDecision::Corner,
                    Decision::Centre => ZooDecision::Centre,
                    Decision::Mean => ZooDecision::Mean,
                    Decision::Weights(_) => ZooDecision::Learned,
                };
                Layer::SharedRelu(SharedRelu { name, channels, grouping, decision })
            }
        }
    })?;
    let mut weights = weights.clone();
    for (name, activation) in activations {
        let prefix = format!("{}.act", name.strip_suffix(".relu").unwrap_or(name));
        let (suffix, data) = match activation {
            Activation::Relu => continue,
            Activation::Identity => ("weight", vec![0.0, 1.0, 0.0]),
            Activation::Quadratic { a, b, c } => ("weight", vec![*a as f32, *b as f32, *c as f32]),
            Activation::SharedRelu { decision: Decision::Weights(votes), .. } => ("vote", votes.clone()),
            Activation::SharedRelu { decision: Decision::Corner | Decision::Centre | Decision::Mean, .. } => continue,
        };
        weights.tensors.insert(format!("{prefix}.{suffix}"), WeightTensor { shape: vec![data.len()], data });
    }
    Ok((network, weights))
}
