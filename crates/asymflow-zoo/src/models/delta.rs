//! Delta's three networks, made of any network of the zoo (Niu et al., CVPR 2024, "All Rivers Run to the Sea").
//!
//! M_bb is the network up to its first activation; M_res is the rest of it; M_main is a small network of low-rank
//! bottlenecks beside the rest. M_bb's features are split into a low-rank, low-frequency part for M_main and a residual
//! for M_res, and the logits of the two are added. M_main is normalised as the network is.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::models::replace::{Replacement, replace_activations};
use crate::models::{conv, linear, norm};
use crate::network::{Layer, Network, output_of};
use crate::shape::{NetworkError, Shape};

/// Widths of M_main's bottlenecks, of which two were published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MainWidth {
    /// q = 2r, 4r, 8r in the three stages (thesis, table 3.3: 16, 32, 64 at r = 8).
    #[default]
    Thesis,
    /// q = 2r, 8r, 16r (the authors' code: 16, 64, 128 at r = 8).
    ReleasedCode,
}

impl MainWidth {
    const fn per_rank(self) -> [usize; STAGES] {
        match self {
            Self::Thesis => [2, 4, 8],
            Self::ReleasedCode => [2, 8, 16],
        }
    }
}

/// Stages of M_main; the second and third halve the map.
const STAGES: usize = 3;
/// Most bottlenecks in a stage, several times the published ones.
const MAX_BLOCKS: usize = 64;
/// Output channels of the stages, in multiples of the features' channels.
const EXPANSION: [usize; STAGES] = [1, 4, 8];

/// What leaves of a residual in place of all of it: a few values of it, learned in the trusted part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactShape {
    /// Values that the residual's pooled channels are projected to.
    pub values: usize,
    /// Bits that come out of the mechanism for them: M_res' input.
    pub bits: usize,
}

/// Hidden units of M_res on a few bits.
const COMPACT_HIDDEN: usize = 64;
/// Most pooled values that are projected: of so many, a few thousand records can tell which matter.
const MAX_POOLED: usize = 512;

impl CompactShape {
    /// What is pooled of every channel in every cell: means of x, |x| and x², of x times its neighbour to the right and below, and
    /// of the magnitude of its difference to the neighbour down to the left.
    pub const STATISTICS: usize = 6;

    /// Side of the grid on which residuals of `features` are pooled.
    pub fn grid(features: Shape) -> usize {
        let fits =
            |side: &usize| divides(*side, features) && Self::STATISTICS * features.channels * side * side <= MAX_POOLED;
        [4, 2].into_iter().find(fits).unwrap_or(1)
    }

    /// Values of a pooled residual.
    pub fn pooled(features: Shape) -> usize {
        Self::STATISTICS * features.channels * Self::grid(features).pow(2)
    }

    /// The projection of pooled residuals, and the gate on M_res' logits.
    fn layers(self, features: Shape) -> Vec<Layer> {
        let projection = linear("compact.projection", Self::pooled(features), self.values);
        vec![projection, Layer::PRelu { name: "compact.gate".to_owned(), channels: 1 }]
    }

    fn residual(self, classes: usize) -> Vec<Layer> {
        let (hidden, last) = ("compact.hidden", "compact.fc");
        let hidden = linear(hidden, self.bits, COMPACT_HIDDEN);
        vec![Layer::Flatten, hidden, Layer::Relu, linear(last, COMPACT_HIDDEN, classes)]
    }
}

/// How features are split and how large M_main is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaShape {
    /// Principal channels kept, r.
    pub rank: usize,
    /// Side of a DCT block, t.
    pub block: usize,
    /// Side of the low frequencies kept of a block, t'.
    pub kept: usize,
    /// Widths of M_main.
    pub width: MainWidth,
    /// Bottlenecks in each stage of M_main.
    pub blocks: [usize; STAGES],
    /// Whether the residual is averaged over its channels into one and M_res begins with a stem, as in the authors' code.
    pub mean_residual: bool,
    /// What leaves in place of the whole residual; all of it where absent.
    #[serde(default)]
    pub compact: Option<CompactShape>,
}

/// Why a network cannot be made into Delta's three.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeltaError {
    /// There is no activation to split after.
    #[error("network {network} has no activation to split after")]
    NoActivation {
        /// The network.
        network: String,
    },
    /// A part of the network does not fit.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The rank is not in 1..=channels of the features.
    #[error("rank {rank} is out of range 1..={channels}")]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// Channels of the features.
        channels: usize,
    },
    /// More bottlenecks than M_main may have.
    #[error("{got} bottlenecks in a stage exceed the limit of {MAX_BLOCKS}")]
    Bottlenecks {
        /// Of the longest stage.
        got: usize,
    },
    /// The features are not made of whole blocks, or more is kept than a block has.
    #[error("keeping {kept} of blocks of {block} does not fit features of {height}x{width}")]
    Blocks {
        /// Side of a block.
        block: usize,
        /// Side of what is kept.
        kept: usize,
        /// Rows of the features.
        height: usize,
        /// Columns of the features.
        width: usize,
    },
}

/// The three networks and the shapes between them.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaNetworks {
    /// M_bb, trusted: input to flattened features; its "classes" are the values of the features.
    pub backbone: Network,
    /// M_main, trusted: low-rank, low-frequency features to logits.
    pub main: Network,
    /// M_res, on the worker: residuals to logits.
    pub residual: Network,
    /// Features: M_bb's output, c × h × w, and the residual's shape before it is averaged, where it is.
    pub features: Shape,
    /// M_main's input, c × (h·t'/t) × (w·t'/t).
    pub low: Shape,
    /// The projection and gate of a compact release, trusted; empty where the whole residual leaves.
    pub compact: Vec<Layer>,
}

/// Multiply-accumulates of splitting one sample's features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitCost {
    /// One pass of the light decomposition, r·c·h·w (thesis, table 3.5).
    pub svd: u64,
    /// Block DCT of r channels, 2t·h·w·r (thesis, table 3.5).
    pub dct: u64,
}

impl DeltaNetworks {
    /// The layers of M_bb, M_main and, where it takes part, M_res, as one list of parameters that no input runs through.
    pub fn all_layers(&self, with_residual: bool) -> Network {
        let parts = [&self.backbone.layers, &self.main.layers, &self.compact, &self.residual.layers];
        let parts = &parts[..if with_residual { 4 } else { 2 }];
        Network {
            name: self.residual.name.replace("/residual", "/delta"),
            input: self.backbone.input,
            classes: self.residual.classes,
            layers: parts.iter().flat_map(|layers| layers.iter().cloned()).collect(),
        }
    }
}

impl DeltaShape {
    /// The published settings where there are any: r = 8 and t/t' = 16/8 on 32×32 features, 14/7 on 56×56, M_main of
    /// as many bottlenecks as table 3.3 has for a ResNet-18 or ResNet-34. Networks with fewer channels get r = c/4.
    ///
    /// # Errors
    /// A network without an activation to split after.
    pub fn published(network: &Network) -> Result<Self, DeltaError> {
        let features = output_of(&backbone(network)?, network.input)?;
        let rank = if features.channels >= 64 { 8 } else { (features.channels / 4).max(1) };
        let block = [16, 14, 8, 4, 2].into_iter().find(|&t| divides(t, features)).unwrap_or(1);
        let blocks = match network.name.as_str() {
            name if name.starts_with("resnet34") => [3, 6, 2],
            _ if features.channels >= 64 => [2, 2, 2],
            _ => [1, 1, 1],
        };
        Ok(Self {
            rank,
            block,
            kept: block.div_ceil(2),
            width: MainWidth::Thesis,
            blocks,
            mean_residual: false,
            compact: None,
        })
    }

    /// Cost of the split as the thesis counts it.
    pub const fn cost(&self, features: Shape) -> SplitCost {
        let per_rank = self.rank * features.pixels();
        SplitCost { svd: (per_rank * features.channels) as u64, dct: (2 * self.block * per_rank) as u64 }
    }
}

const fn divides(block: usize, features: Shape) -> bool {
    block > 0 && features.height.is_multiple_of(block) && features.width.is_multiple_of(block)
}

/// Index after the first activation and a max-pooling that follows it at once.
fn split_point(network: &Network) -> Result<usize, DeltaError> {
    let activation = network.layers.iter().position(|layer| matches!(layer, Layer::Relu));
    let after = 1 + activation.ok_or_else(|| DeltaError::NoActivation { network: network.name.clone() })?;
    let pooled = matches!(network.layers.get(after), Some(Layer::MaxPool { .. }));
    Ok(after + usize::from(pooled))
}

/// A name of Delta's own that is none of the network's: `name`, or with as many underscores behind it as that takes.
fn free(network: &Network, name: &str) -> String {
    let mut name = name.to_owned();
    while network.parameters().iter().any(|known| known.name.split('.').next() == Some(&name)) {
        name.push('_');
    }
    name
}

/// M_bb: the layers before the split with PReLU in place of ReLU.
fn backbone(network: &Network) -> Result<Vec<Layer>, DeltaError> {
    let mut shape = network.input;
    let mut layers = Vec::new();
    for layer in &network.layers[..split_point(network)?] {
        let layer = match layer {
            Layer::Relu => Layer::PRelu { name: free(network, "prelu1"), channels: shape.channels },
            other => other.clone(),
        };
        shape = layer.output(shape)?;
        layers.push(layer);
    }
    Ok(layers)
}

/// Makes Delta's three networks of `network`.
///
/// # Errors
/// A network that is none, no activation to split after, or a shape that does not fit the features.
pub fn delta(network: &Network, shape: &DeltaShape) -> Result<DeltaNetworks, DeltaError> {
    if let Some(got) = shape.blocks.into_iter().max().filter(|&most| most > MAX_BLOCKS) {
        return Err(DeltaError::Bottlenecks { got });
    }
    network.validate()?;
    let mut layers = backbone(network)?;
    let features = output_of(&layers, network.input)?;
    let &DeltaShape { rank, block, kept, .. } = shape;
    if rank == 0 || rank > features.channels {
        return Err(DeltaError::Rank { rank, channels: features.channels });
    }
    if !divides(block, features) || kept == 0 || kept > block {
        return Err(DeltaError::Blocks { block, kept, height: features.height, width: features.width });
    }
    let low = Shape::new(features.channels, features.height / block * kept, features.width / block * kept);
    layers.push(Layer::Flatten);
    let part = |part: &str, input, classes, layers| Network {
        name: format!("{}/{part}", network.name),
        input,
        classes,
        layers,
    };
    let mut rest = network.layers[split_point(network)?..].to_vec();
    let mut crossing = features;
    if shape.mean_residual {
        crossing.channels = 1;
        let stem = free(network, "stem");
        let stem = [
            conv(format!("{stem}.0"), (1, features.channels), 3, 1, false),
            norm(format!("{stem}.1"), features.channels),
            Layer::Relu,
        ];
        rest.splice(0..0, stem);
    }
    if let Some(compact) = shape.compact {
        (crossing, rest) = (Shape::new(compact.bits, 1, 1), compact.residual(network.classes));
    }
    let networks = DeltaNetworks {
        backbone: part("backbone", network.input, features.len(), layers),
        main: normalised_as(
            network,
            part(
                "main",
                low,
                network.classes,
                main_layers(&free(network, "main"), low.channels, shape, network.classes),
            ),
        )?,
        residual: part("residual", crossing, network.classes, rest),
        features,
        low,
        compact: shape.compact.map(|compact| compact.layers(features)).unwrap_or_default(),
    };
    for network in [&networks.backbone, &networks.main, &networks.residual] {
        network.validate()?;
    }
    Ok(networks)
}

/// `main` with `network`'s kind of normalisation: by groups where that has groups.
fn normalised_as(network: &Network, main: Network) -> Result<Network, NetworkError> {
    let groups = network
        .layers
        .iter()
        .find_map(|layer| if let Layer::GroupNorm(norm) = layer { Some(norm.groups) } else { None });
    match groups {
        Some(groups) => replace_activations(&main, &Replacement::GroupNorm { groups }),
        None => Ok(main),
    }
}

/// Bottlenecks whose first two convolutions have few kernels and whose last mixes them (thesis, theorem 6).
fn main_layers(main: &str, features: usize, shape: &DeltaShape, classes: usize) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut channels = features;
    for (stage, per_rank) in shape.width.per_rank().into_iter().enumerate() {
        let (q, out) = (per_rank * shape.rank, EXPANSION[stage] * features);
        for block in 0..shape.blocks[stage] {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            layers.push(bottleneck(&format!("{main}.layer{}.{block}", stage + 1), (channels, q, out), stride));
            layers.push(Layer::Relu);
            channels = out;
        }
    }
    layers.extend([
        Layer::AdaptiveAvgPool { out: 1 },
        Layer::Flatten,
        linear(&format!("{main}.fc"), channels, classes),
    ]);
    layers
}

fn bottleneck(prefix: &str, (channels, q, out): (usize, usize, usize), stride: usize) -> Layer {
    let main = vec![
        conv(format!("{prefix}.conv1"), (channels, q), 3, 1, false),
        norm(format!("{prefix}.bn1"), q),
        Layer::Relu,
        conv(format!("{prefix}.conv2"), (q, 2 * q), 3, stride, false),
        norm(format!("{prefix}.bn2"), 2 * q),
        Layer::Relu,
        conv(format!("{prefix}.conv3"), (2 * q, out), 1, 1, false),
        norm(format!("{prefix}.bn3"), out),
    ];
    let shortcut = if stride == 1 && channels == out {
        Vec::new()
    } else {
        vec![
            conv(format!("{prefix}.downsample.0"), (channels, out), 1, stride, false),
            norm(format!("{prefix}.downsample.1"), out),
        ]
    };
    Layer::Residual { main, shortcut }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::cost::total_cost;
    use crate::models::by_name;
    use crate::ops::{Conv, Linear, Op};

    fn of(name: &str, classes: usize, width: MainWidth) -> (DeltaNetworks, DeltaShape) {
        let network = by_name(name, classes, None).unwrap();
        let shape = DeltaShape { width, ..DeltaShape::published(&network).unwrap() };
        (delta(&network, &shape).unwrap(), shape)
    }

    fn macs(network: &Network) -> u64 {
        total_cost(network).unwrap().macs
    }

    #[test]
    fn the_split_costs_what_the_thesis_says() {
        let (cifar, shape) = of("resnet18-cifar", 100, MainWidth::Thesis);
        assert_eq!(shape.cost(cifar.features), SplitCost { svd: 524_288, dct: 262_144 });
        let (imagenet, shape) = of("resnet34-imagenet", 1000, MainWidth::Thesis);
        assert_eq!(imagenet.features, Shape::new(64, 56, 56));
        assert_eq!((shape.block, shape.kept), (14, 7));
        assert_eq!(shape.cost(imagenet.features), SplitCost { svd: 1_605_632, dct: 702_464 });
    }

    #[test]
    fn names_of_its_own_are_none_of_the_networks() {
        let mut network = by_name("demo-cnn", 10, None).unwrap();
        let mut names = ["main", "stem", "prelu1", "prelu1_"].into_iter();
        for layer in &mut network.layers {
            match layer {
                Layer::Conv(Conv { name, .. }) => *name = names.next().unwrap_or(name).to_owned(),
                Layer::Linear(Linear { name, .. }) => *name = "main_.layer1.0".to_owned(),
                _ => {}
            }
        }
        for mean_residual in [false, true] {
            let shape = DeltaShape { mean_residual, ..DeltaShape::published(&network).unwrap() };
            let all = delta(&network, &shape).unwrap().all_layers(true).parameters();
            let names: std::collections::BTreeSet<&str> = all.iter().map(|spec| spec.name.as_str()).collect();
            assert_eq!(names.len(), all.len());
        }
    }

    #[test]
    fn both_published_widths_are_counted() {
        // The thesis prints 48.3 M for M_bb and M_main of ResNet-18 on CIFAR-100; neither width gives that.
        for (width, millions) in [(MainWidth::Thesis, 45.6), (MainWidth::ReleasedCode, 87.5)] {
            let (networks, _) = of("resnet18-cifar", 100, width);
            let got = (macs(&networks.backbone) + macs(&networks.main)) as f64 / 1e6;
            assert!((got - millions).abs() < 0.06, "{width:?}: {got}");
        }
        let (networks, _) = of("resnet18-cifar", 100, MainWidth::Thesis);
        let residual = macs(&networks.residual) as f64 / 1e6;
        // The thesis prints 547 M.
        assert!((residual - 553.7).abs() < 0.5, "{residual}");
    }

    #[test]
    fn the_parts_are_the_network_and_keep_its_names() {
        for name in ["demo-cnn", "resnet8-cifar", "resnet18-cifar", "resnet34-imagenet", "vgg16-cifar"] {
            let (networks, _) = of(name, 10, MainWidth::Thesis);
            let whole = by_name(name, 10, None).unwrap();
            let rest = &whole.layers[whole.layers.len() - networks.residual.layers.len()..];
            assert_eq!(networks.residual.layers, rest);
            let mut names: Vec<String> = [&networks.backbone, &networks.main, &networks.residual]
                .iter()
                .flat_map(|n| n.parameters())
                .map(|p| p.name)
                .collect();
            let all = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all, "{name}: two parameters share a name");
        }
    }

    #[test]
    fn a_mean_residual_has_one_channel_and_a_stem() {
        let network = by_name("resnet18-cifar", 10, None).unwrap();
        let shape = DeltaShape { mean_residual: true, ..DeltaShape::published(&network).unwrap() };
        let networks = delta(&network, &shape).unwrap();
        assert_eq!(networks.residual.input, Shape::new(1, 32, 32));
        // 1024 bits a CIFAR image, as the authors' code sends.
        assert_eq!(networks.residual.input.len() / 8, 128);
        assert_eq!(networks.residual.parameters()[0].shape, [64, 1, 3, 3]);
    }

    #[test]
    fn m_main_is_normalised_as_its_network() {
        let network = by_name("resnet8-cifar", 10, None).unwrap();
        let shape = DeltaShape::published(&network).unwrap();
        let kinds = |network: &Network| -> Vec<bool> {
            let nodes = crate::graph::Graph::new(&delta(network, &shape).unwrap().main).unwrap().nodes;
            let norms = nodes.iter().filter(|node| matches!(node.op, Op::Norm(_) | Op::GroupNorm(_)));
            norms.map(|node| matches!(node.op, Op::GroupNorm(_))).collect()
        };
        let grouped = replace_activations(&network, &"group-norm:4".parse().unwrap()).unwrap();
        let (plain, grouped) = (kinds(&network), kinds(&grouped));
        assert!(plain.iter().all(|&is_grouped| !is_grouped) && grouped.iter().all(|&is_grouped| is_grouped));
        assert_eq!(plain.len(), grouped.len());
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let network = by_name("resnet18-cifar", 10, None).unwrap();
        let shape = DeltaShape::published(&network).unwrap();
        let refused = |change: &dyn Fn(&mut DeltaShape)| {
            let mut shape = shape.clone();
            change(&mut shape);
            delta(&network, &shape).unwrap_err().to_string()
        };
        assert_eq!(refused(&|s| s.rank = 65), "rank 65 is out of range 1..=64");
        assert_eq!(refused(&|s| s.rank = 0), "rank 0 is out of range 1..=64");
        assert_eq!(refused(&|s| s.block = 12), "keeping 8 of blocks of 12 does not fit features of 32x32");
        assert_eq!(refused(&|s| s.kept = 17), "keeping 17 of blocks of 16 does not fit features of 32x32");
        assert_eq!(
            refused(&|s| s.blocks[1] = usize::MAX),
            format!("{} bottlenecks in a stage exceed the limit of 64", usize::MAX)
        );
        let layers = vec![Layer::AdaptiveAvgPool { out: 1 }, Layer::Flatten, linear("fc", 3, 10)];
        let bare = Network { layers, ..network.clone() };
        assert!(matches!(delta(&bare, &shape), Err(DeltaError::NoActivation { .. })));
    }
}
