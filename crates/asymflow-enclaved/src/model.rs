//! The model file, plain or sealed under the enclave's key.

use std::fs::File;
use std::io::{Cursor, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use asymflow::modes::Registry;
use asymflow::service::ModelFile;
use asymflow_enclave::seal::SealedReader;

use crate::evidence::Evidence;
use crate::state;

/// What a model is sealed as.
const LABEL: &str = "model";
/// Name of a sealed model.
const SEALED_MODEL: &str = "model.sealed";

/// A model file of either kind.
pub type AnyModel = ModelFile<Box<dyn Read>>;

/// Reads a model up to its weights. Which of the two it is, its first bytes say; a sealed one needs the folder of `state`
/// where the key lies outside an enclave.
pub fn open(path: &Path, state: Option<&Path>, registry: &Registry) -> Result<AnyModel> {
    let named = || path.display().to_string();
    let mut file = File::open(path).with_context(|| format!("cannot read {}", named()))?;
    let mut beginning = Vec::new();
    (&mut file).take(8).read_to_end(&mut beginning).with_context(named)?;
    let is_sealed = SealedReader::<File>::is_stream(&beginning);
    let whole = Cursor::new(beginning).chain(file);
    let reader: Box<dyn Read> = if is_sealed {
        let folder = state.context("--state is missing: a sealed model is read with the key of its folder")?;
        let key = state::key(folder, &Evidence::open()?, &mut Vec::new())?;
        Box::new(SealedReader::open(whole, &key, LABEL).with_context(named)?)
    } else {
        Box::new(whole)
    };
    ModelFile::open(reader, registry).with_context(named)
}

/// Seals the model file into the folder, whole or not at all.
pub fn seal(path: &Path, state: &Path, registry: &Registry) -> Result<()> {
    let evidence = Evidence::open()?;
    state::outlives(state, &evidence)?;
    std::fs::create_dir_all(state).with_context(|| format!("cannot make {}", state.display()))?;
    let mut insecure = Vec::new();
    let key = state::key(state, &evidence, &mut insecure)?;
    // What is no model is not sealed as one.
    let plain = || File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let sha256 = ModelFile::open(plain()?, registry).and_then(ModelFile::checked);
    let sha256 = sha256.with_context(|| path.display().to_string())?;
    let mut file = plain()?;
    let (sealed, unfinished) = (state.join(SEALED_MODEL), state.join("model.sealed.new"));
    let cannot = || format!("cannot write {}", sealed.display());
    let mut to = File::create(&unfinished).with_context(cannot)?;
    key.seal_stream(LABEL, &mut file, &mut to).with_context(cannot)?;
    to.sync_all().with_context(cannot)?;
    std::fs::rename(&unfinished, &sealed).with_context(cannot)?;
    File::open(state).and_then(|folder| folder.sync_all()).with_context(cannot)?;
    let said = serde_json::json!({ "sealed": sealed, "model_sha256": sha256, "insecure": insecure });
    writeln!(std::io::stdout(), "{said}").context("cannot write")
}
