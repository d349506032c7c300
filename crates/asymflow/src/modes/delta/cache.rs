//! What has been released: kept so that nothing is released twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::modes::ExecError;

/// Released bits and labels of every record. All of it is known to the worker, so a checkpoint may hold it.
///
/// Sending it again costs nothing; drawing new noise for the same record would.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReleasedCache {
    /// Bits of a record's residual, whole bytes, by view and then by record; empty before stage 2.
    pub views: Vec<Vec<u8>>,
    /// Released labels, one a record; empty where the worker holds none.
    pub labels: Vec<u32>,
    /// Bits of records that were asked about, by number of the record.
    pub queries: BTreeMap<usize, Vec<u8>>,
    /// Records of the step whose logits the worker has computed ahead, and these logits.
    pub ahead: Option<(Vec<u32>, Vec<f32>)>,
}

impl ReleasedCache {
    /// Bytes to keep with a checkpoint.
    ///
    /// # Errors
    /// Serialisation failed.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(self)
    }

    /// Inverse of [`ReleasedCache::encode`].
    ///
    /// # Errors
    /// Anything else: it is no empty cache, for which new noise would be drawn.
    pub fn decode(bytes: &[u8]) -> Result<Self, ExecError> {
        match postcard::take_from_bytes(bytes) {
            Ok((cache, [])) => Ok(cache),
            Ok((_, rest)) => Err(ExecError::Kept(format!("{} bytes too many", rest.len()))),
            Err(error) => Err(ExecError::Kept(error.to_string())),
        }
    }
}
