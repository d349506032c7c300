//! Networks that a program registers by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use asymflow_zoo::{Network, network::Shape};

/// Builds a network for a number of classes and, where it is set, the shape of the images.
pub type Build = dyn Fn(usize, Option<Shape>) -> Result<Network, String> + Send + Sync;

/// Builders by name.
#[derive(Clone, Default)]
pub struct Networks(BTreeMap<String, Arc<Build>>);

impl Networks {
    pub fn insert(&mut self, name: &str, build: Arc<Build>) {
        self.0.insert(name.to_owned(), build);
    }

    pub fn get(&self, name: &str) -> Option<&Build> {
        self.0.get(name).map(|build| &**build)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}
