//! Backends by name.

use std::fmt;
use std::sync::Arc;

use asymflow_native::NativeBackend;
use asymflow_residual::{ResidualBackend, modelled::ModelledBackend};
use thiserror::Error;

type Make = Box<dyn Fn(&str) -> Result<Arc<dyn ResidualBackend>, String> + Send + Sync>;

/// The backends that `--device` can name.
pub struct Backends(Vec<(String, Make)>);

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backends").field(&self.names()).finish()
    }
}

/// A device that no backend computes on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnknownDevice {
    /// No backend has this name.
    #[error("unknown device {device:?}, expected one of {known}")]
    Name {
        /// The text.
        device: String,
        /// The names, after commas.
        known: String,
    },
    /// A backend does not know which device is meant.
    #[error("device {device:?}: {reason}")]
    Device {
        /// The text.
        device: String,
        /// Why.
        reason: String,
    },
}

/// A device of burn.
#[cfg(feature = "burn")]
fn of_burn(device: &str) -> Result<Arc<dyn ResidualBackend>, String> {
    let choice = device.parse::<asymflow_residual::burn_backend::DeviceChoice>().map_err(|error| error.to_string())?;
    Ok(Arc::new(asymflow_residual::burn_backend::BurnBackend::new(choice)))
}

#[cfg(not(feature = "burn"))]
fn of_burn(_: &str) -> Result<Arc<dyn ResidualBackend>, String> {
    Err("the worker is built without burn; `--worker-features burn`, or wgpu, vulkan, cuda, remote, builds it in"
        .to_owned())
}

impl Backends {
    /// Those of this workspace: `native`, which a program that is told none takes; two for measurements of time, of which `null` answers zeros
    /// at once and `model:TFLOPS:GB/s:µs` when such a card would have answered; and `flex` and its kin where burn is built in (feature `burn`).
    pub fn standard() -> Self {
        let one = |which: &str, what: &str| {
            if which.is_empty() { Ok(()) } else { Err(format!("there is one {what} device")) }
        };
        let backends = Self(Vec::new())
            .with("native", move |which| one(which, "native").map(|()| Arc::new(NativeBackend::default()) as Arc<_>))
            .with("null", move |which| one(which, "null").map(|()| Arc::new(ModelledBackend::NULL) as Arc<_>))
            .with("model", |card| match card.parse::<ModelledBackend>() {
                Ok(card) => Ok(Arc::new(card)),
                Err(error) => Err(error.to_string()),
            });
        ["flex", "wgpu", "vulkan", "cuda", "remote"].into_iter().fold(backends, |backends, kind| {
            backends.with(kind, move |which| {
                let device = if which.is_empty() { kind.to_owned() } else { format!("{kind}:{which}") };
                of_burn(&device)
            })
        })
    }

    /// One more backend. `make` is given what stands behind the name and a colon, or nothing, and says in words why there is no
    /// such device; whether it is there, the backend says when it is probed. A name that is known already gets another meaning.
    #[must_use]
    pub fn with(
        mut self,
        name: &str,
        make: impl Fn(&str) -> Result<Arc<dyn ResidualBackend>, String> + Send + Sync + 'static,
    ) -> Self {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), Box::new(make)));
        self
    }

    /// The names that are known.
    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// The device of a program that is told none.
    pub(crate) fn first(&self) -> &str {
        self.0.first().map_or("", |(name, _)| name)
    }

    /// The backend of a device: a name, and what tells it from others of its kind behind a colon.
    ///
    /// # Errors
    /// No backend has the name, or it knows no such device.
    pub fn make(&self, device: &str) -> Result<Arc<dyn ResidualBackend>, UnknownDevice> {
        let (name, which) = device.split_once(':').unwrap_or((device, ""));
        let device = device.to_owned();
        match self.0.iter().find(|(known, _)| known == name) {
            Some((_, make)) => make(which).map_err(|reason| UnknownDevice::Device { device, reason }),
            None => Err(UnknownDevice::Name { device, known: self.names().join(", ") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_name() {
        let own = |which: &str| match which {
            "" => Ok(Arc::new(NativeBackend { threads: 1 }) as Arc<dyn ResidualBackend>),
            other => Err(format!("no {other}")),
        };
        let backends = Backends::standard().with("own", own);
        for device in ["native", "own"] {
            assert_eq!(backends.make(device).unwrap().name(), "native");
        }
        assert_eq!(backends.first(), "native");
        let told = |device: &str| backends.make(device).unwrap_err().to_string();
        assert_eq!(told("own:2"), "device \"own:2\": no 2");
        assert_eq!(told("native:0"), "device \"native:0\": there is one native device");
        assert_eq!(backends.make("model:11.2:12:20").unwrap().name(), "model");
        assert!(backends.make("null").unwrap().is_modelled());
        assert!(told("model:fast").starts_with("device \"model:fast\": \"fast\" is no card"), "{}", told("model:fast"));
        assert!(told("abacus").starts_with("unknown device \"abacus\", expected one of "), "{}", told("abacus"));
        #[cfg(feature = "burn")]
        {
            assert_eq!(backends.make("flex").unwrap().name(), "flex");
            assert_eq!(backends.make("cuda:1").unwrap().name(), "cuda");
            assert!(told("cuda:x").starts_with("device \"cuda:x\": unknown device"), "{}", told("cuda:x"));
        }
        #[cfg(not(feature = "burn"))]
        assert!(
            told("cuda:1").starts_with("device \"cuda:1\": the worker is built without burn"),
            "{}",
            told("cuda:1")
        );
    }
}
