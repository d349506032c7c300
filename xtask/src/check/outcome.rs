//! What a check says.

/// How one check ended.
#[derive(Debug)]
pub enum Outcome {
    /// It holds; the text says what was looked at.
    Pass(String),
    /// It does not hold, for these reasons.
    Fail(Vec<String>),
    /// It could not be made, and why.
    Skip(String),
}

impl Outcome {
    /// Passes when there is no `problem`.
    pub fn of_problems(problems: Vec<String>, looked_at: String) -> Self {
        if problems.is_empty() { Self::Pass(looked_at) } else { Self::Fail(problems) }
    }
}
