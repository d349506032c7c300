//! Sizes of a unit, checked so that a hostile model can neither overflow nor exhaust memory unseen.

use asymflow_zoo::{Layer, Network, Shape};

use crate::backend::{ConvUnit, OpenError, ResidualModel, SubmitError, Unit, UnitId};

/// Largest channel count, side, kernel, stride or padding of a layer.
const MAX_SETTING: usize = 1 << 16;
/// Most values in one sample of any activation, or in all weights of a unit.
const MAX_VALUES: usize = 1 << 31;
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
            Unit::Conv(conv) => conv_sizes(conv),
            Unit::Network(network) => network_sizes(network),
        };
        sizes.map_err(|reason| OpenError::Model { unit: index as u32, reason })
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

/// Shape of one output sample of a convolution that has passed [`sizes`].
pub(crate) fn conv_output(conv: &ConvUnit) -> Option<Shape> {
    let side = |side: usize| Some((side + 2 * conv.padding).checked_sub(conv.kernel)?.checked_div(conv.stride)? + 1);
    Some(Shape::new(conv.out_channels, side(conv.input.height)?, side(conv.input.width)?))
}

fn conv_sizes(conv: &ConvUnit) -> Result<UnitSizes, String> {
    settings("convolution", &[conv.out_channels, conv.kernel, conv.stride], &[conv.padding])?;
    let Shape { channels, height, width } = conv.input;
    settings("input", &[channels, height, width], &[])?;
    let output =
        conv_output(conv).ok_or_else(|| format!("kernel {} does not fit into {height}x{width}", conv.kernel))?;
    let input = values(conv.input)?;
    let weights = product(&[conv.out_channels, channels, conv.kernel, conv.kernel])?;
    Ok(UnitSizes { input, output: values(output)?, weights, kept: input, is_network: false })
}

fn network_sizes(network: &Network) -> Result<UnitSizes, String> {
    let Shape { channels, height, width } = network.input;
    settings("input", &[channels, height, width], &[])?;
    let input = values(network.input)?;
    let mut kept = input;
    let output = walk(&network.layers, network.input, &mut kept)?;
    if output != Shape::new(network.classes, 1, 1) {
        return Err(format!("ends in {output:?}, expected {} logits", network.classes));
    }
    let mut names = std::collections::BTreeSet::new();
    let mut weights = 0usize;
    for spec in network.parameters() {
        weights = bounded(weights + product(&spec.shape)?)?;
        if !names.insert(spec.name.clone()) {
            return Err(format!("two parameters are named {}", spec.name));
        }
    }
    Ok(UnitSizes { input, output: values(output)?, weights, kept, is_network: true })
}

/// Shape after `layers`, adding up all activations in `kept`.
fn walk(layers: &[Layer], input: Shape, kept: &mut usize) -> Result<Shape, String> {
    layers.iter().try_fold(input, |shape, layer| {
        check_layer(layer)?;
        let output = if let Layer::Residual { main, shortcut } = layer {
            let (main, shortcut) = (walk(main, shape, kept)?, walk(shortcut, shape, kept)?);
            if main != shortcut {
                return Err(format!("residual block: main branch ends in {main:?}, shortcut in {shortcut:?}"));
            }
            main
        } else {
            layer.output(shape).map_err(|e| e.to_string())?
        };
        *kept = bounded(*kept + values(output)?)?;
        Ok(output)
    })
}

fn check_layer(layer: &Layer) -> Result<(), String> {
    let label = layer.label();
    match layer {
        Layer::Conv(c) => settings(label, &[c.in_channels, c.out_channels, c.kernel, c.stride], &[c.padding]),
        Layer::MaxPool { kernel, stride, padding } => settings(label, &[*kernel, *stride], &[*padding]),
        Layer::AdaptiveAvgPool { out } => settings(label, &[*out], &[]),
        Layer::Linear(l) => bounded(l.in_features).and(bounded(l.out_features)).map(|_| ()),
        _ => Ok(()),
    }
}

fn settings(label: &str, positive: &[usize], any: &[usize]) -> Result<(), String> {
    if let Some(bad) = positive.iter().find(|&&v| v == 0 || v > MAX_SETTING) {
        return Err(format!("{label}: {bad} is not between 1 and {MAX_SETTING}"));
    }
    match any.iter().find(|&&v| v > MAX_SETTING) {
        Some(bad) => Err(format!("{label}: {bad} exceeds {MAX_SETTING}")),
        None => Ok(()),
    }
}

fn values(shape: Shape) -> Result<usize, String> {
    product(&[shape.channels, shape.height, shape.width])
}

fn product(dims: &[usize]) -> Result<usize, String> {
    let product = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    bounded(product.unwrap_or(usize::MAX))
}

fn bounded(values: usize) -> Result<usize, String> {
    if values <= MAX_VALUES { Ok(values) } else { Err(format!("more than {MAX_VALUES} values in one tensor")) }
}
