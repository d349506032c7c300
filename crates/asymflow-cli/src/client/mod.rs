//! `asymflow client`: verifies a service, then asks it about images.

mod answer;
mod connection;
mod load;
mod policy;
mod service;
mod shares;
mod witness;

use std::io::Write;
use std::path::{Path, PathBuf};

use asymflow::service::Promise;
use asymflow::service::protocol::{MAX_IMAGES, Outcome};
use asymflow_enclave::Assurance;
use asymflow_enclave::attest::Verified;
use asymflow_zoo::data::{read_image, synthetic, write_png};
use clap::Subcommand;

use crate::error::CliError;
use crate::output::print;
use crate::text::{epsilon, escaped};
use answer::{answer, say, unanswered};
use connection::{Connection, Reply};
pub use load::{CONNECTIONS, LoadReport, LoadSpec, RATE, SECONDS, load};
pub use service::ServiceArgs;
use witness::{Seen, Witnesses};

/// What to ask.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Classify image files
    Classify {
        #[command(flatten)]
        service: ServiceArgs,
        /// Image files (JPEG, PNG, WebP, BMP, TIFF, GIF, PNM); `-` is standard input
        #[arg(required = true)]
        images: Vec<PathBuf>,
        /// One line of JSON an image, with its logits
        #[arg(long)]
        json: bool,
    },
    /// Classify image files by two servers on secret shares: neither sees an image or an answer
    Shares(shares::SharesArgs),
    /// Make of a model what two servers and their dealer are given
    PrepareShares(shares::PrepareArgs),
    /// Verify the service and print what it proves and promises
    Inspect {
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Ask about built-in images from many connections and print latency and throughput
    Load {
        #[command(flatten)]
        service: ServiceArgs,
        #[command(flatten)]
        load: load::Args,
    },
}

pub fn execute(command: Command) -> Result<(), CliError> {
    match command {
        Command::Classify { service, images, json } => classify(&service, &images, json),
        Command::Shares(args) => shares::classify(&args),
        Command::PrepareShares(args) => shares::prepare(&args),
        Command::Inspect { service } => {
            let connection = connect(&service)?;
            print(&described(&connection))
        }
        Command::Load { service, load } => {
            let spec = load.spec()?;
            let report = self::load(&service, &spec)?;
            let text = serde_json::to_string_pretty(&report)
                .map_err(|e| CliError::failed(format!("cannot print the results: {e}"), ""))?;
            print(&format!("{text}\n"))
        }
    }
}

/// Connects to a service and says on stderr how far it can be trusted.
fn connect(service: &ServiceArgs) -> Result<Connection, CliError> {
    let account_path = account_path(service)?;
    let witnesses = Witnesses::beside(&account_path);
    let seen = if service.forget_witness { Seen::default() } else { witnesses.of(&service.enclave) };
    let connection = Connection::open(service, &account(&account_path)?, seen.clone())?;
    // Before anything is asked: the account is known by it.
    witnesses.keep(&service.enclave, &Seen { generation: Some(connection.generation), ..seen })?;
    let note = match connection.verified.assurance {
        Assurance::Simulated => " (no enclave: whoever owns its machine sees every image)",
        Assurance::Isolated | Assurance::Attested => "",
    };
    let of_policy = connection.insecure_policy.iter().map(|name| (*name).to_owned());
    let insecure: Vec<String> = connection.promise.insecure.iter().cloned().chain(of_policy).collect();
    say(&format!(
        "assurance: {}{note}; insecure settings in force: {}",
        connection.verified.assurance,
        if insecure.is_empty() { "none".to_owned() } else { escaped(&insecure.join(", ")) }
    ));
    Ok(connection)
}

const IMAGES_HELP: &str = "name image files: JPEG, PNG, WebP, BMP, TIFF, GIF or PNM";

/// Files, pipes and standard input can be read, folders cannot.
fn can_be_read(path: &Path) -> bool {
    path == Path::new("-") || path.exists() && !path.is_dir()
}

fn classify(service: &ServiceArgs, images: &[PathBuf], json: bool) -> Result<(), CliError> {
    // A missing file is found before anybody is asked.
    if let Some(missing) = images.iter().find(|path| !can_be_read(path)) {
        return Err(CliError::usage(format!("{}: not found", missing.display()), IMAGES_HELP));
    }
    let mut connection = connect(service)?;
    let (shape, resize) = (connection.promise.input, connection.promise.resize);
    let mut unread = 0;
    let mut refused = None;
    for some in images.chunks(usize::from(MAX_IMAGES)) {
        let (mut paths, mut pixels) = (Vec::with_capacity(some.len()), Vec::with_capacity(some.len() * shape.len()));
        for path in some {
            match read_image(path, shape, resize) {
                Ok(image) => {
                    paths.push(path.as_path());
                    pixels.extend(image);
                }
                // The others are answered all the same.
                Err(error) => {
                    unread += 1;
                    unanswered(path, &error.to_string(), json)?;
                }
            }
        }
        if paths.is_empty() {
            continue;
        }
        let reply = connection.classify(&pixels)?;
        // An answer that could not be written was paid for all the same: what is kept and said of it comes first.
        let mut written = Ok(());
        for (path, line) in paths.iter().zip(lines(&paths, &reply, &connection.promise, json)) {
            written = written.and(match line {
                Ok(line) => print(&line),
                Err(detail) => {
                    let told = unanswered(path, &detail, json);
                    refused = Some(detail);
                    told
                }
            });
        }
        if let Some(witness) = &reply.witness {
            let seen = Seen { generation: Some(connection.generation), witness: Some(witness.clone()) };
            Witnesses::beside(&account_path(service)?).keep(&service.enclave, &seen)?;
        }
        if let Some(spent) = reply.spent_epsilon {
            say(&spending(spent, &connection.promise));
        }
        written?;
    }
    match refused {
        Some(detail) => Err(CliError::failed(detail, "images that were answered before cost nothing again")),
        None => all_read(unread, images.len()),
    }
}

/// An error where some images could not be read.
fn all_read(unread: usize, images: usize) -> Result<(), CliError> {
    match unread {
        0 => Ok(()),
        _ => Err(CliError::usage(format!("{unread} of {images} images could not be read"), IMAGES_HELP)),
    }
}

/// What is told of each image.
fn lines<'a>(
    paths: &'a [&Path],
    reply: &'a Reply,
    promise: &'a Promise,
    json: bool,
) -> impl Iterator<Item = Result<String, String>> + 'a {
    let mut logits = reply.logits.chunks_exact(promise.classes.max(1));
    reply.outcomes.iter().zip(paths).map(move |(outcome, path)| {
        if let Outcome::Refused(refusal) = outcome {
            return Err(refusal.detail.clone());
        }
        Ok(answer(path, logits.next().unwrap_or_default(), &promise.class_names, json))
    })
}

fn spending(spent: f64, promise: &Promise) -> String {
    let release = promise.release.as_ref();
    let delta = release.map_or(0.0, |release| release.delta);
    match release.and_then(|release| release.client_epsilon) {
        Some(budget) => {
            format!("this client has spent epsilon {} of {budget} at delta {delta:e}", epsilon(spent, 3))
        }
        None if spent.is_finite() => {
            format!("this client has spent epsilon {} at delta {delta:e}, without a limit", epsilon(spent, 3))
        }
        None => "this client has no guarantee: epsilon is infinite".to_owned(),
    }
}

/// What a service proves and promises, as a policy would pin it.
fn described(connection: &Connection) -> String {
    let Verified { assurance, measurement, tcb_status, tcb_evaluation, advisories, .. } = &connection.verified;
    let hex = asymflow::service::hex;
    let promise = serde_json::to_string_pretty(&connection.promise).unwrap_or_default();
    format!(
        "# assurance: {assurance}, platform: {tcb_status}{}\n[enclave]\nmr_enclave = [\"{}\"]\nmr_signer = [\"{}\"]\n\
         isv_prod_id = {}\nmin_isv_svn = {}\ntcb.min_evaluation = {}\n\n[promise]\nsha256 = \"{}\"\n# which is of:\n{}\n",
        advisories.iter().map(|advisory| format!(" {advisory}")).collect::<String>(),
        hex(&measurement.mr_enclave),
        hex(&measurement.mr_signer),
        measurement.isv_prod_id,
        measurement.isv_svn,
        tcb_evaluation,
        connection.promise_sha256(),
        promise.lines().map(|line| format!("# {}\n", escaped(line))).collect::<String>().trim_end(),
    )
}

/// Where the client's secret is.
fn account_path(service: &ServiceArgs) -> Result<PathBuf, CliError> {
    match &service.account {
        Some(path) => Ok(path.clone()),
        None => Ok(state_folder()?.join("account")),
    }
}

/// The client's secret, from its file or made there.
fn account(path: &Path) -> Result<[u8; 32], CliError> {
    let unusable = |reason: String| {
        let help = "an account file holds 32 bytes in hex; without it this client is another, with a budget of its own";
        CliError::usage(format!("{}: {reason}", path.display()), help)
    };
    match std::fs::read_to_string(path) {
        Ok(text) => policy::parse_hash(text.trim()).ok_or_else(|| unusable("not 64 hexadecimal digits".to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret)
                .map_err(|e| CliError::missing(format!("no randomness for an account: {e}"), ""))?;
            write_private(path, &format!("{}\n", asymflow::service::hex(&secret)))
                .map_err(|e| unusable(e.to_string()))?;
            Ok(secret)
        }
        Err(error) => Err(unusable(error.to_string())),
    }
}

fn state_folder() -> Result<PathBuf, CliError> {
    let of = |name: &str, below: &str| {
        std::env::var_os(name).filter(|value| !value.is_empty()).map(|value| Path::new(&value).join(below))
    };
    of("XDG_STATE_HOME", "asymflow")
        .or_else(|| of("HOME", ".local/state/asymflow"))
        .ok_or_else(|| CliError::usage("no home folder for this client's account", "name a file with --account"))
}

/// Writes a new file that only its owner can read.
pub fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

/// Writes the first `count` built-in test images, each named after its class.
pub fn samples(folder: &Path, count: usize, seed: u64) -> Result<(), CliError> {
    let failed = |e: String| CliError::failed(format!("cannot write {}: {e}", folder.display()), "check the folder");
    std::fs::create_dir_all(folder).map_err(|e| failed(e.to_string()))?;
    let data = synthetic(0, count, seed).test;
    for index in 0..data.len() {
        let (Some(image), Some(&label)) = (data.image(index), data.labels().get(index)) else { continue };
        let name = data.class_names().get(label as usize).map_or("image", String::as_str);
        let path = folder.join(format!("{index:02}-{name}.png"));
        write_png(&path, image, data.shape()).map_err(|e| failed(e.to_string()))?;
        print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}
