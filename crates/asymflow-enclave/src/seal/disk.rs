//! The few operations on files that sealing needs, so that a test can cut the power between any two of them.

use std::fmt::Debug;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub(super) trait Disk: Send + Debug {
    /// The content, `None` where there is no such file, and at most one byte more than `limit_bytes`.
    fn read(&self, path: &Path, limit_bytes: u64) -> io::Result<Option<Vec<u8>>>;
    /// The content from its beginning, `None` where there is no such file.
    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn Read>>>;
    /// Adds to the end of a file.
    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes or overwrites a file.
    fn write(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Returns when the content of a file would outlive a power cut.
    fn sync(&mut self, path: &Path) -> io::Result<()>;
    /// Gives a file another name, in place of what had it.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// Returns when the names in a folder would outlive a power cut.
    fn sync_folder(&mut self, folder: &Path) -> io::Result<()>;
}

/// Puts `bytes` in place of the file: after a crash at any point it holds what it held, or `bytes`.
///
/// The content is on the disk before the name points at it, and the name is on the disk before this returns.
pub(super) fn replace(disk: &mut dyn Disk, folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (unfinished, path) = (folder.join(format!("{name}.new")), folder.join(name));
    disk.write(&unfinished, bytes)?;
    disk.sync(&unfinished)?;
    disk.rename(&unfinished, &path)?;
    disk.sync_folder(folder)
}

/// The disk of the operating system.
#[derive(Debug)]
pub(super) struct OsDisk;

impl OsDisk {
    /// Makes the folder where it is missing, for its owner alone.
    pub(super) fn make_folder(folder: &Path) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        Ok(folder.to_owned())
    }
}

impl Disk for OsDisk {
    fn read(&self, path: &Path, limit_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        file.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn Read>>> {
        match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => Ok(Some(Box::new(BufReader::new(other?)))),
        }
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().append(true).open(path)?.write_all(bytes)
    }

    fn write(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(bytes)
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        // Through a handle of its own: what is synced is the file, whichever handle wrote it.
        OpenOptions::new().write(true).open(path)?.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_folder(&mut self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}
