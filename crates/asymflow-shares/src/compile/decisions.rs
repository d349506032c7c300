//! How the decisions of a compiled model are made: by keys or tables, and on how many bits.

use super::options::Selection;
use crate::link::Profile;
use crate::model::FixedModel;
use crate::plaintext::PlaintextError;
use crate::program::{Compare, Method, Op};
use crate::ring::Ring;

impl<R: Ring> FixedModel<R> {
    /// The same model with the decisions of every layer made as `selection` says.
    pub fn decided_by(mut self, selection: Selection) -> Self {
        let counts: Vec<usize> = self.program.steps.iter().map(|step| self.program.decisions_of(&step.op)).collect();
        for (step, count) in self.program.steps.iter_mut().zip(counts) {
            let Op::Relu { compare, .. } = &mut step.op else { continue };
            compare.method = match selection {
                Selection::Always(method) => method,
                Selection::Auto(profile) => {
                    let seconds = |method| Compare { method, ..*compare }.seconds(count, profile);
                    if seconds(Method::Keys) < seconds(Method::Tables) { Method::Keys } else { Method::Tables }
                }
            };
        }
        self
    }

    /// The same model with decisions on no more bits than `inputs` need (one query's values after the other) and `margin_bits` more.
    /// A decision about a value beyond its window is arbitrary, and nothing notices: give inputs enough, and a margin, and
    /// [`share`](Self::share) or [`publish`](Self::publish) the model on others, which checks the windows.
    ///
    /// # Errors
    /// An input does not fit, or a value leaves the range in which protocols are right.
    pub fn narrowed(mut self, inputs: &[f32], margin_bits: u32) -> Result<Self, PlaintextError> {
        let mut largest = vec![0.0_f64; self.program.steps.len()];
        for input in inputs.chunks(self.program.input_len()) {
            let found = self.deciding_magnitudes(input)?;
            largest.iter_mut().zip(found).for_each(|(largest, found)| *largest = largest.max(found));
        }
        for (step, largest) in self.program.steps.iter_mut().zip(largest) {
            let Op::Relu { compare, .. } = &mut step.op else { continue };
            let bits = compare.reach(largest).log2().floor() as u32 + 2 + margin_bits;
            compare.width = compare.width.min(bits.saturating_sub(compare.dropped).max(2));
        }
        Ok(self)
    }
}

impl Compare {
    /// Time that the bytes and exchanges of `decisions` take over a link, where the second server gets its deal over one like it.
    fn seconds(self, decisions: usize, link: Profile) -> f64 {
        let dealt = self.deal_size(decisions).total(1);
        let bytes = (dealt + self.online_bytes(decisions)) as f64;
        f64::from(self.rounds()) * link.latency.as_secs_f64() + bytes / link.bytes_per_second
    }
}
