//! The whole promise of a run in one table: what is protected, from whom, by how much, and under which condition.

use asymflow::modes::{Charge, Losses, ModeSpec, PrivacyTerms, composed};
use asymflow_privacy::accountants::{AccountantError, Relation};
use asymflow_privacy::records::Flow;

use crate::text;

const HEAD: [&str; 6] = ["protected", "from", "ε, removed", "ε, replaced", "nats (bits) a record", "condition"];

/// Who learns what weights tell.
const READERS: &str = "who reads weights or answers";

/// What a flow tells of a record.
const fn told_by(flow: Flow) -> &'static str {
    match flow {
        Flow::Residual => "image",
        Flow::Gradient => "image and label, by gradients",
        Flow::Label => "label",
        Flow::Weights => "image and label, by weights",
    }
}

/// Most that one record tells whoever gets `charges` of it, in nats: a ρ-zCDP release tells at most ρ of whatever record it is
/// of, since the divergence from what is released of a fixed record bounds the information. Infinite without a guarantee.
pub fn nats(charges: &[Charge]) -> f64 {
    composed(charges).rho()
}

fn row(
    (record, from): (&str, &str),
    charges: &[Charge],
    terms: &PrivacyTerms,
    condition: &str,
) -> Result<[String; 6], AccountantError> {
    let lost = |charges: &[Charge]| composed(charges).epsilon(terms.delta).map(|epsilon| text::epsilon(epsilon, 2));
    let all = Losses { train: charges.to_vec(), test: Vec::new() };
    let replaced = lost(&all.by_replacement().train)?;
    // What is said of replacement holds of removal as well, records of zeros being records.
    let removed = match terms.relation {
        Relation::Remove => lost(charges)?,
        Relation::Replace => format!("≤ {replaced}"),
    };
    let nats = nats(charges);
    let nats =
        if nats.is_finite() { format!("{nats:.3} ({:.3})", nats / std::f64::consts::LN_2) } else { "∞".to_owned() };
    Ok([record.to_owned(), from.to_owned(), removed, replaced, nats, condition.to_owned()])
}

/// The table of a mode that releases `losses`; the first row names the columns.
///
/// # Errors
/// A δ that is none.
pub fn table(mode: &dyn ModeSpec, losses: &Losses, terms: &PrivacyTerms) -> Result<Vec<[String; 6]>, AccountantError> {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for (record, charges) in [("training record", &losses.train), ("test record", &losses.test)] {
        let flows = [Flow::Residual, Flow::Gradient, Flow::Label, Flow::Weights];
        let of = |flow| charges.iter().filter(|charge| charge.flow == flow).cloned().collect::<Vec<_>>();
        let told: Vec<_> = flows.into_iter().map(|flow| (flow, of(flow))).filter(|(_, of)| !of.is_empty()).collect();
        for (flow, charges) in &told {
            // A released label went through no network.
            let condition = if *flow == Flow::Label { "none" } else { mode.condition() };
            let from = if *flow == Flow::Weights { READERS } else { "worker" };
            rows.push(row((&format!("{} of a {record}", told_by(*flow)), from), charges, terms, condition)?);
        }
        if told.len() > 1 {
            rows.push(row((&format!("all of a {record}"), "worker"), charges, terms, mode.condition())?);
        }
    }
    let fixed = |cells: [&str; 6]| cells.map(str::to_owned);
    // What a worker learned of what was released is read in its weights.
    rows.push(if losses.train.iter().all(|charge| charge.flow != Flow::Weights) {
        let unprotected = "weights and answers are made of it without noise";
        fixed(["membership of a training record", READERS, "∞", "∞", "-", unprotected])
    } else {
        row(("membership of a training record", READERS), &losses.train, terms, mode.condition())?
    });
    let hardware = "no ε: the enclave's hardware; under `sim` nothing";
    if mode.computes_here() {
        rows.push(fixed(["images and labels in the trusted part", "host", "-", "-", "-", hardware]));
    }
    Ok(rows)
}
