#![doc = include_str!("../README.md")]

mod backends;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use asymflow_residual::{
    ResidualBackend,
    backend::Availability,
    client::Token,
    data_parallel::DataParallel,
    serve::RingName,
    serve::{ServeConfig, ServeLimits, Worker},
};
use asymflow_wire::tls::Identity;
use clap::Parser;
use clap::builder::RangedU64ValueParser;

pub use backends::{Backends, UnknownDevice};

/// Exit code of bad usage.
const USAGE: u8 = 2;
/// Exit code of a missing capability.
const MISSING: u8 = 3;
/// Exit code after an interrupt.
const INTERRUPTED: i32 = 130;

/// Serves residual computations on a device to clients that know its token.
///
/// When it is ready it prints one line of JSON to stdout: where it listens, the fingerprint of its
/// certificate for clients to pin, and the device.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// Device by its name, what tells it from others of its kind after a colon: native, flex, wgpu:0, remote:KEY@IP:PORT, …; for
    /// measurements of time null or model:TFLOPS:GB/s:µs, which answer zeros;
    /// devices separated by commas share each batch; without it, the first that the program knows
    #[arg(long, visible_alias = "devices", value_delimiter = ',')]
    device: Vec<String>,
    /// File with the token that clients must show; without it, ASYMFLOW_WORKER_TOKEN
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// No TLS: everything, the token included, travels in the clear
    #[arg(long)]
    insecure_plaintext: bool,
    /// File with the key and certificate to serve with; made there where it is missing. Without it both are fresh
    #[arg(long)]
    identity: Option<PathBuf>,
    /// Threads of the CPU device; 0 takes one a core
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(0..=4096))]
    threads: usize,
    /// Sessions at a time
    #[arg(long, default_value_t = ServeLimits::default().sessions, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    sessions: u32,
    /// Name of the memory shared with clients on this host that ask for it, /dev/shm/asymflow-ring-NAME, for a client
    /// whose manifest names it; without it each session has a random one
    #[arg(long, value_name = "PATH")]
    shm: Option<RingName>,
    /// Exit when stdin closes, so that a killed parent leaves no orphan
    #[arg(long)]
    exit_with_parent: bool,
}

/// The worker's command line over `backends`: the whole of a program's `main`.
pub fn main_with(backends: &Backends) -> ExitCode {
    let args = Args::parse();
    let backend = match backend(backends, &args.device) {
        Ok(backend) => backend,
        Err(error) => {
            report(&format!("error: {error}"));
            return ExitCode::from(USAGE);
        }
    };
    match backend.probe() {
        Availability::Missing { what, fix } => {
            report(&format!("error: {what}\nhelp: {fix}"));
            ExitCode::from(MISSING)
        }
        Availability::Ready { device } => match serve(&args, backend, &device) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                report(&format!("error: {error:#}"));
                ExitCode::FAILURE
            }
        },
    }
}

fn backend(backends: &Backends, devices: &[String]) -> Result<Arc<dyn ResidualBackend>, UnknownDevice> {
    match devices {
        [] => backends.make(backends.first()),
        [device] => backends.make(device),
        several => {
            let parts = several.iter().map(|device| backends.make(device)).collect::<Result<_, _>>()?;
            Ok(Arc::new(DataParallel::new(parts)))
        }
    }
}

fn serve(args: &Args, backend: Arc<dyn ResidualBackend>, device: &str) -> anyhow::Result<()> {
    let token = token(args.token_file.as_deref())?;
    if args.threads > 0 {
        rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global().context("cannot start threads")?;
    }
    // A worker has nothing to save: Ctrl-C and termination end the process at once.
    ctrlc::set_handler(|| std::process::exit(INTERRUPTED)).context("cannot handle Ctrl-C")?;
    let limits = ServeLimits { sessions: args.sessions, ..ServeLimits::default() };
    let identity = args.identity.as_deref().map(Identity::load_or_create).transpose()?;
    let config = ServeConfig {
        token,
        insecure_plaintext: args.insecure_plaintext,
        identity,
        ring_name: args.shm.clone(),
        limits,
    };
    let worker = Worker::bind(args.listen.as_str(), backend, config)
        .with_context(|| format!("cannot serve on {}", args.listen))?;
    if args.insecure_plaintext {
        report("warning: insecure_plaintext: no TLS, the token travels in the clear");
    }
    let ready = serde_json::json!({
        "listening": worker.address().to_string(),
        "fingerprint": worker.fingerprint().map(|f| f.to_string()),
        "device": device,
    });
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{ready}").and_then(|()| stdout.flush()).context("cannot write to stdout")?;
    if args.exit_with_parent {
        std::thread::Builder::new().spawn(exit_with_stdin).context("cannot watch stdin")?;
    }
    worker.run();
    Ok(())
}

fn token(file: Option<&std::path::Path>) -> anyhow::Result<Token> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => std::env::var("ASYMFLOW_WORKER_TOKEN")
            .context("no token: give --token-file or set ASYMFLOW_WORKER_TOKEN")?,
    };
    let text = text.trim();
    if text.is_empty() {
        bail!("the token is empty");
    }
    Ok(Token::new(text))
}

/// Reads stdin to its end, which comes when every holder of the other end is gone.
fn exit_with_stdin() {
    let _ = std::io::copy(&mut std::io::stdin().by_ref(), &mut std::io::sink());
    std::process::exit(0);
}

/// Diagnostics go to stderr; a closed stderr is no reason to stop.
fn report(text: &str) {
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
        assert!(flags.len() >= 2, "{flags:?}");
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
