//! The one door out of the trusted part: it clips, asks the accountant, applies the mechanism and charges, in one operation.

use std::fmt;

use rand::CryptoRng;
use rayon::prelude::*;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::boundary::{Private, Released};
use crate::budget::BudgetError;
use crate::clip::{ClipError, clip_l2};
use crate::exact::Words;
use crate::grid::DiscreteGaussian;
use crate::labels::RandomisedResponse;
use crate::loss::{Loss, Relation, Sensitivity};
use crate::mechanism::{Mechanism, MechanismError};
use crate::payload::Payload;
use crate::records::{Flow, LedgerEntry, RecordAccountant};

/// Why nothing was released, and nothing charged.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ReleaseError {
    /// The input holds NaN or an infinity; no noise hides that.
    #[error("value {index} is not finite")]
    NonFinite {
        /// Index of the first such value within its record.
        index: usize,
    },
    /// The mechanism refused.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// A record has spent its budget.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// Values and records do not belong together.
    #[error("{values} values do not divide among {records} records")]
    Batch {
        /// How many values, or labels.
        values: usize,
        /// How many records they are said to be of.
        records: usize,
    },
    /// A record that the accountant does not know.
    #[error("record {record} is out of range: the accountant keeps {records} records")]
    Record {
        /// Its number.
        record: usize,
        /// How many there are.
        records: usize,
    },
    /// A label that is none.
    #[error("label {index} is not below {classes}, the number of classes")]
    Label {
        /// Index of the first such label.
        index: usize,
        /// How many classes there are.
        classes: u32,
    },
    /// What is said to have been released before has cost its record nothing.
    #[error("record {record} has lost nothing so far, so nothing of it can have been released before")]
    NeverReleased {
        /// Its number.
        record: usize,
    },
}

/// A mechanism behind the clip that bounds its sensitivity.
pub struct Gate<O> {
    mechanism: Box<dyn Mechanism<Output = O>>,
    clip: Option<f64>,
    sensitivity: Sensitivity,
}

impl<O> fmt::Debug for Gate<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("mechanism", &self.mechanism.name())
            .field("clip", &self.clip)
            .finish_non_exhaustive()
    }
}

impl<O> Gate<O> {
    /// A gate at which every record is clipped to the l2 norm `clip`; without one no sensitivity is known, and what a mechanism
    /// lets pass has an infinite loss.
    ///
    /// # Errors
    /// A clip that is not positive and finite.
    pub fn new(
        mechanism: Box<dyn Mechanism<Output = O>>,
        clip: Option<f64>,
        relation: Relation,
    ) -> Result<Self, MechanismError> {
        if let Some(l2) = clip.filter(|clip| !(clip.is_finite() && *clip > 0.0)) {
            return Err(MechanismError::Sensitivity { l2 });
        }
        let sensitivity = clip.map_or(Sensitivity::unbounded(relation), |clip| Sensitivity::of_clipped(clip, relation));
        Ok(Self { mechanism, clip, sensitivity })
    }

    /// The same gate for data of which more is known than their clip: neighbours differ by at most `sensitivity`.
    #[must_use]
    pub fn with_sensitivity(self, sensitivity: Sensitivity) -> Self {
        Self { sensitivity, ..self }
    }

    /// Name of the mechanism.
    pub fn name(&self) -> &'static str {
        self.mechanism.name()
    }

    /// Loss of one release for each of its records.
    ///
    /// # Errors
    /// A mechanism that is not defined for the sensitivity.
    pub fn loss(&self) -> Result<Loss, MechanismError> {
        Ok(self.mechanism.loss(self.sensitivity)?.checked())
    }

    /// Refuses what is not finite, and clips every record.
    fn clip(&self, batch: &mut [f32], samples: usize) -> Result<(), ReleaseError> {
        let record = (batch.len() / samples.max(1)).max(1);
        let Some(clip) = self.clip else {
            let found = Payload::first_non_finite_of(batch);
            return found.map_or(Ok(()), |index| Err(ReleaseError::NonFinite { index: index % record }));
        };
        let clip = at_most(clip);
        batch.par_chunks_exact_mut(record).try_for_each(|record| match clip_l2(record, clip) {
            Ok(_) => Ok(()),
            Err(ClipError::NonFinite { index }) => Err(ReleaseError::NonFinite { index }),
            Err(ClipError::Limit { limit }) => Err(MechanismError::Sensitivity { l2: f64::from(limit) }.into()),
        })
    }
}

/// The largest f32 that does not exceed `value`, which is positive.
fn at_most(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) > value { nearest.next_down() } else { nearest }
}

/// Noise on a sum over records of which each takes part with a probability of its own, in secret: a step of DP-SGD (Abadi et al.
/// 2016).
///
/// # Guarantee
/// That of the Poisson-sampled Gaussian, for a record removed: q and the noise multiplier σ/C, where every record that takes
/// part adds at most l2 norm [`norm_limit`](SumGate::norm_limit), and nobody but the trusted part knows which do. The sum is computed
/// in f32, whose rounding depends on all records that take part and is not covered; the noise is discrete and exact.
#[derive(Clone, Copy, Debug)]
pub struct SumGate {
    noise: DiscreteGaussian,
    noise_multiplier: f64,
    clip: f64,
    q: f64,
}

impl SumGate {
    /// Noise of `noise_multiplier` times `clip` on a sum of records of l2 norm `clip` at most, each of which takes part with
    /// probability `q`.
    ///
    /// # Errors
    /// A clip or multiplier that is not positive and finite, or out of the range of the noise.
    pub fn new(noise_multiplier: f64, clip: f64, q: f64) -> Result<Self, MechanismError> {
        let noise = DiscreteGaussian::fine(noise_multiplier * clip)?;
        Ok(Self { noise, noise_multiplier, clip, q })
    }

    /// Probability with which a record takes part.
    pub const fn q(&self) -> f64 {
        self.q
    }

    /// l2 norm that a record may add to a sum of so many values, such that it moves the sum, rounded to the grid of the noise, by
    /// at most the clip: two sums of any difference differ by less than one step a value more once they are rounded.
    pub fn norm_limit(&self, values: usize) -> f64 {
        (self.clip - self.noise.step() * (values as f64).sqrt()).max(0.0)
    }

    /// Loss of one sum, for each record there is.
    pub const fn loss(&self) -> Loss {
        // The discrete noise is a rounding of continuous noise that is less by 5e-12 of itself.
        let noise_multiplier = self.noise_multiplier * (1.0 - 1e-11);
        Loss::Sampled { q: self.q, noise_multiplier, relation: Relation::Remove }.checked()
    }
}

/// What is released, for the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// Layer whose input or gradient it is.
    pub layer: &'a str,
    /// Which way it goes.
    pub flow: Flow,
}

impl Source<'_> {
    fn entry(&self, mechanism: &str, loss: Loss, records: &[usize], relation: Relation) -> LedgerEntry {
        let (layer, mechanism) = (self.layer.to_owned(), mechanism.to_owned());
        LedgerEntry { layer, flow: self.flow, mechanism, loss, records: records.len(), relation }
    }
}

/// The door between private data and everybody else. It owns the accountant and the randomness; a mode that has no door cannot
/// release anything.
///
/// ```
/// use asymflow_privacy::accountants::Relation;
/// use asymflow_privacy::door::{Gate, Source};
/// use asymflow_privacy::mechanisms::OneBit;
/// use asymflow_privacy::records::{Flow, RecordAccountant};
/// use asymflow_privacy::{Door, Private};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// // In earnest the seed comes from the operating system.
/// let mut door = Door::new(RecordAccountant::new(2), StdRng::from_seed([7; 32]));
/// let gate = Gate::new(Box::new(OneBit::new(2.75)?), Some(1.0), Relation::Remove)?;
/// let source = Source { layer: "features", flow: Flow::Residual };
/// let bits = door.release(&gate, source, &[0, 1], Private::new(vec![0.5; 16]))?;
/// assert_eq!(bits.get().len(), 16);
/// assert!(door.accountant().epsilon(1e-5)? < 1.4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Door {
    accountant: RecordAccountant,
    rng: Box<dyn CryptoRng + Send>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("accountant", &self.accountant).finish_non_exhaustive()
    }
}

impl Door {
    /// A door whose releases `accountant` admits and counts, and whose noise comes of `rng`.
    pub fn new(accountant: RecordAccountant, rng: impl CryptoRng + Send + 'static) -> Self {
        Self { accountant, rng: Box::new(rng) }
    }

    /// Who has lost how much.
    pub const fn accountant(&self) -> &RecordAccountant {
        &self.accountant
    }

    /// Counts with another accountant from now on.
    pub fn count_with(&mut self, accountant: RecordAccountant) {
        self.accountant = accountant;
    }

    /// The ledger entries since the last call.
    pub fn take_ledger(&mut self) -> Vec<LedgerEntry> {
        self.accountant.take_ledger()
    }

    /// Releases a batch of as many records as `records` names, row-major: each is clipped, the accountant is asked, the mechanism
    /// applied, and the loss charged. A record that occurs twice pays twice.
    ///
    /// # Guarantee
    /// What the gate's [`Loss`] states, for each record. Where this gives an error nothing was released.
    ///
    /// # Errors
    /// Values that are not finite or do not divide among the records, unknown records, a spent budget, or a mechanism that
    /// refuses.
    pub fn release<O>(
        &mut self,
        gate: &Gate<O>,
        source: Source<'_>,
        records: &[usize],
        values: Private<Vec<f32>>,
    ) -> Result<Released<O>, ReleaseError> {
        // What is refused is wiped, as it is wherever else private data is dropped.
        let mut values = Zeroizing::new(values.take());
        if records.is_empty() || !values.len().is_multiple_of(records.len()) {
            return Err(ReleaseError::Batch { values: values.len(), records: records.len() });
        }
        let each = values.len() / records.len();
        if let Some(record) = gate.mechanism.record_values().filter(|&record| record != each) {
            return Err(MechanismError::Record { values: each, record }.into());
        }
        gate.clip(&mut values, records.len())?;
        let entry = source.entry(gate.name(), gate.loss()?, records, gate.sensitivity.relation());
        let permit = self.accountant.admit(records, entry)?;
        let value = gate.mechanism.apply(std::mem::take(&mut values), &mut self.rng)?;
        Ok(permit.release(value))
    }

    /// Releases a sum over some of `records`, with noise, and charges all of them: that any of them took part is what is hidden.
    ///
    /// # Guarantee
    /// That of the [`SumGate`].
    ///
    /// # Errors
    /// A sum that is not finite, unknown records, or a spent budget.
    pub fn release_sum(
        &mut self,
        gate: &SumGate,
        source: Source<'_>,
        records: &[usize],
        sum: Private<Vec<f32>>,
    ) -> Result<Released<Vec<f32>>, ReleaseError> {
        let mut sum = Zeroizing::new(sum.take());
        if let Some(index) = Payload::first_non_finite_of(&sum) {
            return Err(ReleaseError::NonFinite { index });
        }
        let permit = self.accountant.admit(records, source.entry("dp_sgd", gate.loss(), records, Relation::Remove))?;
        let noised = gate.noise.apply(std::mem::take(&mut sum), &mut self.rng)?;
        Ok(permit.release(noised))
    }

    /// Releases one label for each of `records` through k-ary randomised response.
    ///
    /// # Guarantee
    /// Pure ε of each label, for neighbours that differ in it.
    ///
    /// # Errors
    /// As [`Door::release`]; a label beyond the classes.
    pub fn release_labels(
        &mut self,
        response: &RandomisedResponse,
        records: &[usize],
        labels: &Private<Vec<u32>>,
    ) -> Result<Released<Vec<u32>>, ReleaseError> {
        let labels = labels.expose();
        one_a_record(labels, records)?;
        let classes = response.classes();
        if let Some(index) = labels.iter().position(|&label| label >= classes) {
            return Err(ReleaseError::Label { index, classes });
        }
        let loss = Loss::Pure { epsilon: response.epsilon() };
        let source = Source { layer: "labels", flow: Flow::Label };
        let permit =
            self.accountant.admit(records, source.entry("randomised_response", loss, records, Relation::Replace))?;
        let mut words = Words::new(&mut self.rng);
        let answers = labels.iter().map(|&label| response.respond(label, &mut words)).collect();
        Ok(permit.release(answers))
    }

    /// Lets out labels that are public by declaration. No guarantee is given for them; the ledger says so.
    ///
    /// # Errors
    /// Not one label a record, unknown records, or one that is beyond its budget already.
    pub fn disclose_labels(&mut self, records: &[usize], labels: Vec<u32>) -> Result<Released<Vec<u32>>, ReleaseError> {
        one_a_record(&labels, records)?;
        let source = Source { layer: "labels", flow: Flow::Label };
        let entry = source.entry("public_labels", Loss::Pure { epsilon: 0.0 }, records, Relation::Replace);
        Ok(self.accountant.admit(records, entry)?.release(labels))
    }

    /// Charges `loss` to records for what leaves by no gate, such as weights that were trained on them.
    ///
    /// # Errors
    /// Unknown records, or a spent budget; then it must not leave.
    pub fn charge(
        &mut self,
        mechanism: &str,
        source: Source<'_>,
        records: &[usize],
        loss: Loss,
    ) -> Result<(), ReleaseError> {
        let entry = source.entry(mechanism, loss.checked(), records, Relation::Replace);
        self.accountant.admit(records, entry)?.release(());
        Ok(())
    }

    /// Lets out again what was released of `records` before, or what follows from it alone; that costs nothing.
    ///
    /// # Errors
    /// A record that is unknown, or that has lost nothing: then it was never released, or its losses were forgotten.
    pub fn again<T>(&self, records: &[usize], value: T) -> Result<Released<T>, ReleaseError> {
        self.accountant.have_lost(records)?;
        Ok(Released::new(value))
    }
}

fn one_a_record(labels: &[u32], records: &[usize]) -> Result<(), ReleaseError> {
    let (values, records) = (labels.len(), records.len());
    if values == records { Ok(()) } else { Err(ReleaseError::Batch { values, records }) }
}
