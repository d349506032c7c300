//! How long a query takes on this machine, from one operation of each kind.

use std::time::Instant;

use serde::Serialize;

use crate::bfv::{self, Evaluator, Secret};
use crate::messages::CipherError;
use crate::parameters::DEGREE;
use crate::program::Program;
use crate::scheme::{Scheme, SchemeError, Turn};

/// Terms of the sum of products that is timed.
const TERMS: usize = 16;
/// Of so many times the least counts: what else runs on the machine only adds.
const REPEATS: usize = 3;

/// Seconds of one query with all threads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Expected {
    /// The client encrypts.
    pub encrypt_seconds: f64,
    /// The server computes.
    pub evaluate_seconds: f64,
    /// The client decrypts.
    pub decrypt_seconds: f64,
    /// Threads that share the work.
    pub threads: usize,
}

impl Program {
    /// Measures one operation of each kind under a key that is thrown away, and counts.
    ///
    /// # Errors
    /// The program is none.
    pub fn expected(&self) -> Result<Expected, CipherError> {
        self.check()?;
        let (parameters, cost) = (&self.parameters, self.cost());
        let secret = Secret::random(parameters)?;
        let turn = Turn::Columns(1);
        let [relinearisation, turning] = secret.evaluation_keys(true, &[turn])?;
        let rings = bfv::rings(parameters)?;
        let evaluator = Evaluator::with_keys(&rings[0], [&relinearisation, &turning])?;
        let slots: Vec<u64> = (0..DEGREE as u64).collect();
        let weights = evaluator.summand(&slots, 0)?;
        let fresh = secret.encrypt(0, &slots)?;
        let encrypt = least(|| secret.encrypt(0, &slots).map(drop))?;
        let read = least(|| evaluator.read(&fresh).map(drop))?;
        let ciphertext = secret.ciphertext(0, &fresh)?;
        let ciphertext = evaluator.read(&bfv::write(&ciphertext))?.unwrap_or(ciphertext);
        let (several, prepared) = (vec![ciphertext.clone(); TERMS], vec![evaluator.factor(&slots, 0)?; TERMS]);
        let terms: Vec<_> = several.iter().zip(&prepared).collect();
        let product = least(|| evaluator.dot(&terms).map(drop))? / (2 * TERMS) as f64;
        let turned = least(|| evaluator.turn(&ciphertext, turn).map(drop))?;
        let square = least(|| {
            evaluator.square(&ciphertext);
            Ok(())
        })?;
        let squared = evaluator.square(&ciphertext);
        let relinearise = least(|| evaluator.relinearise(&mut squared.clone()))?;
        let add = least(|| {
            evaluator.add_plain(&mut squared.clone(), &weights);
            Ok(())
        })?;
        let mut answer = squared;
        let shorten = least(|| evaluator.shorten(&mut answer.clone(), self.dropped_levels))?;
        evaluator.shorten(&mut answer, self.dropped_levels)?;
        let answer = secret.ciphertext(0, &bfv::write(&answer))?;
        let decrypt = least(|| secret.budget(0, &answer).and_then(|_| secret.decrypt(0, &answer)).map(drop))?;
        let evaluate = cost.ciphertexts as f64 * read
            + cost.polynomial_products as f64 * product
            + cost.turns as f64 * turned
            + cost.squares as f64 * (square + add)
            + cost.relinearisations as f64 * relinearise
            + cost.answers as f64 * (shorten + add + encrypt / 2.0);
        let threads = rayon::current_num_threads();
        let shared = |seconds: f64| seconds / threads as f64;
        Ok(Expected {
            encrypt_seconds: shared(cost.ciphertexts as f64 * encrypt),
            evaluate_seconds: shared(evaluate),
            decrypt_seconds: shared(cost.answers as f64 * decrypt),
            threads,
        })
    }
}

/// Seconds of the fastest of several runs.
fn least(mut work: impl FnMut() -> Result<(), SchemeError>) -> Result<f64, SchemeError> {
    let mut least = f64::INFINITY;
    for _ in 0..REPEATS {
        let started = Instant::now();
        work()?;
        least = least.min(started.elapsed().as_secs_f64());
    }
    Ok(least)
}
