//! `[delta]`: how a network is run as Delta.

use asymflow_zoo::Network;
use asymflow_zoo::models::delta::{DeltaError, DeltaShape, MainWidth};
use serde::{Deserialize, Serialize};

use super::spec::{Codebook, DeltaSpec, Feed, Labels, Variant};
use crate::modes::{Asked, DpTerms, ModeError};

/// What is done about labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelPolicy {
    /// The worker knows them.
    Public,
    /// Each is released once with some chance of another in its place.
    #[default]
    RandomisedResponse,
    /// The worker gets noised gradients instead.
    NoisyGradient,
}

/// How M_bb and M_main are trained, whose weights whoever holds the model reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightPolicy {
    /// Without noise.
    #[default]
    Plain,
    /// By DP-SGD as `[dp]` says, in stage 1; in stage 2 they stay as they are.
    DpSgd,
}

/// `[delta]`. What is absent is as published for the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeltaSection {
    /// `strict`, `compact`, `paper` or `released-code`.
    pub variant: Variant,
    /// Codewords of `compact`: `classes` or `sphere`.
    pub codebook: Codebook,
    /// ε of the residuals of one record; none means no noise.
    pub epsilon: Option<f64>,
    /// l2 norm to which every record's residual is clipped.
    pub clip: f64,
    /// `public`, `randomised-response` or `noisy-gradient`.
    pub labels: LabelPolicy,
    /// ε of one record's label.
    pub label_epsilon: f64,
    /// `plain` or `dp-sgd`: how M_bb and M_main are trained.
    pub weights: WeightPolicy,
    /// Augmented views released of each record.
    pub views: usize,
    /// Epochs of stage 1; a third of all without it.
    pub stage1_epochs: Option<usize>,
    /// Principal channels kept.
    pub rank: Option<usize>,
    /// Side of a DCT block.
    pub block: Option<usize>,
    /// Side of what is kept of a block.
    pub kept: Option<usize>,
    /// Widths of the small network: `thesis` or `released-code`.
    pub width: MainWidth,
    /// Bottlenecks in each stage of the small network.
    pub blocks: Option<[usize; 3]>,
    /// Weight of the kernel-orthogonality penalty.
    pub orthogonality: f32,
}

impl Default for DeltaSection {
    fn default() -> Self {
        Self {
            variant: Variant::Strict,
            codebook: Codebook::default(),
            epsilon: Some(9.0),
            clip: 1.0,
            labels: LabelPolicy::default(),
            label_epsilon: 4.0,
            weights: WeightPolicy::default(),
            views: 1,
            stage1_epochs: None,
            rank: None,
            block: None,
            kept: None,
            width: MainWidth::Thesis,
            blocks: None,
            orthogonality: 8e-4,
        }
    }
}

impl DeltaSection {
    /// How features of `network` are split.
    ///
    /// # Errors
    /// A network that has no features to split.
    pub fn shape(&self, network: &Network) -> Result<DeltaShape, DeltaError> {
        let published = DeltaShape::published(network)?;
        let block = self.block.unwrap_or(published.block);
        Ok(DeltaShape {
            rank: self.rank.unwrap_or(published.rank),
            block,
            kept: self.kept.unwrap_or(if self.block.is_some() { block.div_ceil(2) } else { published.kept }),
            width: self.width,
            blocks: self.blocks.unwrap_or(published.blocks),
            mean_residual: self.variant == Variant::ReleasedCode,
            compact: (self.variant == Variant::Compact).then(|| self.codebook.shape(network.classes)),
        })
    }

    /// The specification that an entry asks for.
    pub(super) fn spec(&self, asked: &Asked<'_>, decomposition: String) -> Result<DeltaSpec, ModeError> {
        let labels = match self.labels {
            LabelPolicy::Public => Labels::Public,
            LabelPolicy::RandomisedResponse => Labels::RandomisedResponse { epsilon: self.label_epsilon },
            LabelPolicy::NoisyGradient => Labels::NoisyGradient { epsilon: self.label_epsilon },
        };
        let feed = Feed::of_entry(asked.name);
        let weights: Option<DpTerms> = match self.weights {
            WeightPolicy::Plain => None,
            WeightPolicy::DpSgd => Some(asked.sections.get("dp")?),
        };
        // Where nothing follows stage 1, it takes all epochs.
        let is_all = weights.is_some() && feed == Feed::Nothing;
        let stage1_epochs = self.stage1_epochs.filter(|_| !is_all);
        Ok(DeltaSpec {
            shape: self.shape(asked.network)?,
            decomposition,
            variant: self.variant,
            codebook: self.codebook,
            epsilon: asked.epsilon.or(self.epsilon).filter(|e| e.is_finite() && feed != Feed::Nothing),
            own_epsilon: asked.epsilon.is_some(),
            clip: self.clip,
            labels,
            feed,
            views: self.views,
            stage1_epochs: stage1_epochs.unwrap_or_else(|| asked.epochs.div_ceil(if is_all { 1 } else { 3 })),
            weights,
            orthogonality: self.orthogonality,
        })
    }
}
