//! Tables of the split, layer by layer.

use asymflow::plan::{Placement, Plan};
use asymflow_engine::timing::Seconds;
use asymflow_zoo::graph::cost;
use asymflow_zoo::weights::Pass;

use crate::error::CliError;
use crate::experiment::Experiment;
use crate::text::markdown;

/// How every mode that shares work with a worker would split the network called `name` for batches of `batch`, and at what cost.
pub fn split(experiment: &Experiment, name: &str, batch: usize) -> Result<String, CliError> {
    let invalid = |e: String| CliError::usage(format!("{name}: {e}"), "");
    let mut text = String::new();
    for &entry in &experiment.entries {
        let (network, mode) = (experiment.network(&entry.model(name))?, experiment.mode_spec(entry, name)?);
        let plan = mode.plan(&network, batch, Pass::Training).map_err(|e| invalid(e.to_string()))?;
        let Some(plan) = plan.filter(|_| mode.needs_worker()) else { continue };
        let total = cost::total_cost(&network).map_err(|e| invalid(e.to_string()))?;
        let sent: u64 = plan.convs.iter().map(|c| c.released_values).sum();
        text += &format!(
            "\n# {name}: {} parameters, {:.1} MMACs; {entry}: {:.1} % of them trusted, {:.1} KiB to the worker for one \
             inference\n{}",
            total.parameters,
            total.macs as f64 / 1e6,
            100.0 * plan.trusted_macs() as f64 / plan.full_macs().max(1) as f64,
            (sent * mode.precision().bytes() as u64) as f64 / 1024.0,
            layers(&plan)
        );
        text += &expected(&plan);
    }
    Ok(text)
}

/// What a plan that was measured expects.
fn expected(plan: &Plan) -> String {
    let [whole, placed] = plan.measured_seconds();
    if placed.step <= 0.0 {
        return String::new();
    }
    format!(
        "\nExpected by what was measured on this machine, of these convolutions and with a worker beside it that answers at once: {:.2} times as fast as trusted-only in inference, {:.2} times in a training step.\n",
        whole.inference / placed.inference,
        whole.step / placed.step
    )
}

/// Where each convolution of a plan is computed, and its costs.
pub fn layers(plan: &Plan) -> String {
    let mut rows = vec![["layer", "placement", "MMACs", "low-rank", "fold", "decompose"].map(str::to_owned)];
    let millions = |macs: u64| format!("{:.2}", macs as f64 / 1e6);
    for conv in &plan.convs {
        let placement = match conv.placement {
            Placement::Trusted => "trusted".to_owned(),
            Placement::Split { rank } => format!("split, rank {rank}"),
        };
        let low_rank = if conv.placement.is_split() { millions(conv.trusted_macs) } else { "-".to_owned() };
        rows.push([
            conv.layer.clone(),
            placement,
            millions(conv.full_macs),
            low_rank,
            millions(conv.fold_macs),
            millions(conv.decompose_macs),
        ]);
    }
    markdown(&rows)
}

pub fn seconds_row(name: &str, s: &Seconds) -> [String; 8] {
    let f = |v: f64| format!("{v:.3}");
    let fold = if s.fold > 0.0 { f(s.fold) } else { "-".to_owned() };
    [name.to_owned(), f(s.decompose), fold, f(s.release), f(s.trusted), f(s.worker), f(s.transfer), f(s.wait)]
}

pub const SECONDS_HEAD: [&str; 8] =
    ["layer", "decompose s", "fold s", "release s", "trusted s", "worker s", "transfer s", "wait s"];
