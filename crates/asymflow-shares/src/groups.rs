//! Which activations share one sign decision, and what it is made from.

use asymflow_zoo::{
    network::{Layer, Shape},
    ops::{Choice, Decision as ZooDecision, Gate, Grouping as ZooGrouping, SharedRelu},
};
use serde::{Deserialize, Serialize};

/// What the decision of a group looks at, where [`Activation`](crate::compile::Activation) puts one in place of a ReLU (Helbitz and
/// Avidan, 2021; Gorski, Jevnisek and Avidan, 2023).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The first activation: the top left corner of the first channel.
    Corner,
    /// The activation in the middle of the block, in its first channel.
    Centre,
    /// The mean.
    Mean,
    /// A weighted sum with one weight for each place of a group: channels × rows × columns, row-major. Weights are
    /// public and rounded to eight fraction bits.
    Weights(Vec<f32>),
}

/// Groups of a layer, with weights as integers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Grouping {
    /// Each activation decides for itself.
    Each,
    /// The zoo's groups, all channels gated.
    Shared {
        layer: SharedRelu,
        /// What each place of a block adds to a learned decision.
        weights: Vec<i64>,
    },
}

/// The groups of one sample.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Group of each activation.
    pub(crate) of: Vec<u32>,
    /// What each activation contributes to the decision.
    pub(crate) weight: Vec<i64>,
    pub(crate) count: usize,
}

impl Grouping {
    /// Decisions for one sample.
    pub(crate) fn count(&self, shape: Shape) -> usize {
        match self {
            Self::Each => shape.len(),
            Self::Shared { layer, .. } => layer.decisions(shape),
        }
    }

    /// The groups of one sample of `shape`; `None` where each activation decides for itself.
    pub(crate) fn groups(&self, shape: Shape) -> Option<Groups> {
        let Self::Shared { layer, weights } = self else { return None };
        let groups = layer.groups(shape);
        let of = |gate: &Gate| match gate {
            Gate::Group(group) => *group,
            // Checked programs gate every channel.
            Gate::Keep | Gate::Drop | Gate::Quadratic(_) => 0,
        };
        let mut weight = vec![0; groups.gates.len()];
        for &(index, place) in groups.voters.iter().flatten() {
            let learned = weights.get(place as usize).copied().unwrap_or_default();
            weight[index as usize] = if layer.decision == ZooDecision::Learned { learned } else { 1 };
        }
        Some(Groups { of: groups.gates.iter().map(of).collect(), weight, count: groups.count() })
    }

    /// Checks the groups of a program from outside against the shape that they are of.
    pub(crate) fn check(&self, shape: Shape) -> Result<(), &'static str> {
        let Self::Shared { layer, weights } = self else { return Ok(()) };
        Layer::SharedRelu(layer.clone()).output(shape).map_err(|_| "group")?;
        let learned = if layer.decision == ZooDecision::Learned { layer.places() } else { 0 };
        if weights.len() != learned {
            return Err("decision weights");
        }
        if layer.decision == ZooDecision::Largest {
            return Err("decision");
        }
        let gated = |choice: &Choice| matches!(choice, Choice::Block { .. } | Choice::Copy { .. });
        let fits = match &layer.grouping {
            ZooGrouping::Choices(choices) => choices.iter().all(gated),
            ZooGrouping::Blocks { .. } => true,
        };
        if fits { Ok(()) } else { Err("choice") }
    }
}
