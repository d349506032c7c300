//! `deal`: correlated randomness for two servers, before any query; then this process ends.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use asymflow_enclave::attest::EXPORTER_LABEL;
use asymflow_shares::net::{DealerPromise, deal as deal_to};
use asymflow_shares::program::Program;

use crate::args::DealArgs;
use crate::evidence::Evidence;

/// Deals and returns. Nothing of the seed outlives the process.
pub fn deal(args: DealArgs) -> Result<()> {
    let named = || args.program.display().to_string();
    let bytes = std::fs::read(&args.program).with_context(|| format!("cannot read {}", named()))?;
    let program = Program::from_bytes(&bytes).with_context(named)?;
    let evidence = Evidence::open()?;
    let servers = [0, 1].map(|server: usize| args.servers[server].fingerprint.to_string());
    let promise = serde_json::to_vec(&DealerPromise::new(&program.hash(), servers))?;
    let identity = evidence.identity(&promise)?;
    let prover = identity.prover();
    let prove = |nonce: &[u8; 32], exporter: &[u8; 32]| {
        prover(nonce, exporter).map(|quote| (identity.certificate().to_vec(), quote))
    };
    let (lifetime, timeout) = (Duration::from_secs(args.hours * 3600), Duration::from_secs(args.timeout));
    let started = Instant::now();
    let bytes = deal_to::<u64>(program, &args.servers, args.queries, lifetime, timeout, EXPORTER_LABEL, &prove)?;
    let done = serde_json::json!({
        "queries": args.queries,
        "bytes_first": bytes[0],
        "bytes_second": bytes[1],
        "seconds": started.elapsed().as_secs_f64(),
        "runtime": evidence.runtime(),
        "is_enclave": evidence.is_enclave(),
    });
    writeln!(std::io::stdout(), "{done}").context("cannot write to stdout")
}
