//! The client's folder of keys: for each program the secret key, and the evaluation keys that belong to it.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use asymflow_cipher::{Client, Program};

use crate::Help;

/// Most bytes of a secret key's file.
const SECRET_BYTES: u64 = 1 << 20;

/// The client of `program` with the keys in `folder`, which are made where there are none, and its evaluation keys.
pub(crate) fn client(folder: &Path, program: Program) -> Result<(Client, Vec<u8>)> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| folder.display().to_string())?;
    let name: String = program.hash().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let (secret, evaluation) = (folder.join(format!("{name}.secret")), folder.join(format!("{name}.evaluation")));
    let most = program.evaluation_key_bytes() as u64;
    let client = match read(&secret, SECRET_BYTES)? {
        Some(bytes) => Client::with_secret(program, &zeroize::Zeroizing::new(bytes))
            .with_context(|| secret.display().to_string())
            .context(Help(
                "move the file away to make a new key: what was asked with the old one cannot be decrypted then",
            ))?,
        None => {
            let client = Client::new(program)?;
            write(&secret, &client.secret_bytes())?;
            client
        }
    };
    let keys = match read(&evaluation, most)? {
        Some(bytes) => bytes,
        None => {
            let bytes = client.evaluation_keys()?.to_bytes();
            write(&evaluation, &bytes)?;
            bytes
        }
    };
    Ok((client, keys))
}

/// The bytes of a file that only its owner may read; `None` where there is none.
fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    let file = match OpenOptions::new().read(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| path.display().to_string())?,
    };
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        let text = format!("{}: others may read it (mode {:o})", path.display(), mode & 0o777);
        return Err(anyhow!(text).context(Help("`chmod 600` it, or move it away if others may have read it")));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= most, "{}: longer than {most} bytes", path.display());
    Ok(Some(bytes))
}

/// A new file for its owner only, complete or not there.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial: PathBuf = path.with_extension("partial");
    let _ = std::fs::remove_file(&partial);
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
    let mut file = created.with_context(|| partial.display().to_string())?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(|| partial.display().to_string())?;
    std::fs::rename(&partial, path).with_context(|| path.display().to_string())
}
