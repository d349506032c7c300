//! The audit: what a mode leaks, by attacks on a recorder's copy of what crossed.

mod epsilon;
mod scene;

use asymflow_audit::attack::{Budget, Guess};
use asymflow_audit::attacks::{Completion, Inversion, LastGradient, MaskedCompletion, ReleasedLabels};
use asymflow_audit::figures::{AttackRow, Control, Interval, Roc};
use asymflow_audit::membership::{Fit, Shadows, confidences, lira, rmia};
use asymflow_audit::tape::{Kind, Lie, Tape};
use asymflow_audit::traffic::{mutual_information, shape_of};
use asymflow_audit::{Attack, AuditError};
use asymflow_privacy::payload::Payload;
use asymflow_residual::backend::{Pass, Unit, UnitId};
use asymflow_zoo::Weights;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::speedup::NamedMode;
use super::study::{Bench, Study};
use crate::hex::hex;
use crate::job::{JobSpec, TrainReport, TrainSpec};
use crate::memory::{MemoryError, MemoryPlan};
use crate::modes::{ModeError, ModeRef, ModeSpec, Registry};
use crate::run::RunError;
pub use epsilon::epsilon_rows;
use scene::{Images, Scene, Watched};

/// Trains a network in a mode and attacks it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// How the mode is called in rows.
    pub label: String,
    /// How the network is trained.
    pub train: TrainSpec,
    /// Test images that are attacked.
    pub targets: usize,
    /// Test images that the attacker has.
    pub public: usize,
    /// Training images, and as many others, of which membership is asked.
    pub members: usize,
    /// Shadow networks.
    pub shadows: usize,
    /// Tries at every pixel of a completion.
    pub tries: usize,
    /// Passes over the public images of a decoder.
    pub decoder_epochs: usize,
    /// How often the targets are asked about again where noise is averaged.
    pub repeats: Vec<usize>,
    /// Target images that the report shows beside what an inversion makes of them.
    pub pictures: usize,
    /// The same weights in the mode with other settings, for completion and lies.
    pub variants: Vec<NamedMode>,
    /// Attacks to run; all where empty.
    pub attacks: Vec<String>,
    /// Seed of the attackers.
    pub seed: u64,
}

/// An image that was attacked and what was made of it, C×H×W, a byte in two hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// Rows and columns.
    pub size: (usize, usize),
    /// The original.
    pub original: String,
    /// What an inversion made of it.
    pub rebuilt: String,
}

/// What an audit of one mode found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Figures of all attacks.
    pub attacks: Vec<AttackRow>,
    /// Attacks that do not apply, and why.
    pub skipped: Vec<String>,
    /// What training measured.
    pub training: TrainReport,
    /// Images beside what was made of them.
    pub pictures: Vec<Picture>,
}

impl Study for Audit {
    type Report = AuditReport;
    const NAME: &'static str = "audit";

    fn batch(&self) -> usize {
        self.train.batch.max(self.targets)
    }

    fn memory(&self, job: &JobSpec, registry: &Registry) -> Result<MemoryPlan, MemoryError> {
        let mut plan = MemoryPlan::of_training(job, &self.train, registry)?;
        let mode = registry.decode(&job.mode).map_err(MemoryError::job)?;
        let split = mode.plan(&job.network, self.train.batch, Pass::Training).map_err(MemoryError::job)?;
        let released: u64 = split.iter().flat_map(|plan| &plan.convs).map(|conv| conv.released_values).sum();
        let sample = released.max(job.network.input.len() as u64);
        // Tapes of public images and targets, the decoder's input, and images as numbers.
        let images = (self.public + self.targets + 2 * self.members) as u64;
        plan.state_bytes += 4 * images * (2 * sample + 100 * job.network.input.pixels() as u64);
        Ok(plan.peaked())
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<AuditReport, RunError> {
        let trained = (bench.train)(&self.train, 0)?;
        let images = Images::new(self, &trained)?;
        let spec = bench.registry.decode(&bench.job.mode)?;
        let mut attacker = Attacker {
            audit: self,
            bench,
            images: &images,
            weights: &trained.weights,
            rows: Vec::new(),
            skipped: Vec::new(),
            pictures: Vec::new(),
        };
        attacker.attack(&*spec, &bench.job.mode)?;
        let Attacker { rows, skipped, pictures, .. } = attacker;
        Ok(AuditReport { attacks: rows, skipped, training: trained.report, pictures })
    }
}

/// The attacks on one trained mode.
struct Attacker<'a, 'b> {
    audit: &'a Audit,
    bench: &'a Bench<'b>,
    images: &'a Images,
    weights: &'a Weights,
    rows: Vec<AttackRow>,
    skipped: Vec<String>,
    pictures: Vec<Picture>,
}

impl Attacker<'_, '_> {
    fn attack(&mut self, spec: &dyn ModeSpec, mode: &ModeRef) -> Result<(), RunError> {
        let mut watched = self.open(spec, None)?;
        if spec.needs_worker() {
            let wants_images = self.wants("inversion") || !self.bench.registry.attacks().is_empty();
            let weights = (self.images, self.weights);
            let scene = Scene::record(self.bench, spec, weights, &mut watched, wants_images)?;
            self.completion(&scene, &mut watched)?;
            for attack in self.bench.registry.attacks() {
                let on = (&*self.audit.label, attack.name());
                self.judged(on, &**attack, &scene, &scene.targets, Control::Attack)?;
            }
            self.training(&scene, spec, &mut watched)?;
            if self.wants("inversion") {
                self.inversion(&scene)?;
            }
            if self.wants("traffic") {
                self.traffic(&mut watched)?;
            }
            if self.wants("lying worker") {
                self.lies(spec, mode, &scene)?;
            }
        }
        if self.wants("membership") && self.audit.shadows > 0 {
            self.membership(&mut watched)?;
        }
        for variant in &self.audit.variants {
            let spec = self.bench.registry.decode(&variant.mode)?;
            let mut watched = self.open(&*spec, None)?;
            let scene = Scene::record(self.bench, &*spec, (self.images, self.weights), &mut watched, false)?;
            self.completion_of(&variant.name, &scene, &mut watched, &[1])?;
        }
        Ok(())
    }

    fn wants(&self, attack: &str) -> bool {
        self.audit.attacks.is_empty() || self.audit.attacks.iter().any(|wanted| wanted == attack)
    }

    fn open(&self, spec: &dyn ModeSpec, lie: Option<Lie>) -> Result<Watched, RunError> {
        Watched::open(self.bench, spec, (self.audit, self.images, self.weights), lie)
    }

    fn budget(&self) -> Budget {
        let Audit { tries, decoder_epochs: epochs, seed, .. } = *self.audit;
        Budget { tries, epochs, seed }
    }

    fn row(&mut self, attack: &str, figure: &str, interval: Interval, control: Control) {
        self.row_of(&self.audit.label.clone(), attack, figure, interval, control);
    }

    fn row_of(&mut self, mode: &str, attack: &str, figure: &str, interval: Interval, control: Control) {
        let (attack, mode, figure) = (attack.to_owned(), mode.to_owned(), figure.to_owned());
        let Interval { value, low, high } = interval;
        self.rows.push(AttackRow { attack, mode, figure, value, low, high, control });
    }

    /// A guess and its figures; one that does not apply is kept as skipped.
    fn judged(
        &mut self,
        (mode, what): (&str, &str),
        attack: &dyn Attack,
        scene: &Scene,
        tape: &Tape,
        control: Control,
    ) -> Result<Option<Guess>, RunError> {
        let sight = scene.sight(self.bench, self.weights, self.images, tape);
        match attack.guess(&sight, self.budget()) {
            Ok(guess) => {
                for (figure, interval) in scene.truth.judge(attack.name(), &guess)? {
                    self.row_of(mode, what, figure, interval, control);
                }
                Ok(Some(guess))
            }
            Err(error @ AuditError::NotApplicable { .. }) => {
                self.skipped.push(format!("{mode}: {what}: {error}"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn completion(&mut self, scene: &Scene, watched: &mut Watched) -> Result<(), RunError> {
        let (label, repeats) = (self.audit.label.clone(), self.audit.repeats.clone());
        self.completion_of(&label, scene, watched, &repeats)
    }

    fn completion_of(
        &mut self,
        mode: &str,
        scene: &Scene,
        watched: &mut Watched,
        repeats: &[usize],
    ) -> Result<(), RunError> {
        if !self.wants("completion") || scene.ranks.is_empty() {
            return Ok(());
        }
        for &repeats in repeats {
            let tape = if repeats > 1 { self.repeated(watched, repeats)? } else { scene.targets.clone() };
            let units: Vec<UnitId> = scene.units().map(|(unit, _)| unit).collect();
            for unit in units {
                let averaged = if repeats > 1 { format!(", {repeats} times averaged") } else { String::new() };
                let what = format!("completion of layer {} at rank {}{averaged}", unit.0, scene.ranks[unit.0 as usize]);
                self.judged((mode, &what), &Completion { unit, repeats }, scene, &tape, Control::Attack)?;
                if repeats == 1 {
                    let alone = Guess::Activations(unit, tape.values(unit, Kind::Input(Pass::Inference)));
                    for (figure, interval) in scene.truth.judge("residual", &alone)? {
                        self.row_of(mode, &format!("{what}: the residual alone"), figure, interval, Control::Baseline);
                    }
                }
            }
        }
        Ok(())
    }

    /// What crosses when the targets are asked about so many times.
    fn repeated(&self, watched: &mut Watched, times: usize) -> Result<Tape, RunError> {
        let targets = &self.images.targets;
        watched.tape();
        for _ in 0..times {
            watched.infer_again(&targets.images, targets.labels.len())?;
        }
        Ok(watched.tape())
    }

    /// What a training step says of labels and zeros.
    fn training(&mut self, scene: &Scene, spec: &dyn ModeSpec, watched: &mut Watched) -> Result<(), RunError> {
        if !self.wants("labels") {
            return Ok(());
        }
        let label = self.audit.label.clone();
        // Labels that are stored were sent before the first step.
        let mut opened = self.open(spec, None)?;
        opened.step(&self.images.targets)?;
        let first = opened.tape();
        self.judged((&label, "labels as released"), &ReleasedLabels, scene, &first, Control::Attack)?;
        watched.tape();
        watched.step(&self.images.targets)?;
        let discarded = watched.tape();
        drop(discarded);
        watched.step(&self.images.targets)?;
        let tape = watched.tape();
        let control = if spec.computes_here() { Control::Attack } else { Control::MustWin };
        self.judged((&label, "labels from the last gradient"), &LastGradient, scene, &tape, control)?;
        let most = {
            let classes = self.bench.job.network.classes;
            let count = |class: usize| self.images.targets.labels.iter().filter(|&&l| l as usize == class).count();
            (0..classes).map(count).max().unwrap_or_default()
        };
        let chance = Interval::share(most, self.images.targets.labels.len());
        self.row("labels: the most frequent one", "labels right", chance, Control::Baseline);
        for unit in 1..scene.ranks.len() as u32 {
            let attack = MaskedCompletion { unit: UnitId(unit), before: UnitId(unit - 1) };
            let what = format!("{} of layer {unit}", attack.name());
            self.judged((&label, &what), &attack, scene, &tape, Control::Attack)?;
        }
        Ok(())
    }

    fn inversion(&mut self, scene: &Scene) -> Result<(), RunError> {
        let attack = Inversion { width: 32 };
        let label = self.audit.label.clone();
        let is_clear = scene.model.units.first().is_some_and(
            |unit| matches!(unit, Unit::Network(network) if network.input == self.bench.job.network.input),
        ) && self
            .bench
            .registry
            .decode(&self.bench.job.mode)?
            .insecure(crate::modes::Purpose::Training)
            .contains(&"insecure_none".to_owned());
        let control = if is_clear { Control::MustWin } else { Control::Attack };
        let guess = self.judged((&label, "inversion"), &attack, scene, &scene.targets, control)?;
        if let Some(Guess::Images(images)) = guess {
            self.show(scene, &images);
        }
        let (len, public) = (scene.truth.shape.len(), &self.images.public.images);
        let samples = public.len() / len;
        let mean: Vec<f32> =
            (0..len).map(|i| public.iter().skip(i).step_by(len).sum::<f32>() / samples as f32).collect();
        let blank = Guess::Images(mean.repeat(self.audit.targets));
        for (figure, interval) in scene.truth.judge("mean image", &blank)? {
            self.row("inversion: the mean image", figure, interval, Control::Baseline);
        }
        // The attack on noise of the same size must not win.
        let noise = Scene {
            truth: scene.truth.clone(),
            model: scene.model.clone(),
            ranks: scene.ranks.clone(),
            shares_basis: scene.shares_basis,
            public: noised(&scene.public, self.audit.seed),
            targets: noised(&scene.targets, self.audit.seed + 1),
        };
        self.judged((&label, "inversion of noise alone"), &attack, &noise, &noise.targets, Control::MustNot)?;
        Ok(())
    }

    fn show(&mut self, scene: &Scene, rebuilt: &[f32]) {
        let shape = scene.truth.shape;
        let pairs = scene.truth.images.chunks_exact(shape.len()).zip(rebuilt.chunks_exact(shape.len()));
        for (original, rebuilt) in pairs.take(self.audit.pictures) {
            let (low, high) = original.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
            let byte = |v: &f32| (255.0 * (v - low) / (high - low).max(1e-6)) as u8;
            let bytes = |image: &[f32]| hex(&image.iter().map(byte).collect::<Vec<u8>>());
            let size = (shape.height, shape.width);
            self.pictures.push(Picture { size, original: bytes(original), rebuilt: bytes(rebuilt) });
        }
    }

    /// What sizes and counts say of the class, and whether a size that depends on the data would be noticed.
    fn traffic(&mut self, watched: &mut Watched) -> Result<(), RunError> {
        let targets = &self.images.targets;
        let len = targets.images.len() / targets.labels.len().max(1);
        let mut shapes = Vec::new();
        for image in targets.images.chunks_exact(len) {
            watched.tape();
            watched.infer(image, 1)?;
            shapes.push(shape_of(&watched.tape()));
        }
        // The first one holds the trial of the worker, where there is one.
        let information = mutual_information(&shapes[1..], &targets.labels[1..]);
        self.row("traffic", "bits of the class", Interval::exact(information), Control::Attack);
        let sizes: Vec<usize> = targets.images.chunks_exact(len).map(runs).collect();
        let planted = mutual_information(&sizes, &targets.labels);
        self.row("traffic that packs runs", "bits of the class", Interval::exact(planted), Control::Planted);
        Ok(())
    }

    fn membership(&mut self, watched: &mut Watched) -> Result<(), RunError> {
        let network = &self.bench.job.network;
        let Images { public, members, others, .. } = self.images;
        let TrainSpec { epochs, batch, learning_rate, weight_decay, .. } = self.audit.train;
        let fit = Fit { epochs, batch: batch.min(32), learning_rate, weight_decay, seed: self.audit.seed };
        let failed = |error| RunError::from(AuditError::Engine(error));
        let mut shadows =
            Shadows::train(network, &public.images, &public.labels, (self.audit.shadows, fit)).map_err(failed)?;
        let mut of = |images: &[f32], labels: &[u32]| -> Result<(Vec<f64>, Vec<Vec<f64>>), RunError> {
            let logits = watched.infer(images, 64)?;
            let shadows = shadows.confidences(images, labels).map_err(failed)?;
            Ok((confidences(&logits, labels, network.classes), shadows))
        };
        let (member, other) = (of(&members.images, &members.labels)?, of(&others.images, &others.labels)?);
        // A half of those that nobody has seen is the population; the other half is asked about.
        let half = other.0.len() / 2;
        let population = (other.0[..half].to_vec(), other.1.iter().map(|s| s[..half].to_vec()).collect::<Vec<_>>());
        let other = (other.0[half..].to_vec(), other.1.iter().map(|s| s[half..].to_vec()).collect::<Vec<_>>());
        let on = (&population.0[..], &population.1[..]);
        let rocs = [
            ("LiRA", Roc::of(&lira(&member.0, &member.1), &lira(&other.0, &other.1))),
            ("RMIA", Roc::of(&rmia(&member.0, &member.1, on), &rmia(&other.0, &other.1, on))),
        ];
        for (name, roc) in rocs {
            let what = format!("membership by {name}");
            self.row(&what, "AUC", roc.auc, Control::Attack);
            self.row(&what, "TPR at 1 % FPR", roc.tpr_at_1_percent, Control::Attack);
            self.row(&what, "TPR at 0.1 % FPR", roc.tpr_at_01_percent, Control::Attack);
        }
        // A network that never saw the data.
        let (unseen, rest) = (|of: &(Vec<f64>, Vec<Vec<f64>>)| of.1.first().cloned().unwrap_or_default(), 1);
        let shadows = |of: &(Vec<f64>, Vec<Vec<f64>>)| of.1.get(rest..).unwrap_or_default().to_vec();
        let roc = Roc::of(&lira(&unseen(&member), &shadows(&member)), &lira(&unseen(&other), &shadows(&other)));
        self.row("membership by LiRA, of a network that never saw the data", "AUC", roc.auc, Control::MustNot);
        Ok(())
    }

    /// A worker that adds large numbers to as many channels as the rank: they become the principal directions, and the residual is all
    /// other channels whole.
    fn lies(&mut self, spec: &dyn ModeSpec, mode: &ModeRef, scene: &Scene) -> Result<(), RunError> {
        let (Some(Unit::Conv(conv)), Some(&rank), true) =
            (scene.model.units.first(), scene.ranks.get(1), scene.truth.activations.contains_key(&UnitId(1)))
        else {
            return Ok(());
        };
        let output = conv.output();
        let mut rng = ChaCha8Rng::seed_from_u64(self.audit.seed);
        let lied = rank.min(output.channels) * output.pixels();
        let offset = (0..output.len()).map(|i| if i < lied { LIE * rng.random::<f32>() } else { 0.0 }).collect();
        let lie = Lie { unit: UnitId(0), offset };
        let (_, truth) = &scene.truth.activations[&UnitId(1)];
        let honest = scene.targets.values(UnitId(1), Kind::Input(Pass::Inference));
        self.row(
            "lying worker: an honest one",
            "cosine with the activation",
            cosines(&honest, truth, self.audit.targets),
            Control::Baseline,
        );
        let mut found = false;
        for is_verified in [true, false] {
            let Some(spec) = verified(self.bench.registry, spec, mode, is_verified)? else { return Ok(()) };
            let mut watched = self.open(&*spec, Some(lie.clone()))?;
            watched.tape();
            let answered = watched.infer(&self.images.targets.images, self.audit.targets);
            if is_verified {
                found = answered.is_err();
                continue;
            }
            answered?;
            watched.tape();
            watched.infer(&self.images.targets.images, self.audit.targets)?;
            let seen = watched.tape().values(UnitId(1), Kind::Input(Pass::Inference));
            let cosine = cosines(&seen, truth, self.audit.targets);
            self.row("lying worker, unverified", "cosine with the activation", cosine, Control::MustWin);
        }
        let share = Interval::share(usize::from(found), 1);
        self.row("lying worker, verified", "lies found out", share, Control::Planted);
        Ok(())
    }
}

/// Size of a lie beside activations of about one.
const LIE: f32 = 300.0;

/// The mode with answers verified or not, where that can be said of it.
fn verified(
    registry: &Registry,
    spec: &dyn ModeSpec,
    mode: &ModeRef,
    is_verified: bool,
) -> Result<Option<std::sync::Arc<dyn ModeSpec>>, RunError> {
    let malformed = |error| ModeError::Malformed { mode: spec.name().to_owned(), error };
    let mut settings: serde_json::Value = serde_json::from_str(&mode.settings).map_err(malformed)?;
    let Some(verify) = settings.get_mut("verify") else { return Ok(None) };
    *verify = is_verified.into();
    Ok(Some(registry.decode(&ModeRef { settings: settings.to_string(), ..mode.clone() })?))
}

/// |cosine| of what was seen and the truth, sample by sample.
fn cosines(seen: &[f32], truth: &[f32], samples: usize) -> Interval {
    let of = |(a, b): (&[f32], &[f32])| {
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
        dot(a, b).abs() / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
    };
    let len = truth.len() / samples.max(1);
    Interval::mean(&seen.chunks_exact(len).zip(truth.chunks_exact(len)).map(of).collect::<Vec<_>>())
}

/// How long an image would be if runs of like pixels were packed, in units of a twentieth of its length.
fn runs(image: &[f32]) -> usize {
    20 * image.windows(2).filter(|pair| (pair[0] - pair[1]).abs() > 0.3).count() / image.len().max(1)
}

/// The same messages of noise of the same size.
fn noised(tape: &Tape, seed: u64) -> Tape {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut tape = tape.clone();
    for message in &mut tape.messages {
        let values = std::mem::replace(&mut message.values, Payload::F32(Vec::new())).into_f32();
        let rms = (values.iter().map(|v| v * v).sum::<f32>() / values.len().max(1) as f32).sqrt();
        let noise = |_: &f32| rms * Distribution::<f32>::sample(&StandardNormal, &mut rng);
        message.values = Payload::F32(values.iter().map(noise).collect());
    }
    tape
}
