//! Names of activations, which have none of their own.

use asymflow_zoo::ops::Op;
use asymflow_zoo::{
    Network,
    graph::Graph,
    network::{Layer, NetworkError, Shape},
    ops::{Conv, Linear},
};

/// Names and shapes of the activations of `network`: the name of the layer before, and `.relu`.
///
/// # Errors
/// The first layer that does not fit its input.
pub fn activations(network: &Network) -> Result<Vec<(String, Shape)>, NetworkError> {
    let nodes = Graph::of(&network.layers, network.input)?.nodes.into_iter();
    Ok(nodes.filter(|node| node.op == Op::Relu).map(|node| (node.name, node.input)).collect())
}

/// `last` as it is after `layer`: the last layer with weights.
pub(super) fn name_after(layer: &Layer, last: &mut String) {
    if let Layer::Conv(Conv { name, .. }) | Layer::Linear(Linear { name, .. }) = layer {
        name.clone_into(last);
    }
}
