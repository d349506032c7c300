//! `serve`: from a model file to a listening, attested service.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use asymflow::job::{WorkerSpec, WorkerTransport};
use asymflow::memory::{Advice, MemoryPlan};
use asymflow::modes::{ModeSpec, Registry, Serving};
use asymflow::serve::worker_client;
use asymflow::service::{AccountLimits, Promise, ReadModel, ServedModel, Service, ServiceSettings};
use asymflow_residual::{ResidualBackend, client::Notify};
use faer::Par;

use crate::args::ServeArgs;
use crate::door::Door;
use crate::evidence::Evidence;
use crate::listen::listen;
use crate::model::{self, AnyModel};
use crate::{executor, state};

/// Longest wait for one answer of the worker, and for a lost one to come back.
const WORKER_SECONDS: u64 = 30;
/// Name of the file of sealed weights.
const SEALED_WEIGHTS: &str = "weights.sealed";

/// Serves until it is interrupted.
pub fn serve(args: &ServeArgs, registry: &Registry) -> Result<()> {
    let cores = threads(args.threads);
    let ReadModel { model, weights, sha256 } = read(args, cores, registry)?;
    let worker = worker(&*registry.decode(&model.mode)?, args.batch, args)?;
    let (threads, par) = start_threads(cores)?;
    let settings = settings(args);
    let service = Service::with_weights(model, weights, worker.as_ref(), settings, (registry, par))?;
    check_budget(&service, args)?;
    let evidence = Evidence::open()?;
    let mut promise = Promise::of(&service, &settings, &sha256, evidence.runtime());
    let service = state::keep(service, args, &settings, &evidence, &mut promise)?;
    promise.insecure.extend(args.insecure_worker_plaintext.then(|| "insecure_worker_plaintext".to_owned()));
    let identity = evidence.identity(&promise.encode()?)?;
    announce_insecure(&promise.insecure);

    let image_bytes = promise.input.len();
    let linger = Duration::from_millis(args.linger_ms);
    let (queue, stats, executor) = executor::start(service, args.batch, linger, threads).context("cannot start")?;
    let door = Door { queue, image_bytes, prove: identity.prover() };
    // One thread holds all sessions, and another makes quotes, one after another as Gramine makes them.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build().context("cannot start")?;
    runtime.block_on(listen(args, &identity, door, &promise, &stats))?;
    drop(runtime);
    let _ = executor.join();
    Ok(())
}

fn settings(args: &ServeArgs) -> ServiceSettings {
    let patience = Duration::from_secs(WORKER_SECONDS);
    let accounts = AccountLimits { new_each_hour: args.new_clients, ..AccountLimits::default() };
    let (batch, budget_epsilon, remembered) = (args.batch, args.budget_epsilon, args.remembered);
    ServiceSettings { batch, budget_epsilon, remembered, accounts, patience }
}

/// Prints what serving is planned to take, without reading the weights.
pub fn plan(args: &ServeArgs, registry: &Registry) -> Result<()> {
    let threads = threads(args.threads);
    let mut file = open(args, registry)?;
    let plan = planned(file.model(), args, threads, registry)?;
    writeln!(std::io::stdout(), "{}", serde_json::json!({ "threads": threads, "plan": plan })).context("cannot write")
}

fn planned(model: &ServedModel, args: &ServeArgs, threads: usize, registry: &Registry) -> Result<MemoryPlan> {
    let is_streamed = args.stream_weights.is_some();
    Ok(MemoryPlan::of_service(model, (args.batch, threads), is_streamed, args.remembered, registry)?)
}

/// Reads the model up to its weights.
fn open(args: &ServeArgs, registry: &Registry) -> Result<AnyModel> {
    let mut file = model::open(&args.model, args.state.as_deref(), registry)?;
    if let Some(mode) = &args.mode {
        file.model().serve_as(mode)?;
    }
    Ok(file)
}

/// Reads the model, once it is known that its service fits into the memory it may take.
fn read(args: &ServeArgs, threads: usize, registry: &Registry) -> Result<ReadModel> {
    let named = || args.model.display().to_string();
    let mut file = open(args, registry)?;
    let (model, is_streamed) = (&*file.model(), args.stream_weights.is_some());
    let mode = registry.decode(&model.mode)?;
    let can_stream = matches!(mode.serving(&model.facts(registry))?, Serving::Served { can_stream: true, .. });
    if is_streamed && !can_stream {
        bail!("--stream-weights: mode {} needs all its weights at once", mode.name());
    }
    let advice = Advice {
        smaller_batch: args.batch > 1,
        other_mode: mode.computes_here() && mode.is_whole(),
        streaming: can_stream && !is_streamed,
    };
    if args.memory_limit.is_some() {
        planned(model, args, threads, registry)?.check(args.memory_limit, advice)?;
    }
    match &args.stream_weights {
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            file.sealed(&folder.join(SEALED_WEIGHTS)).with_context(named)
        }
        None => file.held().with_context(named),
    }
}

fn worker(mode: &dyn ModeSpec, samples: usize, args: &ServeArgs) -> Result<Option<Arc<dyn ResidualBackend>>> {
    if !mode.needs_worker() {
        return Ok(None);
    }
    let name = mode.name();
    let address = args.worker.clone().with_context(|| format!("mode {name} needs a worker: --worker is missing"))?;
    let file = args.worker_token_file.as_deref().context("--worker-token-file is missing")?;
    let token = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let worker = WorkerSpec {
        address,
        fingerprint: args.worker_fingerprint.clone(),
        token: token.trim().to_owned(),
        insecure_plaintext: args.insecure_worker_plaintext,
        transport: if args.worker_shm { WorkerTransport::Shm } else { WorkerTransport::Tcp },
        timeout_seconds: WORKER_SECONDS,
        patience_seconds: WORKER_SECONDS,
    };
    // A closed stderr is no reason to stop.
    let notify = Notify::new(|text| drop(writeln!(std::io::stderr(), "notice: {text}")));
    Ok(Some(worker_client(&worker, (mode.precision(), samples), false, notify)?))
}

fn threads(asked: usize) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    if asked == 0 { cores() } else { asked }
}

fn start_threads(threads: usize) -> Result<(rayon::ThreadPool, Par)> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("cannot start threads")?;
    Ok((pool, if threads == 1 { Par::Seq } else { Par::rayon(threads) }))
}

/// A service that releases anything has a budget, or says that it has none.
fn check_budget(service: &Service, args: &ServeArgs) -> Result<()> {
    let Some(epsilon) = service.answer_epsilon() else { return Ok(()) };
    match args.budget_epsilon {
        None if !args.insecure_unlimited_answers => {
            bail!("an answer costs epsilon {epsilon:.3}: give --budget-epsilon, or --insecure-unlimited-answers")
        }
        Some(_) if args.insecure_unlimited_answers => {
            bail!("--budget-epsilon and --insecure-unlimited-answers contradict each other")
        }
        Some(budget) if budget < epsilon => {
            bail!(
                "--budget-epsilon {budget} is less than the {epsilon:.3} that one answer costs: nobody would be answered"
            )
        }
        _ => Ok(()),
    }
}

fn announce_insecure(insecure: &[String]) {
    let named = if insecure.is_empty() { "none".to_owned() } else { insecure.join(", ") };
    let _ = writeln!(std::io::stderr(), "insecure settings in force: {named}");
}
