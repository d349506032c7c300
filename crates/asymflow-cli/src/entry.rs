//! What an experiment runs: a mode with its own ε where it has one, written as one word.

use std::fmt;
use std::str::FromStr;

use asymflow::delta::Feed;
use asymflow::job::ModeKind;
use asymflow_zoo::Replacement;
use serde::{Deserialize, Serialize};

/// An entry of `mode.run`: `clear`, `trusted-only`, `asymml`, `delta`, `delta@9`, `delta@inf`, `main-only`,
/// `residual-null@9`, `naive-dp@9`, `shares`; each with `+ACTIVATION`, twice at most, where the network is to have another
/// activation or pooling than its own: `shares+average-pool+shared-relu:1x2x2`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Entry {
    /// The mode.
    pub kind: ModeKind,
    /// What Delta's large network is fed with.
    pub feed: Feed,
    /// ε behind the `@`; infinite for `inf`. Without one the experiment's own holds.
    pub epsilon: Option<f64>,
    /// What is replaced in the network, in order.
    pub replaced: [Option<Replacement>; 2],
}

/// Every name, and what it stands for.
const NAMES: [(&str, ModeKind, Feed); 8] = [
    ("clear", ModeKind::Clear, Feed::Residual),
    ("trusted-only", ModeKind::TrustedOnly, Feed::Residual),
    ("asymml", ModeKind::Asymml, Feed::Residual),
    ("delta", ModeKind::Delta, Feed::Residual),
    ("residual-null", ModeKind::Delta, Feed::Null),
    ("shares", ModeKind::Shares, Feed::Residual),
    ("main-only", ModeKind::Delta, Feed::Nothing),
    ("naive-dp", ModeKind::NaiveDp, Feed::Residual),
];

impl Entry {
    /// Names without an ε.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _, _)| *name)
    }

    /// An entry of `kind` as it is by itself.
    pub const fn of(kind: ModeKind) -> Self {
        Self { kind, feed: Feed::Residual, epsilon: None, replaced: [None; 2] }
    }

    /// Whether a worker takes part.
    pub fn needs_worker(&self) -> bool {
        self.kind.needs_worker() && self.feed != Feed::Nothing
    }

    /// `model` with what the entry replaces, as in `model.names`.
    pub fn model(&self, model: &str) -> String {
        self.replaced.iter().flatten().fold(model.to_owned(), |name, replaced| format!("{name}+{replaced}"))
    }

    fn takes_epsilon(&self) -> bool {
        matches!(self.kind, ModeKind::Delta | ModeKind::NaiveDp) && self.feed != Feed::Nothing
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = NAMES.iter().find(|(_, kind, feed)| (*kind, *feed) == (self.kind, self.feed));
        f.write_str(named.map_or("", |(name, _, _)| name))?;
        if let Some(epsilon) = self.epsilon {
            write!(f, "@{epsilon}")?;
        }
        self.replaced.iter().flatten().try_for_each(|replaced| write!(f, "+{replaced}"))
    }
}

impl From<Entry> for String {
    fn from(entry: Entry) -> Self {
        entry.to_string()
    }
}

impl TryFrom<String> for Entry {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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
        let Some((_, kind, feed)) = NAMES.iter().find(|(known, _, _)| *known == name) else {
            let nearest = Self::names().min_by_key(|known| strsim::damerau_levenshtein(name, known)).unwrap_or("clear");
            return Err(format!("unknown mode {name:?}; did you mean {nearest:?}?"));
        };
        let mut entry = Self { kind: *kind, feed: *feed, epsilon: None, replaced };
        if let Some(epsilon) = epsilon {
            let value: f64 = epsilon.parse().map_err(|_| format!("{text:?}: {epsilon:?} is no number"))?;
            if value.is_nan() || value <= 0.0 {
                return Err(format!("{text:?}: epsilon must be positive, or inf for no noise"));
            }
            if !entry.takes_epsilon() {
                return Err(format!("{text:?}: mode {name} takes no epsilon"));
            }
            if value.is_infinite() && entry.kind == ModeKind::NaiveDp {
                return Err(format!("{text:?}: naive-dp without noise is clear"));
            }
            entry.epsilon = Some(value);
        }
        Ok(entry)
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
            assert_eq!(text.parse::<Entry>().unwrap().to_string(), text);
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
            ("naive-dp@inf", "is clear"),
            ("shares+swish", "unknown activation"),
            ("shares+react+react+react", "two replacements at most"),
        ] {
            let error = text.parse::<Entry>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
