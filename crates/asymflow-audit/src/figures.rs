//! Figures with intervals, and the rows that an audit is made of.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Beta, ContinuousCDF, StudentsT};

/// A figure and its interval of 95 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The figure.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// A figure without spread.
    pub const fn exact(value: f64) -> Self {
        Self { value, low: value, high: value }
    }

    /// The share of `successes` in `trials`, with the interval of Clopper and Pearson (1934).
    ///
    /// ```
    /// use asymflow_audit::figures::Interval;
    ///
    /// let Interval { value, low, high } = Interval::share(0, 1000);
    /// assert_eq!((value, low), (0.0, 0.0));
    /// assert!((high - 0.003682).abs() < 1e-6);
    /// ```
    pub fn share(successes: usize, trials: usize) -> Self {
        let (low, high) = clopper_pearson(successes, trials, 0.025);
        Self { value: successes as f64 / trials.max(1) as f64, low, high }
    }

    /// The mean of `values`, with Student's interval; as wide as can be for fewer than two.
    pub fn mean(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let value = values.iter().sum::<f64>() / n.max(1.0);
        let variance = values.iter().map(|v| (v - value).powi(2)).sum::<f64>() / (n - 1.0);
        let half =
            StudentsT::new(0.0, 1.0, n - 1.0).map_or(f64::INFINITY, |t| t.inverse_cdf(0.975) * (variance / n).sqrt());
        Self { value, low: value - half, high: value + half }
    }
}

/// Ends of the interval that leaves out `tail` on either side.
pub(crate) fn clopper_pearson(successes: usize, trials: usize, tail: f64) -> (f64, f64) {
    let (k, n) = (successes as f64, trials as f64);
    let quantile = |a: f64, b: f64, p: f64| Beta::new(a, b).map(|beta| beta.inverse_cdf(p)).ok();
    let low = if successes == 0 { Some(0.0) } else { quantile(k, n - k + 1.0, tail) };
    let high = if successes >= trials { Some(1.0) } else { quantile(k + 1.0, n - k, 1.0 - tail) };
    (low.unwrap_or(0.0), high.unwrap_or(1.0))
}

/// What a figure is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// The attack itself.
    Attack,
    /// What is had without the attack.
    Baseline,
    /// The attack where it must win.
    MustWin,
    /// The attack where it must not.
    MustNot,
    /// The attack on a fault that was planted and must be noticed.
    Planted,
}

/// One figure of one attack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttackRow {
    /// The attack, and on what.
    pub attack: String,
    /// The mode and its setting.
    pub mode: String,
    /// What was measured.
    pub figure: String,
    /// The figure.
    pub value: f64,
    /// Lower end of its interval of 95 %.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// What it is there for.
    pub control: Control,
}

impl AttackRow {
    /// What is had of the same figure without an attack: the best baseline of the mode; of an area under a curve, one half.
    pub fn without(&self, all: &[Self]) -> f64 {
        let is_baseline =
            |row: &&Self| row.control == Control::Baseline && (&row.mode, &row.figure) == (&self.mode, &self.figure);
        let least = if self.figure == "AUC" { 0.5 } else { f64::NEG_INFINITY };
        all.iter().filter(is_baseline).map(|row| row.value).fold(least, f64::max)
    }

    /// Whether a control came out as it must: one that must win does so with its whole interval, and one that must not does not
    /// with its whole interval. `None` for what is no control.
    pub fn holds(&self, all: &[Self]) -> Option<bool> {
        match self.control {
            Control::Attack | Control::Baseline => None,
            Control::MustWin => Some(self.low > self.without(all)),
            Control::MustNot => Some(self.low <= self.without(all)),
            Control::Planted => Some(self.value > 0.0),
        }
    }
}

/// How well scores tell members from others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roc {
    /// Area under the curve, with the interval of DeLong (1988).
    pub auc: Interval,
    /// True positives where at most 1 % of the others are taken for members.
    pub tpr_at_1_percent: Interval,
    /// True positives where at most 0.1 % of them are.
    pub tpr_at_01_percent: Interval,
}

impl Roc {
    /// Of scores that are higher for members.
    pub fn of(members: &[f64], others: &[f64]) -> Self {
        let mut sorted = others.to_vec();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        let at = |share: f64| {
            let allowed = (share * others.len() as f64) as usize;
            let threshold = sorted.get(allowed).copied().unwrap_or(f64::NEG_INFINITY);
            Interval::share(members.iter().filter(|&&score| score > threshold).count(), members.len())
        };
        Self { auc: auc(members, others), tpr_at_1_percent: at(0.01), tpr_at_01_percent: at(0.001) }
    }
}

fn auc(members: &[f64], others: &[f64]) -> Interval {
    let wins = |a: f64, b: f64| if a > b { 1.0 } else { f64::from(u8::from(a == b)) / 2.0 };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let of_members: Vec<f64> =
        members.iter().map(|&m| others.iter().map(|&o| wins(m, o)).sum::<f64>() / others.len().max(1) as f64).collect();
    let of_others: Vec<f64> = others
        .iter()
        .map(|&o| members.iter().map(|&m| wins(m, o)).sum::<f64>() / members.len().max(1) as f64)
        .collect();
    let value = mean(&of_members);
    let spread = |values: &[f64]| {
        let n = values.len() as f64;
        values.iter().map(|v| (v - value).powi(2)).sum::<f64>() / ((n - 1.0) * n).max(1.0)
    };
    let half = 1.96 * (spread(&of_members) + spread(&of_others)).sqrt();
    Interval { value, low: (value - half).max(0.0), high: (value + half).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scipy 1.17: `binomtest(k, n).proportion_ci(0.95, "exact")`.
    #[test]
    fn shares_have_the_interval_of_clopper_and_pearson() {
        let known = [(0, 10, 0.0, 0.3084971), (3, 10, 0.0667395, 0.6524529), (10, 10, 0.6915029, 1.0)];
        for (k, n, low, high) in known {
            let found = Interval::share(k, n);
            assert!((found.low - low).abs() < 1e-6 && (found.high - high).abs() < 1e-6, "{k} of {n}: {found:?}");
        }
    }

    /// scipy 1.17: `t.interval(0.95, 3, loc=2.5, scale=sem([1, 2, 3, 4]))`.
    #[test]
    fn means_have_the_interval_of_student() {
        let found = Interval::mean(&[1.0, 2.0, 3.0, 4.0]);
        assert!((found.low - 0.445739743).abs() < 1e-6 && (found.high - 4.554260257).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn a_control_is_held_to_the_best_baseline_of_its_mode() {
        let row = |mode: &str, figure: &str, value: f64, control| {
            let (attack, mode, figure) = ("a".to_owned(), mode.to_owned(), figure.to_owned());
            AttackRow { attack, mode, figure, value, low: value - 0.1, high: value + 0.1, control }
        };
        let all = [
            row("m", "SSIM", 0.3, Control::Baseline),
            row("m", "SSIM", 0.2, Control::Baseline),
            row("n", "SSIM", 0.9, Control::Baseline),
            row("m", "PSNR", 9.0, Control::Baseline),
        ];
        let holds = |figure, value, control| row("m", figure, value, control).holds(&all);
        assert_eq!([0.35, 0.45].map(|v| holds("SSIM", v, Control::MustWin)), [Some(false), Some(true)]);
        assert_eq!([0.35, 0.45].map(|v| holds("SSIM", v, Control::MustNot)), [Some(true), Some(false)]);
        assert_eq!([0.55, 0.65].map(|v| holds("AUC", v, Control::MustNot)), [Some(true), Some(false)]);
        assert_eq!([0.0, 0.1].map(|v| holds("lies found out", v, Control::Planted)), [Some(false), Some(true)]);
        assert_eq!(holds("SSIM", 0.9, Control::Attack), None);
    }

    #[test]
    fn a_perfect_score_has_all_and_a_constant_one_half() {
        let scores: Vec<f64> = (0..200).map(f64::from).collect();
        let roc = Roc::of(&scores[100..], &scores[..100]);
        assert_eq!((roc.auc.value, roc.tpr_at_01_percent.value), (1.0, 1.0));
        let roc = Roc::of(&[0.0; 50], &[0.0; 50]);
        assert_eq!((roc.auc.value, roc.tpr_at_1_percent.value), (0.5, 0.0));
    }
}
