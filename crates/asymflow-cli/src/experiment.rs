//! Experiment files: TOML in, jobs out.

use asymflow::budget_study::BudgetSpec;
use asymflow::job::{DataSpec, ModeKind, TrainSpec};
use asymflow::plan::SplitSpec;
use asymflow::release::PrivacySpec;
use serde::{Deserialize, Serialize};

use crate::delta_section::{DeltaSection, LabelPolicy};
use crate::entry::Entry;
use crate::memory::MemorySection;
use crate::serve_experiment::ServeSection;
use crate::shares_experiment::SharesSection;

mod file;
mod sections;

pub use file::read;
pub use sections::{
    DataSection, ModeSection, ModelSection, PrivacySection, ReportSection, SpeedupSection, StudySection, TrainSection,
    TrustedSection, WorkerSection,
};

/// What an experiment does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Trains and evaluates one network in every mode.
    Train,
    /// Times every mode, layer by layer.
    Speedup,
    /// Measures how low the rank of activations is.
    RankStudy,
    /// Measures what Delta's split leaves to the residual.
    RankDctStudy,
    /// Loads a service of every mode with clients.
    Serve,
    /// Measures how much memory the trusted part takes.
    MemoryStudy,
    /// Measures queries to two servers on secret shares.
    Shares,
    /// Chooses what each channel computes on secret shares within a budget.
    ActivationBudget,
}

/// A whole experiment file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Version of this format: 1.
    pub schema: u32,
    /// One line.
    pub title: String,
    /// What it is to show.
    pub claim: String,
    /// What it does.
    pub kind: Kind,
    /// The data.
    #[serde(default)]
    pub data: DataSection,
    /// The networks.
    pub model: ModelSection,
    /// The modes and how they split.
    #[serde(default)]
    pub mode: ModeSection,
    /// What guards releases.
    #[serde(default)]
    pub privacy: PrivacySection,
    /// How a network is run as Delta.
    #[serde(default)]
    pub delta: DeltaSection,
    /// The trusted part.
    #[serde(default)]
    pub trusted: TrustedSection,
    /// The worker.
    #[serde(default)]
    pub worker: WorkerSection,
    /// Training.
    #[serde(default)]
    pub train: TrainSection,
    /// For `kind = "speedup"`.
    #[serde(default)]
    pub speedup: SpeedupSection,
    /// For `kind = "rank-study"` and `kind = "rank-dct-study"`.
    #[serde(default)]
    pub study: StudySection,
    /// For `kind = "serve"`.
    #[serde(default)]
    pub serve: ServeSection,
    /// For `kind = "memory-study"`.
    #[serde(default)]
    pub memory: MemorySection,
    /// For `kind = "shares"`.
    #[serde(default)]
    pub shares: SharesSection,
    /// For `kind = "activation-budget"`.
    #[serde(default)]
    pub budget: BudgetSpec,
    /// What decides whether the claim holds.
    #[serde(default)]
    pub report: ReportSection,
}

impl Experiment {
    /// The data a job reads.
    pub fn data_spec(&self) -> DataSpec {
        let DataSection { path, train, test, seed, augment } = self.data.clone();
        DataSpec { path, train, test, seed, augment }
    }

    /// How a network is split.
    pub fn split_spec(&self) -> SplitSpec {
        let ModeSection { decomposition, rank, split_first, .. } = self.mode.clone();
        SplitSpec { decomposition, rank, split_first }
    }

    /// What guards releases.
    pub fn privacy_spec(&self) -> PrivacySpec {
        let PrivacySection { mechanism, sigma, clip, relation, delta, budget_epsilon } = self.privacy.clone();
        PrivacySpec { mechanism, sigma, clip, relation, delta, budget_epsilon }
    }

    /// How a network is trained with `seed`.
    pub fn train_spec(&self, seed: u64) -> TrainSpec {
        let t = &self.train;
        TrainSpec {
            epochs: t.epochs,
            batch: t.batch,
            learning_rate: t.learning_rate,
            momentum: t.momentum,
            weight_decay: t.weight_decay,
            schedule: t.schedule,
            seed,
            evaluate_every: t.evaluate_every,
            clip_norm: t.clip_norm,
            coefficient_rate: t.coefficient_rate,
            first_layer_rate: t.first_layer_rate,
            easing: t.easing,
            teacher: None,
            keep_diverged: t.keep_diverged,
        }
    }

    /// The insecure settings in force for an entry.
    pub fn insecure(&self, entry: Entry) -> Vec<&'static str> {
        let mut insecure = Vec::new();
        match entry.kind {
            ModeKind::Clear => insecure.push("insecure_none"),
            // The noise is sampled in floating point, which the guarantee does not cover, or there is none.
            ModeKind::Asymml => {
                let names = ["insecure_none", "insecure_float_noise"];
                insecure.extend(names.into_iter().find(|name| *name == self.privacy.mechanism));
            }
            ModeKind::Delta if entry.needs_worker() => {
                if entry.epsilon.or(self.delta.epsilon).is_none_or(f64::is_infinite) {
                    insecure.push("insecure_sign");
                }
                insecure.extend(self.delta.variant.insecure_name());
                if self.delta.labels == LabelPolicy::Public {
                    insecure.push("public_labels");
                }
            }
            ModeKind::NaiveDp => insecure.push("public_labels"),
            ModeKind::TrustedOnly | ModeKind::Shares | ModeKind::Delta => {}
        }
        if self.trusted.seal && self.trusted.runtime == "sim" {
            insecure.push("insecure_host_key");
        }
        if entry.needs_worker() && self.worker.insecure_plaintext {
            insecure.push("insecure_plaintext");
        }
        insecure
    }
}
