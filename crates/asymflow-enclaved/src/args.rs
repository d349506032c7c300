//! The command line. Inside an enclave it is part of the manifest, and so of what is measured.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use asymflow::memory::parse_bytes;
use asymflow::service::{AccountLimits, REMEMBERED};
use asymflow_shares::net::ServerAt;
use lexopt::prelude::*;

pub const HELP: &str = "\
asymflow-enclaved: the trusted part

Usage:
  asymflow-enclaved [--policy FILE]        serves one job on standard input and output (started by `asymflow run`)
  asymflow-enclaved serve --model FILE …   answers clients until it is interrupted
  asymflow-enclaved plan --model FILE …    prints as JSON how much memory serve with these options takes at most
  asymflow-enclaved seal-model --model FILE --state DIR
                                           writes DIR/model.sealed, which only this enclave's signer can read
  asymflow-enclaved deal --program FILE …  deals two servers the randomness of queries on shares, and ends

Without a command:
  --policy FILE                 the jobs that are allowed, as JSON; an enclave does none without one

Options of serve:
  --model FILE                  the model, as a run leaves it (model.asymflow), or sealed
  --mode MODE                   trusted-only or asymml, for a model that was trained whole; else the model's own mode
  --listen ADDRESS              where clients connect [127.0.0.1:7800]
  --worker ADDRESS              the worker, where the mode has one
  --worker-fingerprint HEX      SHA-256 of the worker's certificate, as it prints it
  --worker-token-file FILE      the worker's token
  --worker-shm                  tensors through memory shared with the worker, on the same host
  --state DIR                   where the losses of clients are kept sealed
  --guard DIR                   where the highest sequence number is kept; another disk than --state [DIR/guard]
  --budget-epsilon NUMBER       the most that one client may lose over all its images
  --client-tokens FILE          answers only clients whose token's hash is in this file, one a line; a refusal names the hash
  --new-clients N               accounts that clients without tokens may open in an hour [1000]
  --remembered N                answers that are remembered, and sealed in --state where they cost [65536]
  --batch N                     records of every message to the worker [8]
  --linger-ms N                 how long an incomplete batch waits for more images [1]
  --sessions N                  clients at a time [4096]
  --memory-limit SIZE           the most heap that the service may be planned to take, e.g. 256MiB
  --stream-weights DIR          keep the weights sealed in this folder and bring them in layer by layer; trusted-only
  --threads N                   threads of the trusted part; 0 takes one a core [0]
  --report-seconds N            prints a line of counters this often, besides at the end; 0 for never [0]
  --exit-with-parent            ends when standard input closes
  --insecure-unlimited-answers  no budget: every answer costs its epsilon, without an end
  --insecure-forgetful          no --state: a restart forgets what clients have lost
  --insecure-worker-plaintext   no TLS to the worker: its token travels in the clear

Options of deal:
  --program FILE                the program, as `asymflow client prepare-shares` leaves it; it has no weights
  --queries N                   how many queries' randomness [1]
  --hours N                     how long it may be used [24]
  --server ADDRESS HEX          a server and its fingerprint; twice
  --timeout N                   seconds that a server has for an answer [60]
";

#[derive(Debug)]
pub enum Command {
    Help,
    Job { policy: Option<PathBuf> },
    Serve(Box<ServeArgs>),
    Plan(Box<ServeArgs>),
    SealModel { model: PathBuf, state: PathBuf },
    Deal(DealArgs),
}

#[derive(Debug)]
pub struct DealArgs {
    pub program: PathBuf,
    pub queries: u32,
    pub hours: u64,
    pub servers: [ServerAt; 2],
    pub timeout: u64,
}

#[derive(Debug)]
pub struct ServeArgs {
    pub model: PathBuf,
    pub mode: Option<String>,
    pub listen: String,
    pub worker: Option<String>,
    pub worker_fingerprint: Option<String>,
    pub worker_token_file: Option<PathBuf>,
    pub worker_shm: bool,
    pub state: Option<PathBuf>,
    pub guard: Option<PathBuf>,
    pub budget_epsilon: Option<f64>,
    pub client_tokens: Option<PathBuf>,
    pub new_clients: usize,
    pub remembered: usize,
    pub batch: usize,
    pub linger_ms: u64,
    pub sessions: usize,
    pub threads: usize,
    pub report_seconds: u64,
    pub exit_with_parent: bool,
    pub memory_limit: Option<u64>,
    pub stream_weights: Option<PathBuf>,
    pub insecure_unlimited_answers: bool,
    pub insecure_forgetful: bool,
    pub insecure_worker_plaintext: bool,
}

pub fn parse(mut parser: lexopt::Parser) -> Result<Command> {
    match parser.next()? {
        None => Ok(Command::Job { policy: None }),
        Some(Long("policy")) => {
            let policy = Some(parser.value()?.into());
            parser.next()?.map_or(Ok(Command::Job { policy }), |other| Err(unexpected(other)))
        }
        Some(Short('h') | Long("help")) => Ok(Command::Help),
        Some(Value(word)) if word == "serve" => Ok(serve(&mut parser)?.map_or(Command::Help, Command::Serve)),
        Some(Value(word)) if word == "plan" => Ok(serve(&mut parser)?.map_or(Command::Help, Command::Plan)),
        Some(Value(word)) if word == "seal-model" => seal_model(&mut parser),
        Some(Value(word)) if word == "deal" => deal(&mut parser),
        Some(other) => Err(unexpected(other)),
    }
}

fn unexpected(argument: lexopt::Arg<'_>) -> anyhow::Error {
    anyhow::Error::from(argument.unexpected()).context("see asymflow-enclaved --help")
}

fn seal_model(parser: &mut lexopt::Parser) -> Result<Command> {
    let (mut model, mut state) = (None, None);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("model") => model = Some(parser.value()?.into()),
            Long("state") => state = Some(parser.value()?.into()),
            other => return Err(unexpected(other)),
        }
    }
    let model = model.context("--model is missing; a run leaves one as model.asymflow")?;
    Ok(Command::SealModel { model, state: state.context("--state is missing: the folder for the sealed model")? })
}

fn deal(parser: &mut lexopt::Parser) -> Result<Command> {
    let (mut program, mut queries, mut hours, mut timeout, mut servers) = (None, 1, 24, 60, Vec::new());
    while let Some(arg) = parser.next()? {
        match arg {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("program") => program = Some(parser.value()?.into()),
            Long("queries") => queries = number(parser, "--queries", 1..=1_000_000_000)?,
            Long("hours") => hours = number(parser, "--hours", 1..=24 * 366)?,
            Long("timeout") => timeout = number(parser, "--timeout", 1..=86_400)?,
            Long("server") => {
                let address = parser.value()?.string()?;
                let fingerprint = parser.value().context("--server takes an address and a fingerprint")?.string()?;
                servers.push(ServerAt { address, fingerprint: fingerprint.parse()? });
            }
            other => return Err(unexpected(other)),
        }
    }
    let program = program.context("--program is missing; `asymflow client prepare-shares` leaves one")?;
    let Ok(servers) = <[ServerAt; 2]>::try_from(servers) else { bail!("--server must be given twice") };
    Ok(Command::Deal(DealArgs { program, queries, hours, servers, timeout }))
}

/// Options of `serve`, which `plan` takes as well; none where help is asked for.
fn serve(parser: &mut lexopt::Parser) -> Result<Option<Box<ServeArgs>>> {
    let mut model = None;
    let mut args = ServeArgs {
        model: PathBuf::new(),
        mode: None,
        listen: "127.0.0.1:7800".to_owned(),
        worker: None,
        worker_fingerprint: None,
        worker_token_file: None,
        worker_shm: false,
        state: None,
        guard: None,
        budget_epsilon: None,
        client_tokens: None,
        new_clients: AccountLimits::default().new_each_hour,
        remembered: REMEMBERED,
        batch: 8,
        linger_ms: 1,
        sessions: 4096,
        threads: 0,
        report_seconds: 0,
        exit_with_parent: false,
        memory_limit: None,
        stream_weights: None,
        insecure_unlimited_answers: false,
        insecure_forgetful: false,
        insecure_worker_plaintext: false,
    };
    while let Some(arg) = parser.next()? {
        match arg {
            Short('h') | Long("help") => return Ok(None),
            Long("model") => model = Some(parser.value()?.into()),
            Long("mode") => args.mode = Some(parser.value()?.string()?),
            Long("listen") => args.listen = parser.value()?.string()?,
            Long("worker") => args.worker = Some(parser.value()?.string()?),
            Long("worker-fingerprint") => args.worker_fingerprint = Some(parser.value()?.string()?),
            Long("worker-token-file") => args.worker_token_file = Some(parser.value()?.into()),
            Long("worker-shm") => args.worker_shm = true,
            Long("state") => args.state = Some(parser.value()?.into()),
            Long("guard") => args.guard = Some(parser.value()?.into()),
            Long("budget-epsilon") => {
                args.budget_epsilon = Some(number(parser, "--budget-epsilon", f64::MIN_POSITIVE..=1e9)?)
            }
            Long("client-tokens") => args.client_tokens = Some(parser.value()?.into()),
            Long("new-clients") => args.new_clients = number(parser, "--new-clients", 0..=1_000_000_000)?,
            Long("remembered") => args.remembered = number(parser, "--remembered", 0..=1 << 28)?,
            Long("batch") => args.batch = number(parser, "--batch", 1..=4096)?,
            Long("linger-ms") => args.linger_ms = number(parser, "--linger-ms", 0..=60_000)?,
            Long("sessions") => args.sessions = number(parser, "--sessions", 1..=1_000_000)?,
            Long("memory-limit") => args.memory_limit = Some(parse_bytes(&parser.value()?.string()?)?),
            Long("stream-weights") => args.stream_weights = Some(parser.value()?.into()),
            Long("threads") => args.threads = number(parser, "--threads", 0..=4096)?,
            Long("report-seconds") => args.report_seconds = number(parser, "--report-seconds", 0..=24 * 3600 * 366)?,
            Long("exit-with-parent") => args.exit_with_parent = true,
            Long("insecure-unlimited-answers") => args.insecure_unlimited_answers = true,
            Long("insecure-forgetful") => args.insecure_forgetful = true,
            Long("insecure-worker-plaintext") => args.insecure_worker_plaintext = true,
            other => return Err(unexpected(other)),
        }
    }
    args.model = model.context("--model is missing; a run leaves one as model.asymflow")?;
    Ok(Some(Box::new(args)))
}

/// A number within its limits. What is made of numbers later may multiply and add them.
fn number<T: FromStr + PartialOrd + Display>(
    parser: &mut lexopt::Parser,
    name: &'static str,
    limits: RangeInclusive<T>,
) -> Result<T> {
    let text = parser.value()?.string()?;
    let number = text.parse().ok().with_context(|| format!("{name} expects a number, got {text:?}"))?;
    if !limits.contains(&number) {
        bail!("{name} must be from {} to {}, got {text}", limits.start(), limits.end());
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Command> {
        parse(lexopt::Parser::from_args(words))
    }

    #[test]
    fn a_wrong_flag_or_number_is_named() {
        assert!(matches!(of(&[]), Ok(Command::Job { policy: None })));
        assert!(matches!(of(&["--policy", "p.json"]), Ok(Command::Job { policy: Some(_) })));
        assert!(matches!(of(&["serve", "--help"]), Ok(Command::Help)));
        let refused = |words: &[&str]| format!("{:#}", of(words).unwrap_err());
        assert!(refused(&["serve"]).contains("--model is missing"));
        assert!(refused(&["serve", "--model", "m", "--modle", "x"]).contains("--modle"));
        assert!(refused(&["serve", "--model", "m", "--batch", "0"]).contains("got 0"));
        assert!(refused(&["serve", "--model", "m", "--budget-epsilon", "nan"]).contains("got nan"));
        assert!(refused(&["serve", "--model", "m", "--threads", "two"]).contains("\"two\""));
        assert!(refused(&["serve", "--model", "m", "--memory-limit", "2GB"]).contains("\"2GB\" is no size"));
        assert!(refused(&["train"]).contains("train"));
        assert!(refused(&["--policy", "p", "serve"]).contains("serve"));
        assert!(refused(&["deal"]).contains("--program is missing"));
        assert!(refused(&["deal", "--program", "p", "--server", "host:1", "ab"]).contains("64 hexadecimal digits"));
        assert!(refused(&["deal", "--program", "p"]).contains("--server must be given twice"));
        assert!(refused(&["deal", "--program", "p", "--queries", "-1"]).contains("--queries"));
    }

    #[test]
    fn every_number_has_limits() {
        let serve = [
            "--budget-epsilon",
            "--new-clients",
            "--remembered",
            "--batch",
            "--linger-ms",
            "--sessions",
            "--threads",
            "--report-seconds",
        ];
        let flags = serve.map(|flag| ("serve", flag)).into_iter();
        for (command, flag) in flags.chain(["--queries", "--hours", "--timeout"].map(|flag| ("deal", flag))) {
            for value in ["18446744073709551615", "18446744073709551616", "-1", "nan", "inf", "1e300", "", "0x7"] {
                let error = format!("{:#}", of(&[command, "--model", "m", &format!("{flag}={value}")]).unwrap_err());
                let alone = format!("{:#}", of(&[command, &format!("{flag}={value}")]).unwrap_err());
                assert!(error.contains(flag) || alone.contains(flag), "{flag}={value}: {error}");
            }
        }
    }
}
