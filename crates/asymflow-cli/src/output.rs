//! What goes to stdout.

use std::io::{ErrorKind, Write};

use crate::error::CliError;

/// Writes a result to stdout. A reader that has seen enough is no reason to fail; a result that could not be written is.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::failed(format!("cannot write the results: {error}"), "give another place for stdout"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
