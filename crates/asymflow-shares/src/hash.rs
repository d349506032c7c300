//! The hash of the comparison trees: H(b) = π(b) ⊕ b, where π is AES-128 under a public key that serves one batch of instances
//! of one operation of one query alone, so that what is computed about one tells nothing about the others.
//!
//! Where the ciphers under different keys are independent permutations H is a correlation-robust hash for each key (Guo, Katz,
//! Wang, Yu, "Efficient and Secure Multiparty Computation from Fixed-Key Block Ciphers", S&P 2020, section 7), which is what GGM
//! trees ask of it; and a guess counts against one batch, not against all that were ever dealt (Guo, Katz, Wang, Weng, Yu,
//! "Better Concrete Security for Half-Gates Garbling (in the Multi-Instance Setting)", Crypto 2020).

use aes::Aes128;
use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockEncrypt, KeyInit};

/// Blocks encrypted at once.
const BATCH: usize = 32;

/// H, with AES-NI where the processor has it, in constant-time software elsewhere.
pub(crate) struct Hash(Aes128);

impl Hash {
    pub(crate) fn new(key: u128) -> Self {
        Self(Aes128::new(&key.to_le_bytes().into()))
    }

    /// Replaces every block b by H(b).
    pub(crate) fn blocks(&self, blocks: &mut [u128]) {
        let mut batch = [GenericArray::from([0; 16]); BATCH];
        for part in blocks.chunks_mut(BATCH) {
            let used = &mut batch[..part.len()];
            for (to, from) in used.iter_mut().zip(&*part) {
                *to = from.to_le_bytes().into();
            }
            self.0.encrypt_blocks(used);
            for (to, from) in part.iter_mut().zip(used) {
                *to ^= u128::from_le_bytes((*from).into());
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod wide {
    //! Four blocks a register.

    use std::arch::x86_64::*;

    const ROUNDS: usize = 10;

    /// The key schedule, in each quarter of a register.
    pub(crate) type Keys = [__m512i; ROUNDS + 1];

    /// Whether the processor has what this module is compiled for.
    pub(crate) fn available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("aes")
    }

    /// Up to four blocks; zero beyond.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
    pub(crate) fn load(blocks: &[u128]) -> __m512i {
        // SAFETY: the mask covers no more than the blocks.
        unsafe { _mm512_maskz_loadu_epi64(mask(blocks.len()), blocks.as_ptr().cast()) }
    }

    /// As many blocks as there is room for, at most four.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
    pub(crate) fn store(blocks: &mut [u128], register: __m512i) {
        // SAFETY: the mask covers no more than the blocks.
        unsafe { _mm512_mask_storeu_epi64(blocks.as_mut_ptr().cast(), mask(blocks.len()), register) };
    }

    /// Two 64-bit lanes for each of at most four blocks.
    #[inline(always)]
    fn mask(blocks: usize) -> u8 {
        ((1_u16 << (2 * blocks.min(4))) - 1) as u8
    }

    /// H of every block of every register.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
    pub(crate) fn hash<const N: usize>(input: [__m512i; N], keys: &Keys) -> [__m512i; N] {
        let mut state = input;
        for block in &mut state {
            *block = _mm512_xor_si512(*block, keys[0]);
        }
        for key in &keys[1..ROUNDS] {
            for block in &mut state {
                *block = _mm512_aesenc_epi128(*block, *key);
            }
        }
        for (block, input) in state.iter_mut().zip(input) {
            *block = _mm512_xor_si512(_mm512_aesenclast_epi128(*block, keys[ROUNDS]), input);
        }
        state
    }

    /// The key schedule of FIPS 197.
    #[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
    pub(crate) fn keys(first: u128) -> Keys {
        let mut keys = [_mm_set_epi64x((first >> 64) as i64, first as i64); ROUNDS + 1];
        keys[1] = next(keys[0], _mm_aeskeygenassist_si128::<0x01>(keys[0]));
        keys[2] = next(keys[1], _mm_aeskeygenassist_si128::<0x02>(keys[1]));
        keys[3] = next(keys[2], _mm_aeskeygenassist_si128::<0x04>(keys[2]));
        keys[4] = next(keys[3], _mm_aeskeygenassist_si128::<0x08>(keys[3]));
        keys[5] = next(keys[4], _mm_aeskeygenassist_si128::<0x10>(keys[4]));
        keys[6] = next(keys[5], _mm_aeskeygenassist_si128::<0x20>(keys[5]));
        keys[7] = next(keys[6], _mm_aeskeygenassist_si128::<0x40>(keys[6]));
        keys[8] = next(keys[7], _mm_aeskeygenassist_si128::<0x80>(keys[7]));
        keys[9] = next(keys[8], _mm_aeskeygenassist_si128::<0x1b>(keys[8]));
        keys[10] = next(keys[9], _mm_aeskeygenassist_si128::<0x36>(keys[9]));
        keys.map(|key| _mm512_broadcast_i32x4(key))
    }

    #[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
    fn next(key: __m128i, assist: __m128i) -> __m128i {
        let key = _mm_xor_si128(key, _mm_slli_si128::<4>(key));
        let key = _mm_xor_si128(key, _mm_slli_si128::<8>(key));
        _mm_xor_si128(key, _mm_shuffle_epi32::<0xff>(assist))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_cipher_plus_its_input() {
        let blocks: Vec<u128> = (0..77).map(|i| (i as u128) << 120 | i as u128).collect();
        for key in [0, 0x243f_6a88_85a3_08d3_1319_8a2e_0370_7344_u128] {
            let cipher = Aes128::new(&key.to_le_bytes().into());
            let mut hashed = blocks.clone();
            Hash::new(key).blocks(&mut hashed);
            for (&input, &output) in blocks.iter().zip(&hashed) {
                let mut block = input.to_le_bytes().into();
                cipher.encrypt_block(&mut block);
                assert_eq!(output, u128::from_le_bytes(block.into()) ^ input);
            }
        }
    }
}
