//! Who makes quotes.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use super::evidence::MAX_QUOTE_BYTES;

/// Where the report data are in an SGX quote: behind its header, at the end of the enclave's report.
const REPORT_DATA: std::ops::Range<usize> = 368..432;

/// Why there is no quote.
#[derive(Debug, Error)]
pub enum QuoteError {
    /// Not an enclave that can be attested.
    #[error("{file} does not exist: this is no Gramine SGX enclave")]
    NoEnclave {
        /// The file that tells.
        file: PathBuf,
    },
    /// An enclave without attestation.
    #[error("attestation of this enclave is {found:?}, not \"dcap\"")]
    NoDcap {
        /// What the enclave says.
        found: String,
    },
    /// A file of the attestation interface failed.
    #[error("{file}: {error}")]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not a quote over the report data asked for.
    #[error("{file} gave {bytes} bytes that are no quote over the report data written before")]
    Mismatch {
        /// The file.
        file: PathBuf,
        /// The length of what was read.
        bytes: usize,
    },
    /// The simulated quoting identity could not sign.
    #[error("the simulated quoting identity failed: {0}")]
    Simulated(String),
}

/// Makes DCAP quotes.
pub trait Quoter: Send + Sync + Debug {
    /// A quote over 64 bytes of report data.
    ///
    /// # Errors
    /// There is no hardware, or it gave none.
    fn quote(&self, report_data: [u8; 64]) -> Result<Vec<u8>, QuoteError>;

    /// Whether the quotes prove nothing.
    fn is_simulated(&self) -> bool;
}

/// Quotes by Gramine, from its attestation files.
#[derive(Debug)]
pub struct GramineQuoter {
    folder: PathBuf,
    /// The files are one register for the whole process: written, then read.
    turn: Mutex<()>,
}

impl Default for GramineQuoter {
    fn default() -> Self {
        Self::new("/dev/attestation")
    }
}

impl GramineQuoter {
    /// Quotes from the files in this folder; [`default`](Self::default) is where Gramine has them.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), turn: Mutex::new(()) }
    }

    /// Whether quotes can be made here.
    ///
    /// # Errors
    /// This is no enclave, or one without DCAP.
    pub fn probe(&self) -> Result<(), QuoteError> {
        let file = self.folder.join("attestation_type");
        if !file.exists() {
            return Err(QuoteError::NoEnclave { file });
        }
        let found = fs::read(&file).map_err(|error| QuoteError::File { file, error })?;
        if found.trim_ascii() == b"dcap" {
            return Ok(());
        }
        Err(QuoteError::NoDcap { found: String::from_utf8_lossy(&found).trim().chars().take(32).collect() })
    }
}

impl Quoter for GramineQuoter {
    fn quote(&self, report_data: [u8; 64]) -> Result<Vec<u8>, QuoteError> {
        self.probe()?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.folder.join("user_report_data");
        write(&file, &report_data).map_err(|error| QuoteError::File { file, error })?;
        let file = self.folder.join("quote");
        match read(&file) {
            Ok(quote) if quote.get(REPORT_DATA) == Some(&report_data) && quote.len() <= MAX_QUOTE_BYTES => Ok(quote),
            Ok(quote) => Err(QuoteError::Mismatch { file, bytes: quote.len() }),
            Err(error) => Err(QuoteError::File { file, error }),
        }
    }

    fn is_simulated(&self) -> bool {
        false
    }
}

/// Writes without creating or cutting, which a pseudo-file need not support.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(bytes)
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(MAX_QUOTE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str, kind: &str, quote: &[u8]) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("asymflow-quoter-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("attestation_type"), kind).unwrap();
        fs::write(folder.join("user_report_data"), [0; 64]).unwrap();
        fs::write(folder.join("quote"), quote).unwrap();
        folder
    }

    #[test]
    fn the_quote_is_over_the_data_written() {
        let mut quote = vec![9; 4600];
        quote[REPORT_DATA].copy_from_slice(&[5; 64]);
        let folder = folder("right", "dcap\n", &quote);
        let quoter = GramineQuoter::new(&folder);
        assert_eq!(quoter.quote([5; 64]).unwrap(), quote);
        assert_eq!(fs::read(folder.join("user_report_data")).unwrap(), [5; 64]);
        let error = quoter.quote([6; 64]).unwrap_err();
        assert!(matches!(error, QuoteError::Mismatch { bytes: 4600, .. }), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = GramineQuoter::new("/nowhere").quote([0; 64]).unwrap_err();
        assert_eq!(error.to_string(), "/nowhere/attestation_type does not exist: this is no Gramine SGX enclave");
        let folder = folder("none", "none", &[]);
        let error = GramineQuoter::new(&folder).quote([0; 64]).unwrap_err();
        assert_eq!(error.to_string(), "attestation of this enclave is \"none\", not \"dcap\"");
        fs::remove_dir_all(folder).unwrap();
    }
}
