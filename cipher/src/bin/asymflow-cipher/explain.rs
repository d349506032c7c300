//! What a query takes.

use anyhow::Result;
use asymflow_cipher::Program;
use serde_json::{Value, json};

use crate::source::Source;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let program = args.source.read()?.model.program().clone();
    let said = said(&program)?;
    if args.json {
        return crate::print(&said);
    }
    let (cost, parameters) = (program.cost(), &program.parameters);
    let expected = program.expected()?;
    let bits: usize = parameters.moduli_bits.iter().sum();
    let megabytes = |bytes: usize| format!("{:.1} MB", bytes as f64 / 1e6);
    crate::report(&format!(
        "{}: {} image(s) a query, {} square(s) one after the other\n\
         parameters      degree {}, modulus of {bits} bits ({:?}), plaintext moduli {:?}: 128 bits of security by the Homomorphic Encryption Standard, table 1\n\
         integers        proven below {} bits\n\
         a query takes   {} turns, {} plain products, {} squares, {} relinearisations\n\
         keys            {} to turn with, at most {} sent once\n\
         bytes           query at most {}, answer at most {}, server's memory about {}\n\
         expected        encrypt {:.3} s, evaluate {:.3} s, decrypt {:.3} s on {} thread(s), from operations measured on this machine",
        program.name,
        cost.images,
        cost.depth,
        parameters.degree,
        parameters.moduli_bits,
        parameters.plaintext_moduli,
        program.bound_bits,
        cost.turns,
        cost.plain_products,
        cost.squares,
        cost.relinearisations,
        cost.turning_keys,
        megabytes(program.evaluation_key_bytes()),
        megabytes(program.query_bytes()),
        megabytes(program.answer_bytes()),
        megabytes(program.memory_bytes()),
        expected.encrypt_seconds,
        expected.evaluate_seconds,
        expected.decrypt_seconds,
        expected.threads,
    ));
    Ok(())
}

/// The same as JSON.
pub(crate) fn said(program: &Program) -> Result<Value> {
    Ok(json!({
        "network": program.name,
        "parameters": program.parameters,
        "integer_bits": program.bound_bits,
        "cost": program.cost(),
        "most_bytes": {
            "keys": program.evaluation_key_bytes(),
            "query": program.query_bytes(),
            "answer": program.answer_bytes(),
            "server_memory": program.memory_bytes(),
        },
        "expected": program.expected()?,
    }))
}
