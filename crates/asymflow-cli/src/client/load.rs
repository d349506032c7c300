//! A load generator: many connections that ask about distinct images, in a closed or an open loop.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use asymflow::service::protocol::Outcome;
use asymflow_zoo::data::{Dataset, synthetic};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use super::service::ServiceArgs;
use super::witness::Seen;
use crate::error::CliError;
use crate::experiment::Limit;

/// Flags of `client load`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Connections, each with an account of its own
    #[arg(long, default_value_t = 4)]
    pub connections: usize,
    /// Images a second over all connections, evenly spaced (open loop); without it each asks again when it is answered
    #[arg(long)]
    pub rate: Option<f64>,
    /// How long to ask, in seconds
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
}

/// Each connection is a thread.
pub const CONNECTIONS: Limit = Limit::whole("serve.loads.connections", 1.0, 4096.0);
pub const RATE: Limit = Limit::within("serve.loads.rate", 1e-3, 1e9);
pub const SECONDS: Limit = Limit::within("serve.loads.seconds", 1e-3, 1e6);

impl Args {
    /// The load they describe.
    pub fn spec(&self) -> Result<LoadSpec, CliError> {
        CONNECTIONS.check("--connections", self.connections as f64)?;
        SECONDS.check("--seconds", self.seconds)?;
        self.rate.map_or(Ok(()), |rate| RATE.check("--rate", rate))?;
        Ok(LoadSpec { connections: self.connections, rate: self.rate, seconds: self.seconds })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadSpec {
    pub connections: usize,
    /// Images a second over all connections; closed loop without it.
    #[serde(default)]
    pub rate: Option<f64>,
    pub seconds: f64,
}

/// What a load measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    pub load: LoadSpec,
    pub answered: u64,
    pub refused: u64,
    pub failed: u64,
    /// What the first of them said.
    pub first_failure: Option<String>,
    /// Wall-clock seconds from the first question to the last answer.
    pub wall_seconds: f64,
    /// Images answered a second.
    pub per_second: f64,
    /// Milliseconds from when an image was due to be asked about to its answer.
    pub latency_ms: Latency,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    /// 90 of 100 are faster.
    pub p90: f64,
    /// 99 of 100 are faster.
    pub p99: f64,
    /// 999 of 1000 are faster.
    pub p999: f64,
    pub max: f64,
}

/// What the connections have seen together.
struct Outcomes {
    micros: Histogram<u64>,
    refused: u64,
    failed: u64,
    first_failure: Option<String>,
}

/// Applies a load. In an open loop latency counts from the moment at which an image was due, so that a service that falls
/// behind cannot hide it.
pub fn load(service: &ServiceArgs, spec: &LoadSpec) -> Result<LoadReport, CliError> {
    let images = synthetic(0, 64, 1).test;
    let micros = Histogram::new_with_bounds(1, 600_000_000, 3)
        .map_err(|e| CliError::failed(format!("cannot measure: {e}"), ""))?;
    let seen = Mutex::new(Outcomes { micros, refused: 0, failed: 0, first_failure: None });
    let ready = std::sync::Barrier::new(spec.connections + 1);
    let mut start = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..spec.connections {
            let (seen, ready, images) = (&seen, &ready, &images);
            scope.spawn(move || {
                let opened = open(service, images);
                ready.wait();
                let asked = opened.and_then(|mut connection| ask(&mut connection, number, spec, images, seen));
                if let Err(error) = asked {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.failed += 1;
                    seen.first_failure.get_or_insert_with(|| error.to_string());
                }
            });
        }
        ready.wait();
        start = Instant::now();
    });
    let wall_seconds = start.elapsed().as_secs_f64();
    Ok(report(*spec, &seen.into_inner().unwrap_or_else(PoisonError::into_inner), wall_seconds))
}

fn report(load: LoadSpec, seen: &Outcomes, wall_seconds: f64) -> LoadReport {
    let at = |quantile: f64| seen.micros.value_at_quantile(quantile) as f64 / 1e3;
    let answered = seen.micros.len();
    LoadReport {
        load,
        answered,
        refused: seen.refused,
        failed: seen.failed,
        first_failure: seen.first_failure.clone(),
        wall_seconds,
        per_second: answered as f64 / wall_seconds,
        latency_ms: Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: seen.micros.max() as f64 / 1e3,
        },
    }
}

fn open(service: &ServiceArgs, images: &Dataset) -> Result<Connection, CliError> {
    let mut account = [0; 32];
    getrandom::fill(&mut account).map_err(|e| CliError::missing(format!("no randomness for an account: {e}"), ""))?;
    let connection = Connection::open(service, &account, Seen::default())?;
    let (asked, had) = (connection.promise.input, images.shape());
    if asked != had {
        return Err(CliError::usage(
            format!("the service takes images of {asked:?}, the built-in ones are {had:?}"),
            "serve a network for 3x32x32 images",
        ));
    }
    Ok(connection)
}

fn ask(
    connection: &mut Connection,
    number: usize,
    spec: &LoadSpec,
    images: &Dataset,
    seen: &Mutex<Outcomes>,
) -> Result<(), CliError> {
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(spec.seconds);
    let every = spec.rate.map(|rate| Duration::from_secs_f64(spec.connections as f64 / rate));
    let mut due = start + every.map_or(Duration::ZERO, |every| every.mul_f64(number as f64 / spec.connections as f64));
    for count in 0_u64.. {
        match every {
            Some(_) => std::thread::sleep(due.saturating_duration_since(Instant::now())),
            None => due = Instant::now(),
        }
        if due >= end {
            break;
        }
        let mut image = images.image(count as usize % images.len().max(1)).unwrap_or_default().to_vec();
        // No two are the same, so that none is answered from memory.
        image.iter_mut().zip(count.to_le_bytes()).for_each(|(pixel, byte)| *pixel ^= byte);
        let reply = connection.classify(&image)?;
        let micros = due.elapsed().as_micros() as u64;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if reply.outcomes.iter().any(|outcome| matches!(outcome, Outcome::Refused(_))) {
            seen.refused += 1;
        } else {
            seen.micros.saturating_record(micros);
        }
        drop(seen);
        due += every.unwrap_or_default();
    }
    Ok(())
}
