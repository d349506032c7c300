//! The process inside the enclave: serves one job of `asymflow` on standard input and output.

use std::io::{BufWriter, stdin, stdout};

fn main() -> anyhow::Result<()> {
    asymflow::serve::serve(stdin(), BufWriter::new(stdout()))?;
    Ok(())
}
