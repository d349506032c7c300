//! `asymflow explain`: what a configuration costs, before it runs.

use std::path::PathBuf;

use asymflow::delta::{BitDoor, Sampling};
use asymflow::job::ModeKind;
use asymflow::plan::Plan;
use asymflow_engine::Program;
use asymflow_privacy::{
    Accountant, Event, PldAccountant, RdpAccountant, Relation, Sensitivity, ZcdpAccountant, gaussian_epsilon,
};
use asymflow_zoo::delta::{DeltaNetworks, delta};
use asymflow_zoo::{Network, cost};

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::Experiment;
use crate::memory;
use crate::tables;
use crate::text::markdown;

/// Flags of `asymflow explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to explain
    pub what: What,
    /// The experiment file
    pub experiment: PathBuf,
    /// Set a key, e.g. --set delta.views=4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// What can be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// ε of one record over its releases, under every accountant
    Epsilon,
    /// The split, layer by layer
    Model,
    /// The trusted part's memory in every mode, and the size of the enclave that follows
    Memory,
}

/// Explains an experiment.
///
/// # Errors
/// An unreadable experiment, or settings that no ε can be given for.
pub fn explain(what: What, experiment: &Experiment) -> Result<String, CliError> {
    match what {
        What::Epsilon => epsilon(experiment),
        What::Model => model(experiment),
        What::Memory => memory::explain(experiment),
    }
}

/// Noise of one kind, drawn once or more for a record.
struct Noise {
    title: String,
    /// σ over the sensitivity.
    multiplier: f64,
    relation: Relation,
    /// Numbers of releases, and what they are.
    moments: Vec<(u64, String)>,
}

fn epsilon(experiment: &Experiment) -> Result<String, CliError> {
    let mut text = String::new();
    let delta = experiment.privacy.delta;
    for &entry in &experiment.mode.run {
        let noise = match entry.kind {
            ModeKind::Delta if entry.needs_worker() => delta_noise(experiment, entry)?,
            ModeKind::Asymml => asymml_noise(experiment)?,
            _ => None,
        };
        text += &match noise {
            Some(noise) => table(&noise, delta)?,
            None => format!("## {entry}\n\n{}\n\n", without_noise(entry)),
        };
    }
    Ok(text)
}

const fn without_noise(entry: Entry) -> &'static str {
    match entry.kind {
        ModeKind::TrustedOnly => "Nothing is released: ε is 0.",
        ModeKind::Shares => {
            "What each server sees is uniformly random: ε is 0 towards either, and infinite towards both together."
        }
        ModeKind::Delta if matches!(entry.feed, asymflow::delta::Feed::Nothing) => "Nothing is released: ε is 0.",
        ModeKind::NaiveDp => "Every image is released once, at the ε named.",
        _ => "What is released carries no noise or is not clipped: ε is infinite.",
    }
}

fn delta_noise(experiment: &Experiment, entry: Entry) -> Result<Option<Noise>, CliError> {
    let network = experiment.network(&experiment.model.names[0])?;
    let section = &experiment.delta;
    let spec = section.spec(&network, &experiment.mode.decomposition, entry, experiment.train.epochs).map_err(usage)?;
    let sampling = Sampling { batch: experiment.train.batch, records: experiment.data.train.unwrap_or(50_000) };
    let door = BitDoor::new(&spec, experiment.privacy.relation, experiment.privacy.delta, sampling).map_err(usage)?;
    let Some(sigma) = door.sigma() else { return Ok(None) };
    let sensitivity = Sensitivity::of_clipped(spec.clip, experiment.privacy.relation).l2();
    let views = spec.views as u64;
    let mut moments: Vec<(u64, String)> =
        (1..=views).map(|k| (k, format!("training record, {k} of {views} views"))).collect();
    moments.extend([1, 10, 100].map(|n| (n, format!("test record, asked about {n} times with new noise"))));
    let labels = experiment.delta.labels;
    let caveat = spec.variant.caveat().map_or_else(String::new, |caveat| format!("{caveat}\n\n"));
    let title = format!(
        "## {entry}\n\n{caveat}σ = {sigma:.4} at clip C = {}, labels: {labels:?} (their ε is added to that of the residuals)",
        spec.clip
    );
    Ok(Some(Noise { title, multiplier: sigma / sensitivity, relation: experiment.privacy.relation, moments }))
}

fn asymml_noise(experiment: &Experiment) -> Result<Option<Noise>, CliError> {
    let privacy = &experiment.privacy;
    let (Some(sigma), Some(clip), true) = (privacy.sigma, privacy.clip, privacy.mechanism != "insecure_none") else {
        return Ok(None);
    };
    let network = experiment.network(&experiment.model.names[0])?;
    let plan = plan(experiment, &network)?;
    let split = plan.convs.iter().filter(|conv| conv.placement.is_split()).count() as u64;
    let epochs = experiment.train.epochs as u64;
    let mut moments: Vec<(u64, String)> = [1, epochs.div_ceil(2), epochs]
        .map(|epoch| (2 * split * epoch, format!("training record, epoch {epoch} of {epochs}")))
        .to_vec();
    moments.dedup();
    let title =
        format!("## asymml\n\nσ = {sigma} at clip C = {clip}, a residual and a gradient a layer, {split} layers");
    let sensitivity = Sensitivity::of_clipped(clip, privacy.relation).l2();
    Ok(Some(Noise { title, multiplier: sigma / sensitivity, relation: privacy.relation, moments }))
}

fn table(noise: &Noise, delta: f64) -> Result<String, CliError> {
    let mut rows = vec![["releases", "of", "exact", "PLD", "RDP", "zCDP"].map(str::to_owned)];
    for (releases, what) in &noise.moments {
        let event = Event::Gaussian { noise_multiplier: noise.multiplier };
        let composed = |accountant: Result<f64, asymflow_privacy::AccountantError>| accountant.map_err(usage);
        let exact = gaussian_epsilon(noise.multiplier, (*releases as f64).sqrt(), delta).map_err(usage)?;
        let mut pld = PldAccountant::default();
        let pld = composed(pld.compose(event, *releases).and_then(|()| pld.epsilon(delta)))?;
        let mut rdp = RdpAccountant::default();
        let rdp = composed(rdp.compose(event, *releases).and_then(|()| rdp.epsilon(delta)))?;
        let rho = *releases as f64 / (2.0 * noise.multiplier * noise.multiplier);
        let zcdp = composed(ZcdpAccountant::resume(rho).epsilon(delta))?;
        let number = |epsilon: f64| format!("{epsilon:.4}");
        rows.push([releases.to_string(), what.clone(), number(exact), number(pld), number(rdp), number(zcdp)]);
    }
    let neighbours = match noise.relation {
        Relation::Remove => "a record removed",
        Relation::Replace => "a record replaced",
    };
    Ok(format!("{}. ε at δ = {delta:e} for {neighbours}:\n\n{}\n", noise.title, markdown(&rows)))
}

fn plan(experiment: &Experiment, network: &Network) -> Result<Plan, CliError> {
    let program = Program::new(network).map_err(usage)?;
    Plan::asymml(&program, &experiment.split_spec(), experiment.train.batch).map_err(usage)
}

fn model(experiment: &Experiment) -> Result<String, CliError> {
    let mut text = String::new();
    for name in &experiment.model.names {
        let network = experiment.network(name)?;
        if experiment.mode.run.iter().any(|entry| entry.kind == ModeKind::Delta) {
            text += &delta_model(experiment, name, &network)?;
        }
        if experiment.mode.run.iter().any(|entry| entry.kind == ModeKind::Asymml) {
            text += &format!("## {name} as asymml\n\n{}\n", tables::layers(&plan(experiment, &network)?));
        }
    }
    Ok(text)
}

fn delta_model(experiment: &Experiment, name: &str, network: &Network) -> Result<String, CliError> {
    let shape = experiment.delta.shape(network).map_err(usage)?;
    let networks = delta(network, &shape).map_err(usage)?;
    let split = shape.cost(networks.features);
    let DeltaNetworks { features, low, .. } = &networks;
    let millions = |macs: u64| format!("{:.2}", macs as f64 / 1e6);
    let mut rows = vec![["part", "layer", "output", "MMACs", "parameters"].map(str::to_owned)];
    let mut totals = Vec::new();
    for (part, network) in [("M_bb", &networks.backbone), ("M_main", &networks.main), ("M_res", &networks.residual)] {
        for layer in cost::layer_costs(network).map_err(usage)?.into_iter().filter(|layer| layer.parameters > 0) {
            let out = layer.output;
            rows.push([
                part.to_owned(),
                layer.name,
                format!("{}x{}x{}", out.channels, out.height, out.width),
                millions(layer.macs),
                layer.parameters.to_string(),
            ]);
        }
        totals.push(cost::total_cost(network).map_err(usage)?.macs);
    }
    let trusted = totals[0] + totals[1] + split.svd + split.dct;
    Ok(format!(
        "## {name} as delta\n\nFeatures {}x{}x{}, rank {}, DCT {}/{}; M_main's input {}x{}x{}. Trusted: M_bb {}, \
         decomposition {} (one pass), DCT {}, M_main {} MMACs, {} in all; worker: M_res {} MMACs. To the worker: {} bytes a \
         sample.\n\n{}\n",
        features.channels,
        features.height,
        features.width,
        shape.rank,
        shape.block,
        shape.kept,
        low.channels,
        low.height,
        low.width,
        millions(totals[0]),
        millions(split.svd),
        millions(split.dct),
        millions(totals[1]),
        millions(trusted),
        millions(totals[2]),
        features.len().div_ceil(8),
        markdown(&rows)
    ))
}

fn usage(error: impl std::fmt::Display) -> CliError {
    CliError::usage(error.to_string(), "see `asymflow show` for the settings in force")
}
