//! Which network, and which images.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use asymflow_cipher::{Model, Options, Packing};
use asymflow_zoo::data::{Augment, Batch, DataSource, Dataset, Loader, Normalization, Preparation, Split, load};
use asymflow_zoo::{Network, Weights, models, weights};
use clap::ValueEnum;

use crate::Help;

/// Images that inputs' range is taken from.
const CALIBRATION: usize = 256;
/// Most bytes of a network's description.
const NETWORK_BYTES: u64 = 16 << 20;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Source {
    /// Name of a network, or a file that describes one as JSON
    #[arg(long, value_name = "NAME|FILE")]
    network: String,
    /// The network's weights, a safetensors file
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Folder or archive of the data set that it was trained on; without it the built-in set
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Training images of these: a balanced subset, or as many as are made
    #[arg(long)]
    train: Option<usize>,
    /// Test images of these
    #[arg(long)]
    test: Option<usize>,
    /// Seed of the subsets and of the built-in set
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Bits of an input value
    #[arg(long, default_value_t = Options::default().input_bits)]
    input_bits: u32,
    /// Bits of a weight, sign included
    #[arg(long, default_value_t = Options::default().weight_bits)]
    weight_bits: u32,
    /// One image a query, or thousands
    #[arg(long, value_enum, default_value = "latency")]
    packing: Many,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Many {
    Latency,
    Throughput,
}

/// What was read.
pub(crate) struct Prepared {
    pub(crate) network: Network,
    pub(crate) weights: Weights,
    pub(crate) model: Model,
    pub(crate) normalization: Normalization,
    pub(crate) split: Split,
}

impl Source {
    pub(crate) fn read(&self) -> Result<Prepared> {
        let source = match &self.data {
            Some(path) => DataSource::Files { path: path.clone(), prepare: Preparation::default() },
            None => DataSource::Synthetic {
                train: self.train.unwrap_or(1024),
                test: self.test.unwrap_or(256),
                seed: self.seed,
            },
        };
        let mut split = load(&source)?;
        for (part, count) in [(&mut split.train, self.train), (&mut split.test, self.test)] {
            if let Some(count) = count.filter(|&count| count < part.len()) {
                *part = part.subset(count, self.seed)?;
            }
        }
        let network = network(&self.network, split.train.class_names().len())?;
        if network.input != split.train.shape() {
            let (got, expected) = (split.train.shape(), network.input);
            let text = format!("images of {got} for a network of {expected}");
            return Err(anyhow!(text).context(Help("give the data set that the network was trained on by --data")));
        }
        let weights =
            weights::files::read(&self.weights, &network).with_context(|| self.weights.display().to_string())?;
        let normalization = Normalization::of(&split.train);
        let count = split.train.len().min(CALIBRATION);
        let calibration = images(&split.train, &normalization, 0..count as u32).images;
        let packing = match self.packing {
            Many::Latency => Packing::Latency,
            Many::Throughput => Packing::Throughput,
        };
        let (input_bits, weight_bits) = (self.input_bits, self.weight_bits);
        let options = Options { input_bits, weight_bits, packing, ..Options::default() };
        let model = Model::compile(&network, &weights, &calibration, options)?;
        Ok(Prepared { network, weights, model, normalization, split })
    }
}

fn network(name: &str, classes: usize) -> Result<Network> {
    if Path::new(name).extension().is_none_or(|extension| extension != "json") {
        return models::by_name(name, classes, None).map_err(|error| {
            anyhow!(error)
                .context(Help("a network of your own is a file that ends in .json; `asymflow models` lists the others"))
        });
    }
    let read = || -> Result<Network> {
        let length = std::fs::metadata(name)?.len();
        anyhow::ensure!(length <= NETWORK_BYTES, "{length} bytes, expected at most {NETWORK_BYTES}");
        Ok(serde_json::from_slice(&std::fs::read(name)?)?)
    };
    read().with_context(|| name.to_owned())
}

/// Normalised images and labels.
pub(crate) fn images(data: &Dataset, normalization: &Normalization, indices: impl Iterator<Item = u32>) -> Batch {
    let mut batch = Batch::default();
    Loader::new(data, normalization, Augment::NONE, 1).gather(None, &indices.collect::<Vec<_>>(), &mut batch);
    batch
}
