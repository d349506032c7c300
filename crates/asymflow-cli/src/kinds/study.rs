//! What the studies of ranks share: their section, and the plot of what a rank leaves.

use serde::{Deserialize, Serialize};

use crate::experiment::Limit;
use crate::plot::{Line, Plot};

/// `[study]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StudySection {
    /// Test images measured.
    pub samples: usize,
    /// Ranks.
    pub ranks: Vec<usize>,
    /// Decompositions; for `rank-study`.
    pub methods: Vec<String>,
    /// Sides of the low frequencies kept of a block; for `rank-dct-study`.
    pub kept: Vec<usize>,
}

impl Default for StudySection {
    fn default() -> Self {
        let methods = ["exact-svd", "gram", "alternating", "shared-basis"].map(str::to_owned).to_vec();
        Self { samples: 64, ranks: vec![1, 2, 4, 8, 16, 32], methods, kept: vec![2, 4, 8, 12, 16] }
    }
}

pub const LIMITS: &[Limit] = &[
    Limit::whole("study.samples", 1.0, 1e6),
    Limit::whole("study.ranks", 1.0, 1e6),
    Limit::whole("study.kept", 1.0, 1e6),
];

pub fn residual_energy(lines: Vec<Line>) -> (&'static str, Plot) {
    let plot = Plot { x: "log2 of the rank".to_owned(), y: "energy in the residual".to_owned(), y_max: None, lines };
    ("residual-energy", plot)
}
