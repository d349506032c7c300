//! What a network costs: multiply-accumulates, parameters and values of every layer, for one sample.

use crate::graph::{Graph, Node};
use crate::network::Network;
use crate::ops::OpCost;
use crate::shape::{NetworkError, Shape};

/// Cost of one layer for one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerCost {
    /// Name of the layer's parameters, or its kind where it has none ([`Op::label`](crate::ops::Op::label)).
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
    let graph = Graph::of(&network.layers, network.input)?;
    Ok(graph.nodes.iter().map(cost).collect())
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

fn cost(node: &Node) -> LayerCost {
    let trained = node.op.parameters().into_iter().filter(|spec| spec.kind.is_trained());
    let OpCost { macs, relus, squares } = node.op.cost(node.input, node.output);
    LayerCost {
        name: node.op.label().to_owned(),
        input: node.input,
        output: node.output,
        macs,
        parameters: trained.map(|spec| spec.len() as u64).sum(),
        relus,
        squares,
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
