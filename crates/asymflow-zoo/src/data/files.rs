//! Bounded reading of files, gzip and tar archives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::data::DataError;

/// Most bytes taken from one file, decompressed, and from one archive as a whole: five times CIFAR-100.
const LIMIT_BYTES: usize = 1 << 30;

/// The content of one file.
#[derive(Debug)]
pub(super) struct Content {
    /// For messages: the file, or the member's name below its archive.
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

/// The files of a folder (not of its subfolders) or of an archive, by last component of their names.
#[derive(Debug)]
pub(super) struct Files {
    pub origin: PathBuf,
    members: BTreeMap<String, Member>,
}

#[derive(Debug)]
enum Member {
    OnDisk(PathBuf),
    InMemory(Content),
}

impl Files {
    pub fn in_folder(folder: &Path) -> Result<Self, DataError> {
        let files = entries(folder)?.into_iter().filter(|path| path.is_file());
        let members = files.map(|path| (name_of(&path), Member::OnDisk(path))).collect();
        Ok(Self { origin: folder.to_owned(), members })
    }

    /// Reads the members of a tar archive, gzipped or not, whose names are `wanted`.
    pub fn in_archive(archive: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self, DataError> {
        let failed = |offset, source| DataError::Read { path: archive.to_owned(), offset, source };
        let mut reader = tar::Archive::new(open(archive)?);
        let mut members = BTreeMap::new();
        let mut total = 0;
        // Raw: names longer than a header has room for are none of those wanted, and reading them is unbounded.
        for entry in reader.entries().map_err(|error| failed(0, error))?.raw(true) {
            let entry = entry.map_err(|error| failed(total, error))?;
            let path = entry.path().map_err(|error| failed(total, error))?.into_owned();
            let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
            if !entry.header().entry_type().is_file() || !wanted(&name) {
                continue;
            }
            let size = entry.size();
            let path = archive.join(path);
            let content = read_within(entry, &path, LIMIT_BYTES - total)?;
            total += content.bytes.len();
            let missing = size.saturating_sub(content.bytes.len() as u64);
            if missing > 0 {
                let missing = usize::try_from(missing).unwrap_or(usize::MAX);
                return Err(DataError::Truncated { path, offset: content.bytes.len(), missing });
            }
            members.insert(name, Member::InMemory(content));
        }
        // Only the end of the file holds the checksum.
        let mut rest = reader.into_inner().take(LIMIT_BYTES as u64);
        io::copy(&mut rest, &mut io::sink()).map_err(|error| failed(total, error))?;
        Ok(Self { origin: archive.to_owned(), members })
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    pub fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// The first bytes of the file called `name`, decompressed; none of a member of an archive.
    pub fn head(&self, name: &str, bytes: u64) -> Result<Vec<u8>, DataError> {
        let mut head = Vec::new();
        if let Some(Member::OnDisk(path)) = self.members.get(name) {
            let read = open(path)?.take(bytes).read_to_end(&mut head);
            read.map_err(|source| DataError::Read { path: path.clone(), offset: head.len(), source })?;
        }
        Ok(head)
    }

    /// Content of the file called `name`, decompressed. A member of an archive can be taken once.
    pub fn take(&mut self, name: &str) -> Result<Content, DataError> {
        match self.members.remove(name) {
            Some(Member::OnDisk(path)) => read_file(&path),
            Some(Member::InMemory(content)) => Ok(content),
            None => Err(DataError::Missing { path: self.origin.join(name) }),
        }
    }
}

/// Content of one file, decompressed where it is gzipped.
pub(super) fn read_file(path: &Path) -> Result<Content, DataError> {
    read(open(path)?, path)
}

/// Content of what `reader` gives, which messages call `path`.
pub(super) fn read(reader: impl Read, path: &Path) -> Result<Content, DataError> {
    read_within(reader, path, LIMIT_BYTES)
}

/// The first bytes of a file, as they lie there.
pub(super) fn head(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut bytes));
    read.map_err(|error| cannot_open(path, error)).map(|_| bytes)
}

/// Paths in a folder, sorted by the bytes of their names.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |error| cannot_open(folder, error);
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        all.push(entry.map_err(failed)?.path());
    }
    all.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(all)
}

/// What file managers, archivers and editors leave behind.
pub(super) fn is_clutter(path: &Path) -> bool {
    const NAMES: [&str; 9] = [
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "__macosx",
        "@eadir",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__pycache__",
    ];
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    name.starts_with('.') || name.ends_with('~') || NAMES.contains(&name.as_str())
}

/// The last component of a path as text: bytes that are not UTF-8 as `\xE9`, so that different names stay different.
pub(super) fn name_of(path: &Path) -> String {
    let bytes = path.file_name().unwrap_or_default().as_encoded_bytes();
    let chunk = |chunk: std::str::Utf8Chunk<'_>| {
        let invalid: String = chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")).collect();
        format!("{}{invalid}", chunk.valid())
    };
    bytes.utf8_chunks().map(chunk).collect()
}

fn cannot_open(path: &Path, source: io::Error) -> DataError {
    if source.kind() == io::ErrorKind::NotFound {
        DataError::Missing { path: path.to_owned() }
    } else {
        DataError::Read { path: path.to_owned(), offset: 0, source }
    }
}

/// Opens a file, decompressing it where it starts as gzip does.
fn open(path: &Path) -> Result<Box<dyn Read>, DataError> {
    use std::io::BufRead;
    let mut file = BufReader::new(File::open(path).map_err(|error| cannot_open(path, error))?);
    let head = file.fill_buf().map_err(|error| cannot_open(path, error))?;
    if head.starts_with(&[0x1f, 0x8b]) { Ok(Box::new(MultiGzDecoder::new(file))) } else { Ok(Box::new(file)) }
}

/// Reads to the end, growing only with what is really there.
fn read_within(reader: impl Read, path: &Path, limit_bytes: usize) -> Result<Content, DataError> {
    let mut bytes = Vec::new();
    if let Err(source) = reader.take(limit_bytes as u64 + 1).read_to_end(&mut bytes) {
        return Err(DataError::Read { path: path.to_owned(), offset: bytes.len(), source });
    }
    if bytes.len() > limit_bytes {
        return Err(DataError::TooLarge { path: path.to_owned(), limit: format!("{LIMIT_BYTES} bytes") });
    }
    Ok(Content { path: path.to_owned(), bytes })
}
