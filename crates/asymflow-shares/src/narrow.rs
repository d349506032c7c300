//! Words modulo 2^f that are multiplied by 2^(ℓ−f): f bits are dealt of each, and not a ring element.

use crate::prg::Purpose;
use crate::program::narrow_bytes;
use crate::ring::Ring;
use crate::source::Source;

/// Words modulo 2^f, which are multiplied by 2^(ℓ−f).
#[derive(Clone, Copy)]
pub(crate) struct Narrow {
    bits: u32,
}

impl Narrow {
    /// Of a truncation by `shift` bits.
    pub(crate) const fn new(shift: u32) -> Self {
        Self { bits: shift }
    }

    fn bytes(self, columns: usize, count: usize) -> usize {
        narrow_bytes(columns, self.bits, count)
    }

    /// The second server's shares of `rows`.
    pub(crate) fn correct<R: Ring, const N: usize>(self, first: Source<'_>, rows: &[[R; N]]) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes(N, rows.len())];
        first.stream(Purpose::Narrow).fill(&mut bytes);
        let mask = (1_u64 << self.bits) - 1;
        for (bytes, row) in bytes.chunks_exact_mut(self.bytes(N, 1).max(1)).zip(rows) {
            let (shares, mut packed) = (from_bytes(bytes), 0);
            for (column, value) in row.iter().enumerate() {
                let at = column as u32 * self.bits;
                let share = value.to_u64().wrapping_sub((shares >> at) as u64) & mask;
                packed |= u128::from(share) << at;
            }
            bytes.copy_from_slice(&packed.to_le_bytes()[..bytes.len()]);
        }
        bytes
    }

    /// A server's shares, times 2^(ℓ−f), of what the dealer sent at the end of `dealt`, or of the first server's seed.
    pub(crate) fn read<R: Ring, const N: usize>(
        self,
        source: Source<'_>,
        dealt: &[u8],
        first: bool,
        count: usize,
    ) -> Vec<[R; N]> {
        let mut bytes = vec![0; self.bytes(N, count)];
        if first {
            source.stream(Purpose::Narrow).fill(&mut bytes);
        } else {
            let from = dealt.len() - bytes.len();
            bytes.copy_from_slice(&dealt[from..]);
        }
        if self.bits == 0 {
            return vec![[R::ZERO; N]; count];
        }
        let row = |bytes: &[u8]| {
            let packed = from_bytes(bytes);
            std::array::from_fn(|column| {
                R::from_u64((packed >> (column as u32 * self.bits)) as u64).shifted_left(R::BITS - self.bits)
            })
        };
        bytes.chunks_exact(self.bytes(N, 1)).map(row).collect()
    }
}

fn from_bytes(bytes: &[u8]) -> u128 {
    let mut whole = [0; 16];
    whole[..bytes.len()].copy_from_slice(bytes);
    u128::from_le_bytes(whole)
}
