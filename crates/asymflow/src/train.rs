//! The training loop, the same for every mode.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use asymflow_engine::loss::argmax;
use asymflow_engine::timing::Seconds;
use asymflow_privacy::{Door, Loss, accountants::AccountantError, records::RecordLedger};
use asymflow_residual::backend::{SgdStep, WorkerStats};
use asymflow_zoo::data::{Augment, Batch, Loader, Normalization, Split, epoch_order};
use rand::Rng;
use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointError, Identity, Position};
use crate::job::{EpochReport, FromTrusted, Notice, Schedule, Traffic, TrainReport, TrainSpec};
use crate::memory::MemoryUse;
use crate::modes::{ExecError, Mode, Records, Recovered, TrainBatch, TrainState, Unkept, secret_rng};
use crate::teaching::Teacher;

/// Hears what a job has to say. An error ends the job: the host is gone.
pub trait Observer {
    /// Takes one message and its body.
    ///
    /// # Errors
    /// The host cannot be told.
    fn tell(&mut self, message: FromTrusted, body: &[u8]) -> Result<(), HostGone>;
}

/// The host cannot be told any more.
#[derive(Debug, Error)]
#[error("the host is gone: {0}")]
pub struct HostGone(pub String);

/// Why training ended early.
#[derive(Debug, Error)]
pub enum TrainError {
    /// A batch could not be executed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A checkpoint could not be used or made.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// No ε can be given.
    #[error(transparent)]
    Accountant(#[from] AccountantError),
    /// Nobody listens.
    #[error(transparent)]
    Host(#[from] HostGone),
}

/// Everything a training run is given.
#[derive(Debug)]
pub struct Training<'a> {
    /// How to train.
    pub spec: &'a TrainSpec,
    /// Random crops and flips.
    pub augment: bool,
    /// δ at which ε is reported.
    pub delta: f64,
    /// How long a lost worker is waited for.
    pub patience: Duration,
    /// What its checkpoints belong to.
    pub identity: &'a Identity,
    /// The data.
    pub data: &'a Split,
    /// Set when the run is to end after the current step.
    pub stop: &'a AtomicBool,
}

/// Rate at `step` of the `steps` of its schedule.
fn learning_rate(spec: &TrainSpec, step: usize, steps: usize) -> f32 {
    match spec.schedule {
        Schedule::Constant => spec.learning_rate,
        Schedule::Cosine => {
            let progress = step as f32 / steps.max(1) as f32;
            spec.learning_rate * 0.5 * (1.0 + (std::f32::consts::PI * progress).cos())
        }
    }
}

struct Progress {
    position: Position,
    /// The position that belongs to the state which the mode can go back to by itself.
    kept: Position,
    report: TrainReport,
    /// Seconds of training in the epoch at hand.
    epoch_seconds: f64,
    teacher: Option<Teacher>,
}

/// How far [`Training::epoch`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The epoch is over.
    Whole,
    /// It was asked to stop.
    Stopped,
    /// The worker was lost; the epoch goes on at the progress' position.
    Lost,
}

impl Training<'_> {
    /// Trains `mode`, from the start or from a checkpoint, beside a teacher where there is one, telling `observer` as it goes.
    ///
    /// # Errors
    /// A batch that cannot be executed, a foreign checkpoint, or a host that is gone.
    pub fn run(
        &self,
        mode: &mut dyn Mode,
        from: Option<Checkpoint>,
        teacher: Option<Teacher>,
        observer: &mut dyn Observer,
    ) -> Result<TrainReport, TrainError> {
        let mut progress = self.start(mode, from, teacher)?;
        self.keep_first(mode, &progress.position, observer)?;
        let normalization = Normalization::of(&self.data.train);
        let augment = if self.augment { Augment::STANDARD } else { Augment::NONE };
        let train = Loader::new(&self.data.train, &normalization, augment, self.spec.seed);
        let test = Loader::new(&self.data.test, &normalization, Augment::NONE, self.spec.seed);
        while progress.position.epoch < self.spec.epochs {
            let ended = match self.epoch(mode, &train, &mut progress, observer) {
                Err(error) if self.keeps(&error) => {
                    progress.report.diverged = true;
                    progress.report.test_accuracy = None;
                    break;
                }
                ended => ended?,
            };
            match ended {
                Ended::Whole => self.end_epoch(mode, &test, &mut progress, observer)?,
                Ended::Lost => {}
                Ended::Stopped => {
                    let Some(state) = self.state(mode, &mut progress, observer)? else { continue };
                    progress.report.interrupted = true;
                    // Nothing is released after this one.
                    let spent = mode.door().map(|door| door.accountant().spent().to_vec()).unwrap_or_default();
                    self.keep(spent, state, &progress.position, observer)?;
                    break;
                }
            }
        }
        let mut report = progress.report;
        report.layers = mode.seconds().iter().map(|s| (String::new(), *s)).collect();
        for (_, seconds) in &report.layers {
            report.parts.add(seconds);
        }
        if let Some(worker) = mode.worker() {
            report.parts.worker = worker.busy_seconds;
            report.parts.transfer = worker.transfer_seconds;
        }
        report.epsilon = self.epsilon(mode)?;
        Ok(report)
    }

    fn start(
        &self,
        mode: &mut dyn Mode,
        from: Option<Checkpoint>,
        teacher: Option<Teacher>,
    ) -> Result<Progress, TrainError> {
        let mut position = Position::default();
        if let Some(checkpoint) = from {
            checkpoint.belongs_to(self.identity)?;
            mode.restore(&checkpoint.state)?;
            position = checkpoint.position;
        }
        let report = TrainReport {
            interrupted: false,
            diverged: false,
            train_images: self.data.train.len(),
            test_images: self.data.test.len(),
            test_accuracy: None,
            loss: 0.0,
            epsilon: None,
            trained_samples: 0,
            inferred_samples: 0,
            train_traffic: Traffic::default(),
            inference_traffic: Traffic::default(),
            train_seconds: 0.0,
            inference_seconds: 0.0,
            parts: Seconds::default(),
            layers: Vec::new(),
            reopened: 0,
            plan: None,
            normalization: Normalization::default(),
            class_names: Vec::new(),
            memory: MemoryUse::default(),
            memory_plan: None,
        };
        Ok(Progress { kept: position.clone(), position, report, epoch_seconds: 0.0, teacher })
    }

    /// A run that is killed before its first checkpoint must not begin again as if nothing had been released. Where ε is
    /// infinite there is nothing to forget.
    fn keep_first(
        &self,
        mode: &mut dyn Mode,
        position: &Position,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let Unkept { train, test } = mode.unkept_losses()?;
        let can_tell = |losses: &[Loss]| !losses.is_empty() && losses.iter().all(|&loss| loss != Loss::Infinite);
        if !(can_tell(&train) || can_tell(&test)) || position.epoch >= self.spec.epochs {
            return Ok(());
        }
        let mut state = mode.state()?;
        state.released = mode.released()?;
        self.checkpoint(mode, state, position, observer)
    }

    /// Leaves a checkpoint, whose losses include those that a run may have when it is killed before the next.
    fn checkpoint(
        &self,
        mode: &mut dyn Mode,
        state: TrainState,
        position: &Position,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let unkept = if position.epoch < self.spec.epochs { mode.unkept_losses()? } else { Unkept::default() };
        let train = self.data.train.len();
        let spent = |door: &mut Door| door.accountant().spent_with(train, &unkept.train, &unkept.test);
        let spent = mode.door().map(spent).unwrap_or_default();
        self.keep(spent, state, position, observer)
    }

    /// Leaves a checkpoint; one that is not finite never takes the place of one that is.
    fn keep(
        &self,
        spent: Vec<RecordLedger>,
        state: TrainState,
        position: &Position,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let checkpoint = Checkpoint { state, spent, position: position.clone(), identity: self.identity.clone() };
        let bytes = match checkpoint.encode() {
            Err(CheckpointError::NonFinite) if self.spec.keep_diverged => return Ok(()),
            encoded => encoded?,
        };
        let (epoch, step) = (position.epoch, position.step);
        Ok(observer.tell(FromTrusted::Checkpoint { epoch, step }, &bytes)?)
    }

    /// The batches of an epoch.
    fn order(&self, mode: &dyn Mode, epoch: usize) -> Result<Vec<Vec<u32>>, TrainError> {
        let (records, batch) = (self.data.train.len(), self.spec.batch);
        let Some(rate) = mode.sampling_rate(epoch) else {
            let order = epoch_order(self.spec.seed, epoch as u64, records);
            return Ok(order.chunks(batch).map(<[u32]>::to_vec).collect());
        };
        let mut rng = secret_rng().map_err(|e| ExecError::Kept(e.to_string()))?;
        // Of 2^32 outcomes, as many as make the rate, rounded down: to take part less often costs less.
        let below = (rate * 4_294_967_296.0) as u64;
        let mut sample = || (0..records as u32).filter(|_| u64::from(rng.next_u32()) < below).collect();
        Ok((0..records.div_ceil(batch)).map(|_| sample()).collect())
    }

    /// Runs the rest of the current epoch.
    fn epoch(
        &self,
        mode: &mut dyn Mode,
        loader: &Loader<'_>,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<Ended, TrainError> {
        let epoch = progress.position.epoch;
        let order = self.order(mode, epoch)?;
        let steps = order.len();
        let phase = mode.phase(epoch, self.spec.epochs);
        let mut batch = Batch::default();
        let start = Instant::now();
        let traffic = mode.worker().unwrap_or_default();
        let records = Records { loader, count: self.data.train.len(), batch: self.spec.batch };
        let drawn = mode.draw(epoch, &records);
        match self.unless_lost(drawn, mode, progress, observer)? {
            None => return Ok(Ended::Lost),
            Some(true) => {
                let Some(state) = self.state(mode, progress, observer)? else { return Ok(Ended::Lost) };
                self.checkpoint(mode, state, &progress.position, observer)?;
            }
            Some(false) => {}
        }
        let begun = mode.begin_epoch(epoch);
        if self.unless_lost(begun, mode, progress, observer)?.is_none() {
            return Ok(Ended::Lost);
        }
        tell_ledger(mode, observer)?;
        let sgd = |step: usize| SgdStep {
            learning_rate: learning_rate(
                self.spec,
                (epoch - phase.epochs.start) * steps + step,
                phase.epochs.len() * steps,
            ),
            momentum: self.spec.momentum,
            weight_decay: self.spec.weight_decay,
            clip_norm: self.spec.clip_norm.unwrap_or(f32::INFINITY),
            coefficient_rate: self.spec.coefficient_rate,
            first_layer_rate: self.spec.first_layer_rate,
        };
        let mut ended = Ended::Whole;
        let mut batches = order.iter().map(Vec::as_slice).enumerate().skip(progress.position.step).peekable();
        while let Some((step, indices)) = batches.next() {
            if self.stop.load(Ordering::Relaxed) {
                ended = Ended::Stopped;
                break;
            }
            loader.gather(Some(phase.view), indices, &mut batch);
            let records = record_numbers(indices);
            let next = batches.peek().map(|(step, indices)| (record_numbers(indices), sgd(*step)));
            let taught = match &mut progress.teacher {
                Some(teacher) => Some(teacher.logits(&batch.images, indices.len())?),
                None => None,
            };
            let lesson = progress.teacher.as_ref().zip(taught.as_deref());
            let mut train = TrainBatch::sampled(&batch.images, &batch.labels, &records)?;
            train.dropout_seed = self.spec.seed ^ ((epoch as u64) << 40) ^ ((step as u64) << 16) ^ 0xd209;
            train.view = phase.view;
            train.next = next.as_ref().map(|(records, sgd)| (records.as_slice(), *sgd));
            train.easing = self.spec.easing.at(epoch, step, steps);
            train.lesson = lesson.map(|(teacher, logits)| teacher.lesson(logits));
            let Some(loss) = self.step(mode, train, sgd(step), progress, observer)? else {
                ended = Ended::Lost;
                break;
            };
            observer.tell(FromTrusted::Step { epoch, step, loss }, &[])?;
            tell_ledger(mode, observer)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        progress.epoch_seconds += seconds;
        progress.report.train_seconds += seconds;
        add_traffic(&mut progress.report.train_traffic, traffic, mode.worker().unwrap_or_default());
        Ok(ended)
    }

    /// The loss of one step; none where the worker was lost, and with it the step.
    fn step(
        &self,
        mode: &mut dyn Mode,
        train: TrainBatch<'_>,
        sgd: SgdStep,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<Option<f64>, TrainError> {
        let done = mode.step(train, sgd);
        let Some(report) = self.unless_lost(done, mode, progress, observer)? else { return Ok(None) };
        let samples = train.samples();
        progress.position.step += 1;
        progress.position.loss_sum += report.loss * samples as f64;
        progress.position.correct += report.correct;
        progress.position.samples += samples;
        progress.report.trained_samples += samples as u64;
        Ok(Some(report.loss))
    }

    /// What was `done`; none where the worker was lost with it. Then the worker is open again and the position is where
    /// training goes on.
    fn unless_lost<T>(
        &self,
        done: Result<T, ExecError>,
        mode: &mut dyn Mode,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<Option<T>, TrainError> {
        match done {
            Err(lost) if lost.is_worker_lost() => {
                let recovered = mode.recover(self.patience)?;
                progress.report.reopened += 1;
                let Position { epoch, step, .. } = progress.position;
                if recovered == Recovered::AtState {
                    progress.position = progress.kept.clone();
                }
                let from = progress.position.step;
                let notice = Notice::WorkerReopened { epoch, step, from, reason: lost.to_string() };
                observer.tell(FromTrusted::Notice(notice), &[])?;
                Ok(None)
            }
            other => Ok(Some(other?)),
        }
    }

    /// The state at the position, which the mode can go back to from now on; none where the worker was lost.
    fn state(
        &self,
        mode: &mut dyn Mode,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<Option<TrainState>, TrainError> {
        let fetched = mode.state();
        let state = self.unless_lost(fetched, mode, progress, observer)?;
        if state.is_some() {
            progress.kept = progress.position.clone();
        }
        Ok(state)
    }

    fn end_epoch(
        &self,
        mode: &mut dyn Mode,
        test: &Loader<'_>,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        // Before the evaluation, which a worker may be lost in: the steps of this epoch are safe from here on.
        let Some(mut state) = self.state(mode, progress, observer)? else { return Ok(()) };
        let is_evaluated = self.spec.is_evaluated(progress.position.epoch);
        if is_evaluated && self.draw_queries(mode, test)? {
            // Before any of it is sent; a run that is killed in the evaluation comes back to its beginning.
            state.released = mode.released()?;
            self.checkpoint(mode, state.clone(), &progress.position, observer)?;
        }
        let done = progress.position.clone();
        progress.position.epoch += 1;
        progress.position.step = 0;
        progress.position.loss_sum = 0.0;
        progress.position.correct = 0;
        progress.position.samples = 0;
        progress.kept = progress.position.clone();
        let epoch = progress.position.epoch;
        let before = progress.report.inference_seconds;
        let mut test_accuracy = None;
        if is_evaluated {
            test_accuracy = match self.evaluate(mode, test, progress, observer) {
                // Running statistics come after the weights: the next evaluation may be finite again.
                Err(error) if self.keeps(&error) => None,
                evaluated => Some(evaluated?),
            };
            progress.report.diverged = test_accuracy.is_none();
            progress.report.test_accuracy = test_accuracy;
        }
        let count = done.samples.max(1) as f64;
        progress.report.loss = done.loss_sum / count;
        observer.tell(
            FromTrusted::Epoch(EpochReport {
                epoch,
                epochs: self.spec.epochs,
                loss: progress.report.loss,
                train_accuracy: done.correct as f64 / count,
                test_accuracy,
                epsilon: self.epsilon(mode)?,
                train_seconds: std::mem::take(&mut progress.epoch_seconds),
                evaluate_seconds: progress.report.inference_seconds - before,
            }),
            &[],
        )?;
        state.released = mode.released()?;
        self.checkpoint(mode, state, &progress.position, observer)
    }

    /// Whether values that are not finite are a result, and this is why there are no others.
    fn keeps(&self, error: &TrainError) -> bool {
        matches!(error, TrainError::Exec(error) if self.spec.keep_diverged && error.non_finite_layer().is_some())
    }

    /// Draws what the test records will be asked about with; true where anything was drawn.
    fn draw_queries(&self, mode: &mut dyn Mode, test: &Loader<'_>) -> Result<bool, TrainError> {
        let mut batches = test.in_order(self.spec.batch);
        let (mut batch, mut has_drawn) = (Batch::default(), false);
        while batches.next_into(&mut batch) {
            has_drawn |= mode.draw_queries(&batch.images, &self.test_records(&batch))?;
        }
        Ok(has_drawn)
    }

    /// Test records are numbered after the training records.
    fn test_records(&self, batch: &Batch) -> Vec<usize> {
        let first = self.data.train.len();
        batch.indices.iter().map(|&i| first + i as usize).collect()
    }

    fn evaluate(
        &self,
        mode: &mut dyn Mode,
        test: &Loader<'_>,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<f64, TrainError> {
        let start = Instant::now();
        let traffic = mode.worker().unwrap_or_default();
        let mut batches = test.in_order(self.spec.batch);
        let mut batch = Batch::default();
        let (mut correct, mut samples) = (0, 0);
        while batches.next_into(&mut batch) {
            let records = self.test_records(&batch);
            let logits = loop {
                let inferred = mode.infer(&batch.images, &records);
                if let Some(logits) = self.unless_lost(inferred, mode, progress, observer)? {
                    break logits;
                }
            };
            let classes = logits.len() / batch.labels.len().max(1);
            let hits = logits.chunks_exact(classes.max(1)).zip(&batch.labels);
            correct += hits.filter(|(row, label)| argmax(row) == **label as usize).count();
            samples += batch.labels.len();
            tell_ledger(mode, observer)?;
        }
        progress.report.inferred_samples += samples as u64;
        progress.report.inference_seconds += start.elapsed().as_secs_f64();
        add_traffic(&mut progress.report.inference_traffic, traffic, mode.worker().unwrap_or_default());
        Ok(correct as f64 / samples.max(1) as f64)
    }

    fn epsilon(&self, mode: &mut dyn Mode) -> Result<Option<f64>, AccountantError> {
        mode.door().map(|door| door.accountant().epsilon(self.delta)).transpose()
    }
}

fn record_numbers(indices: &[u32]) -> Vec<usize> {
    indices.iter().map(|&index| index as usize).collect()
}

fn tell_ledger(mode: &mut dyn Mode, observer: &mut dyn Observer) -> Result<(), HostGone> {
    match mode.door().map(Door::take_ledger) {
        Some(entries) if !entries.is_empty() => observer.tell(FromTrusted::Ledger(entries), &[]),
        _ => Ok(()),
    }
}

fn add_traffic(total: &mut Traffic, before: WorkerStats, after: WorkerStats) {
    total.to_worker += after.bytes_to_worker - before.bytes_to_worker;
    total.from_worker += after.bytes_from_worker - before.bytes_from_worker;
}
