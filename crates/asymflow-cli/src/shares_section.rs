//! `[shares]`: how two servers answer on secret shares.

use std::fmt;
use std::str::FromStr;

use asymflow::modes::{RingBits, SharesSpec};
use asymflow_shares::compile::{Activation, CompileError, Decision, activations};
use asymflow_shares::program::{Method, WeightPolicy};
use asymflow_zoo::Network;
use serde::{Deserialize, Serialize};

/// `[shares]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SharesSection {
    /// Whether the servers know the weights.
    pub policies: Vec<WeightPolicy>,
    /// Rings of the shares.
    pub rings: Vec<RingName>,
    /// What stands in place of every ReLU.
    pub activations: Vec<ActivationName>,
    /// How signs are decided about.
    pub comparison: ComparisonName,
    /// Networks between the servers, emulated on top of loopback.
    pub links: Vec<LinkName>,
    /// Test images whose logits are compared with those in the clear.
    pub images: usize,
    /// Queries that are timed; one an image where there are more images.
    pub repeats: usize,
    /// Threads of each server; 0 halves the cores.
    pub threads: usize,
    /// Further settings, one by one, beside all combinations of the lists.
    pub also: Vec<Setting>,
    /// Figures from elsewhere, to stand beside the table.
    pub elsewhere: Vec<Elsewhere>,
}

impl Default for SharesSection {
    fn default() -> Self {
        Self {
            policies: vec![WeightPolicy::Public, WeightPolicy::Shared],
            rings: vec![RingName::U64],
            activations: vec![ActivationName::Relu],
            comparison: ComparisonName::Tables,
            links: vec![LinkName::Loopback],
            images: 5,
            repeats: 5,
            threads: 0,
            also: Vec::new(),
            elsewhere: Vec::new(),
        }
    }
}

impl SharesSection {
    /// How mode `shares` answers: by the first policy and ring.
    pub fn spec(&self) -> SharesSpec {
        let shared_weights = self.policies.first() == Some(&WeightPolicy::Shared);
        let ring = if self.rings.first() == Some(&RingName::Z48) { RingBits::Bits48 } else { RingBits::Bits64 };
        let method = match self.comparison {
            ComparisonName::Keys => Method::Keys,
            // Within one process exchanges cost nothing.
            ComparisonName::Tables | ComparisonName::Auto => Method::Tables,
        };
        SharesSpec { shared_weights, ring, method }
    }

    /// Every combination, then the further settings.
    pub fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        for &policy in &self.policies {
            for &ring in &self.rings {
                for &activation in &self.activations {
                    let (comparison, checked_ranges) = (self.comparison, false);
                    let over = |&link| Setting { policy, ring, activation, link, comparison, checked_ranges };
                    settings.extend(self.links.iter().map(over));
                }
            }
        }
        settings.extend(&self.also);
        settings
    }
}

/// How one query is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Whether the servers know the weights.
    pub policy: WeightPolicy,
    /// The ring.
    pub ring: RingName,
    /// What stands in place of every ReLU.
    pub activation: ActivationName,
    /// The network.
    pub link: LinkName,
    /// How signs are decided about.
    #[serde(default)]
    pub comparison: ComparisonName,
    /// Whether decisions look at no more bits than half of the images need, and two more; the other half is checked.
    #[serde(default)]
    pub checked_ranges: bool,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ring, activation, link, comparison, .. } = self;
        write!(f, "{} weights, {ring}, {activation}, {link}, {comparison}", self.policy_name())?;
        if self.checked_ranges { f.write_str(", checked ranges") } else { Ok(()) }
    }
}

impl Setting {
    /// Name of the policy.
    pub const fn policy_name(&self) -> &'static str {
        match self.policy {
            WeightPolicy::Public => "public",
            WeightPolicy::Shared => "shared",
        }
    }
}

/// Integers modulo a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RingName {
    /// 64 bits.
    U64,
    /// 48 bits.
    Z48,
    /// 32 bits.
    U32,
}

impl fmt::Display for RingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U64 => "u64",
            Self::Z48 => "z48",
            Self::U32 => "u32",
        })
    }
}

/// How signs are decided about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComparisonName {
    /// By keys of function secret sharing.
    Keys,
    /// By one-time tables.
    #[default]
    Tables,
    /// By what the link, which is measured, makes faster in each layer, the deal's bytes included.
    Auto,
}

impl fmt::Display for ComparisonName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keys => "keys",
            Self::Tables => "tables",
            Self::Auto => "auto",
        })
    }
}

/// What is between the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkName {
    /// Loopback as it is.
    Loopback,
    /// Loopback with a TLS session in each direction.
    Tls,
    /// 10 Gbit/s and 0.2 ms there and back.
    Lan,
    /// 100 Mbit/s and 40 ms there and back.
    Wan,
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::Tls => "tls",
            Self::Lan => "lan",
            Self::Wan => "wan",
        })
    }
}

/// What stands in place of every ReLU: `relu`, `shared-relu:CxHxW` or `quadratic`; `own` is what the network has, under
/// another name than `relu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ActivationName {
    /// Each activation decides for itself.
    Relu,
    /// Whatever the network has.
    Own,
    /// The sign of the mean of a block decides for all of it; no block is larger than its layer.
    SharedRelu {
        /// Channels of a block.
        channels: usize,
        /// Its rows.
        rows: usize,
        /// Its columns.
        columns: usize,
    },
    /// 0.009 x² + 0.5 x + 0.47, with which regularised PolyKervNets start.
    Quadratic,
}

impl fmt::Display for ActivationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relu => f.write_str("relu"),
            Self::Own => f.write_str("own"),
            Self::SharedRelu { channels, rows, columns } => write!(f, "shared-relu:{channels}x{rows}x{columns}"),
            Self::Quadratic => f.write_str("quadratic"),
        }
    }
}

impl From<ActivationName> for String {
    fn from(name: ActivationName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for ActivationName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for ActivationName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("activation {text}: expected relu, own, shared-relu:CxHxW or quadratic");
        let Some(block) = text.strip_prefix("shared-relu:") else {
            return match text {
                "relu" => Ok(Self::Relu),
                "own" => Ok(Self::Own),
                "quadratic" => Ok(Self::Quadratic),
                _ => Err(unknown()),
            };
        };
        let sides: Result<Vec<usize>, _> = block.split('x').map(str::parse).collect();
        match sides.as_deref() {
            Ok(&[channels, rows, columns]) if ![channels, rows, columns].contains(&0) => {
                Ok(Self::SharedRelu { channels, rows, columns })
            }
            _ => Err(unknown()),
        }
    }
}

impl ActivationName {
    /// This activation in place of every ReLU of `network`.
    pub fn of(self, network: &Network) -> Result<std::collections::BTreeMap<String, Activation>, CompileError> {
        let replaced = activations(network)?.into_iter().map(|(name, shape)| {
            let activation = match self {
                Self::Relu | Self::Own => Activation::Relu,
                Self::SharedRelu { channels, rows, columns } => Activation::SharedRelu {
                    block: (rows.min(shape.height), columns.min(shape.width)),
                    channels: channels.min(shape.channels),
                    decision: Decision::Mean,
                },
                Self::Quadratic => Activation::Quadratic { a: 0.009, b: 0.5, c: 0.47 },
            };
            (name, activation)
        });
        Ok(replaced.collect())
    }
}

/// A figure of somebody else's, or of ours on another day.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elsewhere {
    /// System and setting.
    pub system: String,
    /// Megabytes of a query, all parties together.
    #[serde(default)]
    pub megabytes: Option<f64>,
    /// Seconds of a query.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// Where it ran.
    pub machine: String,
    /// Who says so.
    pub source: String,
}

#[cfg(test)]
mod tests {
    use asymflow_zoo::by_name;

    use super::*;

    #[test]
    fn activations_are_named() {
        for name in ["relu", "own", "shared-relu:1x4x2", "quadratic"] {
            assert_eq!(name.parse::<ActivationName>().unwrap().to_string(), name);
        }
        for name in
            ["", "Relu", "shared-relu", "shared-relu:", "shared-relu:1x2", "shared-relu:0x1x1", "shared-relu:1x1x-1"]
        {
            let error = name.parse::<ActivationName>().unwrap_err();
            assert!(error.contains("expected relu, own, shared-relu:CxHxW or quadratic"), "{error}");
        }
    }

    #[test]
    fn blocks_are_no_larger_than_their_layers() {
        let network = by_name("resnet8-cifar", 10, None).unwrap();
        let activations = ActivationName::SharedRelu { channels: 1, rows: 16, columns: 64 }.of(&network).unwrap();
        let blocks: Vec<_> = activations
            .values()
            .map(|activation| match activation {
                Activation::SharedRelu { block, .. } => *block,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(blocks.contains(&(16, 32)) && blocks.contains(&(8, 8)), "{blocks:?}");
    }

    #[test]
    fn settings_are_all_combinations_and_further_ones() {
        let text = "rings = [\"z48\", \"u32\"]\nactivations = [\"relu\", \"quadratic\"]\n\
                    [[also]]\npolicy = \"shared\"\nring = \"u64\"\nactivation = \"shared-relu:1x2x2\"\nlink = \"wan\"\n\
                    comparison = \"auto\"\nchecked_ranges = true\n";
        let section: SharesSection = toml::from_str(text).unwrap();
        let settings: Vec<String> = section.settings().iter().map(Setting::to_string).collect();
        assert_eq!(settings.len(), 9);
        assert_eq!(settings[1], "public weights, z48, quadratic, loopback, tables");
        assert_eq!(settings[8], "shared weights, u64, shared-relu:1x2x2, wan, auto, checked ranges");
    }
}
