//! What this server computes.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use asymflow::modes::Registry;
use asymflow::service::ServedModel;
use asymflow_shares::compile::{Options, WeightShare, compile};
use asymflow_shares::link::Link;
use asymflow_shares::net::{LIMITS, ModelInfo, NetError, PROGRAM_LIMITS, read};
use asymflow_shares::program::{ModelHash, Program, Server, WeightPolicy};
use asymflow_shares::randomness::ServerSeed;
use asymflow_shares::server::{PartyModel, Setup, set_up};
use asymflow_zoo::Weights;

/// The ring of all models here.
pub type Ring = u64;

/// A model and what is needed to make it ready for a dealing.
pub struct Model {
    pub server: Server,
    pub info: ModelInfo,
    pub program: Program,
    pub hash: ModelHash,
    weights: Held,
}

enum Held {
    Public(Arc<PartyModel<Ring>>),
    /// The file of the share, and the models with masked weights of dealings in use.
    Shared {
        path: PathBuf,
        ready: Mutex<HashMap<[u8; 16], Arc<PartyModel<Ring>>>>,
    },
}

impl Model {
    /// A model file whose weights both servers know.
    pub fn public(path: &Path, server: Server) -> Result<Self> {
        let named = || path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", named()))?;
        let (served, weights) = ServedModel::decode(&bytes, &Registry::default()).with_context(named)?;
        let weights = Weights::unflatten(&served.network, &weights).with_context(named)?;
        let options = Options::new::<Ring>(WeightPolicy::Public);
        let model = compile::<Ring>(&served.network, &weights, &options).with_context(named)?;
        // `prepare-shares` checks more; this is what a server can check without an image.
        let model = model.publish(&vec![0.0; served.network.input.len()]).with_context(named)?;
        let info = ModelInfo {
            input: served.network.input,
            normalization: served.normalization,
            class_names: served.class_names,
            resize: served.resize,
        };
        let program = model.program().clone();
        Ok(Self { server, info, hash: program.hash(), program, weights: Held::Public(model) })
    }

    /// This server's share, as `asymflow client prepare-shares` wrote it.
    pub fn shared(path: &Path) -> Result<Self> {
        let (info, share) = read_share(path).with_context(|| path.display().to_string())?;
        let program = share.program().clone();
        let weights = Held::Shared { path: path.to_owned(), ready: Mutex::default() };
        Ok(Self { server: share.server(), info, hash: program.hash(), program, weights })
    }

    /// The model for a dealing, where its masked weights need not be opened first.
    pub fn opened(&self, session: &[u8; 16]) -> Option<Arc<PartyModel<Ring>>> {
        match &self.weights {
            Held::Public(model) => Some(Arc::clone(model)),
            Held::Shared { ready, .. } => ready.lock().unwrap_or_else(PoisonError::into_inner).get(session).cloned(),
        }
    }

    /// The model for a dealing; opens the masked weights over `link` where either server needs them.
    pub fn ready(
        &self,
        seed: &ServerSeed,
        set_up_needed: bool,
        link: &mut impl Link,
    ) -> Result<Arc<PartyModel<Ring>>, NetError> {
        let (path, ready) = match &self.weights {
            Held::Public(model) => return Ok(Arc::clone(model)),
            Held::Shared { path, ready } => (path, ready),
        };
        let lock = || ready.lock().unwrap_or_else(PoisonError::into_inner);
        if !set_up_needed && let Some(model) = lock().get(&seed.session()) {
            return Ok(Arc::clone(model));
        }
        let failed = |error: &dyn std::fmt::Display| NetError::Setup(format!("{}: {error:#}", path.display()));
        let (_, share) = read_share(path).map_err(|error| failed(&error))?;
        // A share that was written over since this server began is of no model that was dealt for.
        let model = set_up(Setup::new(share, seed).map_err(|error| failed(&error))?, link)?;
        let mut ready = lock();
        // One dealing is in use at a time, and a new one takes its place.
        if ready.len() >= 2 {
            ready.clear();
        }
        ready.insert(seed.session(), Arc::clone(&model));
        Ok(model)
    }
}

fn read_share(path: &Path) -> Result<(ModelInfo, WeightShare<Ring>)> {
    let mut file = BufReader::new(File::open(path).context("cannot read it")?);
    let limits = asymflow_wire::Limits { header_bytes: PROGRAM_LIMITS.header_bytes, ..LIMITS };
    let info = read::<ModelInfo>(&mut file, limits).context("no share of a model")?.header;
    Ok((info, WeightShare::read_from(&mut file).context("no share of a model")?))
}
