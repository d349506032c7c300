//! Who does what: the client has the key, the server the weights.

use std::fmt;

use rand::Rng;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::affine::CompileError;
use crate::bfv::{self, Evaluator, Secret};
use crate::latency::{Cost, Layout, Prepared};
use crate::model::{Model, Program};
use crate::scheme::{Scheme, SchemeError};

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum CipherError {
    /// The library below refuses.
    #[error(transparent)]
    Scheme(#[from] SchemeError),
    /// The image does not fit.
    #[error(transparent)]
    Image(#[from] CompileError),
    /// Of another program.
    #[error("{what} of another program")]
    Program {
        /// What it is that was sent.
        what: &'static str,
    },
    /// Too many, too few, too long or not fresh.
    #[error("{what}: {got}, expected {expected}")]
    Form {
        /// What is wrong.
        what: &'static str,
        /// How many or how long.
        got: usize,
        /// Expected, or at most.
        expected: usize,
    },
    /// A key is missing.
    #[error("the evaluation keys lack one that the program turns slots with")]
    Keys,
}

/// What a server needs to compute on a client's ciphertexts, once a program: it decrypts nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluationKeys {
    program: [u8; 32],
    relinearisation: Vec<u8>,
    turning: Vec<u8>,
}

/// An encrypted image.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    program: [u8; 32],
    /// For each plaintext modulus.
    ciphertexts: Vec<Vec<Vec<u8>>>,
}

/// An encrypted answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    program: [u8; 32],
    /// For each plaintext modulus.
    ciphertexts: Vec<Vec<u8>>,
}

macro_rules! counted {
    ($name:ident, $bytes:expr) => {
        impl $name {
            /// Bytes of keys or ciphertexts.
            pub fn bytes(&self) -> usize {
                let bytes: fn(&Self) -> usize = $bytes;
                bytes(self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({} bytes)"), self.bytes())
            }
        }
    };
}

counted!(EvaluationKeys, |keys| keys.relinearisation.len() + keys.turning.len());
counted!(Query, |query| query.ciphertexts.iter().flatten().map(Vec::len).sum());
counted!(Answer, |answer| answer.ciphertexts.iter().map(Vec::len).sum());

/// Bytes around polynomials.
const AROUND: usize = 4096;

impl Program {
    /// Most bytes of a ciphertext of so many parts.
    fn ciphertext_bytes(&self, parts: usize) -> usize {
        let bits: usize = self.parameters.moduli_bits.iter().sum();
        parts * self.parameters.degree * bits.div_ceil(8) + AROUND
    }

    /// Most bytes of evaluation keys: a server takes no more of a client.
    pub fn evaluation_key_bytes(&self) -> usize {
        let layout = Layout::new(self);
        // A key has two polynomials for each modulus.
        (1 + layout.turns().len()) * self.parameters.moduli_bits.len() * self.ciphertext_bytes(2)
    }

    /// What a query takes.
    pub fn cost(&self) -> Cost {
        Layout::new(self).cost(self.parameters.plaintext_moduli.len())
    }
}

/// Whoever asks: makes the key, and keeps it.
pub struct Client {
    program: Program,
    secret: Secret,
    layout: Layout,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.program.name)
    }
}

impl Client {
    /// Makes a key for `program`.
    ///
    /// # Errors
    /// Its parameters are not 128 bits of security, or none.
    pub fn new(program: Program) -> Result<Self, CipherError> {
        Layout::check(&program)?;
        let (secret, layout) = (Secret::random(&program.parameters)?, Layout::new(&program));
        Ok(Self { program, secret, layout })
    }

    /// For the server, once.
    ///
    /// # Errors
    /// The library refuses.
    pub fn evaluation_keys(&self) -> Result<EvaluationKeys, CipherError> {
        let [relinearisation, turning] = self.secret.evaluation_keys(&self.layout.turns())?;
        Ok(EvaluationKeys { program: self.program.hash(), relinearisation, turning })
    }

    /// Encrypts an image (normalised values).
    ///
    /// # Errors
    /// The image does not fit.
    pub fn encrypt(&self, image: &[f32]) -> Result<Query, CipherError> {
        let integers = self.program.integers(image)?;
        let mut ciphertexts = Vec::new();
        for (index, modulus) in self.program.parameters.plaintext_moduli.iter().enumerate() {
            let slots = self.layout.image(&self.program, &integers, *modulus);
            ciphertexts.push(slots.iter().map(|slots| self.secret.encrypt(index, slots)).collect::<Result<_, _>>()?);
        }
        Ok(Query { program: self.program.hash(), ciphertexts })
    }

    /// The integers of an answer; [`Program::logits`] makes logits of them.
    ///
    /// # Errors
    /// The answer is of another program, or no answer. One whose noise outgrew its budget, or that a server made up, decrypts to other integers
    /// without an error.
    pub fn decrypt(&self, answer: &Answer) -> Result<Vec<i128>, CipherError> {
        if answer.program != self.program.hash() {
            return Err(CipherError::Program { what: "answer" });
        }
        let moduli = &self.program.parameters.plaintext_moduli;
        check("ciphertexts of an answer", answer.ciphertexts.len(), moduli.len()..=moduli.len())?;
        let sums = self.layout.sums();
        let mut remainders = vec![Vec::new(); sums.len()];
        for (index, (bytes, modulus)) in answer.ciphertexts.iter().zip(moduli).enumerate() {
            check("bytes of a ciphertext", bytes.len(), 1..=self.program.ciphertext_bytes(3))?;
            let ciphertext = self.secret.read(index, bytes)?;
            check("parts of a ciphertext", ciphertext.len(), 2..=3)?;
            let slots = self.secret.decrypt(index, &ciphertext)?;
            for (remainders, sum) in remainders.iter_mut().zip(&sums) {
                let total: u128 = sum.iter().map(|&slot| u128::from(slots[slot])).sum();
                remainders.push((total % u128::from(*modulus)) as u64);
            }
        }
        Ok(remainders.iter().map(|remainders| self.program.parameters.combined(remainders)).collect())
    }
}

fn check(what: &'static str, got: usize, expected: std::ops::RangeInclusive<usize>) -> Result<(), CipherError> {
    if expected.contains(&got) { Ok(()) } else { Err(CipherError::Form { what, got, expected: *expected.end() }) }
}

/// Whoever computes, for one client: it has the weights and the client's evaluation keys.
pub struct Server {
    program: Program,
    hash: [u8; 32],
    moduli: Vec<(Evaluator, Prepared<Evaluator>)>,
    inputs: usize,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.program.name)
    }
}

impl Server {
    /// Makes `model` ready for the client of `keys`.
    ///
    /// # Errors
    /// The keys are of another program, too long or not whole.
    pub fn new(model: &Model, keys: &EvaluationKeys) -> Result<Self, CipherError> {
        let program = model.program.clone();
        let hash = program.hash();
        if keys.program != hash {
            return Err(CipherError::Program { what: "evaluation keys" });
        }
        check("bytes of evaluation keys", keys.bytes(), 1..=program.evaluation_key_bytes())?;
        let layout = Layout::new(&program);
        let mut moduli = Vec::new();
        for evaluator in Evaluator::of(&program.parameters, [&keys.relinearisation, &keys.turning])? {
            if !evaluator.can_turn(&layout.turns()) {
                return Err(CipherError::Keys);
            }
            let prepared = Prepared::new(model, &evaluator, evaluator.modulus())?;
            moduli.push((evaluator, prepared));
        }
        Ok(Self { program, hash, moduli, inputs: layout.inputs })
    }

    /// Computes on an encrypted image.
    ///
    /// # Errors
    /// The query is of another program, or holds something else than fresh ciphertexts.
    pub fn answer(&self, query: &Query) -> Result<Answer, CipherError> {
        let ciphertexts = self.compute(query)?.iter().map(bfv::write).collect();
        Ok(Answer { program: self.hash, ciphertexts })
    }

    fn compute(&self, query: &Query) -> Result<Vec<fhe::bfv::Ciphertext>, CipherError> {
        if query.program != self.hash {
            return Err(CipherError::Program { what: "query" });
        }
        let (moduli, most) = (self.moduli.len(), self.program.ciphertext_bytes(2));
        check("plaintext moduli of a query", query.ciphertexts.len(), moduli..=moduli)?;
        let mut answers = Vec::new();
        for ((evaluator, prepared), ciphertexts) in self.moduli.iter().zip(&query.ciphertexts) {
            check("ciphertexts of an image", ciphertexts.len(), self.inputs..=self.inputs)?;
            let mut image = Vec::new();
            for bytes in ciphertexts {
                check("bytes of a ciphertext", bytes.len(), 1..=most)?;
                let fresh = evaluator.read(bytes)?;
                image.push(fresh.ok_or(CipherError::Form { what: "fresh ciphertexts", got: 0, expected: 1 })?);
            }
            let mut answer = prepared.answer(evaluator, &image)?;
            evaluator.shorten(&mut answer, self.program.dropped_levels)?;
            answers.push(answer);
        }
        Ok(answers)
    }
}

/// Bits of noise budget that are left in an answer about an image whose values are all at either extreme, under a fresh key, modulo the
/// widest plaintext modulus: the narrower ones leave more.
pub(crate) fn budget(model: &Model) -> Result<i64, CipherError> {
    let mut model = model.clone();
    model.program.parameters.plaintext_moduli.truncate(1);
    let client = Client::new(model.program.clone())?;
    let server = Server::new(&model, &client.evaluation_keys()?)?;
    let (least, most) = model.program.input_range;
    let mut rng = rand::rng();
    let scale = model.program.input_scale;
    let mut value = |_| (if rng.random() { most } else { least } as f64 / scale) as f32;
    let image: Vec<f32> = (0..model.program.inputs).map(&mut value).collect();
    let mut budget = i64::MAX;
    for answer in server.compute(&client.encrypt(&image)?)? {
        let answer = client.secret.read(0, &bfv::write(&answer))?;
        budget = budget.min(client.secret.budget(0, &answer)?);
    }
    Ok(budget)
}
