//! The kinds of experiments that measure instead of training.

use std::sync::atomic::Ordering;

use asymflow::delta::{Feed, SplitStudySpec};
use asymflow::job::{Body, JobReport, ModeKind, Task};
use asymflow::memory::MemoryPlan;
use asymflow::memory_study::MemorySpec;
use asymflow::speedup::SpeedupSpec;
use asymflow::study::RankStudySpec;

use super::{Outcome, Runner};
use crate::entry::Entry;
use crate::error::CliError;
use crate::memory::{self, Cell};
use crate::report::Results;
use crate::serve_experiment::Server;
use crate::tables;
use crate::worker::WorkerProcess;

impl Runner {
    pub(super) fn speedup(&self) -> Result<Outcome, CliError> {
        let worker = self.worker()?;
        let s = &self.experiment.speedup;
        let mut reports = Vec::new();
        for model in &self.experiment.model.names {
            if self.interrupt.asked.load(Ordering::Relaxed) {
                return Ok(Outcome::Interrupted);
            }
            let spec = SpeedupSpec {
                batch: s.batch,
                repeats: s.repeats,
                decompositions: s.decompositions.clone(),
                train: s.train,
                seed: self.experiment.train.seeds[0],
            };
            self.output.say(&format!("timing {model}, batch {}", s.batch));
            let job = self.job(Entry::of(ModeKind::Asymml), model, worker.as_ref(), Task::Speedup(spec))?;
            let JobReport::Speedup(report) = self.execute(model, job, (Body::Empty, &[]), &self.folder)? else {
                return Err(CliError::failed("the enclave process answered another task", ""));
            };
            self.output.say(&tables::speedup_line(&report));
            reports.push(report);
        }
        self.leave(Results::Speedup(reports), worker.as_ref().map(|w| w.device.clone()))?;
        Ok(Outcome::Done)
    }

    pub(super) fn rank_study(&self) -> Result<Outcome, CliError> {
        let s = &self.experiment.study;
        let spec = RankStudySpec { samples: s.samples, ranks: s.ranks.clone(), methods: s.methods.clone() };
        let task = Task::RankStudy(spec, self.experiment.train_spec(self.experiment.train.seeds[0]));
        let job = self.job(Entry::of(ModeKind::TrustedOnly), &self.experiment.model.names[0], None, task)?;
        let JobReport::RankStudy(report) = self.execute("trusted-only", job, (Body::Empty, &[]), &self.folder)? else {
            return Err(CliError::failed("the enclave process answered another task", ""));
        };
        self.leave(Results::RankStudy(report), None)?;
        Ok(Outcome::Done)
    }

    pub(super) fn serve(&self) -> Result<Outcome, CliError> {
        let worker = self.worker()?;
        let section = &self.experiment.serve;
        let threads = self.experiment.trusted.threads;
        let server = Server {
            runtime: &*self.runtime,
            program: self.program(),
            worker: worker.as_ref(),
            section,
            threads,
            folder: &self.folder,
        };
        let mut runs = Vec::new();
        for &entry in &self.experiment.mode.run {
            let task = Task::Train(self.experiment.train_spec(1));
            let job = self.job(entry, &self.experiment.model.names[0], worker.as_ref(), task)?;
            for &load in &section.loads {
                if self.interrupt.asked.load(Ordering::Relaxed) {
                    return Ok(Outcome::Interrupted);
                }
                self.output.say(&format!("{entry}: {} connections for {} s", load.connections, load.seconds));
                runs.push(server.run(entry, &job, load)?);
            }
        }
        let failed: u64 = runs.iter().map(|run| run.load.failed + run.load.refused).sum();
        if let Some(reason) = runs.iter().find_map(|run| run.load.first_failure.as_ref()) {
            self.output.say(&format!("the first of {failed} failures: {reason}"));
        }
        self.leave(Results::Serve(runs), worker.as_ref().map(|w| w.device.clone()))?;
        Ok(if failed == 0 { Outcome::Done } else { Outcome::ClaimFailed })
    }

    pub(super) fn rank_dct_study(&self) -> Result<Outcome, CliError> {
        let s = &self.experiment.study;
        let spec = SplitStudySpec { samples: s.samples, ranks: s.ranks.clone(), kept: s.kept.clone() };
        let task = Task::SplitStudy(spec, self.experiment.train_spec(self.experiment.train.seeds[0]));
        let entry = Entry { feed: Feed::Nothing, ..Entry::of(ModeKind::Delta) };
        let job = self.job(entry, &self.experiment.model.names[0], None, task)?;
        let JobReport::SplitStudy(report) = self.execute("main-only", job, (Body::Empty, &[]), &self.folder)? else {
            return Err(CliError::failed("the enclave process answered another task", ""));
        };
        self.leave(Results::SplitStudy(report), None)?;
        Ok(Outcome::Done)
    }

    pub(super) fn memory_study(&self) -> Result<Outcome, CliError> {
        let worker = self.worker()?;
        let e = &self.experiment;
        let section = &e.memory;
        let below = memory::size("memory.measure_below", &section.measure_below)?;
        let mut cells = Vec::new();
        for model in &e.model.names {
            for &entry in &e.mode.run {
                for (is_training, is_streamed) in [(false, false), (false, true), (true, false)] {
                    let is_wanted = if is_streamed { section.streamed } else { section.train || !is_training };
                    if !is_wanted || (is_streamed && entry.kind != ModeKind::TrustedOnly) {
                        continue;
                    }
                    for &batch in &section.batches {
                        if self.interrupt.asked.load(Ordering::Relaxed) {
                            return Ok(Outcome::Interrupted);
                        }
                        let streamed = is_streamed.then(|| self.folder.path().join("weights.sealed"));
                        let (repeats, seed) = (section.repeats, e.train.seeds[0]);
                        let task = Task::Memory(MemorySpec { batch, is_training, repeats, streamed, seed });
                        let cell = self.memory_cell(entry, model, worker.as_ref(), task, below)?;
                        self.output.say(&memory::line(&cell));
                        cells.push(cell);
                    }
                }
            }
        }
        let above: Vec<String> = cells.iter().filter(|cell| memory::is_above_plan(cell)).map(memory::line).collect();
        self.leave(Results::Memory(cells), worker.as_ref().map(|w| w.device.clone()))?;
        above
            .iter()
            .for_each(|line| self.output.say(&format!("claim: does not hold, more was taken than planned: {line}")));
        Ok(if above.is_empty() { Outcome::Done } else { Outcome::ClaimFailed })
    }

    /// One enclave process, so that its peak is that of one mode.
    fn memory_cell(
        &self,
        entry: Entry,
        model: &str,
        worker: Option<&WorkerProcess>,
        task: Task,
        below: u64,
    ) -> Result<Cell, CliError> {
        let Task::Memory(spec) = task.clone() else { return Err(CliError::failed("no memory study", "")) };
        let job = self.job(entry, model, worker.filter(|_| entry.needs_worker()), task)?;
        let plan = MemoryPlan::of_job(&job).map_err(|e| CliError::usage(format!("{model}: {e}"), ""))?;
        let mode = if spec.streamed.is_some() { memory::STREAMED.to_owned() } else { entry.to_string() };
        let measured = if plan.peak_bytes > below {
            None
        } else {
            match self.execute(&format!("{model} {mode}"), job, (Body::Empty, &[]), &self.folder)? {
                JobReport::Memory(report) => Some(report),
                _ => return Err(CliError::failed("the enclave process answered another task", "")),
            }
        };
        if let Some(path) = &spec.streamed {
            // The key died with the process.
            let _ = std::fs::remove_file(path);
        }
        let MemorySpec { batch, is_training, .. } = spec;
        Ok(Cell { model: model.to_owned(), mode, batch, is_training, plan, measured })
    }
}
