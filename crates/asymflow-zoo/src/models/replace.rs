//! Networks with other activations in place of ReLU, average in place of maximum pooling, and group in place of batch normalisation.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::network::{Layer, Network};
use crate::ops::{Decision, Form, GroupNorm, Grouping, Pointwise, Quadratic, SharedRelu};
use crate::shape::{NetworkError, Shape};

/// What stands in place of every ReLU, or of another layer.
///
/// Written as `average-pool`, `group-norm:GROUPS`, the name of a [`Pointwise`] function, `react`, `hermite[:S]`, `scaled:A:C`, `kervolution:C`, `free:A:B:C`
/// or `shared-relu:CxHxW[:DECISION]`, blocks of C channels, H rows and W columns deciding by `mean` (the default), `corner`, `centre`, `largest` or `learned`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Replacement {
    /// Average in place of maximum pooling; activations stay.
    AveragePooling,
    /// Group in place of batch normalisation; activations stay. Layers of fewer channels get a group for each.
    GroupNorm {
        /// Groups of channels.
        groups: usize,
    },
    /// A fixed function of each value.
    Pointwise(Pointwise),
    /// A trained quadratic.
    Quadratic(Form),
    /// Decisions shared by blocks of channels × rows × columns.
    SharedRelu {
        /// Channels, rows and columns of a block.
        block: [usize; 3],
        /// What decides.
        decision: Decision,
    },
}

/// Why a text names no [`Replacement`], or a network does not take it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReplacementError {
    /// No such activation.
    #[error("unknown activation {text:?}; known: {known}")]
    Unknown {
        /// What was asked for.
        text: String,
        /// What there is.
        known: String,
    },
    /// A number or word that does not fit.
    #[error("activation {text:?}: {part:?} is no {what}")]
    Part {
        /// What was asked for.
        text: String,
        /// What does not fit.
        part: String,
        /// What belongs there.
        what: &'static str,
    },
    /// The network does not take it.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Longest side of a block that decides together.
const MAX_SIDE: usize = 1 << 16;

const KNOWN: &str = "average-pool, group-norm:GROUPS, react, hermite[:S], scaled:A:C, kervolution:C, free:A:B:C, shared-relu:CxHxW[:DECISION]";

impl fmt::Display for Replacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AveragePooling => f.write_str("average-pool"),
            Self::GroupNorm { groups } => write!(f, "group-norm:{groups}"),
            Self::Pointwise(function) => f.write_str(function.name()),
            Self::Quadratic(Form::REACT) => f.write_str("react"),
            Self::Quadratic(Form::HERMITE) => f.write_str("hermite"),
            Self::Quadratic(Form::Hermite { second }) => write!(f, "hermite:{second}"),
            Self::Quadratic(Form::Kervolution { c }) => write!(f, "kervolution:{c}"),
            Self::Quadratic(Form::Scaled { a, c }) => write!(f, "scaled:{a}:{c}"),
            Self::Quadratic(Form::Free { a, b, c }) => write!(f, "free:{a}:{b}:{c}"),
            Self::SharedRelu { block: [channels, rows, columns], decision } => {
                write!(f, "shared-relu:{channels}x{rows}x{columns}")?;
                match decision {
                    Decision::Mean => Ok(()),
                    Decision::Corner => f.write_str(":corner"),
                    Decision::Centre => f.write_str(":centre"),
                    Decision::Largest => f.write_str(":largest"),
                    Decision::Learned => f.write_str(":learned"),
                }
            }
        }
    }
}

impl FromStr for Replacement {
    type Err = ReplacementError;

    fn from_str(text: &str) -> Result<Self, ReplacementError> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let parts: Vec<&str> = if rest.is_empty() { Vec::new() } else { rest.split(':').collect() };
        let wrong = |part: &str, what| ReplacementError::Part { text: text.to_owned(), part: part.to_owned(), what };
        let number = |part: &str| match part.parse::<f32>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(wrong(part, "finite number")),
        };
        if let Some(&function) = Pointwise::ALL.iter().find(|function| function.name() == text) {
            return Ok(Self::Pointwise(function));
        }
        Ok(match (kind, parts.as_slice()) {
            ("average-pool", []) => Self::AveragePooling,
            ("group-norm", [groups]) => match groups.parse() {
                Ok(groups) if groups > 0 => Self::GroupNorm { groups },
                _ => return Err(wrong(groups, "positive number of groups")),
            },
            ("react", []) => Self::Quadratic(Form::REACT),
            ("hermite", []) => Self::Quadratic(Form::HERMITE),
            ("hermite", [second]) => Self::Quadratic(Form::Hermite { second: number(second)? }),
            ("kervolution", [c]) => Self::Quadratic(Form::Kervolution { c: number(c)? }),
            ("scaled", [a, c]) => Self::Quadratic(Form::Scaled { a: number(a)?, c: number(c)? }),
            ("free", [a, b, c]) => Self::Quadratic(Form::Free { a: number(a)?, b: number(b)?, c: number(c)? }),
            ("shared-relu", [block, decision @ ..]) if decision.len() < 2 => {
                let side = |side: &str| side.parse().ok().filter(|side| (1..=MAX_SIDE).contains(side));
                let sides: Option<Vec<usize>> = block.split('x').map(side).collect();
                let block = sides.and_then(|sides| sides.try_into().ok());
                let block = block
                    .ok_or_else(|| wrong(rest, "block of channels, rows and columns from 1 to 65536, as 1x4x4"))?;
                let decision = match decision.first().copied() {
                    None | Some("mean") => Decision::Mean,
                    Some("corner") => Decision::Corner,
                    Some("centre") => Decision::Centre,
                    Some("largest") => Decision::Largest,
                    Some("learned") => Decision::Learned,
                    Some(other) => return Err(wrong(other, "decision: mean, corner, centre, largest or learned")),
                };
                Self::SharedRelu { block, decision }
            }
            _ => {
                let known = [&Pointwise::ALL.map(Pointwise::name)[..], &[KNOWN]].concat().join(", ");
                return Err(ReplacementError::Unknown { text: text.to_owned(), known });
            }
        })
    }
}

/// `network` with `replacement` in place of every ReLU, and average in place of maximum pooling where `replacement` is a
/// quadratic; quadratics that it has already, as PolyKervNets do, are then replaced too. The parameters of an activation are named after the convolution or fully connected layer before it, with
/// `.act`.
///
/// # Errors
/// The first layer that does not fit.
pub fn replace_activations(network: &Network, replacement: &Replacement) -> Result<Network, NetworkError> {
    let make = |name: String, shape: Shape| match *replacement {
        Replacement::AveragePooling | Replacement::GroupNorm { .. } => Layer::Relu,
        Replacement::Pointwise(function) => Layer::Pointwise(function),
        Replacement::Quadratic(form) => Layer::Quadratic(Quadratic { name, channels: shape.channels, form }),
        Replacement::SharedRelu { block: [channels, rows, columns], decision } => {
            // A block need not be larger than the map that it covers: small maps get one decision.
            let (rows, columns) = (rows.min(shape.height), columns.min(shape.width));
            let grouping = Grouping::Blocks { channels: channels.min(shape.channels), rows, columns };
            Layer::SharedRelu(SharedRelu { name, channels: shape.channels, grouping, decision })
        }
    };
    let mut network = network.clone();
    let (form, averages, groups) = match *replacement {
        Replacement::Quadratic(form) => (Some(form), true, None),
        Replacement::AveragePooling => (None, true, None),
        Replacement::GroupNorm { groups } => (None, false, Some(groups)),
        Replacement::Pointwise(_) | Replacement::SharedRelu { .. } => (None, false, None),
    };
    let walk = Walk { form, averages, groups, make: &make };
    walk.layers(&mut network.layers, network.input, &mut "input".to_owned())?;
    network.validate()?;
    Ok(network)
}

/// As [`replace_activations`], with an activation of its own for each ReLU, which `make` is told the name and shape of.
///
/// # Errors
/// The first layer that does not fit.
pub fn map_activations(network: &Network, make: &dyn Fn(String, Shape) -> Layer) -> Result<Network, NetworkError> {
    let mut network = network.clone();
    let walk = Walk { form: None, averages: false, groups: None, make };
    walk.layers(&mut network.layers, network.input, &mut "input".to_owned())?;
    network.validate()?;
    Ok(network)
}

/// One walk through a network that changes its layers.
struct Walk<'a> {
    /// The form that quadratics get; theirs stays without one.
    form: Option<Form>,
    /// Whether maximum pooling becomes average pooling.
    averages: bool,
    /// Groups of what batch normalisation becomes; it stays without any.
    groups: Option<usize>,
    /// What a ReLU becomes.
    make: &'a dyn Fn(String, Shape) -> Layer,
}

impl Walk<'_> {
    fn layers(&self, layers: &mut [Layer], mut shape: Shape, last: &mut String) -> Result<Shape, NetworkError> {
        for layer in layers {
            let output = layer.output(shape)?;
            match layer {
                Layer::Conv(conv) => last.clone_from(&conv.name),
                Layer::Linear(linear) => last.clone_from(&linear.name),
                Layer::Relu => *layer = (self.make)(format!("{last}.act"), shape),
                Layer::Quadratic(quadratic) => quadratic.form = self.form.unwrap_or(quadratic.form),
                Layer::MaxPool { .. } if self.averages => {
                    let Shape { height, width, .. } = output;
                    if height != width {
                        return Err(NetworkError::NotSquare { layer: format!("{last}.max-pool"), height, width });
                    }
                    *layer = Layer::AdaptiveAvgPool { out: height };
                }
                Layer::Residual { main, shortcut } => {
                    self.layers(shortcut, shape, &mut last.clone())?;
                    self.layers(main, shape, last)?;
                }
                Layer::BatchNorm { name, channels } => {
                    if let Some(groups) = self.groups {
                        let groups = groups.min(*channels);
                        *layer = Layer::GroupNorm(GroupNorm { name: name.clone(), channels: *channels, groups });
                        layer.output(shape)?;
                    }
                }
                Layer::PRelu { .. }
                | Layer::GroupNorm(_)
                | Layer::Pointwise(_)
                | Layer::SharedRelu(_)
                | Layer::MaxPool { .. }
                | Layer::AdaptiveAvgPool { .. }
                | Layer::Flatten
                | Layer::Dropout { .. } => {}
            }
            shape = output;
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::cost::total_cost;
    use crate::models::by_name;

    #[test]
    fn every_batch_normalisation_becomes_groups_and_nothing_else_does() {
        let network = by_name("resnet18-cifar", 10, None).unwrap();
        let grouped = replace_activations(&network, &"group-norm:16".parse().unwrap()).unwrap();
        let names = |network: &Network| network.parameters().into_iter().map(|p| p.name).collect::<Vec<_>>();
        let kept: Vec<String> = names(&network).into_iter().filter(|name| !name.contains("running")).collect();
        assert_eq!(names(&grouped), kept);
        assert_eq!(total_cost(&grouped).unwrap(), total_cost(&network).unwrap());
        let odd = replace_activations(&network, &"group-norm:7".parse().unwrap()).unwrap_err();
        assert_eq!(odd.to_string(), "layer bn1: number of groups is out of range");
        assert!("group-norm:0".parse::<Replacement>().is_err() && "group-norm".parse::<Replacement>().is_err());
    }

    #[test]
    fn every_relu_is_replaced_once() {
        let network = by_name("resnet18-cifar", 10, None).unwrap();
        assert_eq!(total_cost(&network).unwrap().relus, 557_056);
        let quadratic = replace_activations(&network, &"react".parse().unwrap()).unwrap();
        assert_eq!(total_cost(&quadratic).unwrap().relus, 0);
        assert_eq!(quadratic.parameters().iter().filter(|p| p.name.ends_with(".act.weight")).count(), 17);
        let shared = replace_activations(&network, &"shared-relu:1x4x4".parse().unwrap()).unwrap();
        assert_eq!(total_cost(&shared).unwrap().relus, 557_056 / 16);
        let thousand = replace_activations(&network, &"shared-relu:16x8x8".parse().unwrap()).unwrap();
        assert!(total_cost(&thousand).unwrap().relus <= 557_056 / 500);
    }

    #[test]
    fn networks_are_freed_of_maximum_pooling() {
        for name in ["vgg16-cifar", "resnet18-imagenet", "demo-cnn"] {
            let network = by_name(name, 10, None).unwrap();
            let free = replace_activations(&network, &"hermite".parse().unwrap()).unwrap();
            assert!(!format!("{free:?}").contains("MaxPool"), "{name}");
            let averaged = replace_activations(&network, &Replacement::AveragePooling).unwrap();
            let relus = |network: &Network| format!("{network:?}").matches("Relu").count();
            assert!(!format!("{averaged:?}").contains("MaxPool") && relus(&averaged) == relus(&network), "{name}");
        }
    }

    #[test]
    fn a_map_that_is_not_square_is_refused_by_name() {
        let network = by_name("demo-cnn", 10, Some(Shape::new(3, 32, 24))).unwrap();
        for replacement in ["average-pool", "hermite"] {
            let refused = replace_activations(&network, &replacement.parse().unwrap()).unwrap_err().to_string();
            assert!(refused.starts_with("layer conv2.max-pool: ") && refused.contains("16x12"), "{refused}");
        }
        assert!(replace_activations(&network, &"shared-relu:1x2x2".parse().unwrap()).is_ok());
    }

    #[test]
    fn kervolutions_get_another_constant() {
        let network = by_name("pkn-lenet", 10, None).unwrap();
        let half = replace_activations(&network, &"kervolution:0.5".parse().unwrap()).unwrap();
        assert_eq!(format!("{half:?}").matches("Kervolution { c: 0.5 }").count(), 2);
        assert_eq!(format!("{half:?}").matches("Kervolution { c: 1.0 }").count(), 0);
    }

    #[test]
    fn texts_are_read_or_refused() {
        let texts =
            ["average-pool", "react", "hermite", "hermite:0.3", "kervolution:0.5", "scaled:0.009:0.5", "free:1:0:-2"];
        for text in texts.into_iter().chain(["silu", "shared-relu:1x4x4", "shared-relu:2x3x4:corner"]) {
            assert_eq!(text.parse::<Replacement>().unwrap().to_string(), text);
        }
        let learned = Replacement::SharedRelu { block: [2, 3, 4], decision: Decision::Learned };
        assert_eq!("shared-relu:2x3x4:learned".parse(), Ok(learned));
        assert_eq!("scaled:0.009:0.47".parse(), Ok(Replacement::Quadratic(Form::RPKN)));
        for (text, part) in
            [("shared-relu:2x3", "\"2x3\""), ("shared-relu:1x1x1:best", "\"best\""), ("kervolution:nan", "\"nan\"")]
        {
            let error = text.parse::<Replacement>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(matches!("swish".parse::<Replacement>(), Err(ReplacementError::Unknown { .. })));
    }
}
