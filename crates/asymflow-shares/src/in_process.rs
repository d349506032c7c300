//! Both servers, their dealer and a client in one process: protocol, bytes and rounding are those of separate machines, and the
//! separation is not there. For trying, measuring and testing.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;

use crate::deal::{Deal, DealError, DealStore};
use crate::dealer::Dealer;
use crate::input::{ClientError, InputShare, OutputShare, open_output, share_input};
use crate::link::{Link, Profile, channel_links};
use crate::model::{FixedModel, ModelError, PartyModel, Setup};
use crate::prg::{Seed, SeedError, ServerSeed};
use crate::program::{Program, RingError, Server, WeightPolicy};
use crate::ring::Ring;
use crate::session::{LayerReport, RunError, run, set_up};

/// Longer than any one query takes.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum InProcessError {
    /// The model cannot be given to servers.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The input does not fit.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The model is of another ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The randomness does not fit.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// The deal does not fit.
    #[error(transparent)]
    Deal(#[from] DealError),
    /// The query failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// No random numbers.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// A server's thread panicked.
    #[error("a server stopped")]
    Stopped,
}

/// What one query gave, and what it cost.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Samples × classes.
    pub logits: Vec<f32>,
    /// Of the first server and of the second.
    pub layers: [Vec<LayerReport>; 2],
}

/// See the module.
pub struct InProcess<R> {
    models: [Arc<PartyModel<R>>; 2],
    seeds: [ServerSeed; 2],
    dealer: Dealer<R>,
}

impl<R> fmt::Debug for InProcess<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InProcess({:?})", self.dealer)
    }
}

impl<R: Ring> InProcess<R> {
    /// Gives the model to both servers, and each its seed from a dealer; `inputs` as for [`FixedModel::share`].
    ///
    /// # Errors
    /// The answers of the model would be wrong, or the operating system has no randomness to give.
    pub fn start(model: FixedModel<R>, inputs: &[f32]) -> Result<Self, InProcessError> {
        let dealt = |program: &Program| -> Result<_, InProcessError> {
            let dealer = Dealer::new(program.clone(), &Seed::random()?, LIFETIME)?;
            let seeds = [Server::First, Server::Second].map(|server| dealer.seed(server));
            Ok((dealer, seeds))
        };
        match model.program().policy() {
            WeightPolicy::Public => {
                let model = model.publish(inputs)?;
                let (dealer, seeds) = dealt(model.program())?;
                Ok(Self { models: [Arc::clone(&model), model], seeds, dealer })
            }
            WeightPolicy::Shared => {
                let [first, second] = model.share(&Seed::random()?, inputs)?;
                let (dealer, seeds) = dealt(first.program())?;
                let (first, second) = (Setup::new(first, &seeds[0])?, Setup::new(second, &seeds[1])?);
                let [mut to_second, mut to_first] = channel_links(Profile::LOOPBACK);
                let models = both(|| set_up(first, &mut to_second), || set_up(second, &mut to_first))?;
                Ok(Self { models, seeds, dealer })
            }
        }
    }

    /// The program.
    pub fn program(&self) -> &Program {
        self.models[0].program()
    }

    /// Answers one query.
    ///
    /// # Errors
    /// The input does not fit.
    pub fn ask(&mut self, input: &[f32]) -> Result<Answer, InProcessError> {
        self.ask_over(input, channel_links(Profile::LOOPBACK))
    }

    /// Answers one query over links of one's own: the first server's end and the second's.
    ///
    /// # Errors
    /// The input does not fit, or a link failed.
    pub fn ask_over<L: Link + Send>(&mut self, input: &[f32], links: [L; 2]) -> Result<Answer, InProcessError> {
        let deals = self.dealer.deal(SystemTime::now());
        let shares = share_input::<R>(self.program(), deals[0].query(), input, &Seed::random()?)?;
        let ([first, second], [left, right], [mut to_second, mut to_first]) = (deals, shares, links);
        let [first, second] = both(
            || self.answer(Server::First, first, left, &mut to_second),
            || self.answer(Server::Second, second, right, &mut to_first),
        )?;
        let logits = open_output(self.program(), &[first.0, second.0])?;
        Ok(Answer { logits, layers: [first.1, second.1] })
    }

    fn answer(
        &self,
        server: Server,
        deal: Deal<R>,
        input: InputShare<R>,
        link: &mut impl Link,
    ) -> Result<(OutputShare<R>, Vec<LayerReport>), InProcessError> {
        let (model, seed, query) = (&self.models[server.index()], &self.seeds[server.index()], deal.query());
        let mut store = DealStore::new(Arc::clone(model), seed.clone(), query)?;
        store.insert(deal)?;
        Ok(run(store.party(query, SystemTime::now())?, input, model.program(), link)?)
    }
}

/// Runs both servers at once.
fn both<T: Send, E: Send + Into<InProcessError>>(
    first: impl FnOnce() -> Result<T, E> + Send,
    second: impl FnOnce() -> Result<T, E>,
) -> Result<[T; 2], InProcessError> {
    std::thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        let first = first.join().map_err(|_| InProcessError::Stopped)?;
        Ok([first.map_err(Into::into)?, second.map_err(Into::into)?])
    })
}
