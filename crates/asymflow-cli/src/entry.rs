//! What an experiment runs: a mode with its own ε where it has one, written as one word.

use std::fmt;

use asymflow::modes::Registry;
use asymflow_zoo::models::replace::Replacement;

/// The largest ε that is a number.
const MOST_EPSILON: f64 = 1e9;

/// An entry of `mode.run`: the name of a mode; where the mode takes one, `@` and an ε of its own, `inf` for none; and `+ACTIVATION`,
/// twice at most, where the network is to have another activation or pooling than its own:
/// `shares+average-pool+shared-relu:1x2x2`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// Name of the mode.
    pub name: &'static str,
    /// ε behind the `@`; infinite for `inf`. Without one the experiment's own holds.
    pub epsilon: Option<f64>,
    /// What is replaced in the network, in order.
    pub replaced: [Option<Replacement>; 2],
}

impl Entry {
    /// The mode called `name` as it is by itself.
    pub const fn of(name: &'static str) -> Self {
        Self { name, epsilon: None, replaced: [None; 2] }
    }

    /// `model` with what the entry replaces, as in `model.names`.
    pub fn model(&self, model: &str) -> String {
        self.replaced.iter().flatten().fold(model.to_owned(), |name, replaced| format!("{name}+{replaced}"))
    }

    /// Reads an entry that names a mode of `registry`.
    ///
    /// # Errors
    /// An unknown mode, an ε that it does not take, or more replacements than there is room for.
    pub fn parse(text: &str, registry: &Registry) -> Result<Self, String> {
        let mut parts = text.split('+');
        let mode = parts.next().unwrap_or_default();
        let mut replaced = [None; 2];
        for (place, part) in parts.enumerate() {
            let place = replaced.get_mut(place).ok_or_else(|| format!("{text:?}: two replacements at most"))?;
            *place = Some(part.parse::<Replacement>().map_err(|e| e.to_string())?);
        }
        let (name, epsilon) = match mode.split_once('@') {
            Some((name, epsilon)) => (name, Some(epsilon)),
            None => (mode, None),
        };
        let Some(known) = registry.names().find(|known| *known == name) else {
            let nearest = registry.names().min_by_key(|known| strsim::damerau_levenshtein(name, known));
            return Err(format!("unknown mode {name:?}; did you mean {:?}?", nearest.unwrap_or_default()));
        };
        let mut entry = Self { replaced, ..Self::of(known) };
        if let Some(epsilon) = epsilon {
            let value: f64 = epsilon.parse().map_err(|_| format!("{text:?}: {epsilon:?} is no number"))?;
            if value.is_nan() || value <= 0.0 {
                return Err(format!("{text:?}: epsilon must be positive, or inf for no noise"));
            }
            // What is too large for a number reads as infinite too.
            if value > MOST_EPSILON && !epsilon.eq_ignore_ascii_case("inf") {
                return Err(format!("{text:?}: epsilon is at most {MOST_EPSILON:e}, or inf for no noise"));
            }
            match registry.family(known).and_then(|family| family.takes_epsilon(known)) {
                None => return Err(format!("{text:?}: mode {name} takes no epsilon")),
                Some(false) if value.is_infinite() => return Err(format!("{text:?}: {name} needs a finite epsilon")),
                Some(_) => entry.epsilon = Some(value),
            }
        }
        Ok(entry)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(epsilon) = self.epsilon {
            write!(f, "@{epsilon}")?;
        }
        self.replaced.iter().flatten().try_for_each(|replaced| write!(f, "+{replaced}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_written_as_they_are_read() {
        for text in
            ["clear", "trusted-only", "asymml", "delta", "delta@1.4", "delta@inf", "residual-null@9", "main-only"]
                .into_iter()
                .chain(["shares+react", "delta@9+hermite", "shares+average-pool+shared-relu:1x2x2"])
        {
            assert_eq!(Entry::parse(text, &Registry::default()).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, part) in [
            ("delte", "did you mean \"delta\"?"),
            ("clear@3", "takes no epsilon"),
            ("main-only@3", "takes no epsilon"),
            ("delta@-1", "must be positive"),
            ("delta@nan", "must be positive"),
            ("delta@x", "is no number"),
            ("delta@1e400", "epsilon is at most 1e9"),
            ("naive-dp@1e10", "epsilon is at most 1e9"),
            ("shares+shared-relu:18446744073709551615x2x2", "18446744073709551615x2x2"),
            ("shares+shared-relu:1x0x2", "1x0x2"),
            ("naive-dp@inf", "needs a finite epsilon"),
            ("shares+swish", "unknown activation"),
            ("shares+react+react+react", "two replacements at most"),
        ] {
            let error = Entry::parse(text, &Registry::default()).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
