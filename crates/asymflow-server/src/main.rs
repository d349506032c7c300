#![doc = include_str!("../README.md")]

mod ahead;
mod model;
mod peers;
mod serving;
mod store;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use asymflow::memory::parse_bytes;
use asymflow_enclave::attest::{Clock, Collateral, Policy, Verifier, simulated_collateral};
use asymflow_shares::net::ServerAt;
use asymflow_shares::program::Server;
use asymflow_wire::tls::{Fingerprint, Identity};
use clap::builder::RangedU64ValueParser;
use clap::{Parser, ValueEnum};
use serde::Deserialize;

use model::Model;
use serving::{Bounds, Serving};
use store::Store;

/// Exit code after an interrupt.
const INTERRUPTED: i32 = 130;

/// One of the two servers that answer on secret shares.
///
/// When it is ready it prints one line of JSON to stdout.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// File with this server's key and certificate; made there where it is missing
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// Print this server's fingerprint and exit
    #[arg(long)]
    print_fingerprint: bool,
    /// The model, where both servers know its weights
    #[arg(long, value_name = "FILE", required_unless_present_any = ["share", "print_fingerprint"], requires = "server", conflicts_with = "share")]
    model: Option<PathBuf>,
    /// Which of the two this is; a share says it itself
    #[arg(long, value_enum)]
    server: Option<Which>,
    /// This server's share of a model
    #[arg(long, value_name = "FILE")]
    share: Option<PathBuf>,
    /// Folder of the dealer's randomness
    #[arg(long, value_name = "DIR", required_unless_present = "print_fingerprint")]
    store: Option<PathBuf>,
    /// Most bytes of randomness
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "8GiB")]
    store_limit: u64,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// Address of the other server
    #[arg(long, required_unless_present = "print_fingerprint")]
    peer: Option<String>,
    /// Fingerprint of the other server
    #[arg(long, required_unless_present = "print_fingerprint")]
    peer_fingerprint: Option<Fingerprint>,
    /// Which dealers are accepted: a TOML file with a table `enclave`
    #[arg(long, value_name = "FILE")]
    dealer_policy: Option<PathBuf>,
    /// Intel's collateral for the dealer's platform, as JSON
    #[arg(long, value_name = "FILE")]
    collateral: Option<PathBuf>,
    /// Accept a dealer that is no enclave: whoever owns its machine can, with one server's messages, see every image
    #[arg(long)]
    insecure_accept_simulated: bool,
    /// Conversations at a time
    #[arg(long, default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..=65_536))]
    sessions: usize,
    /// Seconds for each step of a conversation
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Queries that may begin in a minute
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    rate: u32,
    /// Exit when stdin closes, so that a killed parent leaves no orphan
    #[arg(long)]
    exit_with_parent: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    First,
    Second,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyFile {
    enclave: Policy,
}

fn main() -> ExitCode {
    match start(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> Result<()> {
    let identity = Identity::load_or_create(&args.identity)?;
    let fingerprint = identity.fingerprint();
    if args.print_fingerprint {
        return print(&fingerprint.to_string());
    }
    let model = match (&args.model, &args.share) {
        (Some(path), None) => Model::public(path, args.server.context("--server is missing")?.into())?,
        (None, Some(path)) => Model::shared(path)?,
        _ => bail!("give either --model or --share"),
    };
    let (Some(folder), Some(address), Some(peer)) = (&args.store, &args.peer, args.peer_fingerprint) else {
        bail!("--store, --peer and --peer-fingerprint are needed");
    };
    if peer == fingerprint {
        bail!("--peer-fingerprint is this server's own: one server with both shares sees every image");
    }
    let store = Store::open(folder, &model.program, model.server, args.store_limit, SystemTime::now())
        .with_context(|| format!("--store {}", folder.display()))?;
    let timeout = Duration::from_secs(args.timeout);
    let bounds = Bounds { sessions: args.sessions.max(2), timeout, idle: 4 * timeout, queries_a_minute: args.rate };
    let listener = TcpListener::bind(&args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let ready = serde_json::json!({
        "listening": listener.local_addr().context("cannot listen")?.to_string(),
        "fingerprint": fingerprint.to_string(),
        "server": model.server,
        "program": asymflow::service::hex(&model.hash),
        "queries": store.unused(),
    });
    let serving = Arc::new(Serving {
        model,
        store: Mutex::new(store),
        identity,
        peer: ServerAt { address: address.clone(), fingerprint: peer },
        dealers: dealers(args)?,
        bounds,
        peers: peers::Peers::default(),
        ahead: ahead::Ahead::default(),
        sessions: AtomicUsize::new(0),
        rate: Mutex::new((Instant::now(), 0)),
    });
    // Everything that must last is on disk at any time: Ctrl-C and termination end the process at once.
    ctrlc::set_handler(|| std::process::exit(INTERRUPTED)).context("cannot handle Ctrl-C")?;
    let weak = serving.dealers.as_ref().map(|dealers| dealers.policy().insecure()).unwrap_or_default();
    if !weak.is_empty() {
        report(&format!("warning: of dealers is accepted: {}", weak.join(", ")));
    }
    print(&ready.to_string())?;
    if args.exit_with_parent {
        std::thread::Builder::new().spawn(exit_with_stdin).context("cannot watch stdin")?;
    }
    serving::serve(&serving, &listener)
}

impl From<Which> for Server {
    fn from(which: Which) -> Self {
        match which {
            Which::First => Self::First,
            Which::Second => Self::Second,
        }
    }
}

/// Who may deal; nobody where neither a policy nor a trial was asked for.
fn dealers(args: &Args) -> Result<Option<Verifier>> {
    let mut policy = match &args.dealer_policy {
        Some(path) => read_policy(path).with_context(|| path.display().to_string())?,
        None if args.insecure_accept_simulated => Policy::default(),
        None => return Ok(None),
    };
    policy.insecure_accept_simulated |= args.insecure_accept_simulated;
    let collateral = match &args.collateral {
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
            Collateral::from_json(&bytes).with_context(|| path.display().to_string())?
        }
        None if policy.insecure_accept_simulated => simulated_collateral(Clock::System.now_unix_seconds())?,
        None => {
            bail!("--dealer-policy needs --collateral (docs/how-to/run-on-sgx.md), to verify a dealer's quote with")
        }
    };
    Ok(Some(Verifier::new(policy, collateral)?))
}

fn read_policy(path: &Path) -> Result<Policy> {
    Ok(toml::from_str::<PolicyFile>(&std::fs::read_to_string(path)?)?.enclave)
}

fn print(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("cannot write to stdout")
}

/// Reads stdin to its end, which comes when every holder of the other end is gone.
fn exit_with_stdin() {
    let _ = std::io::copy(&mut std::io::stdin().by_ref(), &mut std::io::sink());
    std::process::exit(0);
}

/// Diagnostics go to stderr; a closed stderr is no reason to stop.
pub(crate) fn report(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Args;

    #[test]
    fn every_number_of_a_flag_has_limits() {
        let command = Args::command();
        let is_number =
            |arg: &&clap::Arg| arg.get_default_values().iter().any(|v| v.to_string_lossy().parse::<u64>().is_ok());
        let flags: Vec<_> = command.get_arguments().filter(is_number).filter_map(clap::Arg::get_long).collect();
        assert!(flags.len() >= 3, "{flags:?}");
        for flag in flags {
            for value in ["-1", "nan", "inf", "0.5", "1e300", "18446744073709551615", "18446744073709551616", ""] {
                let error = Args::try_parse_from(["program", &format!("--{flag}={value}")]).unwrap_err();
                let kind = error.kind();
                assert!(
                    matches!(kind, clap::error::ErrorKind::ValueValidation | clap::error::ErrorKind::InvalidValue),
                    "--{flag}={value}: {kind}"
                );
            }
        }
    }
}
