//! The trusted side of AsymML under a worker that answers at once, beside trusted-only.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use asymflow::modes::{AsymMl, AsymMlParts, Mode, Registry, TrainBatch, TrustedOnly};
use asymflow::plan::{Plan, SplitSpec};
use asymflow_engine::program::Program;
use asymflow_engine::timing::Seconds;
use asymflow_privacy::{
    Released,
    accountants::Relation,
    door::Gate,
    mechanisms::InsecureNone,
    payload::{Payload, Precision},
    records::RecordAccountant,
};
use asymflow_residual::{
    ResidualBackend,
    backend::{
        Availability, Batch, CollectError, OpenError, Pass, ResidualModel, ResidualSession, ResidualTraining, SgdStep,
        SubmitError, Ticket, Unit, UnitId, Wanted, WorkerStats,
    },
};
use asymflow_zoo::{Weights, by_name};
use faer::Par;

type Failure = Box<dyn std::error::Error>;
const THREADS: usize = 2;
const SGD: SgdStep = SgdStep::plain(1e-4, 0.9, 5e-4);

#[derive(Debug)]
struct Null;
struct NullSession {
    units: Vec<Unit>,
    results: HashMap<Ticket, Batch>,
    samples: HashMap<UnitId, usize>,
    next: u64,
}

impl ResidualBackend for Null {
    fn name(&self) -> &'static str {
        "null"
    }
    fn probe(&self) -> Availability {
        Availability::Ready { device: "none".into() }
    }
    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        Ok(Box::new(NullSession {
            units: model.units.clone(),
            results: HashMap::new(),
            samples: HashMap::new(),
            next: 0,
        }))
    }
}

impl NullSession {
    fn give(&mut self, batch: Batch) -> Ticket {
        self.next += 1;
        self.results.insert(Ticket(self.next), batch);
        Ticket(self.next)
    }
}

static SPENT: AtomicU64 = AtomicU64::new(0);

fn answer(len: usize) -> Vec<f32> {
    let start = Instant::now();
    let mut v: Vec<f32> = Vec::with_capacity(len);
    v.extend(std::iter::repeat_n(1e-3_f32, len));
    SPENT.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    v
}

impl ResidualSession for NullSession {
    fn submit(&mut self, unit: UnitId, x: Released<Payload>, _pass: Pass) -> Result<Ticket, SubmitError> {
        let Unit::Conv(conv) = &self.units[unit.0 as usize] else { unreachable!() };
        let samples = x.get().len() / conv.input.len();
        let len = samples * conv.output().len();
        self.samples.insert(unit, samples);
        Ok(self.give(Batch::Outputs(answer(len))))
    }
    fn collect(&mut self, ticket: Ticket) -> Result<Batch, CollectError> {
        self.results.remove(&ticket).ok_or(CollectError::Ticket(ticket))
    }
    fn stats(&self) -> WorkerStats {
        WorkerStats::default()
    }
}

impl ResidualTraining for NullSession {
    fn submit_gradient(&mut self, unit: UnitId, _dy: Released<Payload>, wanted: Wanted) -> Result<Ticket, SubmitError> {
        let Unit::Conv(conv) = &self.units[unit.0 as usize] else { unreachable!() };
        let input = if wanted.input { self.samples[&unit] * conv.input.len() } else { 0 };
        let weights = conv.weights();
        Ok(self.give(Batch::Gradients { input: answer(input), weights: answer(weights) }))
    }
    fn set_weights(&mut self, _unit: UnitId, _weights: &[f32]) -> Result<(), SubmitError> {
        Ok(())
    }
    fn add_weights(&mut self, _unit: UnitId, _delta: Payload) -> Result<(), SubmitError> {
        Ok(())
    }
    fn step(&mut self, _unit: UnitId, _sgd: SgdStep) -> Result<(), SubmitError> {
        Ok(())
    }
    fn weights(&mut self, _unit: UnitId) -> Result<Vec<f32>, CollectError> {
        Ok(Vec::new())
    }
    fn reset(&mut self) -> Result<(), SubmitError> {
        Ok(())
    }
}

fn repeats() -> usize {
    std::env::var("REPEATS").ok().and_then(|n| n.parse().ok()).unwrap_or(7)
}

fn total(seconds: &[Seconds]) -> Seconds {
    let mut sum = Seconds::default();
    seconds.iter().for_each(|s| sum.add(s));
    sum
}

struct Row {
    times: Vec<f64>,
    parts: Seconds,
    layers: Vec<Seconds>,
}

fn times(mode: &mut dyn Mode, mut work: impl FnMut(&mut dyn Mode) -> Result<(), Failure>) -> Result<Row, Failure> {
    work(mode)?;
    work(mode)?;
    let before = mode.seconds().to_vec();
    let mut times = Vec::new();
    for _ in 0..repeats() {
        SPENT.store(0, Ordering::Relaxed);
        let start = Instant::now();
        work(mode)?;
        times.push(start.elapsed().as_secs_f64() - SPENT.load(Ordering::Relaxed) as f64 * 1e-9);
    }
    let layers: Vec<Seconds> = mode.seconds().iter().zip(&before).map(|(now, before)| now.since(before)).collect();
    times.sort_by(f64::total_cmp);
    Ok(Row { times, parts: total(&layers), layers })
}

fn measure(mode: &mut dyn Mode, images: &[f32], samples: usize) -> Result<[Row; 2], Failure> {
    let records: Vec<usize> = (0..samples).collect();
    let labels: Vec<u32> = (0..samples as u32).map(|i| i % 10).collect();
    let inference = times(mode, |mode| Ok(mode.infer(images, &records).map(drop)?))?;
    let batch = TrainBatch::new(images, &labels, &records)?;
    let training = times(mode, |mode| Ok(mode.step(batch, SGD).map(drop)?))?;
    Ok([inference, training])
}

fn show(name: &str, batch: usize, what: &str, variant: &str, row: &Row, base: f64, plan: Option<&Plan>) {
    let n = repeats() as f64;
    let m = row.times[row.times.len() / 2];
    let p = row.parts;
    let known = p.decompose + p.fold + p.trusted + p.release + p.wait;
    let ms = |s: f64| s / n * 1e3;
    let mean = row.times.iter().sum::<f64>();
    println!(
        "{name:18} {batch:3} {what:9} {variant:28} {:8.2} ms ({:.2}-{:.2}) {:5.2}x | dec {:.2} fold {:.2} conv {:.2} rel {:.2} wait {:.2} other {:.2}",
        m * 1e3,
        row.times[0] * 1e3,
        row.times[row.times.len() - 1] * 1e3,
        base / m,
        ms(p.decompose),
        ms(p.fold),
        ms(p.trusted),
        ms(p.release),
        ms(p.wait),
        ms(mean - known)
    );
    if std::env::var("LAYERS").is_ok() {
        for (i, l) in row.layers.iter().enumerate() {
            let at = plan.map(|p| format!("{} {:?}", p.convs[i].layer, p.convs[i].placement)).unwrap_or_default();
            println!(
                "    {i:2} dec {:.3} fold {:.3} conv {:.3} rel {:.3} wait {:.3} {at}",
                ms(l.decompose),
                ms(l.fold),
                ms(l.trusted),
                ms(l.release),
                ms(l.wait)
            );
        }
    }
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let cases = args.first().cloned().unwrap_or_else(|| {
        "resnet18-cifar@8,resnet18-cifar@32,vgg16-cifar@8,vgg16-cifar@32,resnet18-imagenet@8,vgg16-imagenet@8".into()
    });
    let variants = args.get(1).cloned().unwrap_or_else(|| "gram/doubling:2:32,gram/fixed:8,gram/fixed:4".into());
    let par = Par::rayon(THREADS);
    let registry = Registry::default();
    let precision = if std::env::var("F16").is_ok() { Precision::F16 } else { Precision::F32 };
    for case in cases.split(',') {
        let (name, samples) = case.split_once('@').ok_or("case")?;
        let samples: usize = samples.parse()?;
        let network = by_name(name, 10, None)?;
        let weights = Weights::init(&network, 1);
        let images: Vec<f32> =
            (0..samples * network.input.len()).map(|i| ((i * 7919) % 255) as f32 / 255.0 - 0.5).collect();
        let base = measure(&mut TrustedOnly::new(network.clone(), &weights, par)?, &images, samples)?;
        let b = [base[0].times[base[0].times.len() / 2], base[1].times[base[1].times.len() / 2]];
        for (what, i) in [("inference", 0), ("step", 1)] {
            show(name, samples, what, "trusted-only", &base[i], b[i], None);
        }
        for variant in variants.split(',') {
            let (decomposition, rank) = variant.split_once('/').ok_or("variant")?;
            let spec = SplitSpec { decomposition: decomposition.into(), rank: rank.into(), ..SplitSpec::default() };
            let plan = Plan::asymml(&Program::new(&network)?, &spec, samples)?;
            let parts = AsymMlParts {
                plan: plan.clone(),
                decomposer: registry.decomposer(decomposition)?,
                gate: Gate::new(Box::new(InsecureNone), None, Relation::Remove)?,
                precision,
                verify: false,
                backend: Arc::new(Null),
                accountant: RecordAccountant::new(samples),
            };
            let rows = measure(&mut AsymMl::new(network.clone(), weights.clone(), parts, par)?, &images, samples)?;
            for (what, i) in [("inference", 0), ("step", 1)] {
                show(name, samples, what, variant, &rows[i], b[i], Some(&plan));
            }
        }
    }
    Ok(())
}
