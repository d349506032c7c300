//! What a setting is found to cost.

use serde::{Deserialize, Serialize};

use crate::shares_section::{ComparisonName, Setting};

/// What one setting measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SharesRun {
    pub setting: Setting,
    pub comparison: ComparisonName,
    /// Where the link chose the method: milliseconds there and back, and megabytes a second.
    #[serde(default)]
    pub measured_link: Option<[f64; 2]>,
    /// To both servers together, in a query.
    pub dealt_megabytes: f64,
    /// Dealt, and sent by both servers, in a query.
    pub total_megabytes: f64,
    /// Sign decisions of a query.
    pub decisions: u64,
    /// Exchanges of a query.
    pub rounds: u64,
    /// Threads of each server.
    pub threads: usize,
    /// Load average of the machine over the minute before, this program's own included; null where it is not told.
    pub load_average: Option<f64>,
    /// Bytes that each server wrote to its socket in a query, frames and headers included.
    pub online_bytes: [u64; 2],
    /// Bytes of each server's deal, beyond its seed.
    pub dealt_bytes: [u64; 2],
    /// Bytes that each server wrote once a model.
    pub setup_bytes: [u64; 2],
    pub setup_seconds: f64,
    /// Seconds in which the dealer dealt, of each query.
    pub deal_seconds: Vec<f64>,
    /// Seconds in which both servers prepared what needs no input, of each query.
    pub prepare_seconds: Vec<f64>,
    /// Seconds from the input's shares to the logits' shares, of each query.
    pub online_seconds: Vec<f64>,
    pub images: usize,
    /// Largest distance of a logit from the one in double precision.
    pub largest_error: f64,
    /// Largest logit in double precision, in magnitude.
    pub largest_logit: f64,
    /// Images that got another class than in double precision.
    pub changed: usize,
    /// Images classified correctly on shares, and in double precision.
    #[serde(default)]
    pub correct: [usize; 2],
}
