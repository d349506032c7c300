//! BFV of the crate `fhe` (Brakerski, Crypto 2012; Fan and Vercauteren, eprint 2012/144).

use std::sync::Arc;

use fhe::bfv::{
    BfvParameters, BfvParametersBuilder, Ciphertext, Encoding, EvaluationKey, EvaluationKeyBuilder, Plaintext,
    RelinearizationKey, SecretKey, dot_product_scalar,
};
use fhe_traits::{DeserializeParametrized, FheDecoder, FheDecrypter, FheEncoder, FheEncrypter, Serialize};

use crate::parameters::Parameters;
use crate::scheme::{Scheme, SchemeError, Turn};

/// Parameters of each plaintext modulus.
pub(crate) fn rings(parameters: &Parameters) -> Result<Vec<Arc<BfvParameters>>, SchemeError> {
    parameters.check()?;
    let ring = |&plaintext: &u64| {
        let mut builder = BfvParametersBuilder::new();
        builder.set_degree(parameters.degree).set_plaintext_modulus(plaintext);
        Ok(builder.set_moduli_sizes(&parameters.moduli_bits).build_arc()?)
    };
    parameters.plaintext_moduli.iter().map(ring).collect()
}

/// The secret key, which stays where it was made. It serves all plaintext moduli.
pub(crate) struct Secret {
    keys: Vec<SecretKey>,
    rings: Vec<Arc<BfvParameters>>,
}

impl Secret {
    pub(crate) fn random(parameters: &Parameters) -> Result<Self, SchemeError> {
        let rings = rings(parameters)?;
        let mut keys: Vec<SecretKey> = Vec::new();
        for ring in &rings {
            let key = match keys.first() {
                None => SecretKey::random(ring, &mut rand::rng()),
                // Coefficients are small and of no modulus.
                Some(first) => SecretKey::from_bytes(&first.to_bytes(), ring)?,
            };
            keys.push(key);
        }
        Ok(Self { keys, rings })
    }

    /// Keys to relinearise and to turn with, as bytes.
    pub(crate) fn evaluation_keys(&self, turns: &[Turn]) -> Result<[Vec<u8>; 2], SchemeError> {
        let mut builder = EvaluationKeyBuilder::new(&self.keys[0])?;
        for turn in turns {
            match turn {
                Turn::Columns(places) => builder.enable_column_rotation(*places)?,
                Turn::Rows => builder.enable_row_rotation()?,
            };
        }
        let turning = builder.build(&mut rand::rng())?;
        Ok([RelinearizationKey::new(&self.keys[0], &mut rand::rng())?.to_bytes(), turning.to_bytes()])
    }

    /// With the key itself: half the bytes of a public-key encryption, since one of two parts is a seed.
    pub(crate) fn encrypt(&self, modulus: usize, slots: &[u64]) -> Result<Vec<u8>, SchemeError> {
        let plain = Plaintext::try_encode(slots, Encoding::simd(), &self.rings[modulus])?;
        let ciphertext: Ciphertext = self.keys[modulus].try_encrypt(&plain, &mut rand::rng())?;
        Ok(ciphertext.to_bytes())
    }

    /// An answer, at whatever level it is. The library tells parameters apart by where they lie, so that what is decrypted has to be read here.
    pub(crate) fn read(&self, modulus: usize, bytes: &[u8]) -> Result<Ciphertext, SchemeError> {
        Ok(Ciphertext::from_bytes(bytes, &self.rings[modulus])?)
    }

    pub(crate) fn decrypt(&self, modulus: usize, ciphertext: &Ciphertext) -> Result<Vec<u64>, SchemeError> {
        let plain = self.keys[modulus].try_decrypt(ciphertext)?;
        // The encoding's level is that of what was decrypted, and says nothing of the slots.
        Ok(Vec::<u64>::try_decode(&plain, Encoding::simd_at_level(plain.level()))?)
    }

    /// Bits between the noise of a ciphertext and that with which it decrypts to something else.
    pub(crate) fn budget(&self, modulus: usize, ciphertext: &Ciphertext) -> Result<i64, SchemeError> {
        // SAFETY: takes time that depends on the noise, of a key that is thrown away.
        let noise = unsafe { self.keys[modulus].measure_noise(ciphertext)? };
        let room: u64 = ciphertext[0].ctx().moduli().iter().map(|modulus| u64::from(modulus.ilog2())).sum();
        let plaintext = u64::from(self.rings[modulus].plaintext().ilog2()) + 1;
        Ok(room as i64 - plaintext as i64 - 1 - noise as i64)
    }
}

/// A server's half for one plaintext modulus.
pub(crate) struct Evaluator {
    ring: Arc<BfvParameters>,
    relinearisation: RelinearizationKey,
    turning: EvaluationKey,
}

impl Evaluator {
    /// One for each plaintext modulus, of the keys' bytes.
    pub(crate) fn of(
        parameters: &Parameters,
        [relinearisation, turning]: [&[u8]; 2],
    ) -> Result<Vec<Self>, SchemeError> {
        let one = |ring: Arc<BfvParameters>| {
            Ok(Self {
                relinearisation: RelinearizationKey::from_bytes(relinearisation, &ring)?,
                turning: EvaluationKey::from_bytes(turning, &ring)?,
                ring,
            })
        };
        rings(parameters)?.into_iter().map(one).collect()
    }

    /// Whether there is a key for each of `turns`.
    pub(crate) fn can_turn(&self, turns: &[Turn]) -> bool {
        turns.iter().all(|turn| match turn {
            Turn::Columns(places) => self.turning.supports_column_rotation_by(*places),
            Turn::Rows => self.turning.supports_row_rotation(),
        })
    }

    pub(crate) fn modulus(&self) -> u64 {
        self.ring.plaintext()
    }

    /// A fresh ciphertext of somebody else's.
    pub(crate) fn read(&self, bytes: &[u8]) -> Result<Option<Ciphertext>, SchemeError> {
        let ciphertext = Ciphertext::from_bytes(bytes, &self.ring)?;
        let is_fresh = ciphertext.len() == 2 && ciphertext.iter().all(|part| part.ctx() == ciphertext[0].ctx());
        let is_whole = self.ring.context_at_level(0).is_ok_and(|whole| ciphertext[0].ctx() == whole);
        Ok((is_fresh && is_whole).then_some(ciphertext))
    }
}

pub(crate) fn write(ciphertext: &Ciphertext) -> Vec<u8> {
    ciphertext.to_bytes()
}

impl Scheme for Evaluator {
    type Ciphertext = Ciphertext;
    type Plaintext = Plaintext;

    fn plain(&self, slots: &[u64]) -> Result<Plaintext, SchemeError> {
        Ok(Plaintext::try_encode(slots, Encoding::simd(), &self.ring)?)
    }

    fn dot(&self, terms: &[(&Ciphertext, &Plaintext)]) -> Result<Ciphertext, SchemeError> {
        let (ciphertexts, plaintexts) = (terms.iter().map(|term| term.0), terms.iter().map(|term| term.1));
        Ok(dot_product_scalar(ciphertexts, plaintexts)?)
    }

    fn add(&self, to: &mut Ciphertext, other: &Ciphertext) {
        *to += other;
    }

    fn add_plain(&self, to: &mut Ciphertext, other: &Plaintext) {
        *to += other;
    }

    fn square(&self, x: &Ciphertext) -> Ciphertext {
        x * x
    }

    fn relinearise(&self, x: &mut Ciphertext) -> Result<(), SchemeError> {
        Ok(self.relinearisation.relinearizes(x)?)
    }

    fn turn(&self, x: &Ciphertext, turn: Turn) -> Result<Ciphertext, SchemeError> {
        Ok(match turn {
            Turn::Columns(places) => self.turning.rotates_columns_by(x, places)?,
            Turn::Rows => self.turning.rotates_rows(x)?,
        })
    }

    fn shorten(&self, x: &mut Ciphertext, levels: usize) -> Result<(), SchemeError> {
        Ok(x.switch_to_level(levels)?)
    }
}
