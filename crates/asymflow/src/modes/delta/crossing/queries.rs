//! Records that M_res is asked about: those of an evaluation, and those of clients.

use std::time::Duration;

use asymflow_engine::timing::Seconds;
use asymflow_privacy::Door;
use asymflow_residual::backend::{Pass, Ticket};

use super::{Crossing, M_RES, RESIDUAL, released_before};
use crate::modes::ExecError;
use crate::modes::delta::spec::Variant;

impl Crossing {
    /// Whether the bits of all these records were drawn, or are never kept.
    pub fn has_queries(&self, records: &[usize]) -> bool {
        self.spec.variant == Variant::ReleasedCode || records.iter().all(|r| self.cache.queries.contains_key(r))
    }

    /// Draws the bits of records that will be asked about, where they were not drawn before.
    ///
    /// # Errors
    /// A refused release or a spent budget.
    pub fn draw_query(&mut self, residual: &[f32], records: &[usize], door: &mut Door) -> Result<(), ExecError> {
        let values = self.record_values;
        let fresh: Vec<usize> = (0..records.len()).filter(|&i| !self.cache.queries.contains_key(&records[i])).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let new: Vec<f32> = fresh.iter().flat_map(|&i| &residual[i * values..(i + 1) * values]).copied().collect();
        let numbers: Vec<usize> = fresh.iter().map(|&i| records[i]).collect();
        let bits = self.release_bits(new, &numbers, door)?;
        for (&i, bits) in fresh.iter().zip(bits.get().as_bytes().chunks_exact(self.record_bytes)) {
            self.cache.queries.insert(records[i], bits.to_vec());
        }
        Ok(())
    }

    /// Sends the bits of records that are asked about. A record that was asked about before is sent the bits it was
    /// sent then, which costs no privacy.
    ///
    /// # Errors
    /// A refused release, a spent budget, or a lost worker.
    pub fn query(&mut self, residual: Vec<f32>, records: &[usize], door: &mut Door) -> Result<Ticket, ExecError> {
        if self.spec.variant == Variant::ReleasedCode {
            let bits = self.release_as_in_code(&residual, records, door)?;
            return self
                .link
                .session()
                .submit(M_RES, bits.into_payload(), Pass::Inference)
                .map_err(ExecError::submit(RESIDUAL));
        }
        self.draw_query(&residual, records, door)?;
        let bytes: Vec<u8> = records.iter().flat_map(|r| self.cache.queries.get(r)).flatten().copied().collect();
        let bits = released_before(bytes, records, door)?;
        self.link.session().submit(M_RES, bits.into_payload(), Pass::Inference).map_err(ExecError::submit(RESIDUAL))
    }

    /// Bits of a batch that clients ask about: residuals of some records, and records of zeros in place of residuals up to
    /// `padded` records: their bits are fair coins, or any codeword's. They may be sent again without a cost.
    ///
    /// Under an ε for a record that is *removed*, the same ε covers whether a row is a record or coins.
    ///
    /// # Errors
    /// A refused release.
    pub fn release_for_clients(
        &mut self,
        mut residual: Vec<f32>,
        padded: usize,
        door: &mut Door,
    ) -> Result<Vec<u8>, ExecError> {
        residual.resize(padded * self.record_values, 0.0);
        let records: Vec<usize> = (0..padded).collect();
        let bits = self.release_bits(residual, &records, door)?;
        Ok(bits.get().as_bytes().to_vec())
    }

    /// Asks for the logits of bits that were released before.
    ///
    /// # Errors
    /// A lost worker.
    pub fn submit_released(&mut self, bits: &[u8], door: &Door) -> Result<Ticket, ExecError> {
        let records: Vec<usize> = (0..bits.len() / self.record_bytes).collect();
        let bits = released_before(bits.to_vec(), &records, door)?;
        self.link.session().submit(M_RES, bits.into_payload(), Pass::Inference).map_err(ExecError::submit(RESIDUAL))
    }

    /// Logits of M_res for `bits`, which were asked for as `asked` says. A worker that is lost is opened again and sent the
    /// same bits.
    ///
    /// # Errors
    /// A worker that stayed away for longer than `patience`, or a malformed answer.
    pub fn collect_released(
        &mut self,
        asked: Result<Ticket, ExecError>,
        bits: &[u8],
        patience: Duration,
        (door, seconds): (&Door, &mut Seconds),
    ) -> Result<Vec<f32>, ExecError> {
        let samples = bits.len() / self.record_bytes;
        match asked.and_then(|ticket| self.collect(ticket, samples, seconds)) {
            Err(error) if error.is_worker_lost() => {
                self.reopen(patience, door)?;
                let ticket = self.submit_released(bits, door)?;
                self.collect(ticket, samples, seconds)
            }
            other => other,
        }
    }
}
