//! BFV of the crate `fhe` (Brakerski, Crypto 2012; Fan and Vercauteren, eprint 2012/144).

use std::sync::Arc;

use fhe::bfv::{
    BfvParameters, BfvParametersBuilder, Ciphertext, Encoding, EvaluationKey, EvaluationKeyBuilder, Plaintext,
    RelinearizationKey, SecretKey,
};
use fhe_math::rq::{Poly, Representation, dot_product, traits::TryConvertFrom};
use fhe_traits::{DeserializeParametrized, FheDecoder, FheDecrypter, FheEncoder, FheEncrypter, Serialize};

use crate::parameters::Parameters;
use crate::scheme::{Scheme, SchemeError, Turn};

/// Parameters of one plaintext modulus. The library tells them apart by where they lie.
pub(crate) type Ring = Arc<BfvParameters>;

/// Parameters of each plaintext modulus.
pub(crate) fn rings(parameters: &Parameters) -> Result<Vec<Ring>, SchemeError> {
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
    rings: Vec<Ring>,
}

impl Secret {
    pub(crate) fn random(parameters: &Parameters) -> Result<Self, SchemeError> {
        let rings = rings(parameters)?;
        let first = SecretKey::random(&rings[0], &mut rand::rng());
        Self::of(rings, &first.to_bytes())
    }

    /// A key of before.
    pub(crate) fn read(parameters: &Parameters, bytes: &[u8]) -> Result<Self, SchemeError> {
        Self::of(rings(parameters)?, bytes)
    }

    /// Coefficients are small and of no modulus.
    fn of(rings: Vec<Ring>, bytes: &[u8]) -> Result<Self, SchemeError> {
        let keys = rings.iter().map(|ring| SecretKey::from_bytes(bytes, ring)).collect::<Result<_, _>>()?;
        Ok(Self { keys, rings })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.keys[0].to_bytes()
    }

    /// Keys to relinearise and to turn with, as bytes; none where none is needed.
    pub(crate) fn evaluation_keys(&self, relinearises: bool, turns: &[Turn]) -> Result<[Vec<u8>; 2], SchemeError> {
        let mut rng = rand::rng();
        let mut keys = [Vec::new(), Vec::new()];
        if relinearises {
            keys[0] = RelinearizationKey::new(&self.keys[0], &mut rng)?.to_bytes();
        }
        if !turns.is_empty() {
            let mut builder = EvaluationKeyBuilder::new(&self.keys[0])?;
            for turn in turns {
                match turn {
                    Turn::Columns(places) => builder.enable_column_rotation(*places)?,
                    Turn::Rows => builder.enable_row_rotation()?,
                };
            }
            keys[1] = builder.build(&mut rng)?.to_bytes();
        }
        Ok(keys)
    }

    /// With the key itself: half the bytes of a public-key encryption, since one of two parts is a seed.
    pub(crate) fn encrypt(&self, modulus: usize, slots: &[u64]) -> Result<Vec<u8>, SchemeError> {
        let plain = Plaintext::try_encode(slots, Encoding::simd(), &self.rings[modulus])?;
        let ciphertext: Ciphertext = self.keys[modulus].try_encrypt(&plain, &mut rand::rng())?;
        Ok(ciphertext.to_bytes())
    }

    /// An answer, at whatever level it is. The library tells parameters apart by where they lie, so that what is decrypted has to be read here.
    pub(crate) fn ciphertext(&self, modulus: usize, bytes: &[u8]) -> Result<Ciphertext, SchemeError> {
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
    ring: Ring,
    relinearisation: Option<RelinearizationKey>,
    turning: Option<EvaluationKey>,
}

impl Evaluator {
    /// One that prepares weights.
    pub(crate) fn without_keys(ring: &Ring) -> Self {
        Self { ring: ring.clone(), relinearisation: None, turning: None }
    }

    /// One that computes, of the keys' bytes.
    pub(crate) fn with_keys(ring: &Ring, [relinearisation, turning]: [&[u8]; 2]) -> Result<Self, SchemeError> {
        let present = |bytes: &[u8]| !bytes.is_empty();
        let relinearisation = present(relinearisation).then(|| RelinearizationKey::from_bytes(relinearisation, ring));
        let turning = present(turning).then(|| EvaluationKey::from_bytes(turning, ring));
        Ok(Self { ring: ring.clone(), relinearisation: relinearisation.transpose()?, turning: turning.transpose()? })
    }

    /// Whether there is a key for all that a program does.
    pub(crate) fn has_keys(&self, relinearises: bool, turns: &[Turn]) -> bool {
        let turns_by = |turn: &Turn| {
            self.turning.as_ref().is_some_and(|key| match turn {
                Turn::Columns(places) => key.supports_column_rotation_by(*places),
                Turn::Rows => key.supports_row_rotation(),
            })
        };
        (!relinearises || self.relinearisation.is_some()) && turns.iter().all(turns_by)
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
    type Summand = Plaintext;
    type Factor = Poly;

    fn summand(&self, slots: &[u64], levels: usize) -> Result<Plaintext, SchemeError> {
        Ok(Plaintext::try_encode(slots, Encoding::simd_at_level(levels), &self.ring)?)
    }

    /// With coefficients in (−t/2, t/2). The library's own are in [0, t), whose mean of t/2 makes a factor a hundred times larger in a few of the
    /// ring's embeddings: noise gathers there from product to product, and varies by bits from one encryption to the next.
    fn factor(&self, slots: &[u64], levels: usize) -> Result<Poly, SchemeError> {
        let (plain, context) = (self.summand(slots, levels)?, self.ring.context_at_level(levels)?);
        let power = Poly::try_convert_from(&plain, context, true, Representation::PowerBasis)?;
        // `Parameters::check`: the plaintext modulus is below the ciphertext's first.
        let (modulus, coefficients) = (self.modulus(), power.coefficients());
        let centred = |value: u64| if 2 * value > modulus { value as i64 - modulus as i64 } else { value as i64 };
        let centred: Vec<i64> = coefficients.row(0).iter().map(|&value| centred(value)).collect();
        let mut factor = Poly::try_convert_from(&centred, context, true, Representation::PowerBasis)?;
        factor.change_representation(Representation::Ntt);
        Ok(factor)
    }

    fn dot(&self, terms: &[(&Ciphertext, &Poly)]) -> Result<Ciphertext, SchemeError> {
        let parts = terms.first().map_or(0, |(ciphertext, _)| ciphertext.len());
        let part = |part: usize| {
            let of = terms.iter().map(|(ciphertext, _)| &ciphertext[part]);
            Ok::<_, SchemeError>(dot_product(of, terms.iter().map(|(_, factor)| *factor))?)
        };
        Ok(Ciphertext::new((0..parts).map(part).collect::<Result<_, _>>()?, &self.ring)?)
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
        Ok(self.relinearisation.as_ref().ok_or(SchemeError::Key)?.relinearizes(x)?)
    }

    fn turn(&self, x: &Ciphertext, turn: Turn) -> Result<Ciphertext, SchemeError> {
        let key = self.turning.as_ref().ok_or(SchemeError::Key)?;
        Ok(match turn {
            Turn::Columns(places) => key.rotates_columns_by(x, places)?,
            Turn::Rows => key.rotates_rows(x)?,
        })
    }

    fn shorten(&self, x: &mut Ciphertext, levels: usize) -> Result<(), SchemeError> {
        let dropped = self.ring.level_of_context(x[0].ctx())?;
        Ok(x.switch_to_level(levels.max(dropped))?)
    }
}
