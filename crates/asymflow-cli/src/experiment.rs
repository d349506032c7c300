//! Experiment files: TOML in, jobs out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use asymflow::job::{DataSpec, TrainSpec};
use asymflow::modes::delta::DeltaSection;
use asymflow::modes::{Asked, Facts, ModeSpec, PrivacyTerms, Purpose, Registry, Sampling, Sections};
use asymflow_zoo::data::{Preparation, Resize, Split};
use asymflow_zoo::{
    Network, by_name,
    models::replace::{Replacement, replace_activations},
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::error::CliError;
use crate::shares_section::SharesSection;

mod file;
#[cfg(test)]
mod hostile;
mod limits;
mod networks;
mod sections;

pub(crate) use file::{KindFacts, Registered, read, read_run};
pub use limits::Limit;
pub(crate) use networks::Networks;
pub use sections::{
    DataSection, ModeSection, ModelSection, PrivacySection, ReportSection, ResizeSection, TrainSection, TrustedSection,
    WorkerSection, size,
};

const MODE_HELP: &str = "see [mode] and the mode's own section, or take another model";
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
    /// The entries of `mode.run`.
    #[serde(skip)]
    pub entries: Vec<Entry>,
    /// Modes, mechanisms and decompositions by name.
    #[serde(skip)]
    pub registry: Arc<Registry>,
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
        let DataSection { path, reader, train, test, seed, augment, resize } = self.data.clone();
        DataSpec { path, reader, train, test, seed, augment, prepare: self.preparation(resize) }
    }

    /// Images are given the channels of the first network, and its sides where a resize names none.
    fn preparation(&self, resize: Option<ResizeSection>) -> Preparation {
        let input = self.model.names.first().and_then(|name| Some(self.network(name).ok()?.input));
        let resize = resize.and_then(|ResizeSection { height, width, shorter, filter }| {
            let height = height.or_else(|| Some(input?.height))?;
            Some(Resize { height, width: width.or_else(|| Some(input?.width))?, shorter, filter })
        });
        let channels = input.map(|input| input.channels).filter(|channels| matches!(channels, 1 | 3));
        Preparation { channels, resize }
    }

    /// What every ε is said of.
    pub const fn terms(&self) -> PrivacyTerms {
        let PrivacySection { relation, delta, budget_epsilon, .. } = self.privacy;
        PrivacyTerms { relation, delta, budget_epsilon }
    }

    /// The sections that modes read their settings from.
    fn mode_sections(&self) -> Result<Sections, serde_json::Error> {
        let mut values = self.sections.clone();
        for (name, section) in [
            ("mode", serde_json::to_value(&self.mode)?),
            ("privacy", serde_json::to_value(&self.privacy)?),
            ("delta", serde_json::to_value(&self.delta)?),
            ("worker", serde_json::to_value(&self.worker)?),
            ("shares", serde_json::to_value(self.shares.spec())?),
        ] {
            values.insert(name.to_owned(), section);
        }
        Ok(Sections { values })
    }

    /// What an entry asks for, of the network `model` with what the entry replaces.
    ///
    /// # Errors
    /// A network or settings that make no such mode.
    pub fn mode_spec(&self, entry: Entry, model: &str) -> Result<Arc<dyn ModeSpec>, CliError> {
        let network = self.network(&entry.model(model))?;
        let sections = self.mode_sections().map_err(|e| CliError::usage(e.to_string(), ""))?;
        let Entry { name, epsilon, .. } = entry;
        let asked = Asked { name, epsilon, network: &network, epochs: self.train.epochs, sections: &sections };
        self.registry.spec(&asked).map_err(|e| CliError::usage(format!("{model}: {e}"), MODE_HELP))
    }

    /// The data, as the trusted part reads them, with `test` test images and, where they are made, `train` training images unless the
    /// experiment says how many.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub(crate) fn load(&self, train: usize, test: usize) -> Result<Split, CliError> {
        let spec = self.data_spec();
        let train = spec.train.or(spec.path.is_none().then_some(train));
        let data = asymflow::run::load(&DataSpec { train, test: Some(test), ..spec }, &self.registry);
        data.map(|loaded| loaded.split).map_err(|e| CliError::usage(e.to_string(), "see [data]"))
    }

    /// Training and test records of a run: as they are told, or counted where they lie.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn records(&self) -> Result<(usize, usize), CliError> {
        let spec = self.data_spec();
        if let (None, Some(train), Some(test)) = (&spec.path, spec.train, spec.test) {
            return Ok((train, test));
        }
        let data =
            asymflow::run::load(&spec, &self.registry).map_err(|e| CliError::usage(e.to_string(), "see [data]"))?;
        Ok((data.split.train.len(), data.split.test.len()))
    }

    /// The modes of the experiment, for its first network.
    ///
    /// # Errors
    /// As [`Experiment::mode_spec`].
    pub fn mode_specs(&self) -> Result<Vec<Arc<dyn ModeSpec>>, CliError> {
        self.entries.iter().map(|&entry| self.mode_spec(entry, &self.model.names[0])).collect()
    }

    /// What a mode is told of a run on so many training records.
    pub fn facts<'a>(&'a self, network: &'a Network, terms: &'a PrivacyTerms, records: usize) -> Facts<'a> {
        let train = self.train_spec(0);
        Facts {
            network,
            terms,
            sampling: Sampling { batch: train.batch, records },
            epochs: train.epochs,
            evaluations: train.evaluations(),
            registry: &self.registry,
        }
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

    /// The insecure settings in force for a mode.
    pub fn insecure(&self, mode: &dyn ModeSpec) -> Vec<String> {
        let mut insecure = mode.insecure(Purpose::Training);
        if self.trusted.seal && self.trusted.runtime != "gramine-sgx" {
            insecure.push("insecure_host_key".to_owned());
        }
        if mode.needs_worker() && self.worker.insecure_plaintext {
            insecure.push("insecure_plaintext".to_owned());
        }
        insecure
    }
}
