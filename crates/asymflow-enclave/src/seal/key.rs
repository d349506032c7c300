//! The key that everything sealed hangs on, and the keys derived from it.

use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::hmac;
use thiserror::Error;
use zeroize::Zeroizing;

/// Where Gramine shows the keys of the enclave.
const GRAMINE_KEYS: &str = "/dev/attestation/keys";
/// Bytes of a Gramine key.
const GRAMINE_KEY_BYTES: usize = 16;
/// Bytes of a sealing key and of every key derived from it.
pub(super) const KEY_BYTES: usize = 32;

/// Which enclaves can open what is sealed. The processor derives another key for every machine, so no binding
/// outlives the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Only the same program: a new version cannot read the state of the old one.
    Enclave,
    /// Every program of the same signer: whoever holds the signing key can read the state.
    Signer,
}

impl Binding {
    fn file_name(self) -> &'static str {
        match self {
            Self::Enclave => "_sgx_mrenclave",
            Self::Signer => "_sgx_mrsigner",
        }
    }
}

/// Why there is no sealing key.
#[derive(Debug, Error)]
pub enum KeyError {
    /// Gramine shows no such key: this is no SGX enclave.
    #[error("{path} does not exist: this process runs in no SGX enclave")]
    NoEnclave {
        /// Where the key would be.
        path: PathBuf,
    },
    /// The key cannot be read or written.
    #[error("cannot use the key file {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A key of another length.
    #[error("{path} holds {found_bytes} bytes, a key has {want_bytes}")]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length, or one more than the length of a key where it is longer.
        found_bytes: usize,
        /// The length of a key.
        want_bytes: usize,
    },
    /// A key of zeros, which is none.
    #[error("{path} holds zeros, which are no key")]
    Zero {
        /// The file.
        path: PathBuf,
    },
    /// Others may read the key file.
    #[error("{path} has mode {mode:o}, and others than its owner may use it; make it 600")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The operating system has no randomness.
    #[error("no randomness for a key: {0}")]
    Randomness(String),
}

/// The root of everything sealed: 32 bytes, wiped when dropped and never shown.
#[derive(Clone)]
pub struct SealingKey {
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    /// `None` for a key in a file of the host.
    binding: Option<Binding>,
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKey").field("binding", &self.binding).finish_non_exhaustive()
    }
}

impl SealingKey {
    /// The key that the processor derives for this enclave, through Gramine.
    ///
    /// Gramine asks that one key never serves both an `encrypted` mount and a program's own cryptography, so give
    /// the two different bindings.
    ///
    /// # Errors
    /// This is no SGX enclave, or Gramine shows something that is no key.
    pub fn gramine(binding: Binding) -> Result<Self, KeyError> {
        Self::gramine_at(Path::new(GRAMINE_KEYS), binding)
    }

    /// [`SealingKey::gramine`] with the keys in another folder.
    ///
    /// # Errors
    /// As there.
    pub fn gramine_at(folder: &Path, binding: Binding) -> Result<Self, KeyError> {
        let path = folder.join(binding.file_name());
        let short = match read_key::<GRAMINE_KEY_BYTES>(&path) {
            Err(KeyError::Io { path, error }) if error.kind() == ErrorKind::NotFound => {
                return Err(KeyError::NoEnclave { path });
            }
            other => other?,
        };
        let bytes = expand(short.as_slice(), b"asymflow sealing root", &[binding.file_name().as_bytes()]);
        Ok(Self { bytes, binding: Some(binding) })
    }

    /// A key in a file of the host, made with mode 600 where it is missing. Whoever owns the machine can read it, so
    /// this is for the simulated runtime and for nothing else.
    ///
    /// # Errors
    /// The file cannot be read or made, is no key, or others may use it.
    pub fn insecure_host_file(path: &Path) -> Result<Self, KeyError> {
        let io = |error| KeyError::Io { path: path.to_owned(), error };
        if !path.try_exists().map_err(io)? {
            make_key_file(path)?;
        }
        let mode = path.metadata().map_err(io)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        let raw = read_key::<KEY_BYTES>(path)?;
        Ok(Self { bytes: expand(raw.as_slice(), b"asymflow sealing root", &[b"host file"]), binding: None })
    }

    /// Which enclaves can open what this key seals; `None` for a key in a file of the host.
    pub fn binding(&self) -> Option<Binding> {
        self.binding
    }

    /// A key for `purpose` and nothing else.
    pub(super) fn derive(&self, purpose: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; KEY_BYTES]> {
        expand(self.bytes.as_slice(), purpose, parts)
    }

    /// An HMAC-SHA256 key for `purpose` and nothing else.
    pub(super) fn mac_key(&self, purpose: &[u8]) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.derive(purpose, &[]).as_slice())
    }
}

/// HKDF-SHA256 (RFC 5869) with `purpose` for a salt. Every part is preceded by its length, so that no two lists of parts
/// are alike.
///
/// One block of output is two HMACs, which cannot fail; ring's HKDF can, and a failure passed over would be a key of zeros.
fn expand(secret: &[u8], purpose: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; KEY_BYTES]> {
    let extracted = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, purpose), secret);
    let mut info = info(parts);
    info.push(1);
    let block = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, extracted.as_ref()), &info);
    let mut out = Zeroizing::new([0; KEY_BYTES]);
    out.copy_from_slice(block.as_ref());
    out
}

fn info(parts: &[&[u8]]) -> Vec<u8> {
    let with_length = |part: &&[u8]| [&(part.len() as u64).to_le_bytes(), *part].concat();
    parts.iter().flat_map(with_length).collect()
}

fn read_key<const BYTES: usize>(path: &Path) -> Result<Zeroizing<[u8; BYTES]>, KeyError> {
    let io = |error| KeyError::Io { path: path.to_owned(), error };
    let file = OpenOptions::new().read(true).open(path).map_err(io)?;
    let mut read = Zeroizing::new(Vec::with_capacity(BYTES + 1));
    file.take(BYTES as u64 + 1).read_to_end(&mut read).map_err(io)?;
    let key: [u8; BYTES] = read.as_slice().try_into().map_err(|_| KeyError::Length {
        path: path.to_owned(),
        found_bytes: read.len(),
        want_bytes: BYTES,
    })?;
    if key.iter().all(|&byte| byte == 0) {
        return Err(KeyError::Zero { path: path.to_owned() });
    }
    Ok(Zeroizing::new(key))
}

/// Makes the file whole or not at all, and leaves one that somebody else has just made.
fn make_key_file(path: &Path) -> Result<(), KeyError> {
    let io = |error| KeyError::Io { path: path.to_owned(), error };
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(key.as_mut_slice()).map_err(|error| KeyError::Randomness(error.to_string()))?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished).map_err(io)?;
    let made = file.write_all(key.as_slice()).and_then(|()| file.sync_all());
    let linked = made.and_then(|()| match std::fs::hard_link(&unfinished, path) {
        // Gramine has no links, and its folders have one process.
        Err(error) if error.kind() == ErrorKind::Unsupported => std::fs::rename(&unfinished, path),
        linked => linked,
    });
    // It has served either way; what is left of it is a key that nothing uses.
    let _ = std::fs::remove_file(&unfinished);
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(io(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(name: &str, bytes: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
        folder
    }

    #[test]
    fn the_two_bindings_give_two_keys_and_both_are_stable() {
        let folder = folder_with("_sgx_mrenclave", &[7; 16]);
        std::fs::write(folder.path().join("_sgx_mrsigner"), [7; 16]).unwrap();
        let key = |binding| SealingKey::gramine_at(folder.path(), binding).unwrap();
        assert_eq!(*key(Binding::Enclave).bytes, *key(Binding::Enclave).bytes);
        assert_ne!(*key(Binding::Enclave).bytes, *key(Binding::Signer).bytes);
        assert_ne!(key(Binding::Enclave).derive(b"a", &[]), key(Binding::Enclave).derive(b"b", &[]));
    }

    #[test]
    fn keys_are_those_of_hkdf() {
        let parts: [&[u8]; 2] = [b"label", &[9; 32]];
        let prk = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, b"purpose").extract(&[3; 16]);
        let mut want = [0; KEY_BYTES];
        prk.expand(&[&info(&parts)], ring::hkdf::HKDF_SHA256).unwrap().fill(&mut want).unwrap();
        assert_eq!(*expand(&[3; 16], b"purpose", &parts), want);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let key = SealingKey::gramine_at(folder_with("_sgx_mrenclave", &[7; 16]).path(), Binding::Enclave).unwrap();
        assert_ne!(key.derive(b"p", &[b"ab", b"c"]), key.derive(b"p", &[b"a", b"bc"]));
    }

    #[test]
    fn outside_an_enclave_the_missing_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = SealingKey::gramine_at(folder.path(), Binding::Signer).unwrap_err();
        assert!(error.to_string().ends_with("_sgx_mrsigner does not exist: this process runs in no SGX enclave"));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let refused = |bytes: &[u8]| {
            SealingKey::gramine_at(folder_with("_sgx_mrenclave", bytes).path(), Binding::Enclave).unwrap_err()
        };
        assert!(matches!(refused(&[7; 15]), KeyError::Length { found_bytes: 15, want_bytes: 16, .. }));
        assert!(matches!(refused(&[7; 500]), KeyError::Length { found_bytes: 17, .. }));
        assert!(matches!(refused(&[0; 16]), KeyError::Zero { .. }));
    }

    #[test]
    fn a_host_file_is_made_once_and_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/key");
        let made = SealingKey::insecure_host_file(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(*made.bytes, *SealingKey::insecure_host_file(&path).unwrap().bytes);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let other = SealingKey::insecure_host_file(&folder.path().join("other")).unwrap();
        assert_ne!(*made.bytes, *other.bytes);

        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
        std::fs::set_permissions(&path, mode).unwrap();
        assert!(matches!(SealingKey::insecure_host_file(&path), Err(KeyError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = SealingKey::gramine_at(folder_with("_sgx_mrenclave", &[7; 16]).path(), Binding::Enclave).unwrap();
        assert_eq!(format!("{key:?}"), "SealingKey { binding: Some(Enclave), .. }");
    }
}
