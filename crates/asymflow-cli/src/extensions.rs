//! What a program of somebody else's adds to the command.

use std::fmt;
use std::sync::Arc;

use asymflow::modes::Registry;
use asymflow_zoo::{Network, network::Shape};

use crate::error::CliError;
use crate::experiment::{KindFacts, Networks, Registered};
use crate::kind::{AnyKind, ExperimentKind};
use crate::kinds;

/// What there is by name: at first what the command has by itself, and then whatever a program adds.
///
/// ```
/// use asymflow_cli::Extensions;
/// use asymflow_zoo::{Network, network::{Layer, Shape}, ops::Linear};
///
/// let linear = |classes: usize, input: Option<Shape>| {
///     let input = input.unwrap_or(Shape::new(3, 32, 32));
///     let fc = Linear { name: "fc".to_owned(), in_features: input.len(), out_features: classes };
///     Ok(Network { name: "linear".to_owned(), input, classes, layers: vec![Layer::Flatten, Layer::Linear(fc)] })
/// };
/// let extensions = Extensions::default().network("linear", linear);
/// // In `main`: asymflow_cli::main_with(extensions)
/// # let _ = extensions;
/// ```
#[derive(Clone)]
pub struct Extensions {
    kinds: Vec<Arc<dyn AnyKind>>,
    networks: Networks,
    registry: Arc<Registry>,
}

impl Default for Extensions {
    fn default() -> Self {
        Self { kinds: kinds::all(), networks: Networks::default(), registry: Arc::default() }
    }
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.kinds.iter().map(|kind| kind.name()).collect();
        f.debug_struct("Extensions").field("kinds", &kinds).field("networks", &self.networks).finish()
    }
}

impl Extensions {
    /// Adds a kind of experiments. It takes the place of one of the same name.
    #[must_use]
    pub fn kind(mut self, kind: impl ExperimentKind) -> Self {
        let kind: Arc<dyn AnyKind> = Arc::new(kind);
        self.kinds.retain(|known| known.name() != kind.name());
        self.kinds.push(kind);
        self
    }

    /// Adds a network that `model.names` may name. It is built for a number of classes and, where `model.input` sets it, a shape of
    /// the images. It takes the place of one of the same name.
    #[must_use]
    pub fn network(
        mut self,
        name: &str,
        build: impl Fn(usize, Option<Shape>) -> Result<Network, String> + Send + Sync + 'static,
    ) -> Self {
        self.networks.insert(name, Arc::new(build));
        self
    }

    /// Takes modes, mechanisms and decompositions from `registry`. The enclave program has to know them as well
    /// (`asymflow_enclaved::main_with`).
    #[must_use]
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = Arc::new(registry);
        self
    }

    /// Names of entries of `mode.run`.
    pub(crate) fn mode_names(&self) -> impl Iterator<Item = &'static str> {
        self.registry.names()
    }

    /// Lends what reading an experiment needs to know.
    pub(crate) fn with_registered<T>(&self, read: impl FnOnce(Registered<'_>) -> T) -> T {
        let kinds: Vec<&dyn KindFacts> = self.kinds.iter().map(|kind| &**kind as &dyn KindFacts).collect();
        read(Registered { kinds: &kinds, networks: &self.networks, registry: &self.registry })
    }

    /// The kind called `name`.
    pub(crate) fn kind_named(&self, name: &str) -> Result<&dyn AnyKind, CliError> {
        let found = self.kinds.iter().find(|kind| kind.name() == name).map(|kind| &**kind);
        found.ok_or_else(|| CliError::usage(format!("unknown kind of experiment {name:?}"), ""))
    }

    /// Names of networks that `model.names` may name.
    pub(crate) fn network_names<'a>(&'a self) -> impl Iterator<Item = &'a str> {
        asymflow_zoo::models::names().map(|name| -> &'a str { name }).chain(self.networks.names())
    }
}
