//! The client and the owner of two servers that answer on secret shares.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use asymflow::modes::Registry;
use asymflow::service::ServedModel;
use asymflow_shares::compile::{FixedModel, Options, compile, float_logits};
use asymflow_shares::net::{Client, ModelInfo, NetError, ServerAt, write};
use asymflow_shares::program::WeightPolicy;
use asymflow_shares::randomness::Seed;
use asymflow_wire::tls::Fingerprint;
use asymflow_zoo::data::read_image;
use asymflow_zoo::{Network, Weights};
use clap::{Args, ValueEnum};

use super::answer::{answer, say, unanswered};
use super::{IMAGES_HELP, all_read, can_be_read};
use crate::error::CliError;
use crate::output::print;

/// The ring of the servers.
type Ring = u64;

/// Images of noise that ranges are checked with where no others are given.
const NOISE: usize = 2;
/// Largest error in fixed point, as a part of the largest logit, that is not worth a warning.
const PRECISE: f64 = 0.02;

/// Options of `shares`.
#[derive(Debug, Args)]
pub struct SharesArgs {
    /// Address of a server; twice
    #[arg(long, value_name = "ADDRESS", required = true)]
    server: Vec<String>,
    /// Its fingerprint, in the same order
    #[arg(long, value_name = "HEX", required = true)]
    fingerprint: Vec<Fingerprint>,
    /// Image files; `-` is standard input
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// One line of JSON an image, with its logits
    #[arg(long)]
    json: bool,
    /// Longest wait for an answer, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

/// Options of `prepare-shares`.
#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// The model, as a run leaves it (model.asymflow)
    model: PathBuf,
    /// Whether the servers know the weights
    #[arg(long, value_enum)]
    weights: Policy,
    /// Folder for what the dealer and the servers get
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Image file like those that will be asked, to check the ranges of fixed point with; may be repeated. Noise where
    /// there is none
    #[arg(long, value_name = "FILE")]
    check: Vec<PathBuf>,
}

/// Who knows the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Both servers: they get the model file
    Public,
    /// Neither server: each gets a share
    Shared,
}

pub fn classify(args: &SharesArgs) -> Result<(), CliError> {
    if let Some(missing) = args.images.iter().find(|path| !can_be_read(path)) {
        return Err(CliError::usage(format!("{}: not found", missing.display()), IMAGES_HELP));
    }
    let [servers, fingerprints] = [args.server.len(), args.fingerprint.len()];
    let both = || {
        let at = |index: usize| {
            let (address, &fingerprint) = args.server.get(index).zip(args.fingerprint.get(index))?;
            Some(ServerAt { address: address.clone(), fingerprint })
        };
        at(0).zip(at(1)).filter(|_| servers == 2 && fingerprints == 2)
    };
    let Some((first, second)) = both() else {
        let what = format!("{servers} servers and {fingerprints} fingerprints, expected two of each");
        return Err(CliError::usage(what, "give --server and --fingerprint for each of the two servers"));
    };
    let mut client = Client::connect(&[first, second], Duration::from_secs(args.timeout)).map_err(|e| told(&e))?;
    let info = client.info().clone();
    let mut unread = 0;
    for path in &args.images {
        let image = match read(path, &info) {
            Ok(image) => image,
            Err(error) => {
                unread += 1;
                unanswered(path, error.message(), args.json)?;
                continue;
            }
        };
        let started = Instant::now();
        let logits = client.ask::<Ring>(&image).map_err(|e| told(&e))?;
        let milliseconds = 1e3 * started.elapsed().as_secs_f64();
        print(&answer(path, &logits, &info.class_names, args.json))?;
        say(&format!("answered on shares in {milliseconds:.1} ms"));
    }
    client.close();
    all_read(unread, args.images.len())
}

/// The values of an image file, as the network takes them.
fn read(path: &Path, info: &ModelInfo) -> Result<Vec<f32>, CliError> {
    let pixels = read_image(path, info.input, info.resize).map_err(|e| CliError::usage(e.to_string(), IMAGES_HELP))?;
    Ok(normalised(&pixels, info))
}

fn normalised(pixels: &[u8], info: &ModelInfo) -> Vec<f32> {
    let levels = info.normalization.values(info.input.channels);
    let planes = pixels.chunks_exact((info.input.height * info.input.width).max(1)).zip(&levels);
    planes.flat_map(|(plane, levels)| plane.iter().map(|&pixel| levels[usize::from(pixel)])).collect()
}

fn told(error: &NetError) -> CliError {
    let help = match error {
        NetError::Unreachable { .. } => {
            return CliError::missing(
                error.to_string(),
                "start it with `asymflow-server`, or name its address with --server",
            );
        }
        NetError::Refused { refusal, .. } => refusal.help(),
        NetError::Fingerprint { .. } => "compare --fingerprint with what the server prints when it starts",
        NetError::Pair(_) => "name the first and the second server of one model",
        NetError::Wire { .. } | NetError::Handshake { .. } => "see that both servers run, and ask again",
        NetError::Run(_)
        | NetError::Tls(_)
        | NetError::Unexpected { .. }
        | NetError::Program(_)
        | NetError::Ring(_)
        | NetError::Client(_)
        | NetError::Transfer(_)
        | NetError::Deal(_)
        | NetError::Random(_)
        | NetError::Proof(_)
        | NetError::Setup(_) => "use programs of one release",
    };
    CliError::failed(error.to_string(), help)
}

/// Writes `program` for the dealer, and with shared weights `first.share` and `second.share` for the servers.
pub fn prepare(args: &PrepareArgs) -> Result<(), CliError> {
    let named = args.model.display();
    let unusable = |e: String| CliError::usage(format!("{named}: {e}"), "name the model.asymflow of a run");
    let bytes = std::fs::read(&args.model).map_err(|e| unusable(e.to_string()))?;
    let (model, weights) = ServedModel::decode(&bytes, &Registry::default()).map_err(|e| unusable(e.to_string()))?;
    let weights = Weights::unflatten(&model.network, &weights).map_err(|e| unusable(e.to_string()))?;
    let policy = if args.weights == Policy::Public { WeightPolicy::Public } else { WeightPolicy::Shared };
    let compiled = compile::<Ring>(&model.network, &weights, &Options::new::<Ring>(policy))
        .map_err(|e| CliError::usage(format!("{named}: {e}"), ""))?;
    let info = ModelInfo {
        input: model.network.input,
        normalization: model.normalization,
        class_names: model.class_names,
        resize: model.resize,
    };
    let images = check_images(&args.check, &info)?;
    let unlike = "if images stay in range where noise does not, name some with --check";
    check(&compiled, &model.network, &weights, &images)
        .map_err(|e| CliError::usage(format!("{named}: {e}"), unlike))?;
    let failed = |e: String| CliError::failed(format!("{}: {e}", args.output.display()), "give a new folder");
    std::fs::create_dir_all(&args.output).map_err(|e| failed(e.to_string()))?;
    let put = |name: &str, write: &dyn Fn(&mut BufWriter<std::fs::File>) -> std::io::Result<()>| {
        create(&args.output.join(name), write).map_err(|e| failed(format!("{name}: {e}")))
    };
    if args.weights == Policy::Public {
        let program = compiled.program().to_bytes();
        return put("program", &|file| file.write_all(&program));
    }
    let seed = Seed::random().map_err(|e| CliError::missing(format!("no randomness: {e}"), ""))?;
    let shares = compiled.share(&seed, &images.concat()).map_err(|e| failed(e.to_string()))?;
    let program = shares[0].program().to_bytes();
    put("program", &|file| file.write_all(&program))?;
    for (name, share) in ["first.share", "second.share"].into_iter().zip(&shares) {
        put(name, &|file| {
            write(file, &info, &[]).map_err(std::io::Error::other)?;
            share.write_to(file).map(drop).map_err(std::io::Error::other)
        })?;
    }
    Ok(())
}

/// What ranges are checked with: files, or noise of all pixel values.
fn check_images(files: &[PathBuf], info: &ModelInfo) -> Result<Vec<Vec<f32>>, CliError> {
    if !files.is_empty() {
        return files.iter().map(|path| read(path, info)).collect();
    }
    let mut images = Vec::new();
    for _ in 0..NOISE {
        let mut pixels = vec![0; info.input.len()];
        getrandom::fill(&mut pixels).map_err(|e| CliError::missing(format!("no randomness: {e}"), ""))?;
        images.push(normalised(&pixels, info));
    }
    Ok(images)
}

/// Computes images in fixed point beside double precision, and says what error to expect.
fn check(model: &FixedModel<Ring>, network: &Network, weights: &Weights, images: &[Vec<f32>]) -> Result<(), String> {
    let (mut error, mut largest) = (0.0_f64, 0.0_f64);
    for image in images {
        let fixed = model.evaluate(image).map_err(|e| e.to_string())?.logits;
        let float = float_logits(network, weights, &BTreeMap::new(), image).map_err(|e| e.to_string())?;
        for (fixed, float) in fixed.iter().zip(float) {
            error = error.max((f64::from(*fixed) - float).abs());
            largest = largest.max(float.abs());
        }
    }
    let count = images.len();
    say(&format!(
        "checked with {count} images: logits up to {largest:.3} are off by at most {error:.1e} in fixed point"
    ));
    if error > PRECISE * largest {
        say("warning: fixed point is too coarse for these weights: answers on shares may differ from the model's");
    }
    Ok(())
}

/// A new file that only its owner can read.
fn create(path: &Path, fill: &dyn Fn(&mut BufWriter<std::fs::File>) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut file = BufWriter::new(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?);
    fill(&mut file)?;
    file.flush()
}
