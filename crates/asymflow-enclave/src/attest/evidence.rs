//! What an attested certificate carries: the TCG DICE tagged evidence of RA-TLS, as bytes and back.

use ciborium_ll::{Decoder, Encoder, Header};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The certificate extension that holds the evidence: `tcg-dice-TaggedEvidence`.
pub const EVIDENCE_OID: [u64; 6] = [2, 23, 133, 5, 4, 9];

/// The longest quote that is read, in bytes. Gramine's buffer for one is half of it.
pub const MAX_QUOTE_BYTES: usize = 16 << 10;

/// The longest promise, in bytes.
pub const MAX_PROMISE_BYTES: usize = 16 << 10;

/// The public key of the simulated root, SEC1 uncompressed. Known to every verifier, so that it can name what it refuses.
pub const SIMULATED_ROOT_PUBLIC_KEY: [u8; 65] = [
    0x04, 0x9d, 0xdf, 0x4a, 0xf4, 0x57, 0x7f, 0xf1, 0x79, 0xf3, 0x80, 0x81, 0xeb, 0xdd, 0x66, 0x00, 0x01, 0x4b, 0xfe,
    0x4d, 0x35, 0x30, 0x63, 0x73, 0x55, 0x8a, 0x38, 0xb3, 0x3e, 0x1a, 0xcd, 0x18, 0x81, 0xa3, 0x36, 0x85, 0x39, 0xc3,
    0xfc, 0x7a, 0x58, 0x09, 0x21, 0x0c, 0x15, 0xfd, 0x40, 0xb8, 0x6e, 0x12, 0x99, 0x34, 0x39, 0x63, 0x42, 0x87, 0x82,
    0x4d, 0xa6, 0xc3, 0x69, 0xcd, 0xa1, 0x1e, 0xaa,
];

const MAX_CLAIMS_BYTES: usize = MAX_PROMISE_BYTES + 4096;
const MAX_CLAIMS: usize = 16;
/// CBOR tag of RA-TLS evidence made of a quote and claims.
const EVIDENCE_TAG: u64 = 60000;
/// SHA-256 in the IANA registry of named information hash algorithms.
const SHA_256: u64 = 1;
const KEY_CLAIM: &str = "pubkey-hash";
const PROMISE_CLAIM: &str = "asymflow-promise";

/// Why bytes are no evidence.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EvidenceError {
    /// No CBOR, or cut off.
    #[error("no CBOR item at byte {at}")]
    Cbor {
        /// Offset in bytes.
        at: usize,
    },
    /// Another CBOR item than the format has there.
    #[error("{found} where {what} belongs")]
    Unexpected {
        /// What the format says.
        what: &'static str,
        /// What was read.
        found: String,
    },
    /// Too long.
    #[error("{what} of {bytes} bytes; at most {limit_bytes} are read")]
    TooLong {
        /// Which item.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Something follows.
    #[error("{bytes} bytes after the end")]
    Trailing {
        /// How many bytes.
        bytes: usize,
    },
    /// A claim is not there.
    #[error("no claim \"{0}\"")]
    Missing(&'static str),
    /// A claim is there twice.
    #[error("the claim \"{0}\" is there twice")]
    Twice(&'static str),
}

/// A quote and the claims that it vouches for. Nothing is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The DCAP quote.
    pub quote: Vec<u8>,
    /// The CBOR map of claims; SHA-256 of these bytes is in the quote.
    pub claims: Vec<u8>,
}

impl Evidence {
    /// Reads the content of the certificate extension: CBOR tag 60000 around `[quote, claims]`. Indefinite lengths and
    /// whatever follows are refused.
    ///
    /// # Errors
    /// The bytes are something else, or longer than a quote and claims can be.
    pub fn parse(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let mut reader = Reader::new(bytes);
        reader.expect(Header::Tag(EVIDENCE_TAG), "tag 60000")?;
        reader.expect(Header::Array(Some(2)), "an array of quote and claims")?;
        let quote = reader.bytes("a quote", MAX_QUOTE_BYTES)?;
        let claims = reader.bytes("claims", MAX_CLAIMS_BYTES)?;
        reader.end()?;
        Ok(Self { quote, claims })
    }

    /// The content of the certificate extension.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = writer(&mut out);
        let Ok(()) = writer.push(Header::Tag(EVIDENCE_TAG));
        let Ok(()) = writer.push(Header::Array(Some(2)));
        let Ok(()) = writer.bytes(&self.quote, None);
        let Ok(()) = writer.bytes(&self.claims, None);
        out
    }
}

/// What an enclave says of itself beside its measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// SHA-256 of the DER SubjectPublicKeyInfo of its TLS key.
    pub public_key_sha256: [u8; 32],
    /// What it promises, opaque to this crate.
    pub promise: Vec<u8>,
}

impl Claims {
    /// Reads claims. Others than the two are passed over where their values are byte strings.
    ///
    /// # Errors
    /// The bytes are something else, a claim is missing or there twice.
    pub fn parse(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let mut reader = Reader::new(bytes);
        let claims = match reader.header()? {
            Header::Map(Some(claims)) if claims <= MAX_CLAIMS => claims,
            other => return Err(unexpected("a map of at most 16 claims", other)),
        };
        let (mut key, mut promise) = (None, None);
        for _ in 0..claims {
            let name = reader.text("the name of a claim", 64)?;
            let value = reader.bytes("a claim", MAX_PROMISE_BYTES)?;
            let (place, name) = match name.as_slice() {
                name if name == KEY_CLAIM.as_bytes() => (&mut key, KEY_CLAIM),
                name if name == PROMISE_CLAIM.as_bytes() => (&mut promise, PROMISE_CLAIM),
                _ => continue,
            };
            if place.replace(value).is_some() {
                return Err(EvidenceError::Twice(name));
            }
        }
        reader.end()?;
        let key = key.ok_or(EvidenceError::Missing(KEY_CLAIM))?;
        let promise = promise.ok_or(EvidenceError::Missing(PROMISE_CLAIM))?;
        Ok(Self { public_key_sha256: parse_hash(&key)?, promise })
    }

    /// The CBOR map.
    pub fn encode(&self) -> Vec<u8> {
        let mut hash = Vec::new();
        let mut inner = writer(&mut hash);
        let Ok(()) = inner.push(Header::Array(Some(2)));
        let Ok(()) = inner.push(Header::Positive(SHA_256));
        let Ok(()) = inner.bytes(&self.public_key_sha256, None);

        let mut out = Vec::new();
        let mut writer = writer(&mut out);
        let Ok(()) = writer.push(Header::Map(Some(2)));
        let Ok(()) = writer.text(KEY_CLAIM, None);
        let Ok(()) = writer.bytes(&hash, None);
        let Ok(()) = writer.text(PROMISE_CLAIM, None);
        let Ok(()) = writer.bytes(&self.promise, None);
        out
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The report data of a certificate's quote: SHA-256 of the claims, then zeros.
pub(crate) fn certificate_report_data(claims_sha256: &[u8; 32]) -> [u8; 64] {
    let mut data = [0; 64];
    let (head, _) = data.split_at_mut(32);
    head.copy_from_slice(claims_sha256);
    data
}

fn parse_hash(bytes: &[u8]) -> Result<[u8; 32], EvidenceError> {
    let mut reader = Reader::new(bytes);
    reader.expect(Header::Array(Some(2)), "an array of algorithm and hash")?;
    reader.expect(Header::Positive(SHA_256), "SHA-256")?;
    let hash = reader.bytes("a key's hash", 32)?;
    reader.end()?;
    hash.try_into().map_err(|hash: Vec<u8>| EvidenceError::Unexpected {
        what: "a hash of 32 bytes",
        found: format!("{} bytes", hash.len()),
    })
}

fn unexpected(what: &'static str, found: Header) -> EvidenceError {
    EvidenceError::Unexpected { what, found: format!("{found:?}") }
}

struct Reader<'a> {
    decoder: Decoder<&'a [u8]>,
    length_bytes: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { decoder: Decoder::from(bytes), length_bytes: bytes.len() }
    }

    fn header(&mut self) -> Result<Header, EvidenceError> {
        let at = self.decoder.offset();
        self.decoder.pull().map_err(|_| EvidenceError::Cbor { at })
    }

    fn expect(&mut self, wanted: Header, what: &'static str) -> Result<(), EvidenceError> {
        let found = self.header()?;
        if found == wanted { Ok(()) } else { Err(unexpected(what, found)) }
    }

    fn bytes(&mut self, what: &'static str, limit_bytes: usize) -> Result<Vec<u8>, EvidenceError> {
        match self.header()? {
            Header::Bytes(Some(bytes)) => self.body(what, bytes, limit_bytes),
            other => Err(unexpected(what, other)),
        }
    }

    fn text(&mut self, what: &'static str, limit_bytes: usize) -> Result<Vec<u8>, EvidenceError> {
        match self.header()? {
            Header::Text(Some(bytes)) => self.body(what, bytes, limit_bytes),
            other => Err(unexpected(what, other)),
        }
    }

    fn body(&mut self, what: &'static str, bytes: usize, limit_bytes: usize) -> Result<Vec<u8>, EvidenceError> {
        if bytes > limit_bytes {
            return Err(EvidenceError::TooLong { what, bytes, limit_bytes });
        }
        let at = self.decoder.offset();
        let mut body = vec![0; bytes];
        ciborium_io::Read::read_exact(&mut self.decoder, &mut body).map_err(|_| EvidenceError::Cbor { at })?;
        Ok(body)
    }

    fn end(mut self) -> Result<(), EvidenceError> {
        match self.length_bytes.saturating_sub(self.decoder.offset()) {
            0 => Ok(()),
            bytes => Err(EvidenceError::Trailing { bytes }),
        }
    }
}

/// Memory as a CBOR writer that cannot fail.
struct Memory<'a>(&'a mut Vec<u8>);

impl ciborium_io::Write for Memory<'_> {
    type Error = std::convert::Infallible;

    fn write_all(&mut self, data: &[u8]) -> Result<(), Self::Error> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

fn writer(out: &mut Vec<u8>) -> Encoder<Memory<'_>> {
    Encoder::from(Memory(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_has_the_bytes_of_ra_tls() {
        let claims = Claims { public_key_sha256: [7; 32], promise: b"p".to_vec() };
        let bytes = claims.encode();
        let mut by_hand = vec![0xa2, 0x6b];
        by_hand.extend(b"pubkey-hash");
        by_hand.extend([0x58, 36, 0x82, 0x01, 0x58, 32]);
        by_hand.extend([7; 32]);
        by_hand.push(0x70);
        by_hand.extend(b"asymflow-promise");
        by_hand.extend([0x41, b'p']);
        assert_eq!(bytes, by_hand);
        assert_eq!(Claims::parse(&bytes).unwrap(), claims);

        let evidence = Evidence { quote: vec![1, 2], claims: vec![3] };
        assert_eq!(evidence.encode(), [0xd9, 0xea, 0x60, 0x82, 0x42, 1, 2, 0x41, 3]);
        assert_eq!(Evidence::parse(&evidence.encode()).unwrap(), evidence);
    }

    #[test]
    fn what_is_no_evidence_is_named() {
        let text = |bytes: &[u8]| Evidence::parse(bytes).unwrap_err().to_string();
        assert_eq!(text(&[]), "no CBOR item at byte 0");
        assert_eq!(text(&[0xd9, 0xea, 0x61]), "Tag(60001) where tag 60000 belongs");
        assert_eq!(text(&[0xd9, 0xea, 0x60, 0x82, 0x42, 1]), "no CBOR item at byte 5");
        assert_eq!(
            text(&[0xd9, 0xea, 0x60, 0x82, 0x5b, 0xff, 0, 0, 0, 0, 0, 0, 0]),
            "a quote of 18374686479671623680 bytes; at most 16384 are read"
        );
        assert_eq!(text(&[0xd9, 0xea, 0x60, 0x82, 0x5f]), "Bytes(None) where a quote belongs");
        assert_eq!(text(&[0xd9, 0xea, 0x60, 0x82, 0x41, 1, 0x40, 9, 9]), "2 bytes after the end");
    }

    #[test]
    fn every_claim_is_there_once() {
        let claims = Claims { public_key_sha256: [7; 32], promise: Vec::new() }.encode();
        let mut twice = claims.clone();
        twice[0] = 0xa3;
        twice.extend(&claims[51..]);
        assert_eq!(Claims::parse(&twice), Err(EvidenceError::Twice(PROMISE_CLAIM)));
        let mut without = claims[..51].to_vec();
        without[0] = 0xa1;
        assert_eq!(Claims::parse(&without), Err(EvidenceError::Missing(PROMISE_CLAIM)));
    }
}
