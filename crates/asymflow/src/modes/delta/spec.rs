//! How a network is run as Delta.

use asymflow_privacy::mechanisms::{Codewords, MechanismError};
use asymflow_zoo::models::delta::{CompactShape, DeltaShape};
use serde::{Deserialize, Serialize};

use crate::modes::DpTerms;

/// Which of the published mechanisms guards the residuals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// σ by the analytic Gaussian mechanism for the ε of one record, all its views together. The guarantee holds.
    #[default]
    Strict,
    /// σ by the thesis' printed formula and its amplification by subsampling, neither of which gives the ε it names.
    Paper,
    /// One of a few codewords in place of the residual: its pooled channels are projected to a few values, and these released by
    /// randomised response or PrivUnit, pure ε by replacement. The guarantee holds.
    Compact,
    /// What the authors' code does: the channel mean, Laplace noise scaled by the batch, drawn anew every step, gradients as
    /// they are.
    ReleasedCode,
}

impl Variant {
    /// Name in lists of insecure settings; `None` where it is none.
    pub const fn insecure_name(self) -> Option<&'static str> {
        match self {
            Self::Strict | Self::Compact => None,
            Self::Paper => Some("delta_variant_paper"),
            Self::ReleasedCode => Some("delta_variant_released_code"),
        }
    }

    /// Why it is no guarantee; `None` where it is one.
    pub const fn caveat(self) -> Option<&'static str> {
        match self {
            Self::Strict | Self::Compact => None,
            Self::Paper => Some(
                "delta variant paper: the thesis claims its epsilon by subsampling, but every record's residual is \
                 released, so no amplification applies, and its sigma is too small for a local epsilon below 0.5. The \
                 epsilon in the results is the true one, of the noise that was drawn.",
            ),
            Self::ReleasedCode => Some(
                "delta variant released-code: the scale of its Laplace noise comes from the batch and no norm is bounded, \
                 so no epsilon holds; noise is drawn anew every step and averages out, and gradients are sent as they \
                 are, which tells labels. Its epsilon only sets the scale; the one in the results is infinite.",
            ),
        }
    }
}

/// Which codewords a compact release is one of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Codebook {
    /// The class that the residual looks most like, by randomised response.
    #[default]
    Classes,
    /// A point of the sphere near the residual's class-relevant directions, by PrivUnit.
    Sphere,
}

impl Codebook {
    /// The mechanism over `values` values; without noise where there is no ε.
    ///
    /// # Errors
    /// Too few values, or an ε out of range.
    pub fn mechanism(self, values: usize, epsilon: Option<f64>) -> Result<Codewords, MechanismError> {
        let values = u32::try_from(values).unwrap_or(u32::MAX);
        match self {
            Self::Classes => Codewords::of_classes(values, epsilon),
            Self::Sphere => Codewords::on_sphere(values, epsilon),
        }
    }

    /// What leaves of a residual of a network of `classes` classes.
    pub(super) fn shape(self, classes: usize) -> CompactShape {
        /// Directions on the sphere, where there are as many classes.
        const MOST: usize = 16;
        match self {
            Self::Classes => CompactShape { values: classes, bits: classes.next_multiple_of(8) },
            Self::Sphere => {
                let values = classes.saturating_sub(1).clamp(2, MOST);
                CompactShape { values, bits: 8 * values }
            }
        }
    }
}

/// What is done about labels, which the gradient g_res = o_res − y would otherwise tell the worker exactly.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// The worker knows them. No guarantee is given for labels.
    Public,
    /// Each label is released once through k-ary randomised response.
    RandomisedResponse {
        /// Pure ε of a label.
        epsilon: f64,
    },
    /// The worker never gets a label: every step it gets the gradient of its logits with noise.
    NoisyGradient {
        /// ε of all gradients of one record together, at the job's δ.
        epsilon: f64,
    },
}

/// What M_res is fed with. Anything but the residual is a control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feed {
    /// The released residuals.
    #[default]
    Residual,
    /// Fair coins in their place: what M_res adds without any information.
    Null,
    /// Nothing: M_main is trained and asked alone.
    Nothing,
}

impl Feed {
    /// What the entry of that name feeds it with.
    pub(super) fn of_entry(name: &str) -> Self {
        [Self::Residual, Self::Null, Self::Nothing].into_iter().find(|feed| feed.entry() == name).unwrap_or_default()
    }

    /// Name of the entry.
    pub const fn entry(self) -> &'static str {
        match self {
            Self::Residual => "delta",
            Self::Null => "residual-null",
            Self::Nothing => "main-only",
        }
    }
}

/// How a network is run as Delta.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeltaSpec {
    /// How features are split and how large M_main is.
    pub shape: DeltaShape,
    /// Name of the decomposition.
    pub decomposition: String,
    /// Which mechanism.
    pub variant: Variant,
    /// The codewords of variant `compact`.
    #[serde(default)]
    pub codebook: Codebook,
    /// ε of the residuals of one record, as the variant defines it; infinite where absent (signs without noise).
    pub epsilon: Option<f64>,
    /// Whether that ε stands in the entry's name.
    pub own_epsilon: bool,
    /// l2 norm C to which every record's residual is clipped.
    pub clip: f64,
    /// What is done about labels.
    pub labels: Labels,
    /// What M_res is fed with.
    pub feed: Feed,
    /// Augmented views released of each record, K; their losses add up.
    pub views: usize,
    /// Epochs of stage 1, in which M_bb and M_main are trained alone.
    pub stage1_epochs: usize,
    /// Weight of the kernel-orthogonality penalty on M_main.
    pub orthogonality: f32,
    /// DP-SGD of M_bb and M_main, in stage 1 alone; without it their weights say what they say of the records.
    #[serde(default)]
    pub weights: Option<DpTerms>,
}
