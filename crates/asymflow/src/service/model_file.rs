//! A model file as it is read for a service: what it holds before its weights, and those one by one.

use std::io::Read;
use std::path::Path;

use asymflow_engine::streamed::{ModelWeights, WeightWriter, is_streamed};
use asymflow_wire::{PREFIX_BYTES, Prefix, WireError, decode_header};
use asymflow_zoo::{Network, Weights, weights::WeightTensor};
use sha2::{Digest, Sha256};

use super::model::{LIMITS, ModelFileError, ServedModel};
use crate::hex::hex;
use crate::modes::Registry;

/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A model file of which everything before the weights has been read.
#[derive(Debug)]
pub struct ModelFile<R> {
    reader: R,
    hash: Sha256,
    model: ServedModel,
    weight_bytes: u64,
    /// The network with the parameters that follow.
    stored: Network,
}

/// A model file that has been read to its end.
#[derive(Debug)]
pub struct ReadModel {
    /// The model.
    pub model: ServedModel,
    /// Its weights.
    pub weights: ModelWeights,
    /// SHA-256 of the file as it was read, in hexadecimal.
    pub sha256: String,
}

impl<R: Read> ModelFile<R> {
    /// Reads up to the weights.
    ///
    /// # Errors
    /// A truncated or foreign file, or contents that contradict each other.
    pub fn open(reader: R, registry: &Registry) -> Result<Self, ModelFileError> {
        let mut file = Hashing { reader, hash: Sha256::new() };
        let mut prefix = [0; PREFIX_BYTES];
        file.fill(&mut prefix)?;
        let Prefix { header_bytes, body_bytes } = Prefix::parse(prefix, LIMITS)?;
        let mut header = vec![0; header_bytes as usize];
        file.fill(&mut header)?;
        let model: ServedModel = decode_header(&header)?;
        let expected = model.check_settings(registry)?;
        let stored = model.stored_network(registry)?;
        model.check_length((body_bytes / 4) as usize, expected)?;
        if body_bytes % 4 != 0 {
            return Err(ModelFileError::Trailing { bytes: (body_bytes % 4) as usize });
        }
        Ok(Self { reader: file.reader, hash: file.hash, model, weight_bytes: body_bytes, stored })
    }

    /// The model, its mode still open to a change.
    pub const fn model(&mut self) -> &mut ServedModel {
        &mut self.model
    }

    /// Bytes of its weights.
    pub const fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Reads the weights and holds them.
    ///
    /// # Errors
    /// A truncated file, or a weight that is not finite.
    pub fn held(self) -> Result<ReadModel, ModelFileError> {
        self.read(None)
    }

    /// Reads the weights and seals the large ones into a file at `path`, one at a time.
    ///
    /// # Errors
    /// As [`ModelFile::held`], and a file that cannot be written.
    pub fn sealed(self, path: &Path) -> Result<ReadModel, ModelFileError> {
        let writer = WeightWriter::create(path)?;
        self.read(Some(writer))
    }

    /// Reads the weights and keeps none of them; gives the SHA-256 of the file as it was read, in hexadecimal.
    ///
    /// # Errors
    /// As [`ModelFile::held`].
    pub fn checked(self) -> Result<String, ModelFileError> {
        let Self { reader, hash, stored, .. } = self;
        let (mut file, mut before) = (Hashing { reader, hash }, 0);
        for spec in stored.parameters() {
            file.values(spec.len(), before)?;
            before += spec.len();
        }
        file.end()
    }

    fn read(self, mut writer: Option<WeightWriter>) -> Result<ReadModel, ModelFileError> {
        let Self { reader, hash, model, stored, .. } = self;
        let mut file = Hashing { reader, hash };
        let (mut held, mut before) = (Weights::default(), 0);
        for (index, spec) in stored.parameters().into_iter().enumerate() {
            let data = file.values(spec.len(), before)?;
            before += spec.len();
            match &mut writer {
                Some(writer) if is_streamed(spec.kind) => writer.add(index, &data)?,
                _ => drop(held.tensors.insert(spec.name, WeightTensor { shape: spec.shape, data })),
            }
        }
        let sha256 = file.end()?;
        let weights = match writer {
            Some(writer) => ModelWeights::Streamed(held, Box::new(writer.finish())),
            None => ModelWeights::Held(held),
        };
        Ok(ReadModel { model, weights, sha256 })
    }
}

/// A reader that hashes what it reads.
struct Hashing<R> {
    reader: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ModelFileError> {
        self.reader.read_exact(bytes).map_err(WireError::from)?;
        self.hash.update(&*bytes);
        Ok(())
    }

    /// The hash, where nothing follows.
    fn end(mut self) -> Result<String, ModelFileError> {
        let mut rest = [0];
        if self.reader.read(&mut rest).map_err(WireError::from)? > 0 {
            return Err(ModelFileError::Trailing { bytes: 1 });
        }
        Ok(hex(&self.hash.finalize()))
    }

    /// The next `len` values, of which the first is number `before` of the file.
    fn values(&mut self, len: usize, before: usize) -> Result<Vec<f32>, ModelFileError> {
        let mut piece = vec![0; (4 * len).min(PIECE_BYTES)];
        let mut values = Vec::with_capacity(len);
        while values.len() < len {
            let bytes = (4 * (len - values.len())).min(PIECE_BYTES);
            let piece = piece.get_mut(..bytes).unwrap_or_default();
            self.fill(piece)?;
            values.extend(piece.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)));
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(ModelFileError::NonFinite { index: before + at }),
            None => Ok(values),
        }
    }
}
