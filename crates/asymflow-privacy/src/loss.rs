//! What a release costs: sensitivities, neighbours and privacy losses.

use serde::{Deserialize, Serialize};

/// Which inputs count as neighbours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// One record is removed (replaced by zero): a record clipped to norm C moves the output by C.
    #[default]
    Remove,
    /// One record is replaced by another: a record clipped to norm C moves the output by 2C.
    Replace,
}

impl Relation {
    /// How many clipped records the outputs of neighbours differ by: 1 or 2.
    const fn records(self) -> f64 {
        match self {
            Self::Remove => 1.0,
            Self::Replace => 2.0,
        }
    }
}

/// Largest change of the released vector between neighbouring inputs; `f64::INFINITY` when unclipped.
///
/// The bounds come from a bound on the norm of **each record**, and mechanisms rely on it: they round a record towards
/// zero, which keeps its norm within the clip bound and therefore its distance to any neighbour within the
/// sensitivity, whatever the number of values. A bound on the difference alone would not survive rounding.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    l2: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    l1: Option<f64>,
    relation: Relation,
}

impl Sensitivity {
    /// Sensitivity of one record clipped to l2 norm `clip`.
    pub fn of_clipped(clip: f64, relation: Relation) -> Self {
        Self { l2: relation.records() * clip, l1: None, relation }
    }

    /// Sensitivity of one record of `values` values, each clipped to [−`limit`, `limit`]: l1 norm `values`·`limit`,
    /// l2 norm √`values`·`limit`.
    pub fn of_clipped_coordinates(limit: f64, values: usize, relation: Relation) -> Self {
        let values = values as f64;
        Self::of_clipped(values.sqrt() * limit, relation).with_l1_clip(values * limit)
    }

    /// Sensitivity of the gradient of the mean cross-entropy over `samples` records, (softmax(z) − y)/`samples` a record, to
    /// the label y of one of them: √2/`samples` for either relation, and 2⁻¹⁰ of it more for the rounding of f32, up to
    /// 4096 classes.
    ///
    /// It holds where the logits z are known to whoever gets the gradient, as those that a worker computed from what was
    /// released to it: given all that was released before, z is the same for neighbours, and releases compose adaptively.
    /// Then the records of `Replace` differ by y′ − y, whose norm is √2 or 0, and not by 2√2, which two different softmax
    /// vectors could reach. For `Remove`, zeros stand in place of the row, whose norm is at most √2: with p = softmax(z),
    /// ‖p − y‖² ≤ (1 − p_y)² + (Σ_{c ≠ y} p_c)² = 2·(1 − p_y)².
    ///
    /// Mechanisms that round towards zero on a grid move no neighbours apart here: the two entries of p − y and p − y′ that
    /// differ lie on opposite sides of zero. Clipping a row must not scale it, as the scale would depend on the label:
    /// [`Self::l2`] is above the norm of every row, so that clipping to it leaves all as they are.
    pub fn of_label_gradient(samples: usize, relation: Relation) -> Self {
        let l2 = std::f64::consts::SQRT_2 * (1.0 + 1.0 / 1024.0) / samples.max(1) as f64;
        Self { l2, l1: None, relation }
    }

    /// The same with a bound `clip` on the l1 norm of one record as well.
    #[must_use]
    pub fn with_l1_clip(self, clip: f64) -> Self {
        Self { l1: Some(self.relation.records() * clip), ..self }
    }

    /// No bound: no noise gives a finite loss.
    pub const fn unbounded(relation: Relation) -> Self {
        Self { l2: f64::INFINITY, l1: None, relation }
    }

    /// The l2 bound.
    pub const fn l2(&self) -> f64 {
        self.l2
    }

    /// The l1 bound, where one was given.
    pub const fn l1(&self) -> Option<f64> {
        self.l1
    }

    /// The relation it holds for.
    pub const fn relation(&self) -> Relation {
        self.relation
    }
}

/// Privacy loss of one release for one record.
///
/// A number that is no loss (negative, NaN or infinite) means [`Loss::Infinite`]: see [`Loss::checked`]. It is
/// serialised as that, and deserialised as that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredLoss", into = "StoredLoss")]
pub enum Loss {
    /// μ-Gaussian differential privacy: dominated by N(0, 1) against N(μ, 1) (Dong, Roth and Su 2022).
    Gaussian {
        /// μ = Δ₂/σ; the noise multiplier is 1/μ.
        mu: f64,
    },
    /// ρ-zero-concentrated differential privacy (Bun and Steinke 2016).
    Zcdp {
        /// ρ.
        rho: f64,
    },
    /// Pure ε-differential privacy.
    Pure {
        /// ε.
        epsilon: f64,
    },
    /// (ε, δ)-differential privacy.
    Approximate {
        /// ε.
        epsilon: f64,
        /// δ.
        delta: f64,
    },
    /// Gaussian noise on a sum over records, each of which takes part with probability `q` of its own, in secret.
    Sampled {
        /// Probability with which a record takes part.
        q: f64,
        /// σ/Δ₂, for the distance Δ₂ of neighbours under `relation`.
        noise_multiplier: f64,
        /// Which neighbours. Sampling helps less against a replacement.
        relation: Relation,
    },
    /// No guarantee at all.
    Infinite,
}

impl Loss {
    /// The loss where neighbours may differ by twice as much, being records replaced in place of records removed.
    #[must_use]
    pub fn doubled(self) -> Self {
        match self {
            Self::Gaussian { mu } => Self::Gaussian { mu: 2.0 * mu },
            Self::Zcdp { rho } => Self::Zcdp { rho: 4.0 * rho },
            Self::Pure { epsilon } => Self::Pure { epsilon: 2.0 * epsilon },
            // Over a neighbour in between: δ + e^ε·δ.
            Self::Approximate { epsilon, delta } => {
                Self::Approximate { epsilon: 2.0 * epsilon, delta: delta * (1.0 + epsilon.exp()) }
            }
            Self::Sampled { q, noise_multiplier, .. } => {
                Self::Sampled { q, noise_multiplier: 0.5 * noise_multiplier, relation: Relation::Replace }
            }
            Self::Infinite => Self::Infinite,
        }
    }

    /// The same loss, or [`Loss::Infinite`] when its number is negative, NaN or infinite: a damaged number must not
    /// make the loss smaller.
    #[must_use]
    pub const fn checked(self) -> Self {
        let (number, is_event) = match self {
            Self::Gaussian { mu } => (mu, true),
            Self::Zcdp { rho } => (rho, true),
            Self::Pure { epsilon } => (epsilon, true),
            Self::Approximate { epsilon, delta } => (epsilon, delta >= 0.0 && delta < 1.0),
            Self::Sampled { q, noise_multiplier, .. } => {
                (noise_multiplier, q > 0.0 && q <= 1.0 && noise_multiplier > 0.0)
            }
            Self::Infinite => (f64::INFINITY, false),
        };
        if is_event && number >= 0.0 && number < f64::INFINITY { self } else { Self::Infinite }
    }

    /// A ρ such that the release is ρ-zCDP; infinite when there is no guarantee.
    ///
    /// μ-GDP is μ²/2-zCDP; ε-DP is ε²/2-zCDP (Bun and Steinke 2016, proposition 1.4) and, its Rényi divergences being
    /// at most ε, also ε-zCDP. Sampling is left out of account. (ε, δ) has no ρ.
    pub fn rho(&self) -> f64 {
        match self.checked() {
            Self::Gaussian { mu } => 0.5 * mu * mu,
            Self::Zcdp { rho } => rho,
            Self::Pure { epsilon } => epsilon.min(0.5 * epsilon * epsilon),
            Self::Sampled { noise_multiplier, .. } => 0.5 / (noise_multiplier * noise_multiplier),
            Self::Approximate { .. } | Self::Infinite => f64::INFINITY,
        }
    }
}

/// What is stored of a [`Loss`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StoredLoss {
    Gaussian { mu: f64 },
    Zcdp { rho: f64 },
    Pure { epsilon: f64 },
    Infinite,
    Approximate { epsilon: f64, delta: f64 },
    Sampled { q: f64, noise_multiplier: f64, relation: Relation },
}

impl From<StoredLoss> for Loss {
    fn from(stored: StoredLoss) -> Self {
        match stored {
            StoredLoss::Gaussian { mu } => Self::Gaussian { mu },
            StoredLoss::Zcdp { rho } => Self::Zcdp { rho },
            StoredLoss::Pure { epsilon } => Self::Pure { epsilon },
            StoredLoss::Infinite => Self::Infinite,
            StoredLoss::Approximate { epsilon, delta } => Self::Approximate { epsilon, delta },
            StoredLoss::Sampled { q, noise_multiplier, relation } => Self::Sampled { q, noise_multiplier, relation },
        }
        .checked()
    }
}

impl From<Loss> for StoredLoss {
    fn from(loss: Loss) -> Self {
        match loss.checked() {
            Loss::Gaussian { mu } => Self::Gaussian { mu },
            Loss::Zcdp { rho } => Self::Zcdp { rho },
            Loss::Pure { epsilon } => Self::Pure { epsilon },
            Loss::Infinite => Self::Infinite,
            Loss::Approximate { epsilon, delta } => Self::Approximate { epsilon, delta },
            Loss::Sampled { q, noise_multiplier, relation } => Self::Sampled { q, noise_multiplier, relation },
        }
    }
}
