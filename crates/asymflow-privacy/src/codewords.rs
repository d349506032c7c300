//! One of a few public codewords in place of a record: k-ary randomised response, and PrivUnit over points of a sphere.

use rand::CryptoRng;
use zeroize::Zeroize;

use crate::bits::PackedBits;
use crate::exact::Words;
use crate::loss::{Loss, Sensitivity};
use crate::mechanism::{Mechanism, MechanismError};

/// Codewords on the sphere. More bring the mechanism closer to PrivUnitG, and 14 bits are what ε of about 10 can tell.
const ON_SPHERE: usize = 1 << 14;

/// Levels that a coordinate of a point is told by, one bit each: in standard deviations of a coordinate.
const LEVELS: [f32; 8] = [-1.4, -0.85, -0.45, -0.15, 0.15, 0.45, 0.85, 1.4];

/// The words that a record may come out as. All are public.
#[derive(Clone, Debug)]
enum Codebook {
    /// One word a value: a record is nearest to the word of its largest value.
    Classes,
    /// Points of the unit sphere, row-major.
    Sphere(Vec<f32>),
}

/// Releases one of N public codewords in place of a record of `values` values: one of the m nearest to it with probability
/// m·e^ε/(m·e^ε + N − m), each as likely, otherwise one of the N − m others, each as likely.
///
/// [`Codewords::of_classes`] is k-ary randomised response over the largest value (m = 1; Kairouz, Bonawitz and Ramage 2016).
/// [`Codewords::on_sphere`] is PrivUnit (Bhowmick et al. 2018; PrivUnitG: Asi, Feldman and Talwar 2022) with a cap of exactly m
/// out of N points that are the same for everybody, as subset selection (Ye and Barg 2018) has it: what an unbounded number of
/// points would give is approached, and ε does not depend on how well.
///
/// # Guarantee
/// Pure ε for one record *replaced* by any other, exactly: for whatever record m words have one and the same probability, and
/// all others one and the same smaller one, whose ratio is e^ε or less, whatever the rounding of the products that say which
/// are nearest. Both are drawn in integers. A record that is removed loses less
/// ([`removal_epsilon`](Codewords::removal_epsilon)), if its row is then a uniform word. There is no δ and no bound on norms.
///
/// Not covered: how long it takes to find the nearest words.
///
/// ```
/// use asymflow_privacy::Loss;
/// use asymflow_privacy::accountants::{Relation, Sensitivity};
/// use asymflow_privacy::mechanisms::{Codewords, Mechanism};
///
/// let guess = Codewords::of_classes(10, Some(4.0))?;
/// assert_eq!(guess.loss(Sensitivity::unbounded(Relation::Replace)), Ok(Loss::Pure { epsilon: 4.0 }));
/// assert!(guess.removal_epsilon().is_some_and(|epsilon| epsilon < 2.2));
/// # Ok::<(), asymflow_privacy::mechanisms::MechanismError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Codewords {
    codebook: Codebook,
    values: usize,
    words: u32,
    nearest: u32,
    /// ε, and the probability of one of the others in units of 2⁻⁶⁴; without noise, none.
    noise: Option<(f64, u64)>,
}

impl Codewords {
    /// One word for each of `classes` values of a record, such as scores; without noise where there is no `epsilon`.
    ///
    /// # Errors
    /// Fewer than two classes, or an ε that is not positive and finite.
    pub fn of_classes(classes: u32, epsilon: Option<f64>) -> Result<Self, MechanismError> {
        Self::new(Codebook::Classes, classes as usize, (classes, 1), epsilon)
    }

    /// Points of the unit sphere in `dimensions`, the same for everybody, and so many of them nearest as correlate most with
    /// a record at that ε; the nearest one where there is none.
    ///
    /// # Errors
    /// Fewer than two dimensions, or an ε that is not positive and finite.
    pub fn on_sphere(dimensions: u32, epsilon: Option<f64>) -> Result<Self, MechanismError> {
        if dimensions < 2 {
            return Err(MechanismError::Classes { classes: dimensions });
        }
        let (values, words) = (dimensions as usize, ON_SPHERE as u32);
        let points = sphere(values, ON_SPHERE, 0);
        let nearest = epsilon.map_or(1, |epsilon| best_cap(&points, values, epsilon));
        Self::new(Codebook::Sphere(points), values, (words, nearest), epsilon)
    }

    fn new(
        codebook: Codebook,
        values: usize,
        (words, nearest): (u32, u32),
        epsilon: Option<f64>,
    ) -> Result<Self, MechanismError> {
        if words < 2 {
            return Err(MechanismError::Classes { classes: words });
        }
        if let Some(epsilon) = epsilon.filter(|epsilon| !(epsilon.is_finite() && *epsilon > 0.0)) {
            return Err(MechanismError::Epsilon { epsilon });
        }
        let noise = epsilon.map(|epsilon| (epsilon, probability_of_others(words, nearest, epsilon)));
        Ok(Self { codebook, values, words, nearest, noise })
    }

    /// Values of a record.
    pub const fn values(&self) -> usize {
        self.values
    }

    /// How many words are nearest to a record, m, of how many, N.
    pub const fn cap(&self) -> (u32, u32) {
        (self.nearest, self.words)
    }

    /// Bits of what comes out for a record, whole bytes: a class is told by one bit, a point by eight levels a coordinate.
    pub const fn bits(&self) -> usize {
        match self.codebook {
            Codebook::Classes => self.values.next_multiple_of(8),
            Codebook::Sphere(_) => LEVELS.len() * self.values,
        }
    }

    /// Pure ε of a record that is removed, where a uniform word takes its row; absent without noise.
    pub fn removal_epsilon(&self) -> Option<f64> {
        let (epsilon, _) = self.noise?;
        let (nearest, words) = (f64::from(self.nearest), f64::from(self.words));
        // Of the words' probabilities against 1/N, in units of e^ε.
        let total = nearest + (words - nearest) * (-epsilon).exp();
        let (up, down) = ((words / total).ln(), epsilon + (total / words).ln());
        Some(up.max(down))
    }

    /// The word for one record.
    fn draw(&self, record: &[f32], words: &mut Words<'_>) -> usize {
        let mut order: Vec<u32> = (0..self.words).collect();
        let mut scores: Vec<f32> = match &self.codebook {
            Codebook::Classes => record.to_vec(),
            Codebook::Sphere(points) => points.chunks_exact(self.values).map(|point| product(point, record)).collect(),
        };
        let score = |word: u32| scores.get(word as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let nearest = self.nearest as usize;
        order.select_nth_unstable_by(nearest - 1, |&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        scores.zeroize();
        // The same randomness is drawn, whatever comes of it.
        let (chance, near) = (words.long_word(), words.below(self.nearest) as usize);
        let far = nearest + words.below(self.words - self.nearest) as usize;
        let is_far = self.noise.is_some_and(|(_, others)| chance < others);
        let word = order.get(if is_far { far } else { near }).copied().unwrap_or_default();
        order.zeroize();
        word as usize
    }

    /// The bits of a word.
    fn spell(&self, word: usize) -> impl Iterator<Item = bool> + '_ {
        let deviation = (self.values as f32).sqrt().recip();
        (0..self.bits()).map(move |bit| match &self.codebook {
            Codebook::Classes => bit == word,
            Codebook::Sphere(points) => {
                let coordinate = points[word * self.values + bit / LEVELS.len()];
                coordinate > LEVELS[bit % LEVELS.len()] * deviation
            }
        })
    }
}

impl Mechanism for Codewords {
    type Output = PackedBits;

    fn name(&self) -> &'static str {
        match (&self.codebook, self.noise) {
            (_, None) => "insecure_codewords",
            (Codebook::Classes, Some(_)) => "randomised_response",
            (Codebook::Sphere(_), Some(_)) => "priv_unit",
        }
    }

    fn loss(&self, _sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        Ok(self.noise.map_or(Loss::Infinite, |(epsilon, _)| Loss::Pure { epsilon }))
    }

    fn record_values(&self) -> Option<usize> {
        Some(self.values)
    }

    fn apply(&self, mut x: Vec<f32>, rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        if !x.len().is_multiple_of(self.values) {
            return Err(MechanismError::Record { values: x.len() % self.values, record: self.values });
        }
        let mut words = Words::new(rng);
        let drawn: Vec<usize> = x.chunks_exact(self.values).map(|record| self.draw(record, &mut words)).collect();
        x.zeroize();
        Ok(PackedBits::from_bools(drawn.into_iter().flat_map(|word| self.spell(word))))
    }
}

/// Probability of any of N − m words that are not among the m nearest, in units of 2⁻⁶⁴, rounded up: (N − m)/(m·e^ε + N − m). The margin
/// covers the roundings and the exponential. More than (N − m)/N, which a uniform word has, would point away from the record.
pub(crate) fn probability_of_others(words: u32, nearest: u32, epsilon: f64) -> u64 {
    let others = f64::from(words - nearest) * (-epsilon).exp();
    let probability = others / (f64::from(nearest) + others);
    let probability = (probability * (1.0 + 16.0 * f64::EPSILON) * 18_446_744_073_709_551_616.0).ceil() as u64;
    let uniform = (u128::from(words - nearest) << 64) / u128::from(words);
    u128::from(probability.max(1)).min(uniform) as u64
}

fn product(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Points of the unit sphere in so many dimensions, row-major, the same for the same `seed`: they are public and hide nothing.
fn sphere(dimensions: usize, points: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        // SplitMix64 (Steele, Lea and Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / 9_007_199_254_740_992.0
    };
    let mut normal = || (-2.0 * libm::log(1.0 - uniform())).sqrt() * libm::cos(std::f64::consts::TAU * uniform());
    let mut point = || {
        let values: Vec<f64> = (0..dimensions).map(|_| normal()).collect();
        let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
        values.into_iter().map(move |v| (v / norm) as f32)
    };
    (0..points).flat_map(|_| point()).collect()
}

/// How many of `points` are to be nearest, such that the word for a record correlates most with it at `epsilon`. Measured on
/// records of its own.
fn best_cap(points: &[f32], dimensions: usize, epsilon: f64) -> u32 {
    const PROBES: usize = 32;
    let count = points.len() / dimensions;
    // Mean product with the j nearest, summed.
    let mut gained = vec![0.0; count];
    for probe in sphere(dimensions, PROBES, 1).chunks_exact(dimensions) {
        let mut products: Vec<f32> = points.chunks_exact(dimensions).map(|point| product(point, probe)).collect();
        products.sort_unstable_by(|a, b| b.total_cmp(a));
        let mut sum = 0.0;
        for (gained, product) in gained.iter_mut().zip(products) {
            sum += f64::from(product);
            *gained += sum;
        }
    }
    let all = gained.last().copied().unwrap_or_default();
    // Σ over the cap weighs 1, all others e^(−ε), by the sum of weights.
    let gain = |nearest: u32| {
        let (near, rest) = (f64::from(nearest), count as f64 - f64::from(nearest));
        let inside = gained.get(nearest as usize - 1).copied().unwrap_or_default();
        (inside + (all - inside) * (-epsilon).exp()) / (near + rest * (-epsilon).exp())
    };
    // Eight candidates an octave.
    let candidates = (0..).map(|i| 2.0_f64.powf(f64::from(i) / 8.0) as u32).take_while(|&m| (m as usize) < count);
    candidates.max_by(|&a, &b| gain(a).total_cmp(&gain(b))).unwrap_or(1)
}
