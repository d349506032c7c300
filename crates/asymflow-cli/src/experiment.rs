//! Experiment files: TOML in, jobs out.

use std::collections::BTreeMap;
use std::path::PathBuf;

use asymflow::job::{DataSpec, ModeKind, TrainSpec};
use asymflow::plan::SplitSpec;
use asymflow::release::PrivacySpec;
use asymflow_zoo::{Network, Replacement, by_name, replace_activations};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::delta_section::{DeltaSection, LabelPolicy};
use crate::entry::Entry;
use crate::error::CliError;
use crate::shares_section::SharesSection;

mod file;
mod limits;
mod networks;
mod sections;

pub(crate) use file::{KindFacts, Registered, read, read_run};
pub use limits::Limit;
pub(crate) use networks::Networks;
pub use sections::{
    DataSection, ModeSection, ModelSection, PrivacySection, ReportSection, TrainSection, TrustedSection, WorkerSection,
    size,
};

const ACTIVATION_HELP: &str = "write MODEL+ACTIVATION, e.g. resnet8-cifar+shared-relu:1x4x4";

/// A whole experiment file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Experiment {
    /// Version of this format: 1.
    pub schema: u32,
    /// One line.
    pub title: String,
    /// What it is to show.
    pub claim: String,
    /// Name of its [`ExperimentKind`](crate::ExperimentKind).
    pub kind: String,
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
    /// How two servers answer on secret shares, and what `kind = "shares"` measures of it.
    #[serde(default)]
    pub shares: SharesSection,
    /// What decides whether the claim holds.
    #[serde(default)]
    pub report: ReportSection,
    /// The section of its kind.
    #[serde(flatten)]
    sections: BTreeMap<String, serde_json::Value>,
    /// The network that `model.file` describes.
    #[serde(skip)]
    from_file: Option<Network>,
    /// The networks that a program has registered.
    #[serde(skip)]
    registered: Networks,
}

impl Experiment {
    /// The settings in a section of its kind; the defaults where the file has none.
    ///
    /// # Errors
    /// A section of another form.
    pub(crate) fn section<S: DeserializeOwned + Default>(&self, name: Option<&str>) -> Result<S, CliError> {
        let Some((name, value)) = name.and_then(|name| Some((name, self.sections.get(name)?))) else {
            return Ok(S::default());
        };
        S::deserialize(value).map_err(|e| CliError::usage(format!("[{name}]: {e}"), ""))
    }

    /// The network called `name`, as in `model.names`: that of `model.file`, one that a program registered, or one of the zoo; each
    /// with what is named behind a `+` in place of its activations or poolings.
    ///
    /// # Errors
    /// An unknown name, a network that does not fit `model.input`, or a replacement that does not apply.
    pub fn network(&self, name: &str) -> Result<Network, CliError> {
        let mut parts = name.split('+');
        let base = parts.next().unwrap_or_default();
        let (classes, input) = (self.model.classes, self.model.input);
        let mut network =
            match (self.from_file.as_ref().filter(|network| network.name == base), self.registered.get(base)) {
                (Some(network), _) => network.clone(),
                (None, Some(build)) => {
                    let refused = |e: String| CliError::usage(format!("{base}: {e}"), "");
                    let network = build(classes, input).map_err(refused)?;
                    network.validate().map_err(|e| refused(e.to_string()))?;
                    network
                }
                (None, None) => by_name(base, classes, input)
                    .map_err(|e| CliError::usage(e.to_string(), "`asymflow models` lists what there is"))?,
            };
        for part in parts {
            let replacement =
                part.parse::<Replacement>().map_err(|e| CliError::usage(e.to_string(), ACTIVATION_HELP))?;
            network = replace_activations(&network, &replacement)
                .map_err(|e| CliError::usage(format!("{name}: {e}"), ACTIVATION_HELP))?;
        }
        name.clone_into(&mut network.name);
        Ok(network)
    }

    /// The network that `model.file` describes, as JSON.
    pub(crate) fn network_of_file(&self) -> Result<Option<String>, CliError> {
        let json = self.from_file.as_ref().map(serde_json::to_string).transpose();
        json.map_err(|e| CliError::failed(format!("cannot write the network: {e}"), ""))
    }

    /// Every path that the experiment names.
    pub(crate) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self { data, model, trusted, worker, .. } = self;
        let optional =
            [&mut data.path, &mut model.weights, &mut model.file, &mut trusted.guard, &mut worker.token_file];
        optional.into_iter().flatten().chain([&mut trusted.app])
    }

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
