//! What a network costs: multiply-accumulates, parameters and values of every layer, for one sample.

use crate::activation::Decision;
use crate::network::{Layer, Network, NetworkError, Shape};

/// Cost of one layer for one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerCost {
    /// Name of the layer's parameters, or its kind where it has none ([`Layer::label`]).
    pub name: String,
    /// Shape of its input.
    pub input: Shape,
    /// Shape of its output.
    pub output: Shape,
    /// Multiply-accumulates of convolutions and fully connected layers; 0 for all others.
    pub macs: u64,
    /// Trained parameters (no running statistics).
    pub parameters: u64,
    /// Sign decisions: rectified values, or their groups where they share decisions.
    pub relus: u64,
    /// Squares of quadratic activations.
    pub squares: u64,
}

impl LayerCost {
    /// Values it puts out.
    pub fn activations(&self) -> u64 {
        self.output.len() as u64
    }
}

/// Sums over the layers of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Multiply-accumulates of convolutions and fully connected layers.
    pub macs: u64,
    /// Trained parameters.
    pub parameters: u64,
    /// Values put out by all layers.
    pub activations: u64,
    /// Sign decisions.
    pub relus: u64,
    /// Squares of quadratic activations.
    pub squares: u64,
}

/// Cost of every layer of `network`, residual blocks resolved: main branch, shortcut, then the sum itself,
/// named `residual`.
///
/// # Errors
/// The first layer that does not fit its input.
pub fn layer_costs(network: &Network) -> Result<Vec<LayerCost>, NetworkError> {
    let mut costs = Vec::new();
    walk(&network.layers, network.input, &mut costs)?;
    Ok(costs)
}

/// Sums of [`layer_costs`].
///
/// # Errors
/// The first layer that does not fit its input.
pub fn total_cost(network: &Network) -> Result<Totals, NetworkError> {
    Ok(layer_costs(network)?.iter().fold(Totals::default(), |sum, cost| Totals {
        macs: sum.macs + cost.macs,
        parameters: sum.parameters + cost.parameters,
        activations: sum.activations + cost.activations(),
        relus: sum.relus + cost.relus,
        squares: sum.squares + cost.squares,
    }))
}

fn walk(layers: &[Layer], input: Shape, costs: &mut Vec<LayerCost>) -> Result<Shape, NetworkError> {
    layers.iter().try_fold(input, |input, layer| {
        if let Layer::Residual { main, shortcut } = layer {
            walk(main, input, costs)?;
            walk(shortcut, input, costs)?;
        }
        let output = layer.output(input)?;
        costs.push(cost(layer, input, output));
        Ok(output)
    })
}

fn cost(layer: &Layer, input: Shape, output: Shape) -> LayerCost {
    let (macs, parameters) = match layer {
        Layer::Conv(c) => {
            let weights = c.in_channels * c.kernel * c.kernel * c.out_channels;
            (weights * output.pixels(), weights + usize::from(c.bias) * c.out_channels)
        }
        Layer::Linear(l) => (l.in_features * l.out_features, (l.in_features + 1) * l.out_features),
        Layer::BatchNorm { channels, .. } => (0, 2 * channels),
        Layer::PRelu { channels, .. } => (0, *channels),
        Layer::Quadratic(q) if q.form.bases().is_some() => (0, 2 * q.channels),
        Layer::Quadratic(q) => (0, q.form.initial().len()),
        Layer::SharedRelu(s) => (0, 3 * s.quadratics() + if s.decision == Decision::Learned { s.places() } else { 0 }),
        _ => (0, 0),
    };
    LayerCost {
        name: layer.label().to_owned(),
        input,
        output,
        macs: macs as u64,
        parameters: parameters as u64,
        relus: match layer {
            Layer::Relu | Layer::PRelu { .. } => output.len() as u64,
            Layer::SharedRelu(shared) => shared.decisions(output) as u64,
            _ => 0,
        },
        squares: match layer {
            Layer::Quadratic(_) => output.len() as u64,
            Layer::SharedRelu(shared) => (shared.quadratics() * output.pixels()) as u64,
            _ => 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{by_name, names};

    fn totals(name: &str, classes: usize) -> Totals {
        total_cost(&by_name(name, classes, None).unwrap()).unwrap()
    }

    #[test]
    fn parameters_are_torchvisions() {
        // From the metadata of torchvision's pretrained weights (`num_params`).
        for (name, parameters) in [
            ("resnet18-imagenet", 11_689_512),
            ("resnet34-imagenet", 21_797_672),
            ("vgg11-imagenet", 132_868_840),
            ("vgg16-imagenet", 138_365_992),
            ("vgg19-imagenet", 143_678_248),
        ] {
            assert_eq!(totals(name, 1000).parameters, parameters, "{name}");
        }
    }

    #[test]
    fn parameters_agree_with_the_list_of_tensors() {
        for name in names() {
            let network = by_name(name, 10, None).unwrap();
            let listed =
                network.parameters().iter().filter(|p| p.kind.is_trained()).map(|p| p.len() as u64).sum::<u64>();
            assert_eq!(total_cost(&network).unwrap().parameters, listed, "{name}");
        }
    }

    #[test]
    fn multiply_accumulates_are_torchvisions() {
        // From the same metadata (`_ops`, in 10⁹ multiply-accumulates, rounded to three decimals).
        for (name, giga) in [
            ("resnet18-imagenet", 1.814),
            ("resnet34-imagenet", 3.664),
            ("vgg11-imagenet", 7.609),
            ("vgg16-imagenet", 15.47),
            ("vgg19-imagenet", 19.632),
        ] {
            let got = totals(name, 1000).macs as f64 / 1e9;
            assert!((got - giga).abs() < 0.0006, "{name}: {got}");
        }
    }

    #[test]
    fn resnet18_on_cifar_by_hand() {
        // Stem, four convolutions of stage 1, and in each further stage half a convolution, three more and a projection.
        let full = 64 * 9 * 64 * 1024;
        let by_hand = 3 * 9 * 64 * 1024 + 4 * full + 3 * (full / 2 + 3 * full + 64 * 128 * 256) + 512 * 10;
        assert_eq!(totals("resnet18-cifar", 10).macs, by_hand);
        // The often quoted 0.556·10⁹ also counts two operations for every normalised value.
        let costs = layer_costs(&by_name("resnet18-cifar", 10, None).unwrap()).unwrap();
        let normalised = costs.iter().filter(|c| c.name.contains("bn") || c.name.ends_with("downsample.1"));
        let quoted = by_hand + 2 * normalised.map(LayerCost::activations).sum::<u64>();
        assert_eq!(quoted, 556_651_520);
    }

    #[test]
    fn a_small_network_by_hand() {
        let network = by_name("demo-cnn", 10, None).unwrap();
        let costs = layer_costs(&network).unwrap();
        let convs: Vec<u64> = costs.iter().filter(|c| c.name.starts_with("conv")).map(|c| c.macs).collect();
        let by_hand = [3 * 9 * 16 * 1024, 16 * 9 * 32 * 1024, 32 * 9 * 64 * 256, 64 * 9 * 64 * 64];
        assert_eq!(convs, by_hand);
        let totals = total_cost(&network).unwrap();
        assert_eq!(totals.macs, by_hand.iter().sum::<u64>() + 640);
        assert_eq!(totals.relus, 16 * 1024 + 32 * 1024 + 64 * 256 + 64 * 64);
        // Convolution, normalisation and rectification put out as much each; then pooling, and the end.
        assert_eq!(totals.activations, 3 * totals.relus + 32 * 256 + 64 * 64 + 64 + 64 + 10);
    }

    #[test]
    fn a_residual_block_counts_both_branches_and_the_sum() {
        let network = by_name("resnet8-cifar", 10, None).unwrap();
        let names: Vec<String> = layer_costs(&network).unwrap().into_iter().map(|c| c.name).collect();
        let at = |name: &str| names.iter().position(|n| n == name).unwrap();
        assert!(at("layer2.0.bn2") < at("layer2.0.downsample.0"));
        assert_eq!(names[at("layer2.0.downsample.1") + 1], "residual");
        assert_eq!(names.iter().filter(|n| *n == "residual").count(), 3);
    }
}
