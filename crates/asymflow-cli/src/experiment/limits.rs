//! The one table of what numbers of an experiment file may be. It is read before anything else is.

use std::ops::{Bound, RangeBounds};

use asymflow_zoo::data::MAX_SIDE;
use toml::{Table, Value};

use crate::error::CliError;

/// What the numbers of one key may be; in a list, each of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// The key with its section, e.g. `train.epochs`.
    pub key: &'static str,
    /// The range.
    pub range: (Bound<f64>, Bound<f64>),
    /// Whether they must be whole.
    pub is_whole: bool,
}

impl Limit {
    /// Whole numbers from `least` to `most`.
    pub const fn whole(key: &'static str, least: f64, most: f64) -> Self {
        Self { key, range: (Bound::Included(least), Bound::Included(most)), is_whole: true }
    }

    /// From `least` to `most`.
    pub const fn within(key: &'static str, least: f64, most: f64) -> Self {
        Self { key, range: (Bound::Included(least), Bound::Included(most)), is_whole: false }
    }

    /// Above `least`, up to `most`.
    pub const fn above(key: &'static str, least: f64, most: f64) -> Self {
        Self { key, range: (Bound::Excluded(least), Bound::Included(most)), is_whole: false }
    }

    /// From `least` to below `most`.
    pub const fn below(key: &'static str, least: f64, most: f64) -> Self {
        Self { key, range: (Bound::Included(least), Bound::Excluded(most)), is_whole: false }
    }

    /// Above `least` and below `most`.
    pub const fn between(key: &'static str, least: f64, most: f64) -> Self {
        Self { key, range: (Bound::Excluded(least), Bound::Excluded(most)), is_whole: false }
    }

    /// Refuses a number out of the range, under the name that the user gave it.
    pub(crate) fn check(&self, name: &str, number: f64) -> Result<(), CliError> {
        if self.range.contains(&number) && (!self.is_whole || number.fract() == 0.0) {
            return Ok(());
        }
        Err(CliError::usage(format!("{name} = {number} is out of range"), format!("it must be {}", self.words())))
    }

    /// The range in words.
    fn words(&self) -> String {
        let whole = if self.is_whole { "a whole number, " } else { "" };
        let from = match self.range.0 {
            Bound::Included(least) => format!("{whole}at least {least}"),
            Bound::Excluded(least) => format!("above {least}"),
            Bound::Unbounded => "any number".to_owned(),
        };
        match self.range.1 {
            Bound::Included(most) => format!("{from} and at most {most}"),
            Bound::Excluded(most) => format!("{from} and below {most}"),
            Bound::Unbounded => from,
        }
    }
}

/// More than fits into any memory, and few enough to be multiplied with one another.
const MANY: f64 = 1e6;
/// Numbers that the engine has as 32-bit floats.
const FLOAT: f64 = f32::MAX as f64;
const SECONDS_OF_A_YEAR: f64 = 3.2e7;

/// Of the sections that all kinds have.
pub const COMMON: &[Limit] = &[
    Limit::whole("schema", 1.0, 1.0),
    Limit::whole("data.train", 1.0, 1e9),
    Limit::whole("data.test", 1.0, 1e9),
    Limit::whole("data.resize.height", 1.0, MAX_SIDE as f64),
    Limit::whole("data.resize.width", 1.0, MAX_SIDE as f64),
    Limit::whole("data.resize.shorter", 1.0, MAX_SIDE as f64),
    Limit::whole("data.seed", 0.0, i64::MAX as f64),
    Limit::whole("model.classes", 1.0, MANY),
    Limit::whole("model.input.channels", 1.0, MANY),
    Limit::whole("model.input.height", 1.0, MANY),
    Limit::whole("model.input.width", 1.0, MANY),
    Limit::above("privacy.sigma", 0.0, 1e12),
    Limit::above("privacy.kappa", 0.0, 1e6),
    Limit::above("privacy.clip", 0.0, 1e12),
    Limit::between("privacy.delta", 0.0, 1.0),
    Limit::above("privacy.budget_epsilon", 0.0, 1e9),
    Limit::above("delta.epsilon", 0.0, f64::INFINITY),
    Limit::above("delta.clip", 0.0, 1e12),
    Limit::above("delta.label_epsilon", 0.0, 1e9),
    Limit::whole("delta.views", 1.0, 10_000.0),
    Limit::whole("delta.stage1_epochs", 0.0, MANY),
    Limit::whole("delta.rank", 1.0, MANY),
    Limit::whole("delta.block", 1.0, MANY),
    Limit::whole("delta.kept", 1.0, MANY),
    Limit::whole("delta.blocks", 1.0, 1000.0),
    Limit::within("delta.orthogonality", 0.0, FLOAT),
    Limit::whole("trusted.threads", 0.0, 4096.0),
    Limit::whole("worker.threads", 0.0, 4096.0),
    Limit::whole("worker.timeout_seconds", 1.0, SECONDS_OF_A_YEAR),
    Limit::whole("worker.patience_seconds", 0.0, SECONDS_OF_A_YEAR),
    Limit::whole("train.epochs", 1.0, MANY),
    Limit::whole("train.batch", 1.0, MANY),
    Limit::above("train.learning_rate", 0.0, FLOAT),
    Limit::below("train.momentum", 0.0, 1.0),
    Limit::within("train.weight_decay", 0.0, FLOAT),
    Limit::whole("train.seeds", 0.0, i64::MAX as f64),
    Limit::whole("train.evaluate_every", 1.0, MANY),
    Limit::above("train.clip_norm", 0.0, FLOAT),
    Limit::within("train.coefficient_rate", 0.0, 1000.0),
    Limit::above("train.first_layer_rate", 0.0, 1000.0),
    Limit::whole("train.easing.anneal_epochs", 0.0, MANY),
    Limit::above("train.easing.range_limit", 0.0, FLOAT),
    Limit::within("train.easing.range_weight", 0.0, FLOAT),
    Limit::above("train.teacher_temperature", 0.0, 1000.0),
    Limit::within("train.teacher_weight", 0.0, 1.0),
    Limit::whole("shares.images", 1.0, MANY),
    Limit::whole("shares.repeats", 1.0, MANY),
    Limit::whole("shares.threads", 0.0, 4096.0),
    Limit::within("shares.elsewhere.megabytes", 0.0, 1e12),
    Limit::within("shares.elsewhere.seconds", 0.0, 1e12),
    Limit::within("report.max_accuracy_gap", 0.0, 1.0),
    Limit::within("report.max_online_megabytes", 0.0, 1e12),
    Limit::within("report.max_total_megabytes", 0.0, 1e12),
    Limit::within("report.max_checked_megabytes", 0.0, 1e12),
    Limit::within("report.max_online_seconds", 0.0, 1e12),
];

/// Checks every number of `table`, as the user wrote it.
pub fn check(table: &Table, limits: &[&Limit]) -> Result<(), CliError> {
    table.iter().try_for_each(|(key, value)| check_value(key, value, limits))
}

fn check_value(key: &str, value: &Value, limits: &[&Limit]) -> Result<(), CliError> {
    let number = match value {
        Value::Table(table) => {
            return table.iter().try_for_each(|(name, value)| check_value(&format!("{key}.{name}"), value, limits));
        }
        Value::Array(values) => return values.iter().try_for_each(|value| check_value(key, value, limits)),
        Value::Integer(number) => *number as f64,
        Value::Float(number) => *number,
        Value::String(_) | Value::Boolean(_) | Value::Datetime(_) => return Ok(()),
    };
    match limits.iter().find(|limit| limit.key == key) {
        Some(limit) => limit.check(key, number),
        None if !number.is_finite() => {
            Err(CliError::usage(format!("{key} = {value} is out of range"), "it must be a finite number"))
        }
        None => Ok(()),
    }
}
