//! What a step learns of a teacher beside its labels.

/// A teacher's logits for one batch.
#[derive(Clone, Copy, Debug)]
pub struct Lesson<'a> {
    /// Samples × classes.
    pub logits: &'a [f32],
    /// T.
    pub temperature: f32,
    /// Share of the teacher's loss.
    pub weight: f32,
}

impl Lesson<'_> {
    /// Blends the teacher's loss and gradient into those of the labels, each the mean over samples. `logits` are the student's,
    /// samples × classes.
    pub fn blend(&self, classes: usize, logits: &[f32], loss: &mut f64, d_logits: &mut [f32]) {
        let samples = (logits.len() / classes).max(1) as f64;
        let (t, weight) = (f64::from(self.temperature), f64::from(self.weight));
        let mut taught = 0.0;
        let rows = logits.chunks_exact(classes).zip(self.logits.chunks_exact(classes));
        for ((student, teacher), gradient) in rows.zip(d_logits.chunks_exact_mut(classes)) {
            let (p, q) = (log_softmax(teacher, t), log_softmax(student, t));
            for ((p, q), gradient) in p.iter().zip(&q).zip(gradient) {
                taught += t * t * p.exp() * (p - q) / samples;
                let own = f64::from(*gradient) * (1.0 - weight);
                *gradient = (own + weight * t * (q.exp() - p.exp()) / samples) as f32;
            }
        }
        *loss = *loss * (1.0 - weight) + weight * taught;
    }
}

/// log softmax(x / t).
fn log_softmax(x: &[f32], t: f64) -> Vec<f64> {
    let scaled: Vec<f64> = x.iter().map(|&x| f64::from(x) / t).collect();
    let largest = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = scaled.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() + largest;
    scaled.into_iter().map(|x| x - log_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cross_entropy(logits: &[f64], label: usize) -> f64 {
        logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[label]
    }

    /// T²·KL(p ‖ q) as written.
    fn taught(student: &[f64], teacher: &[f64], t: f64) -> f64 {
        let softmax = |x: &[f64]| {
            let sum: f64 = x.iter().map(|x| (x / t).exp()).sum();
            x.iter().map(|x| (x / t).exp() / sum).collect::<Vec<f64>>()
        };
        let (p, q) = (softmax(teacher), softmax(student));
        t * t * p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>()
    }

    #[test]
    fn the_gradient_of_a_lesson_is_that_of_its_loss() {
        let (student, teacher, labels) =
            ([0.3_f64, -1.2, 0.8, 2.0, 0.1, -0.4], [1.0, 0.5, -2.0, 0.0, 3.0, 0.2], [2, 0]);
        let (t, weight) = (4.0, 0.7);
        let total = |x: &[f64]| {
            let row = |i: usize| {
                let own = cross_entropy(&x[3 * i..3 * i + 3], labels[i]);
                let other = taught(&x[3 * i..3 * i + 3], &teacher[3 * i..3 * i + 3], t);
                ((1.0 - weight) * own + weight * other) / 2.0
            };
            row(0) + row(1)
        };
        let logits: Vec<f32> = student.iter().map(|&x| x as f32).collect();
        let said: Vec<f32> = teacher.iter().map(|&x| x as f32).collect();
        let mut gradient = vec![0.0; 6];
        let (mut loss, _) = asymflow_engine::loss::softmax_cross_entropy(&logits, 3, &[2, 0], &mut gradient).unwrap();
        let lesson = Lesson { logits: &said, temperature: t as f32, weight: weight as f32 };
        lesson.blend(3, &logits, &mut loss, &mut gradient);
        assert!((loss - total(&student)).abs() < 1e-6, "{loss} {}", total(&student));
        for i in 0..6 {
            let moved = |by: f64| {
                let mut x = student;
                x[i] += by;
                total(&x)
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((f64::from(gradient[i]) - expected).abs() < 1e-6, "{i}: {} {expected}", gradient[i]);
        }
    }
}
