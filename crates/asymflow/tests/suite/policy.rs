//! Jobs of a host, held to a policy: over the registry, so that a new mode is in it.

use asymflow::job::{Body, FailureCode, FromTrusted, JobSpec, Notice, ToTrusted, VaultSpec};
use asymflow::modes::{Purpose, Registry};
use asymflow::serve::{JobPolicy, JobRefusal, JobRules, serve};
use asymflow::studies::{Speedup, Study};
use asymflow_privacy::accountants::Relation;
use asymflow_wire::{Limits, WireError, read_frame, write_frame};

use crate::promises::{facts, jobs};

const FINGERPRINT: &str = "abababababababababababababababababababababababababababababababab";

/// A job of each mode that a policy can allow, and the policy that allows it and no more.
fn asked() -> Vec<(&'static str, JobSpec, JobPolicy)> {
    let registry = Registry::default();
    let with_policy = |(name, mut job): (&'static str, JobSpec)| {
        job.vault = Some(VaultSpec { folder: "vault".into(), guard: "guard".into() });
        if let Some(worker) = &mut job.worker {
            worker.fingerprint = Some(FINGERPRINT.to_owned());
        }
        let (spec, facts) = (registry.decode(&job.mode).unwrap(), facts(&job, &registry));
        let guard = spec.guard(&facts).unwrap();
        let policy = JobPolicy {
            modes: vec![spec.name().to_owned()],
            require_vault: true,
            max_epsilon: spec.losses(&facts).unwrap().epsilon(job.terms.delta).unwrap(),
            max_delta: job.terms.delta,
            relation: Some(job.terms.relation),
            min_sigma: guard.and_then(|guard| Some(guard.sigma? / guard.clip?)).unwrap_or_default(),
            worker_fingerprint: spec.needs_worker().then(|| FINGERPRINT.to_uppercase()),
            accept_insecure: spec.insecure(Purpose::Training),
        };
        (name, job, policy)
    };
    jobs().into_iter().map(with_policy).collect()
}

fn refusal(policy: JobPolicy, job: &JobSpec) -> Option<JobRefusal> {
    JobRules::Measured(policy).allow(&mut job.clone(), &Registry::default()).err()
}

/// Every mode against every rule; a rule about releases, noise or workers says nothing of modes that have none.
#[test]
fn every_rule_holds_in_every_mode() {
    let registry = Registry::default();
    for (name, job, policy) in asked() {
        assert_eq!(refusal(policy.clone(), &job), None, "{name}");
        let (releases, has_noise) = (policy.max_epsilon.is_some(), policy.min_sigma > 0.0);
        let has_worker = policy.worker_fingerprint.is_some();
        let holds = |applies: bool, rule: &str, changed: JobPolicy, job: &JobSpec| {
            assert_eq!(refusal(changed, job).is_some(), applies, "{name}: {rule}");
        };

        holds(true, "modes", JobPolicy { modes: vec!["another".to_owned()], ..policy.clone() }, &job);
        for refused in &policy.accept_insecure {
            let mut stricter = policy.clone();
            stricter.accept_insecure.retain(|accepted| accepted != refused);
            assert_eq!(refusal(stricter, &job), Some(JobRefusal::Insecure { name: refused.clone() }), "{name}");
        }
        let below = policy.max_epsilon.filter(|epsilon| epsilon.is_finite()).map(|epsilon| 0.999 * epsilon);
        for limit in [None, Some(below.unwrap_or(f64::MAX)), Some(f64::NAN)] {
            holds(releases, "max_epsilon", JobPolicy { max_epsilon: limit, ..policy.clone() }, &job);
        }
        holds(releases, "max_delta", JobPolicy { max_delta: job.terms.delta / 2.0, ..policy.clone() }, &job);
        holds(releases, "relation", JobPolicy { relation: Some(Relation::Replace), ..policy.clone() }, &job);
        holds(releases, "min_sigma", JobPolicy { min_sigma: 2.0 * policy.min_sigma + 1e-9, ..policy.clone() }, &job);
        assert!(!has_noise || releases, "{name}");

        for pinned in [None, Some("cd".repeat(32))] {
            holds(has_worker, "the pin", JobPolicy { worker_fingerprint: pinned, ..policy.clone() }, &job);
        }
        let mut plain = job.clone();
        plain.worker.as_mut().unwrap().insecure_plaintext = true;
        holds(has_worker, "plaintext", policy.clone(), &plain);
        let mut nobody = job.clone();
        nobody.worker.as_mut().unwrap().fingerprint = None;
        holds(has_worker, "no fingerprint", policy.clone(), &nobody);

        let mut unsealed = job.clone();
        unsealed.vault = None;
        assert_eq!(refusal(policy.clone(), &unsealed), Some(JobRefusal::Vault), "{name}");
        holds(false, "no vault", JobPolicy { require_vault: false, ..policy.clone() }, &unsealed);
        let mut study = job.clone();
        let timed = Speedup { batch: 1, repeats: 1, variants: vec![], train: false, seed: 1 };
        study.task = timed.task().unwrap();
        assert_eq!(refusal(policy.clone(), &study), Some(JobRefusal::Task), "{name}");

        // Whatever budget the job asks for, it has no more than the policy's.
        for budget in [None, Some(1e-3), Some(f64::INFINITY)] {
            let mut job = job.clone();
            job.terms.budget_epsilon = budget;
            assert_eq!(JobRules::Measured(policy.clone()).allow(&mut job, &registry), Ok(()), "{name}");
            let least = budget.into_iter().chain(policy.max_epsilon).reduce(f64::min);
            assert_eq!(job.terms.budget_epsilon, least, "{name}");
        }
        assert_eq!(JobRules::Missing.allow(&mut job.clone(), &registry), Err(JobRefusal::NoPolicy));
        assert_eq!(JobRules::Host.allow(&mut job.clone(), &registry), Ok(()));
    }
}

#[test]
fn a_policy_says_what_it_means() {
    let refused = |json: &str| serde_json::from_str::<JobPolicy>(json).unwrap_err().to_string();
    assert!(refused(r#"{"modes":[],"require_vault":true,"max_epsilom":1}"#).starts_with("unknown field `max_epsilom`"));
    assert!(refused(r#"{"modes":[]}"#).starts_with("missing field `require_vault`"));
    let short: JobPolicy = serde_json::from_str(r#"{"modes":["trusted-only"],"require_vault":false}"#).unwrap();
    assert_eq!((short.max_epsilon, short.max_delta, short.worker_fingerprint), (None, 1e-5, None));
}

/// What the host hears, up to the end of the job.
fn told(rules: &JobRules, job: JobSpec) -> Vec<FromTrusted> {
    let (reader, mut to) = std::io::pipe().unwrap();
    write_frame(&mut to, &ToTrusted::Start(Box::new(job), Body::Empty), &[]).unwrap();
    let mut heard = Vec::new();
    serve(reader, &mut heard, &Registry::default(), rules, &|_| Err("no vault is opened".to_owned())).unwrap();
    drop(to);
    let mut heard = &heard[..];
    let limits = Limits { header_bytes: 4 << 20, body_bytes: 1 << 30 };
    let mut messages = Vec::new();
    loop {
        match read_frame::<FromTrusted>(&mut heard, limits) {
            Ok(frame) => messages.push(frame.header),
            Err(WireError::Closed) => return messages,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_job_without_leave_is_not_begun_and_one_that_only_the_host_allows_says_so() {
    for (name, job, policy) in asked() {
        for rules in [JobRules::Missing, JobRules::Measured(JobPolicy { modes: Vec::new(), ..policy })] {
            // The vault would be opened, the data read and the worker called; none of it happens.
            let messages = told(&rules, job.clone());
            let [FromTrusted::Ready, FromTrusted::Failed(failure)] = &messages[..] else { panic!("{messages:?}") };
            assert_eq!(failure.code, FailureCode::Job, "{name}");
            assert!(failure.detail.contains("policy"), "{}", failure.detail);
        }
    }
    let (_, mut job, mut policy) = asked().into_iter().find(|(name, ..)| *name == "trusted-only").unwrap();
    (job.vault, policy.require_vault) = (None, false);
    for (rules, is_told) in [(JobRules::Host, true), (JobRules::Measured(policy), false)] {
        let messages = told(&rules, job.clone());
        assert_eq!(messages.contains(&FromTrusted::Notice(Notice::HostDecides)), is_told);
        assert!(matches!(messages.last(), Some(FromTrusted::Done(_))), "{messages:?}");
    }
}
