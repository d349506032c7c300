//! What goes to stdout.

use std::io::Write;

use crate::error::CliError;

/// Writes a result to stdout. One that could not be written, on a full disk or to a reader that has gone, is no success.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|e| CliError::failed(format!("cannot write the results: {e}"), "give another place for stdout"))
}
