//! Sizes of a unit, checked so that a hostile model can neither overflow nor exhaust memory unseen.

use asymflow_zoo::network::limits::MAX_VALUES;
use asymflow_zoo::{
    Network,
    graph::Graph,
    network::{Layer, NetworkError},
    ops::{Conv, ParamSpec},
};

use crate::backend::{ConvUnit, OpenError, ResidualModel, SubmitError, Unit, UnitId};

/// Most units in a model.
const MAX_UNITS: usize = 1 << 12;

/// Sizes of one unit, in values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitSizes {
    /// One input sample.
    pub input: usize,
    /// One output sample.
    pub output: usize,
    /// All weights, buffers included.
    pub weights: usize,
    /// Everything that a training pass keeps of one sample.
    pub kept: usize,
    /// Whether it is a [`Unit::Network`].
    pub is_network: bool,
}

/// Sizes of every unit of `model`.
///
/// # Errors
/// The first unit that is not executable.
pub fn sizes(model: &ResidualModel) -> Result<Vec<UnitSizes>, OpenError> {
    if model.units.len() > MAX_UNITS {
        let reason = format!("{} units exceed the limit of {MAX_UNITS}", model.units.len());
        return Err(OpenError::Model { unit: MAX_UNITS as u32, reason });
    }
    let one = |(index, unit): (usize, &Unit)| {
        let sizes = match unit {
            Unit::Conv(conv) => conv_network(conv).and_then(|network| network_sizes(&network, false)),
            Unit::Network(network) => network_sizes(network, true),
        };
        sizes.map_err(|error| OpenError::Model { unit: index as u32, reason: error.to_string() })
    };
    model.units.iter().enumerate().map(one).collect()
}

/// Samples in `got` values of `sample` values each.
///
/// # Errors
/// Not a positive multiple.
pub(crate) fn samples(unit: UnitId, got: usize, sample: usize) -> Result<usize, SubmitError> {
    if got == 0 || sample == 0 || !got.is_multiple_of(sample) {
        return Err(SubmitError::Length { unit: unit.0, got, sample });
    }
    Ok(got / sample)
}

/// A convolution as a network, whose logits are its outputs.
///
/// # Errors
/// It does not fit its input.
pub(crate) fn conv_network(conv: &ConvUnit) -> Result<Network, NetworkError> {
    let layer = Layer::Conv(Conv {
        name: "convolution".to_owned(),
        in_channels: conv.input.channels,
        out_channels: conv.out_channels,
        kernel: conv.kernel,
        stride: conv.stride,
        padding: conv.padding,
        bias: false,
    });
    let (input, classes) = (conv.input, layer.output(conv.input)?.len());
    Ok(Network { name: "unit".to_owned(), input, classes, layers: vec![layer, Layer::Flatten] })
}

fn network_sizes(network: &Network, is_network: bool) -> Result<UnitSizes, NetworkError> {
    let graph = Graph::new(network)?;
    let input = graph.input.len();
    // A convolution keeps its input alone.
    let made = if is_network { graph.nodes.iter().map(|node| node.output.len()).sum() } else { 0 };
    let kept = input + made;
    if kept > MAX_VALUES {
        let layer = network.name.clone();
        return Err(NetworkError::TooLarge { layer, what: "values kept of one sample", limit: MAX_VALUES });
    }
    let weights = graph.params.iter().map(ParamSpec::len).sum();
    Ok(UnitSizes { input, output: network.classes, weights, kept, is_network })
}
