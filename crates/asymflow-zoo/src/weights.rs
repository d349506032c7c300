//! The weights of a network: named, shaped, row-major f32 tensors.

pub mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use crate::network::Network;
use crate::param::{ParamKind, ParamSpec};
pub use crate::training::{Pass, SgdStep};

/// One tensor: its shape, outermost first, and its values, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightTensor {
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub data: Vec<f32>,
}

/// The tensors of one network by full name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// Tensor by full torchvision name.
    pub tensors: BTreeMap<String, WeightTensor>,
}

/// Why weights do not fit a network.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WeightsError {
    /// The network needs a tensor that is not there.
    #[error("no tensor named {name}")]
    Missing {
        /// The name.
        name: String,
    },
    /// A tensor has another shape.
    #[error("tensor {name}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// The name.
        name: String,
        /// What the network needs.
        expected: Vec<usize>,
        /// What is there.
        got: Vec<usize>,
    },
    /// A tensor of a file holds no numbers that are read.
    #[error("tensor {name}: expected f16, bf16, f32 or f64, got {got}")]
    Type {
        /// The name.
        name: String,
        /// The type of what is there.
        got: String,
    },
    /// A value is NaN or infinite.
    #[error("tensor {name}: value {index} is not finite")]
    NonFinite {
        /// The name.
        name: String,
        /// Index into the row-major values.
        index: usize,
    },
    /// A running variance below zero.
    #[error("tensor {name}: value {index} is {value}, and no variance is negative")]
    Variance {
        /// The name.
        name: String,
        /// Index into the row-major values.
        index: usize,
        /// The value.
        value: String,
    },
    /// Flattened weights of the wrong length.
    #[error("expected {expected} values in flattened weights, got {got}")]
    Length {
        /// What the network needs.
        expected: usize,
        /// What is there.
        got: usize,
    },
}

/// Names or faults that a message shows before it counts the rest.
const SHOWN: usize = 6;

/// Everything in which tensors differ from those that a network needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Error)]
pub struct Misfit {
    /// Tensors that the network needs and that are not there.
    pub missing: Vec<String>,
    /// Tensors that are there and that the network does not know.
    pub left_over: Vec<String>,
    /// Tensors of another shape or type, or with values that are not finite.
    pub wrong: Vec<WeightsError>,
}

impl Misfit {
    /// Whether there is nothing of the kind.
    ///
    /// # Errors
    /// There is.
    pub fn none(self) -> Result<(), Self> {
        if self == Self::default() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |title: &str, items: Vec<String>| {
            let more = match items.len().saturating_sub(SHOWN) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let shown = items.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            (!items.is_empty()).then(|| format!("{title}{shown}{more}"))
        };
        let parts = [
            list("missing: ", self.missing.clone()),
            list("left over: ", self.left_over.clone()),
            list("", self.wrong.iter().map(ToString::to_string).collect()),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join("; "))
    }
}

impl Weights {
    /// Every tensor as its operation begins it ([`ParamSpec::init`]), deterministic in `seed`.
    pub fn init(network: &Network, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let tensor = |spec: ParamSpec| {
            let data = spec.init.values(spec.len(), &mut rng);
            (spec.name, WeightTensor { shape: spec.shape, data })
        };
        let tensors = network.parameters().into_iter().map(tensor).collect();
        Self { tensors }
    }

    /// Checks that the tensors are those of `network` and no others.
    ///
    /// # Errors
    /// Everything in which they differ.
    pub fn fit(&self, network: &Network) -> Result<(), Misfit> {
        let mut misfit = Misfit::default();
        let mut known = BTreeSet::new();
        for spec in network.parameters() {
            match self.validate_one(&spec) {
                Ok(()) => {}
                Err(WeightsError::Missing { name }) => misfit.missing.push(name),
                Err(wrong) => misfit.wrong.push(wrong),
            }
            known.insert(spec.name);
        }
        misfit.left_over.extend(self.tensors.keys().filter(|name| !known.contains(*name)).cloned());
        misfit.none()
    }

    /// Checks that every tensor of `network` is there, of the right shape, finite, and not negative where it is a
    /// variance. Further tensors are allowed.
    ///
    /// # Errors
    /// The first tensor that is not.
    pub fn validate(&self, network: &Network) -> Result<(), WeightsError> {
        network.parameters().iter().try_for_each(|spec| self.validate_one(spec))
    }

    /// As [`Weights::validate`], of one tensor.
    ///
    /// # Errors
    /// As there.
    pub fn validate_one(&self, spec: &ParamSpec) -> Result<(), WeightsError> {
        let name = || spec.name.clone();
        let tensor = self.tensors.get(&spec.name).ok_or_else(|| WeightsError::Missing { name: name() })?;
        if tensor.shape != spec.shape || tensor.data.len() != spec.len() {
            let (expected, got) = (spec.shape.clone(), tensor.shape.clone());
            return Err(WeightsError::Shape { name: name(), expected, got });
        }
        spec.check_values(&tensor.data)
    }

    /// All values in the order of [`Network::parameters`].
    ///
    /// # Errors
    /// As [`Weights::validate`].
    pub fn flatten(&self, network: &Network) -> Result<Vec<f32>, WeightsError> {
        self.validate(network)?;
        let specs = network.parameters();
        // Of exactly its size: collecting would take up to twice as much.
        let mut flat = Vec::with_capacity(specs.iter().map(ParamSpec::len).sum());
        specs.iter().for_each(|spec| flat.extend_from_slice(&self.tensors[&spec.name].data));
        Ok(flat)
    }

    /// Takes the tensors of `network` out, as their values in the order of [`Network::parameters`]. No value is copied.
    ///
    /// # Errors
    /// As [`Weights::validate`], and then nothing is taken.
    pub fn take(&mut self, network: &Network) -> Result<Vec<Vec<f32>>, WeightsError> {
        self.validate(network)?;
        let take = |spec: ParamSpec| self.tensors.remove(&spec.name).map(|tensor| tensor.data);
        Ok(network.parameters().into_iter().filter_map(take).collect())
    }

    /// Inverse of [`Weights::flatten`].
    ///
    /// # Errors
    /// `values` has another length than the network's parameters.
    pub fn unflatten(network: &Network, values: &[f32]) -> Result<Self, WeightsError> {
        let specs = network.parameters();
        let expected = specs.iter().map(ParamSpec::len).sum();
        if values.len() != expected {
            return Err(WeightsError::Length { expected, got: values.len() });
        }
        let mut rest = values;
        let tensors = specs
            .into_iter()
            .map(|spec| {
                let (head, tail) = rest.split_at(spec.len());
                rest = tail;
                (spec.name, WeightTensor { shape: spec.shape, data: head.to_vec() })
            })
            .collect();
        Ok(Self { tensors })
    }
}

impl ParamSpec {
    /// Checks that `values` can be those of the tensor: finite, and not negative where they are variances.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check_values(&self, values: &[f32]) -> Result<(), WeightsError> {
        let name = || self.name.clone();
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(WeightsError::NonFinite { name: name(), index });
        }
        match values.iter().position(|&v| v < 0.0) {
            Some(index) if self.kind == ParamKind::RunningVar => {
                Err(WeightsError::Variance { name: name(), index, value: values[index].to_string() })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::by_name;

    #[test]
    fn initial_values_are_of_their_kind() {
        let network = by_name("vgg11-cifar", 10, None).unwrap();
        let weights = Weights::init(&network, 3);
        weights.validate(&network).unwrap();
        assert_eq!(weights, Weights::init(&network, 3));
        assert_ne!(weights, Weights::init(&network, 4));
        let data = |name: &str| &weights.tensors[name].data;
        assert!(data("features.0.bias").iter().chain(data("features.1.bias")).all(|&v| v == 0.0));
        assert!(data("features.1.weight").iter().chain(data("features.1.running_var")).all(|&v| v == 1.0));
        // A convolution of 512 channels has standard deviation √(2 / (512 · 9)).
        let kernel = data("features.25.weight");
        let variance = kernel.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / kernel.len() as f64;
        assert!((variance * 512.0 * 9.0 / 2.0 - 1.0).abs() < 0.01, "{variance}");
        let bound = 1.0 / 512.0_f32.sqrt();
        let largest = data("classifier.weight").iter().map(|v| v.abs()).fold(0.0, f32::max);
        assert!(largest <= bound && largest > 0.99 * bound, "{largest}");
        assert!(data("classifier.bias").iter().all(|v| v.abs() <= bound && *v != 0.0));
    }

    #[test]
    fn flattened_weights_come_back() {
        let network = by_name("resnet8-cifar", 10, None).unwrap();
        let mut weights = Weights::init(&network, 1);
        let mut flat = weights.flatten(&network).unwrap();
        assert_eq!(Weights::unflatten(&network, &flat).unwrap(), weights);
        let mut taken = weights.clone();
        assert_eq!(taken.take(&network).unwrap().concat(), flat);
        assert!(taken.tensors.is_empty());
        flat.pop();
        assert!(matches!(Weights::unflatten(&network, &flat), Err(WeightsError::Length { .. })));
        weights.tensors.get_mut("fc.bias").unwrap().data[4] = f32::NAN;
        let error = weights.validate(&network).unwrap_err();
        assert_eq!(error, WeightsError::NonFinite { name: "fc.bias".to_owned(), index: 4 });
        weights.tensors.get_mut("fc.bias").unwrap().shape = vec![5, 2];
        assert!(matches!(weights.validate(&network), Err(WeightsError::Shape { .. })));
        weights.tensors.remove("conv1.weight");
        assert!(matches!(weights.validate(&network), Err(WeightsError::Missing { .. })));
    }
}
