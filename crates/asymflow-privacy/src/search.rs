//! Search of a minimum.

/// The least value of `f` found by golden section on [`low`, `high`]; every value is a valid answer to callers. Where `f`
/// is infinite on both sides, the search goes left.
pub(crate) fn golden_minimum(mut low: f64, mut high: f64, steps: usize, f: impl Fn(f64) -> f64) -> f64 {
    let golden = 0.5 * (5.0_f64.sqrt() - 1.0);
    let (mut left, mut right) = (high - golden * (high - low), low + golden * (high - low));
    let (mut at_left, mut at_right) = (f(left), f(right));
    let mut best = at_left.min(at_right);
    for _ in 0..steps {
        if at_left <= at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - golden * (high - low);
            at_left = f(left);
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + golden * (high - low);
            at_right = f(right);
        }
        best = best.min(at_left).min(at_right);
    }
    best
}
