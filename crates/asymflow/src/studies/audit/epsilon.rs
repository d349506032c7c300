//! ε from below, of everything that releases.

use asymflow_audit::AuditError;
use asymflow_audit::epsilon::{EpsilonRow, Fault, Gated, audit_labels};
use asymflow_privacy::accountants::{Relation, Sensitivity};
use asymflow_privacy::calibration::gaussian_sigma;
use asymflow_privacy::door::Gate;
use asymflow_privacy::mechanisms::{MechanismError, OneBit};
use asymflow_privacy::payload::PackedBits;

use crate::modes::Registry;
use crate::run::RunError;

/// ε that noise is calibrated to.
const SETTINGS: [f64; 5] = [1.0, 1.4, 4.0, 9.0, 17.0];
const DELTA: f64 = 1e-5;

/// Audits every mechanism of a registry, bits, clipped bits and labels at five settings each, and with every fault planted at one of them.
///
/// # Errors
/// A mechanism that refuses.
pub fn epsilon_rows(registry: &Registry, trials: usize, seed: u64) -> Result<Vec<EpsilonRow>, RunError> {
    let mut rows = Vec::new();
    for (number, epsilon) in SETTINGS.into_iter().enumerate() {
        let sigma = gaussian_sigma(epsilon, DELTA, 1.0).map_err(|e| RunError::Mode(e.into()))?;
        let seed = seed + 100 * number as u64;
        // The faults at the ε of the thesis.
        let faults: &[Fault] = if epsilon == 1.4 { &Fault::ALL } else { &[] };
        for fault in std::iter::once(None).chain(faults.iter().copied().map(Some)) {
            for name in registry.mechanisms() {
                let make = |noise: f64| registry.mechanism(name, Some(sigma * noise)).map_err(|_| refused(sigma));
                rows.push(audited((name, epsilon), make, &|out| out, (4, trials, seed), fault)?);
            }
            let bit = |noise: f64| Ok(Box::new(OneBit::new(sigma * noise)?) as _);
            rows.push(audited(("one_bit", epsilon), bit, &bits, (128, 4 * trials, seed), fault)?);
            let bit = |noise: f64| Ok(Box::new(OneBit::clipped(sigma * noise)?) as _);
            rows.push(audited(("one_bit_clipped", epsilon), bit, &bits, (128, 4 * trials, seed), fault)?);
            if !matches!(fault, Some(Fault::NoClip | Fault::DrawnTwice)) {
                rows.push(audit_labels((10, epsilon.min(6.0)), trials, fault, seed)?);
            }
        }
    }
    Ok(rows)
}

fn refused(sigma: f64) -> MechanismError {
    MechanismError::Sigma { sigma }
}

fn audited<O>(
    (name, epsilon): (&str, f64),
    make: impl Fn(f64) -> Result<Box<dyn asymflow_privacy::mechanisms::Mechanism<Output = O>>, MechanismError>,
    read: &dyn Fn(O) -> Vec<f32>,
    (values, trials, seed): (usize, usize, u64),
    fault: Option<Fault>,
) -> Result<EpsilonRow, AuditError> {
    // From one seed all releases are alike, and the more values there are the surer they differ.
    let (values, trials) = if fault == Some(Fault::FixedSeed) { (16 * values, 2000) } else { (values, trials) };
    let gate = |noise: f64, is_clipped: bool| {
        let gate = Gate::new(make(noise)?, is_clipped.then_some(1.0), Relation::Remove)?;
        Ok(gate.with_sensitivity(Sensitivity::of_clipped(1.0, Relation::Remove)))
    };
    let record = vec![1.0 / (values as f32).sqrt(); values];
    let name = format!("{name} ε = {epsilon}");
    Gated { name: &name, gate: &gate, read, record: &record, delta: DELTA }.audit(trials, fault, seed)
}

fn bits(out: PackedBits) -> Vec<f32> {
    let mut values = vec![0.0; out.len()];
    out.unpack_into(&mut values, -1.0, 1.0);
    values
}
