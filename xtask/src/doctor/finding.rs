//! What the report of `doctor` consists of.

use serde::Serialize;

/// How good one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// Absent; only what needs it is affected.
    Missing,
    /// Absent, and nothing works without it.
    Required,
}

/// One line of the report.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub what: &'static str,
    pub status: Status,
    pub detail: String,
    /// What to do about it, when something is to be done.
    pub fix: Option<String>,
}

impl Finding {
    /// Something that is there.
    pub fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, status: Status::Ok, detail: detail.into(), fix: None }
    }

    /// Something that only part of the software needs.
    pub fn missing(what: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what, status: Status::Missing, detail: detail.into(), fix: Some(fix.into()) }
    }

    /// Something that everything needs.
    pub fn required(what: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Required, ..Self::missing(what, detail, fix) }
    }
}
