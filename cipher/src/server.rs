//! Whoever computes: it has the weights, and of each client the evaluation keys.

use std::fmt;

use rand::Rng;
use rayon::prelude::*;

use crate::bfv::{self, Evaluator, Ring};
use crate::client::Client;
use crate::layout::Prepared;
use crate::messages::{Answer, CipherError, EvaluationKeys, Query, check};
use crate::model::Model;
use crate::program::Program;
use crate::scheme::Scheme;

/// Whoever computes. Weights are prepared once, for all clients.
pub struct Server {
    program: Program,
    hash: [u8; 32],
    moduli: Vec<(Ring, Box<dyn Prepared<Evaluator>>)>,
}

/// A client's evaluation keys, read and found to be of the program.
pub struct Admitted(Vec<Evaluator>);

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.program.name)
    }
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admitted")
    }
}

impl Server {
    /// Makes `model` ready.
    ///
    /// # Errors
    /// The library refuses its parameters.
    pub fn new(model: &Model) -> Result<Self, CipherError> {
        let program = model.program.clone();
        let mut moduli = Vec::new();
        for ring in bfv::rings(&program.parameters)? {
            let evaluator = Evaluator::without_keys(&ring);
            let prepared = program.layout.prepare(model, &evaluator, evaluator.modulus())?;
            moduli.push((ring, prepared));
        }
        Ok(Self { hash: program.hash(), program, moduli })
    }

    /// What is computed.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Reads a client's keys.
    ///
    /// # Errors
    /// They are of another program, too long or not whole.
    pub fn admit(&self, keys: &EvaluationKeys) -> Result<Admitted, CipherError> {
        if keys.program != self.hash {
            return Err(CipherError::Other { what: "evaluation keys" });
        }
        check("bytes of evaluation keys", keys.bytes(), 0..=self.program.evaluation_key_bytes())?;
        let (turns, relinearises) = (self.program.layout.arrange().turns(), self.program.cost().relinearisations > 0);
        let one = |(ring, _): &(Ring, _)| {
            let evaluator = Evaluator::with_keys(ring, [&keys.relinearisation, &keys.turning])?;
            if evaluator.has_keys(relinearises, &turns) { Ok(evaluator) } else { Err(CipherError::Keys) }
        };
        Ok(Admitted(self.moduli.iter().map(one).collect::<Result<_, _>>()?))
    }

    /// Computes on an encrypted image.
    ///
    /// # Errors
    /// The query is of another program, or holds something else than fresh ciphertexts.
    pub fn answer(&self, keys: &Admitted, query: &Query) -> Result<Answer, CipherError> {
        let answers = self.compute(keys, query, self.program.dropped_levels)?;
        let ciphertexts = answers.iter().map(|answers| answers.iter().map(bfv::write).collect()).collect();
        Ok(Answer { program: self.hash, ciphertexts })
    }

    fn compute(
        &self,
        keys: &Admitted,
        query: &Query,
        dropped_levels: usize,
    ) -> Result<Vec<Vec<fhe::bfv::Ciphertext>>, CipherError> {
        if query.program != self.hash {
            return Err(CipherError::Other { what: "query" });
        }
        let (moduli, most) = (self.moduli.len(), self.program.polynomial_bytes(1));
        let inputs = self.program.layout.arrange().cost().ciphertexts;
        check("plaintext moduli of a query", query.ciphertexts.len(), moduli..=moduli)?;
        for ciphertexts in &query.ciphertexts {
            check("ciphertexts of an image", ciphertexts.len(), inputs..=inputs)?;
        }
        let work: Vec<_> = keys.0.iter().zip(&self.moduli).zip(&query.ciphertexts).collect();
        let one = |index: usize| {
            let ((evaluator, (_, prepared)), ciphertexts) = work[index];
            let read = |bytes: &Vec<u8>| {
                check("bytes of a ciphertext", bytes.len(), 1..=most)?;
                evaluator.read(bytes)?.ok_or(CipherError::Form { what: "fresh ciphertexts", got: 0, expected: 1 })
            };
            let fresh = ciphertexts.par_iter().map(read).collect::<Result<Vec<_>, _>>()?;
            let mut answers = prepared.answer(evaluator, &fresh)?;
            answers.par_iter_mut().try_for_each(|answer| evaluator.shorten(answer, dropped_levels))?;
            Ok(answers)
        };
        // One modulus after the other where each takes much memory, and is enough for all threads.
        let is_large = self.program.images() > 1;
        if is_large { (0..moduli).map(one).collect() } else { (0..moduli).into_par_iter().map(one).collect() }
    }
}

/// Keys that a budget is measured with.
const KEYS: usize = 2;

/// Bits of noise budget that are left in answers, with no level dropped, one, and so on: the least under several keys that are thrown away,
/// about images whose values are all at either extreme.
pub(crate) fn budgets(model: &Model) -> Result<Vec<i64>, CipherError> {
    let (least, most) = model.program.input_range;
    let mut rng = rand::rng();
    let mut image = || (0..model.program.inputs).map(|_| if rng.random() { most } else { least }).collect();
    let mut budgets = vec![i64::MAX; model.program.parameters.moduli_bits.len()];
    for image in [(); KEYS].map(|()| -> Vec<i64> { image() }) {
        let measured = budgets_of(model, &image)?;
        budgets.iter_mut().zip(measured).for_each(|(least, measured)| *least = measured.min(*least));
    }
    Ok(budgets)
}

/// The same of one image's integers, under a fresh key, modulo the widest plaintext modulus: the narrower ones leave more.
fn budgets_of(model: &Model, image: &[i64]) -> Result<Vec<i64>, CipherError> {
    let mut model = model.clone();
    let moduli = &mut model.program.parameters.plaintext_moduli;
    moduli.sort_unstable_by(|a, b| b.cmp(a));
    moduli.truncate(1);
    let client = Client::new(model.program.clone())?;
    let server = Server::new(&model)?;
    let keys = server.admit(&client.evaluation_keys()?)?;
    let values: Vec<f32> = image.iter().map(|&value| (value as f64 / model.program.input_scale) as f32).collect();
    let mut answers = server.compute(&keys, &client.encrypt(&values)?, 0)?.concat();
    let mut budgets = Vec::new();
    for level in 0..model.program.parameters.moduli_bits.len() {
        let mut least = i64::MAX;
        for answer in &mut answers {
            keys.0[0].shorten(answer, level)?;
            let answer = client.secret().ciphertext(0, &bfv::write(answer))?;
            least = least.min(client.secret().budget(0, &answer)?);
        }
        budgets.push(least);
    }
    Ok(budgets)
}
