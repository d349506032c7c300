//! Whoever asks: makes the key, and keeps it.

use std::fmt;

use rayon::prelude::*;

use fhe::bfv::Ciphertext;

use crate::bfv::Secret;
use crate::messages::{Answer, CipherError, EvaluationKeys, Query, check};
use crate::program::Program;

/// Bits of noise budget below which an answer is none: programs leave more, and what is random leaves none.
const LEAST_BUDGET_BITS: i64 = 1;

/// Whoever asks: makes the key, and keeps it.
pub struct Client {
    program: Program,
    hash: [u8; 32],
    secret: Secret,
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
    /// Its parameters are not 128 bits of security, or it is no program.
    pub fn new(program: Program) -> Result<Self, CipherError> {
        program.check()?;
        Ok(Self { hash: program.hash(), secret: Secret::random(&program.parameters)?, program })
    }

    /// Takes up a key of before: what [`Client::secret_bytes`] gave for the same program.
    ///
    /// # Errors
    /// As [`Client::new`], or the bytes are no key for it.
    pub fn with_secret(program: Program, secret: &[u8]) -> Result<Self, CipherError> {
        program.check()?;
        let hash = program.hash();
        let (own, key) = secret.split_at_checked(hash.len()).ok_or(CipherError::Decode { what: "secret key" })?;
        if own != hash {
            return Err(CipherError::Other { what: "secret key" });
        }
        Ok(Self { secret: Secret::read(&program.parameters, key)?, hash, program })
    }

    /// The key itself, bound to the program: whoever has it decrypts all that was asked.
    pub fn secret_bytes(&self) -> zeroize::Zeroizing<Vec<u8>> {
        zeroize::Zeroizing::new([self.hash.as_slice(), &self.secret.to_bytes()].concat())
    }

    /// What is computed.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// For the server, once.
    ///
    /// # Errors
    /// The library refuses.
    pub fn evaluation_keys(&self) -> Result<EvaluationKeys, CipherError> {
        let relinearises = self.program.cost().relinearisations > 0;
        let turns = self.program.layout.arrange().turns();
        let [relinearisation, turning] = self.secret.evaluation_keys(relinearises, &turns)?;
        Ok(EvaluationKeys { program: self.hash, relinearisation, turning })
    }

    /// Encrypts images (normalised values, one after the other), at most [`Program::images`].
    ///
    /// # Errors
    /// They are too many, or one does not fit.
    pub fn encrypt(&self, images: &[f32]) -> Result<Query, CipherError> {
        let count = images.len() / self.program.inputs;
        check("images of a query", count, 1..=self.program.images())?;
        let integers = images.chunks(self.program.inputs).map(|image| self.program.integers(image));
        let integers = integers.collect::<Result<Vec<_>, _>>()?;
        let layout = self.program.layout.arrange();
        let inputs = layout.cost().ciphertexts;
        let mut ciphertexts = Vec::new();
        for (index, modulus) in self.program.parameters.plaintext_moduli.iter().enumerate() {
            let one = |input| self.secret.encrypt(index, &layout.slots(&integers, input, *modulus));
            ciphertexts.push((0..inputs).into_par_iter().map(one).collect::<Result<_, _>>()?);
        }
        Ok(Query { program: self.hash, ciphertexts })
    }

    /// The integers of an answer, image by image; [`Program::logits`] makes logits of them.
    ///
    /// # Errors
    /// The answer is of another program, of another key, or no answer. One that a server made up decrypts to other integers without an error.
    /// Whether there was an error must not become known to the server.
    pub fn decrypt(&self, answer: &Answer, images: usize) -> Result<Vec<Vec<i128>>, CipherError> {
        if answer.program != self.hash {
            return Err(CipherError::Other { what: "answer" });
        }
        check("images of an answer", images, 1..=self.program.images())?;
        let layout = self.program.layout.arrange();
        let (moduli, outputs) = (&self.program.parameters.plaintext_moduli, layout.cost().answers);
        check("plaintext moduli of an answer", answer.ciphertexts.len(), moduli.len()..=moduli.len())?;
        let mut remainders: Vec<Vec<Vec<u64>>> = Vec::new();
        for (index, (ciphertexts, modulus)) in answer.ciphertexts.iter().zip(moduli).enumerate() {
            check("ciphertexts of an answer", ciphertexts.len(), outputs..=outputs)?;
            let slots = ciphertexts.par_iter().map(|bytes| self.slots(index, bytes));
            let slots = slots.collect::<Result<Vec<_>, CipherError>>()?;
            remainders.push(layout.outputs(&slots, images, *modulus));
        }
        let combined = |image: usize, output: usize| {
            let remainders: Vec<u64> = remainders.iter().map(|modulus| modulus[image][output]).collect();
            self.program.parameters.combined(&remainders)
        };
        let outputs = remainders.first().and_then(|modulus| modulus.first()).map_or(0, Vec::len);
        Ok((0..images).map(|image| (0..outputs).map(|output| combined(image, output)).collect()).collect())
    }

    fn slots(&self, modulus: usize, bytes: &[u8]) -> Result<Vec<u64>, CipherError> {
        let (ciphertext, left) = self.read(modulus, bytes)?;
        if left < LEAST_BUDGET_BITS {
            return Err(CipherError::Noise { left, least: LEAST_BUDGET_BITS });
        }
        Ok(self.secret.decrypt(modulus, &ciphertext)?)
    }

    /// A ciphertext of an answer, and the bits of noise budget that are left in it.
    fn read(&self, modulus: usize, bytes: &[u8]) -> Result<(Ciphertext, i64), CipherError> {
        check("bytes of a ciphertext", bytes.len(), 1..=self.program.polynomial_bytes(3))?;
        let ciphertext = self.secret.ciphertext(modulus, bytes)?;
        check("polynomials of a ciphertext", ciphertext.len(), 2..=3)?;
        let left = self.secret.budget(modulus, &ciphertext)?;
        Ok((ciphertext, left))
    }

    /// Bits of noise budget that are left in an answer, the least of its ciphertexts. It is for whoever tries parameters: it takes time that
    /// depends on the key, and neither that nor what it says may become known to a server.
    ///
    /// # Errors
    /// As [`Client::decrypt`], but for noise.
    pub fn noise_budget(&self, answer: &Answer) -> Result<i64, CipherError> {
        let moduli = self.program.parameters.plaintext_moduli.len();
        check("plaintext moduli of an answer", answer.ciphertexts.len(), 1..=moduli)?;
        let all = answer.ciphertexts.iter().enumerate();
        let all = all.flat_map(|(modulus, ciphertexts)| ciphertexts.iter().map(move |bytes| (modulus, bytes)));
        let budget = |(modulus, bytes): (usize, &Vec<u8>)| Ok(self.read(modulus, bytes)?.1);
        all.map(budget).try_fold(i64::MAX, |least, left: Result<i64, CipherError>| Ok(least.min(left?)))
    }

    pub(crate) const fn secret(&self) -> &Secret {
        &self.secret
    }
}
