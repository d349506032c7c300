//! Files in parts, as the hub of Hugging Face keeps large ones: an index in JSON names the part of every tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::WeightFault;

/// The one part of an index that is read.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, PathBuf>,
}

/// The files that an index names, which lie beside it.
///
/// # Errors
/// No index, or one that names files elsewhere.
pub(super) fn parts(path: &Path, json: &[u8]) -> Result<BTreeSet<PathBuf>, WeightFault> {
    let other = WeightFault::Kind("JSON, but no index of a file in parts (it has no weight_map)");
    let Index { weight_map } = serde_json::from_slice(json).map_err(|_| other)?;
    let part = |part: PathBuf| match part.components().collect::<Vec<_>>()[..] {
        [Component::Normal(_)] => Ok(path.with_file_name(part)),
        _ => Err(WeightFault::Format(format!("part {part:?} does not lie beside the index"))),
    };
    weight_map.into_values().map(part).collect()
}
