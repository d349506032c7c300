//! Everything that is found by a name: modes, mechanisms, decompositions and readers of data. A program of one's own adds to it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use asymflow_audit::Attack;
use asymflow_linalg::{Decomposer, decompose::by_name};
use asymflow_privacy::mechanisms::{Mechanism, MechanismError};
use asymflow_zoo::data::Split;

use super::{Asked, ModeError, ModeFamily, ModeRef, ModeSpec};

/// A mechanism that releases numbers.
pub type NumberMechanism = Box<dyn Mechanism<Output = Vec<f32>>>;
/// Makes one for a σ, where it takes any.
pub type MakeMechanism = fn(Option<f64>) -> Result<NumberMechanism, MechanismError>;
/// Makes a decomposition.
pub type MakeDecomposer = fn() -> Box<dyn Decomposer>;

/// Reads a data set that lies at a path.
pub type ReadData = fn(&Path) -> Result<Split, String>;

/// What is known by a name.
///
/// ```
/// use asymflow::modes::Registry;
///
/// let registry = Registry::default().with_decomposer("plain", || asymflow_linalg::decompose::by_name("exact-svd").unwrap());
/// assert!(registry.decomposer("plain").is_ok());
/// assert!(registry.names().any(|name| name == "delta"));
/// ```
#[derive(Debug)]
pub struct Registry {
    families: Vec<Box<dyn ModeFamily>>,
    mechanisms: BTreeMap<String, MakeMechanism>,
    decomposers: BTreeMap<String, MakeDecomposer>,
    readers: BTreeMap<String, ReadData>,
    attacks: Vec<Box<dyn Attack>>,
}

impl Registry {
    /// Nothing is known by it; [`Registry::default`] knows what this crate has.
    pub fn empty() -> Self {
        let (mechanisms, decomposers, readers) = Default::default();
        Self { families: Vec::new(), mechanisms, decomposers, readers, attacks: Vec::new() }
    }

    /// Adds a family of modes; one of the same name is replaced.
    #[must_use]
    pub fn with_mode(mut self, family: Box<dyn ModeFamily>) -> Self {
        self.families.retain(|known| known.names().first() != family.names().first());
        self.families.push(family);
        self
    }

    /// Adds a mechanism for residuals and gradients, by its name in `privacy.mechanism`.
    #[must_use]
    pub fn with_mechanism(mut self, name: &str, make: MakeMechanism) -> Self {
        self.mechanisms.insert(name.to_owned(), make);
        self
    }

    /// Adds a decomposition, by its name in `mode.decomposition`.
    #[must_use]
    pub fn with_decomposer(mut self, name: &str, make: MakeDecomposer) -> Self {
        self.decomposers.insert(name.to_owned(), make);
        self
    }

    /// Adds a reader of data sets, by its name in `data.reader`. Data are private: what it says of them in an error reaches the
    /// host.
    #[must_use]
    pub fn with_data(mut self, name: &str, read: ReadData) -> Self {
        self.readers.insert(name.to_owned(), read);
        self
    }

    /// Adds an attack, which an audit tries on every mode with a worker.
    #[must_use]
    pub fn with_attack(mut self, attack: Box<dyn Attack>) -> Self {
        self.attacks.push(attack);
        self
    }

    /// Attacks from outside.
    pub fn attacks(&self) -> &[Box<dyn Attack>] {
        &self.attacks
    }

    /// The reader `name`, or the names that there are.
    ///
    /// # Errors
    /// There is none.
    pub fn data(&self, name: &str) -> Result<ReadData, Vec<String>> {
        self.readers.get(name).copied().ok_or_else(|| self.readers.keys().cloned().collect())
    }

    /// Names of entries, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.families.iter().flat_map(|family| family.names()).copied()
    }

    /// Sections of an experiment that belong to a mode.
    pub fn sections(&self) -> impl Iterator<Item = &'static str> {
        self.families.iter().filter_map(|family| family.section())
    }

    /// The family that knows the entry `name`.
    pub fn family(&self, name: &str) -> Option<&dyn ModeFamily> {
        self.families.iter().find(|family| family.names().contains(&name)).map(|family| &**family)
    }

    /// The specification of an entry.
    ///
    /// # Errors
    /// No such mode, or settings that make none.
    pub fn spec(&self, asked: &Asked<'_>) -> Result<Arc<dyn ModeSpec>, ModeError> {
        let unknown = || ModeError::Unknown { name: asked.name.to_owned(), known: self.names().collect() };
        self.family(asked.name).ok_or_else(unknown)?.spec(asked)
    }

    /// The specification that travelled as `mode`.
    ///
    /// # Errors
    /// No such mode, or settings that are not its own.
    pub fn decode(&self, mode: &ModeRef) -> Result<Arc<dyn ModeSpec>, ModeError> {
        let unknown = || ModeError::Unknown { name: mode.name.clone(), known: self.names().collect() };
        let family = self.family(&mode.name).ok_or_else(unknown)?;
        family.decode(&mode.settings).map_err(|error| ModeError::Malformed { mode: mode.name.clone(), error })
    }

    /// Names of mechanisms, in order.
    pub fn mechanisms(&self) -> impl Iterator<Item = &str> {
        self.mechanisms.keys().map(String::as_str)
    }

    /// The mechanism `name` with `sigma`, where it takes one.
    ///
    /// # Errors
    /// No such mechanism, or a σ that is none.
    pub fn mechanism(&self, name: &str, sigma: Option<f64>) -> Result<NumberMechanism, ModeError> {
        Ok(self.maker(name)?(sigma)?)
    }

    /// What makes mechanisms of that name.
    pub(super) fn maker(&self, name: &str) -> Result<MakeMechanism, ModeError> {
        let known = || self.mechanisms.keys().cloned().collect();
        let make = self.mechanisms.get(name).copied();
        make.ok_or_else(|| ModeError::Mechanism { name: name.to_owned(), known: known() })
    }

    /// The decomposition `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn decomposer(&self, name: &str) -> Result<Box<dyn Decomposer>, ModeError> {
        let own = self.decomposers.get(name).map(|make| make());
        own.or_else(|| by_name(name)).ok_or_else(|| ModeError::Decomposition(name.to_owned()))
    }
}
