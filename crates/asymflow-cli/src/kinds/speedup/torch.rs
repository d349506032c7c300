//! PyTorch beside us: the same networks on the same threads.

use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

const SCRIPT: &str = include_str!("networks_torch.py");

/// What PyTorch took, or why it was not asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Torch {
    /// Seconds of each repetition, sorted; the better of two memory formats.
    Seconds {
        /// Of an inference.
        inference: Vec<f64>,
        /// Of a training step.
        training: Vec<f64>,
    },
    /// Why there is no time.
    Skipped(String),
}

impl Torch {
    /// Times `network` with the Python that `ASYMFLOW_PYTHON` names.
    pub fn time(network: &str, batch: usize, threads: usize, repeats: usize) -> Self {
        let Ok(python) = std::env::var("ASYMFLOW_PYTHON") else {
            return Self::Skipped("ASYMFLOW_PYTHON names no Python with torch and torchvision".to_owned());
        };
        let numbers = [batch, threads, repeats].map(|number| number.to_string());
        let mut command = Command::new(&python);
        command.args(["-c", SCRIPT, network]).args(numbers).stdin(Stdio::null()).stderr(Stdio::piped());
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => return Self::Skipped(format!("{python}: {error}")),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let mut lines = text.lines().map(|line| line.split(' ').filter_map(|t| t.parse().ok()).collect::<Vec<f64>>());
        match (output.status.success(), lines.next(), lines.next()) {
            (true, Some(inference), Some(training)) => Self::Seconds { inference, training },
            _ => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last = said.lines().last().unwrap_or("it said nothing");
                Self::Skipped(format!("PyTorch did not run: {}", crate::text::escaped(last)))
            }
        }
    }
}
