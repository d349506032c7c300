//! Runs a party over a link and says what each layer cost.

use std::time::Instant;

use thiserror::Error;

use crate::input::{InputShare, OutputShare};
use crate::link::{Link, LinkError};
use crate::message::MessageError;
use crate::model::{PartyModel, Setup};
use crate::party::{Party, PartyError, Progress};
use crate::program::Program;
use crate::ring::Ring;
use std::sync::Arc;

/// What one layer of one query cost a server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerReport {
    /// Name of the layer.
    pub label: String,
    /// Exchanges.
    pub rounds: u64,
    /// Payload sent.
    pub bytes_sent: u64,
    /// Payload received.
    pub bytes_received: u64,
    /// Time in which this server worked; local layers count to the exchange after them.
    pub compute_seconds: f64,
    /// Time in which it waited for the other one.
    pub wait_seconds: f64,
}

/// Why a query failed.
#[derive(Debug, Error)]
pub enum RunError {
    /// The protocol was violated.
    #[error(transparent)]
    Party(#[from] PartyError),
    /// A message outside a query was refused.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The connection failed.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Answers one query over `link`. `program` names the layers in the report.
///
/// # Errors
/// The connection failed, or the other server sent something else than it should.
pub fn run<R: Ring>(
    mut party: Party<R>,
    input: InputShare<R>,
    program: &Program,
    link: &mut impl Link,
) -> Result<(OutputShare<R>, Vec<LayerReport>), RunError> {
    let mut layers: Vec<LayerReport> = Vec::new();
    let mut started = Instant::now();
    let mut progress = party.start(input)?;
    loop {
        let message = match progress {
            Progress::Done(output) => {
                let compute_seconds = started.elapsed().as_secs_f64();
                layers.push(LayerReport { label: "output".to_owned(), compute_seconds, ..LayerReport::default() });
                return Ok((output, layers));
            }
            Progress::Exchange(message) => message,
        };
        let label = program.label(message.step());
        if layers.last().is_none_or(|layer| layer.label != label) {
            layers.push(LayerReport { label: label.to_owned(), ..LayerReport::default() });
        }
        let (computed, sent) = (started.elapsed().as_secs_f64(), message.body_bytes() as u64);
        started = Instant::now();
        let received = link.exchange(message)?;
        if let Some(layer) = layers.last_mut() {
            layer.rounds += 1;
            layer.bytes_sent += sent;
            layer.bytes_received += received.body_bytes() as u64;
            layer.compute_seconds += computed;
            layer.wait_seconds += started.elapsed().as_secs_f64();
        }
        started = Instant::now();
        progress = party.receive(&received)?;
    }
}

/// Opens the masked weights over `link`, once a model.
///
/// # Errors
/// The connection failed, or the other server sent something else than it should.
pub fn set_up<R: Ring>(setup: Setup<R>, link: &mut impl Link) -> Result<Arc<PartyModel<R>>, RunError> {
    let received = link.exchange(setup.message())?;
    Ok(setup.finish(&received)?)
}
