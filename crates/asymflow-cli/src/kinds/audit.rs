//! `kind = "audit"`: what each mode leaks, measured by attacks, and ε from below.

use asymflow::modes::ModeRef;
use asymflow::studies::{self, AuditReport, EpsilonRow, NamedMode, Study, epsilon_rows};
use asymflow_audit::figures::{AttackRow, Control};
use asymflow_engine::timing::Seconds;
use asymflow_zoo::weights::Pass;
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::{Experiment, Limit};
use crate::kind::{Ended, ExperimentKind, Verdict};
use crate::plot::{LayerTime, Point};
use crate::run::{Run, job_spec};

mod table;

/// `[audit]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSection {
    /// Attacks to run; all where empty.
    pub attacks: Vec<String>,
    /// Test images that are attacked.
    pub targets: usize,
    /// Test images that the attacker has.
    pub public: usize,
    /// Training images, and as many others, of which membership is asked.
    pub members: usize,
    /// Shadow networks; none leaves membership out.
    pub shadows: usize,
    /// Tries at every pixel of a completion.
    pub tries: usize,
    /// Passes of a decoder over the public images.
    pub decoder_epochs: usize,
    /// How often the targets are asked about where noise is averaged.
    pub repeats: Vec<usize>,
    /// Target images in the results beside what was made of them. They leave the trusted part: none unless the images are public.
    pub pictures: usize,
    /// Ranks at which `asymml` is completed with the weights that were trained.
    pub ranks: Vec<usize>,
    /// Decompositions at these ranks.
    pub bases: Vec<String>,
    /// κ of `residual_noise` with which `asymml` is trained and attacked, 0 for no noise; as the experiment says where empty.
    pub kappas: Vec<f64>,
    /// Releases of each neighbour in a bound on ε; none leaves these out.
    pub trials: usize,
}

impl Default for AuditSection {
    fn default() -> Self {
        Self {
            attacks: Vec::new(),
            targets: 16,
            public: 600,
            members: 200,
            shadows: 2,
            tries: 1000,
            decoder_epochs: 8,
            repeats: vec![1],
            pictures: 0,
            ranks: Vec::new(),
            bases: Vec::new(),
            kappas: Vec::new(),
            trials: 20_000,
        }
    }
}

/// One mode beside its attacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audited {
    /// The mode and its setting.
    pub mode: String,
    /// The network.
    pub network: String,
    /// Seed.
    pub seed: u64,
    /// Insecure settings in force.
    pub insecure: Vec<String>,
    /// What was found, but for the rows of attacks.
    pub report: AuditReport,
}

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Figures of all attacks on all modes.
    pub attacks: Vec<AttackRow>,
    /// ε from below beside what is claimed.
    pub epsilon: Vec<EpsilonRow>,
    /// The modes.
    pub modes: Vec<Audited>,
}

/// Attacks every mode of the experiment, and every mechanism.
pub struct Audit;

impl ExperimentKind for Audit {
    type Settings = AuditSection;
    type Results = Found;

    fn name(&self) -> &'static str {
        "audit"
    }

    fn section(&self) -> Option<&'static str> {
        Some("audit")
    }

    fn limits(&self) -> &'static [Limit] {
        const {
            &[
                Limit::whole("audit.targets", 2.0, 1e5),
                Limit::whole("audit.public", 1.0, 1e6),
                Limit::whole("audit.members", 2.0, 1e6),
                Limit::whole("audit.shadows", 0.0, 1e3),
                Limit::whole("audit.tries", 1.0, 1e7),
                Limit::whole("audit.decoder_epochs", 1.0, 1e5),
                Limit::whole("audit.repeats", 1.0, 1e6),
                Limit::whole("audit.pictures", 0.0, 100.0),
                Limit::whole("audit.ranks", 1.0, 1e6),
                Limit::within("audit.kappas", 0.0, 1e6),
                Limit::whole("audit.trials", 0.0, 1e8),
            ]
        }
    }

    fn takes_several_networks(&self) -> bool {
        true
    }

    fn run(&self, run: &Run, settings: &AuditSection) -> Result<(Ended, Option<Found>), CliError> {
        let e = run.experiment();
        let mut found = Found::default();
        if settings.trials > 0 {
            run.say("bounding epsilon from below");
            let failed = |e: asymflow::run::RunError| CliError::failed(e.to_string(), "");
            found.epsilon = epsilon_rows(&e.registry, settings.trials, e.train.seeds[0]).map_err(failed)?;
        }
        for model in &e.model.names {
            for &entry in &e.entries {
                for &seed in &e.train.seeds {
                    for (suffix, experiment) in with_noise(e, settings, (entry, model))? {
                        if run.is_interrupted() {
                            return Ok((Ended::Interrupted, Some(found)));
                        }
                        let label = format!("{entry}{suffix}");
                        let mut audited = audit(run, &experiment, settings, (entry, model, seed), label)?;
                        found.attacks.append(&mut audited.report.attacks);
                        found.modes.push(audited);
                    }
                }
            }
        }
        Ok((Ended::Whole, Some(found)))
    }

    fn table(&self, _: &Experiment, _: &AuditSection, found: &Found) -> String {
        table::of(found)
    }

    fn points(&self, experiment: &Experiment, found: &Found) -> Vec<Point> {
        let data = experiment.data.path.as_ref().and_then(|path| path.file_name());
        let data = data.map_or_else(|| "synthetic".to_owned(), |name| name.to_string_lossy().into_owned());
        let point = |audited: &Audited| {
            let AuditReport { training, pictures, .. } = &audited.report;
            let of_mode = found.attacks.iter().filter(|row| row.mode == audited.mode);
            let trusted = |s: &Seconds| s.trusted + s.decompose + s.fold + s.release;
            let time = |(layer, s): &(String, Seconds)| {
                let layer = layer.clone();
                LayerTime { layer, trusted: trusted(s), worker: s.worker, wait: s.wait }
            };
            let point = Point {
                mode: audited.mode.clone(),
                network: audited.network.clone(),
                data: data.clone(),
                seed: audited.seed,
                accuracy: training.test_accuracy,
                trusted_seconds: trusted(&training.parts),
                // No ε in JSON is none or infinity; it is infinite where a setting is insecure, and else nothing was released.
                epsilon: training.epsilon.filter(|e| e.is_finite()).or(audited.insecure.is_empty().then_some(0.0)),
                insecure: audited.insecure.clone(),
                layers: training.layers.iter().map(time).collect(),
                pictures: pictures.clone(),
                ..Point::default()
            };
            point.attacked(of_mode.cloned().collect())
        };
        found.modes.iter().map(point).collect()
    }

    fn verdict(&self, _: &Experiment, _: &AuditSection, found: &Found) -> Option<Verdict> {
        let (mut parts, mut wrong) = (Vec::new(), Vec::new());
        for (what, controls) in controls(found) {
            let held = controls.iter().filter(|(_, holds)| *holds).count();
            parts.push(format!("{what} {held} of {}", controls.len()));
            wrong.extend(controls.into_iter().filter(|(_, holds)| !holds).map(|(name, _)| format!("{what}: {name}")));
        }
        let (holds, parts) = (wrong.is_empty(), parts.join(", "));
        let text = if holds {
            format!("claim: holds: {parts}")
        } else {
            format!("claim: does not hold: {parts}; not so: {}", wrong.join("; "))
        };
        Some(Verdict { holds, text })
    }
}

/// Everything that must come out in a certain way, by what that is, and whether it did.
fn controls(found: &Found) -> Vec<(&'static str, Vec<(String, bool)>)> {
    let of_attacks = |control: Control| -> Vec<(String, bool)> {
        let rows = found.attacks.iter().filter(|row| row.control == control);
        let held = |row: &AttackRow| {
            let AttackRow { attack, mode, figure, value, low, high, .. } = row;
            let name = format!("{attack} in {mode}, {figure} {value:.3} ({low:.3} to {high:.3})");
            Some((
                format!("{name} where {:.3} is had without", row.without(&found.attacks)),
                row.holds(&found.attacks)?,
            ))
        };
        rows.filter_map(held).collect()
    };
    // What claims nothing cannot claim too little.
    let of_epsilon = |is_planted: bool| -> Vec<(String, bool)> {
        let rows = found.epsilon.iter().filter(|row| row.claimed.is_some() && row.fault.is_some() == is_planted);
        rows.map(|row| (format!("{} ({:?})", row.mechanism, row.fault), row.is_refuted() == is_planted)).collect()
    };
    let planted = [of_attacks(Control::Planted), of_epsilon(true)].concat();
    let all = [
        ("attacks that must win won", of_attacks(Control::MustWin)),
        ("attacks that must not win did not", of_attacks(Control::MustNot)),
        ("planted faults were noticed", planted),
        ("bounds from below are within what is claimed", of_epsilon(false)),
    ];
    all.into_iter().filter(|(_, controls)| !controls.is_empty()).collect()
}

/// The experiment with each κ, for a mode that splits, and how that is called.
fn with_noise(
    e: &Experiment,
    settings: &AuditSection,
    (entry, model): (Entry, &str),
) -> Result<Vec<(String, Experiment)>, CliError> {
    if settings.kappas.is_empty() || !splits(e, (entry, model))? {
        return Ok(vec![(String::new(), e.clone())]);
    }
    let with = |&kappa: &f64| {
        let mut other = e.clone();
        // An experiment that names another mechanism for its κ, for speed, has it.
        match (kappa > 0.0, e.privacy.kappa) {
            (true, Some(_)) => {}
            (true, None) => "residual_noise".clone_into(&mut other.privacy.mechanism),
            (false, _) => "insecure_none".clone_into(&mut other.privacy.mechanism),
        }
        other.privacy.kappa = Some(kappa).filter(|&kappa| kappa > 0.0);
        (format!(" κ = {kappa}"), other)
    };
    Ok(settings.kappas.iter().map(with).collect())
}

/// Whether a mode splits convolutions.
fn splits(e: &Experiment, (entry, model): (Entry, &str)) -> Result<bool, CliError> {
    let plan = e.mode_spec(entry, model)?.plan(&e.network(&entry.model(model))?, e.train.batch, Pass::Training);
    let plan = plan.map_err(|e| CliError::failed(e.to_string(), ""))?;
    Ok(plan.is_some_and(|plan| plan.placements().iter().any(|placement| placement.is_split())))
}

/// Trains one network in one mode and attacks it.
fn audit(
    run: &Run,
    e: &Experiment,
    settings: &AuditSection,
    (entry, model, seed): (Entry, &str, u64),
    mode_name: String,
) -> Result<Audited, CliError> {
    let failed = |e: String| CliError::failed(e, "");
    let mode = e.mode_spec(entry, model)?;
    let name = if e.train.seeds.len() > 1 { format!("{mode_name} seed {seed}") } else { mode_name };
    let label = if e.model.names.len() > 1 { format!("{model} {name}") } else { name };
    let AuditSection { targets, public, members, shadows, tries, decoder_epochs, pictures, .. } = *settings;
    let study = studies::Audit {
        label: label.clone(),
        train: e.train_spec(seed),
        targets,
        public,
        members,
        shadows,
        tries,
        decoder_epochs,
        repeats: settings.repeats.clone(),
        pictures,
        variants: variants(e, settings, (entry, model), &label)?,
        attacks: settings.attacks.clone(),
        seed,
    };
    let worker = mode.needs_worker().then(|| run.open_worker()).transpose()?;
    let task = study.task().map_err(|e| failed(e.to_string()))?;
    let job = job_spec(e, entry, model, worker, task)?;
    let report = studies::Audit::report(run.execute(&label, job)?).map_err(|e| failed(e.to_string()))?;
    let insecure = e.insecure(&*mode);
    Ok(Audited { mode: label, network: model.to_owned(), seed, insecure, report })
}

/// The same mode at other ranks and with other bases, where it splits.
fn variants(
    e: &Experiment,
    settings: &AuditSection,
    (entry, model): (Entry, &str),
    label: &str,
) -> Result<Vec<NamedMode>, CliError> {
    let failed = |e: asymflow::modes::ModeError| CliError::failed(e.to_string(), "");
    let mut variants = Vec::new();
    if !splits(e, (entry, model))? {
        return Ok(variants);
    }
    for basis in &settings.bases {
        for rank in &settings.ranks {
            let mut other = e.clone();
            (other.mode.decomposition, other.mode.rank) = (basis.clone(), format!("fixed:{rank}"));
            let mode = ModeRef::of(&*other.mode_spec(entry, model)?).map_err(failed)?;
            variants.push(NamedMode { name: format!("{label} {basis}"), mode, worker: None });
        }
    }
    Ok(variants)
}
