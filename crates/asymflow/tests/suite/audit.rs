//! The audit, of every mode there is, from a trained network to its figures.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use asymflow::job::{Body, JobSpec, Task};
use asymflow::modes::Registry;
use asymflow::run::run;
use asymflow::studies::{Audit, AuditReport, Study, epsilon_rows};
use asymflow_audit::attack::{Budget, Guess, Sight};
use asymflow_audit::epsilon::Fault;
use asymflow_audit::figures::Control;
use asymflow_audit::tape::{Kind, Tape};
use asymflow_audit::{Attack, AuditError};
use asymflow_native::NativeBackend;
use asymflow_privacy::payload::Precision;
use asymflow_residual::ResidualBackend;
use asymflow_residual::backend::{Pass, UnitId};
use serde_json::json;

use crate::promises::jobs;
use crate::toy_backend::ToyBackend;
use crate::training::{Heard, go, guarded_job};

fn audit(job: JobSpec, label: &str, attacks: &[&str]) -> AuditReport {
    audit_with(job, (label, attacks), &Registry::default())
}

fn audit_with(mut job: JobSpec, (label, attacks): (&str, &[&str]), registry: &Registry) -> AuditReport {
    let Task::Train(mut train) = job.task.clone() else { panic!("not a training") };
    train.epochs = 3;
    // Noise of many times a gradient's size ends no test.
    train.clip_norm = Some(1.0);
    (job.data.train, job.data.test) = (Some(48), Some(60));
    let audit = Audit {
        label: label.to_owned(),
        train,
        targets: 8,
        public: 30,
        members: 20,
        shadows: 2,
        tries: 300,
        decoder_epochs: 1,
        repeats: vec![1],
        pictures: 1,
        variants: Vec::new(),
        attacks: attacks.iter().map(|&name| name.to_owned()).collect(),
        seed: 1,
    };
    job.task = audit.task().unwrap();
    // The toy keeps no records for Delta.
    let open = |_: &JobSpec, _: Precision| Ok(Arc::new(NativeBackend::default()) as Arc<dyn ResidualBackend>);
    let (stop, mut heard) = (AtomicBool::new(false), Heard::default());
    let report = run(&job, (Body::Empty, Vec::new()), registry, &open, &stop, &mut heard);
    Audit::report(report.unwrap()).unwrap()
}

#[test]
fn every_mode_is_audited() {
    for (name, job) in jobs() {
        // On shares nothing is left at a worker, and an answer takes seconds.
        if name == "shares" {
            continue;
        }
        let report = audit(job, name, &["labels", "inversion", "traffic"]);
        let traffic: Vec<_> = report.attacks.iter().filter(|row| row.attack == "traffic").collect();
        assert!(traffic.iter().all(|row| row.value == 0.0), "{name}: {traffic:?}");
        for row in &report.attacks {
            assert!(row.low <= row.value && row.value <= row.high, "{row:?}");
            assert!(row.control != Control::Planted || row.value > 0.0, "{row:?}");
        }
        let labels = |row: &&asymflow_audit::figures::AttackRow| {
            row.figure == "labels right" && row.control != Control::Baseline
        };
        let told = report.attacks.iter().filter(labels).map(|row| row.value).fold(0.0, f64::max);
        if name == "clear" {
            assert_eq!(told, 1.0, "the gradient of the logits names the labels");
        }
    }
}

#[test]
fn without_noise_zeros_tell_and_lies_are_told_and_found_out() {
    let report = audit(
        guarded_job("asymml", json!({ "mechanism": "insecure_none" })),
        "asymml",
        &["completion", "lying worker"],
    );
    let of = |attack: &str, figure: &str| {
        let row = report.attacks.iter().find(|row| row.attack.starts_with(attack) && row.figure == figure);
        row.unwrap_or_else(|| panic!("no {figure} of {attack} in {:#?}", report.attacks)).value
    };
    let (completed, alone) = ("completion of layer 0 at rank 4", "completion of layer 0 at rank 4: the residual alone");
    assert!(of(completed, "pixels recovered") > 0.5);
    assert!(of(alone, "pixels recovered") < 0.01);
    assert_eq!(of("lying worker, verified", "lies found out"), 1.0);
    let lied = of("lying worker, unverified", "cosine with the activation");
    let honest = of("lying worker: an honest one", "cosine with the activation");
    assert!(lied > honest + 0.1, "{lied} and honestly {honest}");
}

#[test]
fn noise_of_the_residuals_size_stops_completion() {
    let noise = json!({ "mechanism": "residual_noise", "kappa": 1.0 });
    let report = audit(guarded_job("asymml", noise), "asymml κ = 1", &["completion", "labels"]);
    let recovered = report.attacks.iter().filter(|row| row.figure == "pixels recovered");
    assert!(recovered.clone().count() > 0);
    recovered.for_each(|row| assert!(row.value < 0.01, "{row:?}"));
    assert!(report.training.epsilon.is_some_and(f64::is_infinite), "{:?}", report.training.epsilon);
}

#[test]
fn noise_by_kappa_takes_no_clip_and_clips_take_no_kappa() {
    for privacy in [
        json!({ "mechanism": "residual_noise", "kappa": 1.0, "clip": 1.0 }),
        json!({ "mechanism": "residual_noise" }),
        json!({ "mechanism": "discrete_gaussian", "sigma": 1.0, "clip": 1.0, "kappa": 1.0 }),
    ] {
        let job = guarded_job("asymml", privacy.clone());
        let (refused, _) = go(&job, (Body::Empty, &[]), &ToyBackend::default(), None);
        assert!(refused.unwrap_err().to_string().contains("privacy.kappa"), "{privacy}");
    }
}

#[test]
fn no_mechanism_of_the_registry_costs_less_than_it_claims() {
    let rows = epsilon_rows(&Registry::default(), 10_000, 11).unwrap();
    for name in Registry::default().mechanisms().chain(["one_bit", "one_bit_clipped", "randomised_response"]) {
        let of_it: Vec<_> = rows.iter().filter(|row| row.mechanism.split(' ').next() == Some(name)).collect();
        assert!(of_it.iter().filter(|row| row.fault.is_none()).count() >= 5, "{name}");
        for row in of_it {
            // What claims nothing cannot claim too little.
            let is_wrong = row.fault.is_some() && row.claimed.is_some();
            assert_eq!(row.is_refuted(), is_wrong, "{row:?}");
        }
    }
    assert!(Fault::ALL.iter().all(|fault| rows.iter().any(|row| row.fault == Some(*fault))));
}

/// Takes the public image whose release is nearest for the target.
#[derive(Debug)]
struct Nearest;

impl Attack for Nearest {
    fn name(&self) -> &'static str {
        "nearest public image"
    }

    fn guess(&self, sight: &Sight<'_>, _: Budget) -> Result<Guess, AuditError> {
        let released = |tape: &Tape| tape.values(UnitId(0), Kind::Input(Pass::Inference));
        let (public, targets) = (released(sight.public.tape), released(sight.tape));
        let count = sight.public.labels.len();
        let (each, image) = (public.len() / count, sight.public.images.len() / count);
        let nearest = |target: &[f32]| {
            let away = |i: usize| -> f32 {
                public[i * each..(i + 1) * each].iter().zip(target).map(|(a, b)| (a - b).powi(2)).sum()
            };
            (0..count).min_by(|&a, &b| away(a).total_cmp(&away(b))).unwrap_or(0)
        };
        let images =
            targets.chunks_exact(each).map(nearest).flat_map(|i| &sight.public.images[i * image..(i + 1) * image]);
        Ok(Guess::Images(images.copied().collect()))
    }
}

#[test]
fn an_attack_from_outside_is_tried_and_judged() {
    let registry = Registry::default().with_attack(Box::new(Nearest));
    let report = audit_with(
        guarded_job("asymml", json!({ "mechanism": "insecure_none" })),
        ("asymml", &["none of ours"]),
        &registry,
    );
    let figures: Vec<_> = report.attacks.iter().map(|row| (row.attack.as_str(), row.figure.as_str())).collect();
    assert_eq!(figures, [("nearest public image", "SSIM"), ("nearest public image", "PSNR")]);
}
