//! One sealed file.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `AFSEALED` |
//! | 2 | format version, little-endian as every number here |
//! | 1 | binding of the key: 0 a file of the host, 1 the enclave, 2 its signer |
//! | 1 | length of the label |
//! | 1 to 64 | label: what it is |
//! | 8 | sequence number, from 1 |
//! | 8 | bytes of content |
//! | 32 | salt |
//! | … | content under AES-256-GCM |
//! | 16 | its tag, which authenticates everything before it |
//!
//! # Why no nonce repeats
//!
//! The content is encrypted under a key that HKDF derives from the sealing key, the label and a salt of 256 random bits,
//! drawn inside the enclave for every file that is written. That key encrypts one file in its life, so its nonce may be
//! zero. Two files meet in a key with probability 2⁻²⁵⁶ a pair. Deriving it from label and sequence number would *not*
//! do: a host that puts back an old state makes the enclave seal another content under a number that it has used.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::error::SealError;
use super::key::{Binding, SealingKey};

const MAGIC: [u8; 8] = *b"AFSEALED";
const VERSION: u16 = 1;
const SALT_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// The longest label, in bytes.
pub(super) const LABEL_MAX_BYTES: usize = 64;
/// Everything but the content, at most.
pub(super) const OVERHEAD_MAX_BYTES: u64 = (12 + LABEL_MAX_BYTES + 8 + 8 + SALT_BYTES + TAG_BYTES) as u64;

/// A file whose header has been read and nothing of it believed yet.
struct Header {
    sequence: u64,
    salt: [u8; SALT_BYTES],
    /// Bytes before the content.
    bytes: usize,
}

/// The bytes of a sealed file.
pub(super) fn seal(key: &SealingKey, label: &str, sequence: u64, content: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt).map_err(|error| SealError::Randomness(error.to_string()))?;
    let mut file = Vec::with_capacity(content.len().saturating_add(OVERHEAD_MAX_BYTES as usize));
    file.extend_from_slice(&MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.push(binding_byte(key.binding()));
    file.push(u8::try_from(label.len()).map_err(|_| SealError::Label { label: label.to_owned() })?);
    file.extend_from_slice(label.as_bytes());
    file.extend_from_slice(&sequence.to_le_bytes());
    file.extend_from_slice(&(content.len() as u64).to_le_bytes());
    file.extend_from_slice(&salt);
    let header = file.clone();
    file.extend_from_slice(content);
    let aead = file_key(key, label, &salt)?;
    let (_, content) = file.split_at_mut(header.len());
    let tag = aead
        .seal_in_place_separate_tag(zero_nonce(), Aad::from(&header), content)
        .map_err(|_| SealError::Cipher { label: label.to_owned() })?;
    file.extend_from_slice(tag.as_ref());
    Ok(file)
}

/// The content and its sequence number, once all of it has been authenticated.
pub(super) fn open(key: &SealingKey, label: &str, mut file: Vec<u8>) -> Result<(u64, Zeroizing<Vec<u8>>), SealError> {
    let header = parse(key, label, &file)?;
    let unauthentic = || SealError::Unauthentic { label: label.to_owned() };
    let aad = file.get(..header.bytes).ok_or_else(unauthentic)?.to_vec();
    let aead = file_key(key, label, &header.salt)?;
    let opened = aead.open_within(zero_nonce(), Aad::from(&aad), &mut file, header.bytes..);
    let content_bytes = opened.map_err(|_| unauthentic())?.len();
    // From here on the buffer holds secrets, also behind the content, where the last of them stood before it moved.
    let mut content = Zeroizing::new(file);
    content.truncate(content_bytes);
    Ok((header.sequence, content))
}

fn parse(key: &SealingKey, label: &str, file: &[u8]) -> Result<Header, SealError> {
    let malformed = |what| SealError::Malformed { label: label.to_owned(), what };
    let short = || malformed("shorter than its header");
    let (magic, rest) = file.split_first_chunk::<8>().ok_or_else(short)?;
    if *magic != MAGIC {
        return Err(malformed("no sealed file"));
    }
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let version = u16::from_le_bytes(*version);
    if version != VERSION {
        return Err(SealError::Version { label: label.to_owned(), found: version, want: VERSION });
    }
    let ([binding, label_bytes], rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    if *binding != binding_byte(key.binding()) {
        return Err(SealError::OtherBinding { label: label.to_owned() });
    }
    let (found, rest) = rest.split_at_checked(usize::from(*label_bytes)).ok_or_else(short)?;
    if found != label.as_bytes() {
        let found = String::from_utf8_lossy(found).escape_debug().to_string();
        return Err(SealError::OtherLabel { found, want: label.to_owned() });
    }
    let (sequence, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (content_bytes, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (salt, rest) = rest.split_first_chunk::<SALT_BYTES>().ok_or_else(short)?;
    let want = u64::from_le_bytes(*content_bytes).checked_add(TAG_BYTES as u64);
    if want != Some(rest.len() as u64) {
        return Err(malformed("not as long as its header says"));
    }
    Ok(Header { sequence: u64::from_le_bytes(*sequence), salt: *salt, bytes: file.len() - rest.len() })
}

fn file_key(key: &SealingKey, label: &str, salt: &[u8]) -> Result<LessSafeKey, SealError> {
    let derived = key.derive(b"asymflow sealed file", &[label.as_bytes(), salt]);
    let unbound = UnboundKey::new(&AES_256_GCM, derived.as_slice());
    Ok(LessSafeKey::new(unbound.map_err(|_| SealError::Cipher { label: label.to_owned() })?))
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

pub(super) fn binding_byte(binding: Option<Binding>) -> u8 {
    match binding {
        None => 0,
        Some(Binding::Enclave) => 1,
        Some(Binding::Signer) => 2,
    }
}
