//! How many singular directions stay in the trusted part, layer by layer.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::spectrum::rank_for_energy;

/// Why a rank policy could not be read or applied.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum RankError {
    /// The text is none of the known forms.
    #[error("rank policy {text:?} is none of fixed:R, doubling:FIRST:CAP, energy:SHARE, cost:SHARE")]
    Form {
        /// The text.
        text: String,
    },
    /// A number of the text cannot be read.
    #[error("rank policy {text:?}: {number:?} is not a number")]
    Number {
        /// The text.
        text: String,
        /// The part that is not a number.
        number: String,
    },
    /// A rank is zero.
    #[error("a rank policy needs ranks of at least 1, not {rank}")]
    Zero {
        /// The rank.
        rank: usize,
    },
    /// A doubling policy starts above its cap.
    #[error("the first rank {first} is above the cap {cap}")]
    Cap {
        /// The first rank.
        first: usize,
        /// The cap.
        cap: usize,
    },
    /// A share is not in (0, 1].
    #[error("share {share} is not in (0, 1]")]
    Share {
        /// The share.
        share: f64,
    },
    /// The layer's matrices have an empty side.
    #[error("layer {layer} has no channels or no pixels")]
    Empty {
        /// The layer.
        layer: usize,
    },
    /// The energy policy needs singular values.
    #[error("the energy policy needs the singular values of layer {layer}, and there are none")]
    NoSpectrum {
        /// The layer.
        layer: usize,
    },
}

/// What the multiply-adds of one layer's convolution depend on, for one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerCost {
    /// Input channels N.
    pub in_channels: usize,
    /// Output channels M.
    pub out_channels: usize,
    /// Side k of the kernels.
    pub kernel: usize,
    /// Input pixels h·w.
    pub in_pixels: usize,
    /// Output pixels.
    pub out_pixels: usize,
    /// Whether the batch shares one basis, so that kernels are not folded for each sample.
    pub shared_basis: bool,
}

impl LayerCost {
    /// Multiply-adds of the full convolution: N·M·k²·hw.
    pub fn full_macs(&self) -> u64 {
        product(&[self.in_channels, self.out_channels, self.kernel, self.kernel, self.out_pixels])
    }

    /// Multiply-adds in the trusted part at `rank`: convolution R·M·k²·hw, folding M·N·R·k² unless the basis is
    /// shared (the paper leaves it out), decomposition R·N·hw.
    pub fn trusted_macs(&self, rank: usize) -> u64 {
        let convolution = product(&[rank, self.out_channels, self.kernel, self.kernel, self.out_pixels]);
        let folding = product(&[rank, self.out_channels, self.kernel, self.kernel, self.in_channels]);
        let decomposition = product(&[rank, self.in_channels, self.in_pixels]);
        let folding = if self.shared_basis { 0 } else { folding };
        convolution.saturating_add(folding).saturating_add(decomposition)
    }
}

fn product(factors: &[usize]) -> u64 {
    factors.iter().fold(1, |product: u64, factor| product.saturating_mul(*factor as u64))
}

/// How the rank of each layer is chosen. Read from text as `fixed:8`, `doubling:2:32`, `energy:0.95`, `cost:0.25`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RankPolicy {
    /// The same rank everywhere.
    Fixed {
        /// The rank.
        rank: usize,
    },
    /// Doubled with every convolution up to a cap: a 3×3 convolution adds about one bit of SVD-channel entropy
    /// (thesis §2.3); its schedule is 2, 4, 8 … 32.
    Doubling {
        /// Rank of layer 0.
        first: usize,
        /// Largest rank.
        cap: usize,
    },
    /// The smallest rank that keeps a share of the energy ‖X‖².
    Energy {
        /// The share.
        share: f64,
    },
    /// The largest rank whose trusted multiply-adds stay within a share of the full convolution's; 1 where even
    /// that costs more.
    Cost {
        /// The share.
        share: f64,
    },
}

impl RankPolicy {
    /// Refuses settings no layer could satisfy.
    ///
    /// # Errors
    /// Zero ranks, a cap below the first rank, shares outside (0, 1].
    pub fn check(&self) -> Result<(), RankError> {
        match *self {
            Self::Fixed { rank: rank @ 0 } | Self::Doubling { first: rank @ 0, .. } => Err(RankError::Zero { rank }),
            Self::Doubling { first, cap } if first > cap => Err(RankError::Cap { first, cap }),
            Self::Energy { share } | Self::Cost { share } if !(share > 0.0 && share <= 1.0) => {
                Err(RankError::Share { share })
            }
            Self::Fixed { .. } | Self::Doubling { .. } | Self::Energy { .. } | Self::Cost { .. } => Ok(()),
        }
    }

    /// Rank of the `layer`-th convolution, in 1..=`limit`, where `limit` is the smaller side of its matrices.
    ///
    /// `spectrum` (falling singular values) is used by the energy policy alone.
    ///
    /// # Errors
    /// Settings that [`RankPolicy::check`] refuses, a `limit` of zero, no spectrum where one is needed.
    pub fn rank(
        &self,
        layer: usize,
        limit: usize,
        conv: &LayerCost,
        spectrum: Option<&[f32]>,
    ) -> Result<usize, RankError> {
        self.check()?;
        if limit == 0 {
            return Err(RankError::Empty { layer });
        }
        let rank = match *self {
            Self::Fixed { rank } => rank,
            Self::Doubling { first, cap } => {
                let doublings = u32::try_from(layer).unwrap_or(u32::MAX);
                2usize.checked_pow(doublings).map_or(cap, |factor| first.saturating_mul(factor).min(cap))
            }
            Self::Energy { share } => {
                let spectrum = spectrum.filter(|values| !values.is_empty()).ok_or(RankError::NoSpectrum { layer })?;
                rank_for_energy(spectrum, share)
            }
            Self::Cost { share } => {
                // Every term is linear in the rank.
                let each = conv.trusted_macs(1).max(1) as f64;
                (share * conv.full_macs() as f64 / each) as usize
            }
        };
        Ok(rank.clamp(1, limit))
    }
}

impl fmt::Display for RankPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { rank } => write!(f, "fixed:{rank}"),
            Self::Doubling { first, cap } => write!(f, "doubling:{first}:{cap}"),
            Self::Energy { share } => write!(f, "energy:{share}"),
            Self::Cost { share } => write!(f, "cost:{share}"),
        }
    }
}

fn number<T: FromStr>(text: &str, number: &str) -> Result<T, RankError> {
    number.parse().map_err(|_| RankError::Number { text: text.to_owned(), number: number.to_owned() })
}

impl FromStr for RankPolicy {
    type Err = RankError;

    fn from_str(text: &str) -> Result<Self, RankError> {
        let parts: Vec<&str> = text.split(':').collect();
        let policy = match parts[..] {
            ["fixed", rank] => Self::Fixed { rank: number(text, rank)? },
            ["doubling", first, cap] => Self::Doubling { first: number(text, first)?, cap: number(text, cap)? },
            ["energy", share] => Self::Energy { share: number(text, share)? },
            ["cost", share] => Self::Cost { share: number(text, share)? },
            _ => return Err(RankError::Form { text: text.to_owned() }),
        };
        policy.check()?;
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The 14×14 convolution of VGG-16 at 224².
    const DEEP: LayerCost = LayerCost {
        in_channels: 512,
        out_channels: 512,
        kernel: 3,
        in_pixels: 196,
        out_pixels: 196,
        shared_basis: false,
    };

    fn rank(policy: &str, layer: usize, limit: usize, spectrum: Option<&[f32]>) -> Result<usize, RankError> {
        policy.parse::<RankPolicy>()?.rank(layer, limit, &DEEP, spectrum)
    }

    #[test]
    fn fixed_and_doubling() {
        assert_eq!(rank("fixed:8", 3, 64, None), Ok(8));
        assert_eq!(rank("fixed:8", 3, 3, None), Ok(3));
        let ranks: Vec<usize> = (0..7).map(|layer| rank("doubling:2:32", layer, 64, None).unwrap()).collect();
        assert_eq!(ranks, [2, 4, 8, 16, 32, 32, 32]);
        assert_eq!(rank("doubling:2:32", 1000, 64, None), Ok(32));
    }

    #[test]
    fn energy_takes_the_smallest_rank_that_suffices() {
        let spectrum = [3.0, 2.0, 1.0, 0.0];
        assert_eq!(rank("energy:0.6", 0, 4, Some(&spectrum)), Ok(1));
        assert_eq!(rank("energy:0.65", 0, 4, Some(&spectrum)), Ok(2));
        assert_eq!(rank("energy:1", 0, 4, Some(&spectrum)), Ok(3));
        assert_eq!(rank("energy:0.9", 5, 4, None), Err(RankError::NoSpectrum { layer: 5 }));
        assert_eq!(rank("energy:0.9", 5, 4, Some(&[])), Err(RankError::NoSpectrum { layer: 5 }));
    }

    /// Folding costs 2.6 times the folded convolution at 14×14, rank 32 (recomputed from the formula).
    #[test]
    fn costs_match_the_formula() {
        assert_eq!(DEEP.full_macs(), 512 * 512 * 9 * 196);
        let (convolution, folding, decomposition) = (32 * 512 * 9 * 196, 32 * 512 * 9 * 512, 32 * 512 * 196);
        assert_eq!((convolution, folding), (28_901_376, 75_497_472));
        assert_eq!(DEEP.trusted_macs(32), convolution + folding + decomposition);
        let shared = LayerCost { shared_basis: true, ..DEEP };
        assert_eq!(shared.trusted_macs(32), convolution + decomposition);
    }

    #[test]
    fn unreadable_policies_are_refused() {
        for text in ["", "fixed", "fixed:1:2", "doubling:2", "best:3", "Fixed:8"] {
            assert_eq!(text.parse::<RankPolicy>(), Err(RankError::Form { text: text.into() }));
        }
        assert!(matches!("fixed:-1".parse::<RankPolicy>(), Err(RankError::Number { .. })));
        assert!(matches!("cost:much".parse::<RankPolicy>(), Err(RankError::Number { .. })));
        assert_eq!("fixed:0".parse::<RankPolicy>(), Err(RankError::Zero { rank: 0 }));
        assert_eq!("doubling:0:4".parse::<RankPolicy>(), Err(RankError::Zero { rank: 0 }));
        assert_eq!("doubling:8:4".parse::<RankPolicy>(), Err(RankError::Cap { first: 8, cap: 4 }));
        assert_eq!("energy:1.5".parse::<RankPolicy>(), Err(RankError::Share { share: 1.5 }));
        assert!(matches!("cost:NaN".parse::<RankPolicy>(), Err(RankError::Share { .. })));
        assert_eq!(rank("fixed:8", 2, 0, None), Err(RankError::Empty { layer: 2 }));
    }

    proptest! {
        #[test]
        fn text_round_trips(kind in 0usize..4, a in 1usize..100, b in 0usize..100, share in 0.001f64..1.0) {
            let policy = [
                RankPolicy::Fixed { rank: a },
                RankPolicy::Doubling { first: a, cap: a + b },
                RankPolicy::Energy { share },
                RankPolicy::Cost { share },
            ][kind];
            prop_assert_eq!(policy.to_string().parse::<RankPolicy>(), Ok(policy));
        }

        #[test]
        fn cost_is_the_largest_rank_within_the_share(
            in_channels in 1usize..600, out_channels in 1usize..600, kernel in 1usize..6, in_pixels in 1usize..3000,
            out_pixels in 1usize..3000, shared_basis in any::<bool>(), share in 0.01f64..1.0,
        ) {
            let conv = LayerCost { in_channels, out_channels, kernel, in_pixels, out_pixels, shared_basis };
            let limit = in_channels.min(in_pixels);
            let rank = RankPolicy::Cost { share }.rank(0, limit, &conv, None).unwrap();
            let allowed = share * conv.full_macs() as f64;
            prop_assert!(rank == 1 || conv.trusted_macs(rank) as f64 <= allowed * (1.0 + 1e-12));
            prop_assert!(rank == limit || conv.trusted_macs(rank + 1) as f64 > allowed * (1.0 - 1e-12));
        }
    }
}
