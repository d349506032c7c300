//! A sealed file that is written and read piece by piece, for what is too large to be in memory twice.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `AFSTREAM` |
//! | 2 | format version, little-endian |
//! | 1 | binding of the key: 0 a file of the host, 1 the enclave, 2 its signer |
//! | 32 | salt |
//! | … | pieces of 2²⁰ bytes, the last of 0 to 2²⁰, under AES-256-GCM, each followed by its tag of 16 bytes |
//!
//! This is STREAM (Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015): the nonce of a piece is its number and whether it is
//! the last, so that none can be moved, left out or cut off. The key is derived from the sealing key, a label and a salt of
//! 256 random bits that is drawn for every file. An older file under the same label is authentic: whoever reads one has to
//! know by its content which it is.

use std::io::{self, ErrorKind, Read, Write};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::format::binding_byte;
use super::key::SealingKey;

/// What a sealed stream begins with.
const MAGIC: [u8; 8] = *b"AFSTREAM";
const VERSION: u16 = 1;
const SALT_BYTES: usize = 32;
const HEADER_BYTES: usize = MAGIC.len() + 2 + 1 + SALT_BYTES;
const PIECE_BYTES: usize = 1 << 20;
const TAG_BYTES: usize = 16;

impl SealingKey {
    /// Copies all of `from` to `to`, sealed under `label`. The caller sees to it that what is written outlives a crash.
    ///
    /// # Errors
    /// Reading or writing failed, or there is no randomness.
    pub fn seal_stream(&self, label: &str, mut from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|error| io::Error::other(error.to_string()))?;
        to.write_all(&MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        to.write_all(&[binding_byte(self.binding())])?;
        to.write_all(&salt)?;
        let key = stream_key(self, label, &salt)?;
        let mut piece = Vec::with_capacity(PIECE_BYTES + TAG_BYTES);
        for number in 0.. {
            piece.clear();
            (&mut from).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
            let is_last = piece.len() < PIECE_BYTES;
            let sealed = key.seal_in_place_append_tag(nonce(number, is_last), Aad::empty(), &mut piece);
            sealed.map_err(|_| io::Error::other("a piece cannot be sealed"))?;
            to.write_all(&piece)?;
            if is_last {
                break;
            }
        }
        Ok(())
    }
}

/// Reads a sealed stream. What is given out is authentic and in place; the end is only told where the stream really ends.
#[derive(Debug)]
pub struct SealedReader<R> {
    from: R,
    key: LessSafeKey,
    piece: Vec<u8>,
    /// Of the piece, how much is content, and how much of that was given out.
    content_bytes: usize,
    given_bytes: usize,
    /// Number of the next piece; `None` after the last.
    number: Option<u64>,
}

impl<R: Read> SealedReader<R> {
    /// Whether a file that begins with these bytes is a sealed stream.
    pub fn is_stream(beginning: &[u8]) -> bool {
        beginning.starts_with(&MAGIC)
    }

    /// Reads the header.
    ///
    /// # Errors
    /// No sealed stream, one of another version, or one under a key of another kind.
    pub fn open(mut from: R, key: &SealingKey, label: &str) -> io::Result<Self> {
        let mut header = [0; HEADER_BYTES];
        from.read_exact(&mut header)?;
        let (magic, rest) = header.split_at(MAGIC.len());
        let (version, rest) = rest.split_at(2);
        let (binding, salt) = rest.split_at(1);
        if magic != MAGIC || version != VERSION.to_le_bytes() {
            return Err(invalid(format!("no sealed stream of version {VERSION}")));
        }
        if binding != [binding_byte(key.binding())] {
            return Err(invalid("sealed under a key with another binding".to_owned()));
        }
        let key = stream_key(key, label, salt)?;
        let piece = Vec::with_capacity(PIECE_BYTES + TAG_BYTES);
        Ok(Self { from, key, piece, content_bytes: 0, given_bytes: 0, number: Some(0) })
    }

    /// Reads and authenticates the next piece.
    fn next(&mut self, number: u64) -> io::Result<()> {
        // Nothing more is given out where this fails.
        (self.number, self.content_bytes, self.given_bytes) = (None, 0, 0);
        self.piece.clear();
        self.from.by_ref().take((PIECE_BYTES + TAG_BYTES) as u64).read_to_end(&mut self.piece)?;
        let is_last = self.piece.len() < PIECE_BYTES + TAG_BYTES;
        let opened = self.key.open_in_place(nonce(number, is_last), Aad::empty(), &mut self.piece);
        let content = opened.map_err(|_| {
            invalid(format!("piece {number} was altered or cut off, or the file was sealed under another key"))
        })?;
        self.content_bytes = content.len();
        self.number = number.checked_add(1).filter(|_| !is_last);
        Ok(())
    }
}

impl<R: Read> Read for SealedReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.given_bytes == self.content_bytes {
            let Some(number) = self.number else { return Ok(0) };
            self.next(number)?;
        }
        let mut left = self.piece.get(self.given_bytes..self.content_bytes).unwrap_or_default();
        let read = left.read(out)?;
        self.given_bytes += read;
        Ok(read)
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

fn stream_key(key: &SealingKey, label: &str, salt: &[u8]) -> io::Result<LessSafeKey> {
    let derived = key.derive(b"asymflow sealed stream", &[label.as_bytes(), salt]);
    let unbound = UnboundKey::new(&AES_256_GCM, derived.as_slice());
    Ok(LessSafeKey::new(unbound.map_err(|_| io::Error::other("no key for a sealed stream"))?))
}

fn nonce(number: u64, is_last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    let (low, last) = bytes.split_at_mut(8);
    low.copy_from_slice(&number.to_le_bytes());
    last.fill(u8::from(is_last));
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::key;
    use super::*;

    const LABEL: &str = "model";

    fn sealed(content: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        key(1).seal_stream(LABEL, &mut &content[..], &mut file).unwrap();
        file
    }

    fn opened(file: &[u8], key: &SealingKey, label: &str) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        SealedReader::open(file, key, label)?.read_to_end(&mut content)?;
        Ok(content)
    }

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| ((i * 31) >> 3) as u8).collect()
    }

    #[test]
    fn every_length_is_read_as_it_was_sealed() {
        for bytes in [0, 1, 1000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, 2 * PIECE_BYTES + 7] {
            let (content, file) = (content(bytes), sealed(&content(bytes)));
            assert_eq!(opened(&file, &key(1), LABEL).unwrap(), content, "{bytes} bytes");
            assert_eq!(file.len(), HEADER_BYTES + bytes + (bytes / PIECE_BYTES + 1) * TAG_BYTES);
            assert!(SealedReader::<&[u8]>::is_stream(&file));
        }
        assert_ne!(sealed(b"the same"), sealed(b"the same"));
    }

    #[test]
    fn another_key_or_label_opens_nothing() {
        let file = sealed(b"content");
        assert!(opened(&file, &key(2), LABEL).is_err());
        assert!(opened(&file, &key(1), "other").is_err());
    }

    #[test]
    fn nothing_but_a_true_beginning_is_given_out_of_a_changed_file() {
        let content = content(2 * PIECE_BYTES + 100);
        let good = sealed(&content);
        let given = |file: &[u8]| {
            let Ok(mut reader) = SealedReader::open(file, &key(1), LABEL) else { return 0 };
            let mut given = Vec::new();
            assert!(reader.read_to_end(&mut given).is_err());
            assert_eq!(given, content[..given.len()]);
            assert_eq!(reader.read(&mut [0; 8]).unwrap_or(0), 0, "it does not mend itself");
            given.len()
        };
        let piece = PIECE_BYTES + TAG_BYTES;
        let places = (0..HEADER_BYTES + 20).chain([HEADER_BYTES + piece - 1, HEADER_BYTES + piece, good.len() - 1]);
        for at in places {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let whole = at.saturating_sub(HEADER_BYTES) / piece;
            assert_eq!(given(&bad), whole * PIECE_BYTES, "byte {at}");
        }
        for end in [0, 5, HEADER_BYTES, HEADER_BYTES + piece, HEADER_BYTES + 2 * piece, good.len() - 1] {
            given(&good[..end]);
        }
        let (header, pieces) = good.split_at(HEADER_BYTES);
        let (one, rest) = pieces.split_at(piece);
        let (two, last) = rest.split_at(piece);
        assert_eq!(given(&[header, two, one, last].concat()), 0);
        assert_eq!(given(&[header, one, last].concat()), PIECE_BYTES);
        assert_eq!(given(&[header, one, two, last, &[0]].concat()), 2 * PIECE_BYTES);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), named in any::<bool>()) {
            let file = if named { [&MAGIC[..], &[1, 0, 1], &bytes].concat() } else { bytes };
            prop_assert!(opened(&file, &key(1), LABEL).is_err());
        }
    }
}
