//! Weights that do not fit: sealed in a file outside, and brought in layer by layer.
//!
//! A network's convolution and linear weights are written once, tensor by tensor, in chunks under AES-256-GCM. The key is
//! drawn for that one file and never leaves the process, so no other file opens under it, an older one of the same model
//! included; nonce and associated data are the place of a chunk in the order of execution, so none can be moved, left out
//! or cut off. One thread reads ahead: at most two tensors are held, the one at work and the next.
//!
//! | part of a chunk | bytes |
//! |---|---|
//! | weights, f32 little-endian, encrypted | up to 2²⁰ |
//! | tag | 16 |

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

use asymflow_zoo::{
    Network, Weights,
    ops::{ParamKind, ParamSpec},
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use thiserror::Error;
use zeroize::Zeroizing;

/// Plaintext of a chunk.
const CHUNK_BYTES: usize = 1 << 20;
const TAG_BYTES: usize = 16;
const VALUE: usize = size_of::<f32>();

/// Why streamed weights cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    /// The file cannot be written or read.
    #[error("sealed weights: {0}")]
    Io(String),
    /// Somebody else wrote there.
    #[error(
        "sealed weights: chunk {chunk} of tensor {tensor} is not what was sealed there; nothing is computed with it"
    )]
    Forged {
        /// Number of the tensor in the order of execution.
        tensor: usize,
        /// Number of the chunk in it.
        chunk: usize,
    },
    /// The file is shorter than it was.
    #[error("sealed weights end before chunk {chunk} of tensor {tensor}")]
    Truncated {
        /// Number of the tensor in the order of execution.
        tensor: usize,
        /// Number of the chunk in it.
        chunk: usize,
    },
    /// No key could be made.
    #[error("no key for sealed weights could be made")]
    Key,
    /// Training and states need all weights at once.
    #[error("weights are streamed, which serves inference in mode trusted-only alone")]
    InferenceOnly,
    /// A tensor that the network does not stream.
    #[error("parameter {index} is not streamed")]
    Parameter {
        /// Its index.
        index: usize,
    },
}

/// Whether a parameter is streamed; the others are small and stay.
pub const fn is_streamed(kind: ParamKind) -> bool {
    matches!(kind, ParamKind::ConvWeight | ParamKind::LinearWeight)
}

/// What a network holds of its weights at most while they are streamed, in bytes: two neighbours, what stays, and a chunk.
pub fn held_bytes(network: &Network) -> u64 {
    let (streamed, kept): (Vec<ParamSpec>, _) = network.parameters().into_iter().partition(|p| is_streamed(p.kind));
    let lens: Vec<usize> = streamed.iter().map(ParamSpec::len).collect();
    let next = lens.iter().cycle().skip(1);
    let pair = lens.iter().zip(next).map(|(one, other)| one + other).max().unwrap_or(0);
    let kept: usize = kept.iter().map(ParamSpec::len).sum();
    ((pair + kept) * VALUE + CHUNK_BYTES + TAG_BYTES) as u64
}

fn nonce(tensor: usize, chunk: usize) -> Nonce {
    let mut bytes = [0; 12];
    let (first, second) = bytes.split_at_mut(4);
    first.copy_from_slice(&(tensor as u32).to_le_bytes());
    second.copy_from_slice(&(chunk as u64).to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// What a chunk is bound to beside its nonce: how long its tensor is.
fn associated(values: usize) -> Aad<[u8; 8]> {
    Aad::from((values as u64).to_le_bytes())
}

fn io(error: &std::io::Error) -> StreamError {
    StreamError::Io(error.to_string())
}

/// One tensor of the file.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    /// Index among the network's parameters.
    index: usize,
    values: usize,
}

/// Writes a file of sealed weights.
#[derive(Debug)]
pub struct WeightWriter {
    file: File,
    key: LessSafeKey,
    tensors: Vec<Tensor>,
}

impl WeightWriter {
    /// A new file at `path`, which it replaces. It is of no use to a later process.
    ///
    /// # Errors
    /// It cannot be made, or no key.
    pub fn create(path: &Path) -> Result<Self, StreamError> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret).map_err(|_| StreamError::Key)?;
        let key = UnboundKey::new(&AES_256_GCM, &*secret).map_err(|_| StreamError::Key)?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).map_err(|e| io(&e))?;
        Ok(Self { file, key: LessSafeKey::new(key), tensors: Vec::new() })
    }

    /// Adds the weights of parameter `index`; in the order of execution.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn add(&mut self, index: usize, values: &[f32]) -> Result<(), StreamError> {
        let tensor = self.tensors.len();
        let mut buffer = Vec::with_capacity(CHUNK_BYTES + TAG_BYTES);
        for (chunk, part) in values.chunks(CHUNK_BYTES / VALUE).enumerate() {
            buffer.clear();
            buffer.extend(part.iter().flat_map(|value| value.to_le_bytes()));
            let sealed = self.key.seal_in_place_append_tag(nonce(tensor, chunk), associated(values.len()), &mut buffer);
            sealed.map_err(|_| StreamError::Key)?;
            self.file.write_all(&buffer).map_err(|e| io(&e))?;
        }
        self.tensors.push(Tensor { index, values: values.len() });
        Ok(())
    }

    /// The weights as they can be streamed.
    pub fn finish(self) -> SealedWeights {
        SealedWeights { file: self.file, key: self.key, tensors: self.tensors }
    }
}

/// A file of sealed weights and its key.
#[derive(Debug)]
pub struct SealedWeights {
    file: File,
    key: LessSafeKey,
    tensors: Vec<Tensor>,
}

impl SealedWeights {
    fn read(&mut self, tensor: usize, values: usize, buffer: &mut Vec<u8>) -> Result<Vec<f32>, StreamError> {
        let mut out = Vec::with_capacity(values);
        let mut chunk = 0;
        while out.len() < values {
            let bytes = ((values - out.len()) * VALUE).min(CHUNK_BYTES) + TAG_BYTES;
            buffer.resize(bytes, 0);
            self.file.read_exact(buffer).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => StreamError::Truncated { tensor, chunk },
                _ => io(&error),
            })?;
            let opened = self.key.open_in_place(nonce(tensor, chunk), associated(values), buffer);
            let plain = opened.map_err(|_| StreamError::Forged { tensor, chunk })?;
            out.extend(plain.as_chunks::<VALUE>().0.iter().map(|value| f32::from_le_bytes(*value)));
            chunk += 1;
        }
        Ok(out)
    }

    fn rewind(&mut self) -> Result<(), StreamError> {
        self.file.seek(SeekFrom::Start(0)).map(drop).map_err(|e| io(&e))
    }

    /// Reads tensor after tensor, again and again, one ahead of whoever takes them.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn stream(mut self) -> Result<WeightStream, StreamError> {
        let order = self.tensors.clone();
        let streamed = order.iter().map(|tensor| tensor.index).collect();
        let (send, receive) = sync_channel(0);
        let body = move || {
            let mut buffer = Vec::with_capacity(CHUNK_BYTES + TAG_BYTES);
            for (number, &Tensor { index, values }) in order.iter().enumerate().cycle() {
                let rewound = if number == 0 { self.rewind() } else { Ok(()) };
                let read = rewound.and_then(|()| self.read(number, values, &mut buffer));
                let has_failed = read.is_err();
                // Who takes them is gone, or has heard of the failure.
                if send.send(read.map(|values| (index, values))).is_err() || has_failed {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("weights".to_owned()).spawn(body).map_err(|e| io(&e))?;
        Ok(WeightStream { streamed, receive, failed: None })
    }
}

type Read_ = Result<(usize, Vec<f32>), StreamError>;

/// Weights as they come in.
#[derive(Debug)]
pub struct WeightStream {
    streamed: Vec<usize>,
    receive: Receiver<Read_>,
    failed: Option<StreamError>,
}

impl WeightStream {
    /// The weights of parameter `index`. Those that come before it are passed over, as after a pass that was broken off.
    ///
    /// # Errors
    /// The file is not what was written, or a parameter that is not streamed. A file that has failed fails from then on.
    pub fn take(&mut self, index: usize) -> Result<Vec<f32>, StreamError> {
        if !self.streamed.contains(&index) {
            return Err(StreamError::Parameter { index });
        }
        loop {
            if let Some(failed) = &self.failed {
                return Err(failed.clone());
            }
            match self.receive.recv() {
                Ok(Ok((found, values))) if found == index => return Ok(values),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => self.failed = Some(error),
                Err(_) => self.failed = Some(StreamError::Io("the thread that reads them has ended".to_owned())),
            }
        }
    }
}

/// Weights of a network that an engine is made of.
#[derive(Debug)]
pub enum ModelWeights {
    /// All of them here.
    Held(Weights),
    /// The large ones sealed outside; the others here.
    Streamed(Weights, Box<SealedWeights>),
}

impl From<Weights> for ModelWeights {
    fn from(weights: Weights) -> Self {
        Self::Held(weights)
    }
}

impl ModelWeights {
    /// Seals the large ones of `weights` into a file at `path`, each freed as soon as it is written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sealed(network: &Network, mut weights: Weights, path: &Path) -> Result<Self, StreamError> {
        let mut writer = WeightWriter::create(path)?;
        for (index, spec) in network.parameters().iter().enumerate().filter(|(_, spec)| is_streamed(spec.kind)) {
            if let Some(tensor) = weights.tensors.remove(&spec.name) {
                writer.add(index, &tensor.data)?;
            }
        }
        Ok(Self::Streamed(weights, Box::new(writer.finish())))
    }
}

#[cfg(test)]
mod tests {
    use asymflow_zoo::{by_name, weights::Pass};
    use faer::Par;

    use super::*;
    use crate::local::LocalConv;
    use crate::{Engine, EngineError};

    struct Streamed {
        engine: Engine,
        convolver: LocalConv,
    }

    impl Streamed {
        fn new(network: &Network, weights: ModelWeights) -> Result<Self, EngineError> {
            let engine = Engine::with_weights(network.clone(), weights, Par::rayon(2))?;
            let convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::rayon(2));
            Ok(Self { engine, convolver })
        }

        fn logits(&mut self, pass: Pass) -> Result<Vec<f32>, EngineError> {
            let images: Vec<f32> =
                (0..2 * self.engine.network().input.len()).map(|i| (i as f32 * 0.37).sin()).collect();
            self.engine.forward(&images, 2, pass, 0, &mut self.convolver)
        }
    }

    #[test]
    fn streamed_weights_give_the_same_logits_bit_for_bit_again_and_again() {
        for name in ["demo-cnn", "resnet18-cifar", "vgg11-cifar"] {
            let folder = tempfile::tempdir().unwrap();
            let network = by_name(name, 10, None).unwrap();
            let weights = Weights::init(&network, 7);
            let expected = Streamed::new(&network, weights.clone().into()).unwrap().logits(Pass::Inference).unwrap();
            let sealed = ModelWeights::sealed(&network, weights, &folder.path().join("w")).unwrap();
            let mut streamed = Streamed::new(&network, sealed).unwrap();
            for _ in 0..3 {
                let logits = streamed.logits(Pass::Inference).unwrap();
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&logits), bits(&expected), "{name}");
            }
            let refused = streamed.logits(Pass::Training).unwrap_err();
            assert!(matches!(refused, EngineError::Stream(StreamError::InferenceOnly)), "{refused}");
        }
    }

    /// A file of several chunks, changed by `change` before anything is read of it.
    fn changed(change: impl Fn(&mut Vec<u8>)) -> EngineError {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        let network = by_name("resnet18-cifar", 10, None).unwrap();
        let sealed = ModelWeights::sealed(&network, Weights::init(&network, 7), &path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let mut streamed = Streamed::new(&network, sealed).unwrap();
        let error = streamed.logits(Pass::Inference).unwrap_err();
        // It does not mend itself.
        assert_eq!(streamed.logits(Pass::Inference).unwrap_err().to_string(), error.to_string());
        error
    }

    #[test]
    fn a_file_that_was_changed_gives_an_error_and_no_answer() {
        let whole = CHUNK_BYTES + TAG_BYTES;
        let of = |error: EngineError| match error {
            EngineError::Stream(error) => error,
            other => panic!("{other}"),
        };
        assert_eq!(of(changed(|bytes| bytes[5] ^= 1)), StreamError::Forged { tensor: 0, chunk: 0 });
        let last = |bytes: &mut Vec<u8>| {
            let at = bytes.len() - 1;
            bytes[at] ^= 0x80;
        };
        assert!(matches!(of(changed(last)), StreamError::Forged { .. }));
        assert!(matches!(of(changed(|bytes| bytes.truncate(bytes.len() - 1))), StreamError::Truncated { .. }));
        assert!(matches!(of(changed(|bytes| bytes.truncate(100))), StreamError::Truncated { tensor: 0, chunk: 0 }));
        assert!(matches!(of(changed(Vec::clear)), StreamError::Truncated { tensor: 0, chunk: 0 }));
        // Two whole chunks of the largest tensor, which is the last but one, change places.
        let swap = |bytes: &mut Vec<u8>| {
            let tail = 512 * 10 * 4 + TAG_BYTES;
            let end = bytes.len() - tail;
            let (first, second) = bytes[end - 4 * whole..end - 2 * whole].split_at_mut(whole);
            first.swap_with_slice(second);
        };
        assert!(matches!(of(changed(swap)), StreamError::Forged { .. }));
    }

    #[test]
    fn the_file_of_another_process_is_refused() {
        let (folder, network) = (tempfile::tempdir().unwrap(), by_name("demo-cnn", 10, None).unwrap());
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        let weights = Weights::init(&network, 7);
        let sealed = ModelWeights::sealed(&network, weights.clone(), &one).unwrap();
        // The same weights under the key of another.
        ModelWeights::sealed(&network, weights, &other).unwrap();
        std::fs::copy(&other, &one).unwrap();
        let error = Streamed::new(&network, sealed).unwrap().logits(Pass::Inference).unwrap_err();
        assert!(matches!(error, EngineError::Stream(StreamError::Forged { tensor: 0, chunk: 0 })), "{error}");
    }
}
