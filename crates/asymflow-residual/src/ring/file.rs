//! The file behind a ring: named under `/dev/shm`, and unlinked as soon as both sides hold it.

use std::fmt;
use std::fs::{self, File, FileType, OpenOptions};
#[cfg(feature = "serve")]
use std::io::{self, Write};
#[cfg(feature = "serve")]
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{RingError, RingNameError};

const FOLDER: &str = "/dev/shm";
const PREFIX: &str = "asymflow-ring-";
const MAX_SUFFIX: usize = 64;

/// Name of a ring's file: `/dev/shm/asymflow-ring-` and up to 64 letters, digits, `-` or `_`.
///
/// The other side can name nothing but such a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RingName(String);

impl FromStr for RingName {
    type Err = RingNameError;

    /// Takes the name with or without its folder.
    fn from_str(text: &str) -> Result<Self, RingNameError> {
        let name = text.strip_prefix(FOLDER).and_then(|rest| rest.strip_prefix('/')).unwrap_or(text);
        let fits = |suffix: &str| {
            (1..=MAX_SUFFIX).contains(&suffix.len())
                && suffix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.strip_prefix(PREFIX).is_some_and(fits) {
            Ok(Self(name.to_owned()))
        } else {
            Err(RingNameError(crate::protocol::text(text)))
        }
    }
}

impl TryFrom<String> for RingName {
    type Error = RingNameError;

    fn try_from(text: String) -> Result<Self, RingNameError> {
        text.parse()
    }
}

impl From<RingName> for String {
    fn from(name: RingName) -> Self {
        name.0
    }
}

impl fmt::Display for RingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{FOLDER}/{}", self.0)
    }
}

impl RingName {
    /// A name that nobody can guess.
    #[cfg(feature = "serve")]
    pub(super) fn random() -> Result<Self, RingError> {
        let mut random = [0u8; 16];
        super::fill(&mut random)?;
        Ok(Self(random.iter().fold(PREFIX.to_owned(), |name, byte| format!("{name}{byte:02x}"))))
    }

    fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.0)
    }
}

/// A file that goes with this value.
#[cfg(feature = "serve")]
#[derive(Debug)]
pub(crate) struct Named(PathBuf);

#[cfg(feature = "serve")]
impl Drop for Named {
    fn drop(&mut self) {
        // Gone already, or not ours any more; nobody needs it either way.
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes the file with all its memory, for its owner only. One that a killed process left under the same name is
/// replaced.
#[cfg(feature = "serve")]
pub(super) fn create(name: &RingName, bytes: u64) -> Result<(File, Named), RingError> {
    let path = name.path();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(RingError::File(error)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(RingError::File)?;
    let named = Named(path);
    commit(&mut file, bytes)?;
    Ok((file, named))
}

/// Takes the memory now: a page that turns out missing later is a SIGBUS, and not an error.
#[cfg(feature = "serve")]
pub(super) fn commit(file: &mut impl Write, bytes: u64) -> Result<(), RingError> {
    let zeros = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let some = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(zeros.get(..some).unwrap_or_default()).map_err(|error| RingError::Memory { bytes, error })?;
        left -= some as u64;
    }
    Ok(())
}

/// A plain file, which Gramine shows as a character device.
fn is_memory(kind: FileType) -> bool {
    kind.is_file() || kind.is_char_device()
}

/// Opens the other side's file. Every check but the first is made on what has been opened.
pub(super) fn open(name: &RingName, bytes: u64) -> Result<File, RingError> {
    let path = name.path();
    if !is_memory(fs::symlink_metadata(&path).map_err(RingError::File)?.file_type()) {
        return Err(RingError::NoFile);
    }
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(RingError::File)?;
    let about = file.metadata().map_err(RingError::File)?;
    if !is_memory(about.file_type()) {
        return Err(RingError::NoFile);
    }
    if about.len() != bytes {
        return Err(RingError::Size { bytes: about.len(), expected: bytes });
    }
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(RingError::Mode { mode });
    }
    Ok(file)
}
