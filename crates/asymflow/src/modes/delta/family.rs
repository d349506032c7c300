//! What Delta says of itself.

use std::sync::Arc;

use asymflow_engine::Engine;
use asymflow_privacy::{Loss, accountants::Relation, mechanisms::RandomisedResponse, records::Flow};
use asymflow_residual::backend::Pass;
use asymflow_zoo::Network;
use asymflow_zoo::graph::cost;
use asymflow_zoo::models::delta::{DeltaNetworks, delta};

use super::gates::Noise;
use super::mode::{Delta, DeltaParts};
use super::section::DeltaSection;
use super::spec::{Codebook, DeltaSpec, Feed, Labels, Variant};
use crate::memory::{MemoryError, MemoryPlan, Work};
use crate::modes::mode::held;
use crate::modes::sampled;
use crate::modes::{
    Asked, Charge, DpTerms, Explained, Facts, Guard, Losses, Macs, Mode, ModeError, ModeFamily, ModeSpec, Parts,
    Purpose, Serving, SplitPromise,
};
use crate::plan::SplitSpec;

#[derive(Debug)]
pub(in crate::modes) struct Family;

impl ModeFamily for Family {
    fn names(&self) -> &'static [&'static str] {
        const NAMES: &[&str] = &[Feed::Residual.entry(), Feed::Null.entry(), Feed::Nothing.entry()];
        NAMES
    }

    fn takes_epsilon(&self, name: &str) -> Option<bool> {
        (Feed::of_entry(name) != Feed::Nothing).then_some(true)
    }

    fn spec(&self, asked: &Asked<'_>) -> Result<Arc<dyn ModeSpec>, ModeError> {
        let SplitSpec { decomposition, .. } = asked.sections.get("mode")?;
        Ok(Arc::new(asked.sections.get::<DeltaSection>("delta")?.spec(asked, decomposition)?))
    }

    fn decode(&self, settings: &str) -> Result<Arc<dyn ModeSpec>, serde_json::Error> {
        serde_json::from_str::<DeltaSpec>(settings).map(|spec| Arc::new(spec) as Arc<dyn ModeSpec>)
    }
}

impl DeltaSpec {
    /// Epochs in which M_bb and M_main are trained by DP-SGD, where they are.
    const fn stage1_epochs(&self, facts: &Facts<'_>) -> usize {
        if facts.epochs < self.stage1_epochs { facts.epochs } else { self.stage1_epochs }
    }

    /// Epochs in which residuals are released.
    const fn stage2_epochs(&self, epochs: usize) -> usize {
        epochs.saturating_sub(self.stage1_epochs)
    }

    fn noise(&self, facts: &Facts<'_>) -> Result<Noise, ModeError> {
        Noise::of(self, facts.terms, facts.sampling, self.stage2_epochs(facts.epochs))
    }

    /// What a label, or the gradients that tell it, cost its record.
    fn label_charges(&self, facts: &Facts<'_>, stage2: usize) -> Result<Vec<Charge>, ModeError> {
        let charge = |what: &str, flow, loss, times: usize| {
            // A gradient is said of the label alone, too, but its sensitivity is that of the run's relation.
            let relation = if flow == Flow::Label { Relation::Replace } else { facts.terms.relation };
            vec![Charge { what: what.to_owned(), flow, loss, times: times as u64, relation }]
        };
        Ok(match self.labels {
            Labels::Public => charge("label, public", Flow::Label, Loss::Pure { epsilon: 0.0 }, 1),
            Labels::RandomisedResponse { epsilon } => {
                charge("label by randomised response", Flow::Label, Loss::Pure { epsilon }, 1)
            }
            Labels::NoisyGradient { .. } => {
                let loss = self.noise(facts)?.gradient_gate(1)?.loss()?;
                charge("gradient of logits", Flow::Gradient, loss, stage2)
            }
        })
    }

    /// Which neighbours the loss of a residual is said of.
    const fn residual_relation(&self, facts: &Facts<'_>) -> Relation {
        match self.variant {
            Variant::Compact => Relation::Replace,
            Variant::Strict | Variant::Paper | Variant::ReleasedCode => facts.terms.relation,
        }
    }

    /// Name of what guards residuals.
    const fn mechanism(&self) -> &'static str {
        match (self.epsilon, self.variant) {
            (None, Variant::Compact) => "insecure_codewords",
            (Some(_), Variant::Compact) => match self.codebook {
                Codebook::Classes => "randomised_response",
                Codebook::Sphere => "priv_unit",
            },
            (None, Variant::Strict | Variant::Paper | Variant::ReleasedCode) => "insecure_sign",
            (Some(_), Variant::ReleasedCode) => "insecure_laplace_sign",
            (Some(_), Variant::Strict | Variant::Paper) => "one_bit",
        }
    }
}

impl ModeSpec for DeltaSpec {
    fn name(&self) -> &'static str {
        Feed::Residual.entry()
    }

    fn label(&self) -> String {
        let name = self.feed.entry();
        match self.own_epsilon {
            true => format!("{name}@{}", self.epsilon.unwrap_or(f64::INFINITY)),
            false => name.to_owned(),
        }
    }

    fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    fn needs_worker(&self) -> bool {
        self.feed != Feed::Nothing
    }

    /// The layers of all three networks; it cannot be executed.
    fn stored_network(&self, network: &Network) -> Result<Network, ModeError> {
        network.validate()?;
        Ok(delta(network, &self.shape)?.all_layers(self.needs_worker()))
    }

    fn check(&self, facts: &Facts<'_>) -> Result<(), ModeError> {
        let needs = |what| Err(ModeError::Settings { mode: "delta", what });
        if facts.registry.decomposer(&self.decomposition)?.shares_basis() {
            // One basis for a batch would let a record's residual depend on the others, which no bound on one covers.
            return needs("a decomposition of each record by itself");
        }
        if (self.variant == Variant::ReleasedCode) != self.shape.mean_residual {
            return needs("the channel mean of residuals for variant released-code, and for no other");
        }
        let expected = (self.variant == Variant::Compact).then(|| self.codebook.shape(facts.network.classes));
        if self.shape.compact != expected {
            return needs("a codeword's shape for variant compact, and for no other");
        }
        if self.variant == Variant::ReleasedCode && self.labels != Labels::Public {
            return needs("public labels for variant released-code, whose gradients tell them");
        }
        if let Some(weights) = &self.weights {
            if self.variant != Variant::Strict {
                // The projection of a compact release is made of the records without noise, and the others promise nothing.
                return needs("variant strict where weights are trained by dp-sgd");
            }
            let networks = delta(facts.network, &self.shape)?;
            Engine::check_per_sample(&networks.backbone)?;
            Engine::check_per_sample(&networks.main)?;
            weights.check(facts, self.stage1_epochs(facts))?;
        }
        if self.needs_worker() {
            self.noise(facts)?.bit_gate()?.loss()?;
            if let Labels::RandomisedResponse { epsilon } = self.labels {
                RandomisedResponse::new(facts.network.classes as u32, epsilon)?;
            }
        }
        self.stored_network(facts.network).map(drop)
    }

    fn takes_lessons(&self) -> bool {
        false
    }

    fn losses(&self, facts: &Facts<'_>) -> Result<Losses, ModeError> {
        let stage2 = self.stage2_epochs(facts.epochs);
        let weights = self.weights.as_ref().map(|weights| weights.charges(facts, self.stage1_epochs(facts)));
        let weights = weights.transpose()?.unwrap_or_default();
        if !self.needs_worker() || stage2 == 0 {
            return Ok(Losses { train: weights, test: Vec::new() });
        }
        let residual = |loss, times: usize| Charge {
            what: "residual".to_owned(),
            flow: Flow::Residual,
            loss,
            times: times as u64,
            relation: self.residual_relation(facts),
        };
        if self.variant == Variant::ReleasedCode {
            let gradient = Charge {
                what: "gradient of logits".to_owned(),
                flow: Flow::Gradient,
                loss: Loss::Infinite,
                times: stage2 as u64,
                relation: facts.terms.relation,
            };
            let train = vec![residual(Loss::Infinite, stage2), gradient];
            return Ok(Losses { train, test: vec![residual(Loss::Infinite, facts.evaluations)] });
        }
        let loss = self.noise(facts)?.bit_gate()?.loss()?;
        let mut train = weights;
        train.push(residual(loss, self.views));
        train.extend(self.label_charges(facts, stage2)?);
        let test = vec![residual(loss, facts.evaluations.min(1))];
        Ok(Losses { train, test })
    }

    fn guard(&self, facts: &Facts<'_>) -> Result<Option<Guard>, ModeError> {
        if !self.needs_worker() {
            let weights = self.weights.as_ref().map(|weights| weights.guard(facts, self.stage1_epochs(facts)));
            return weights.transpose();
        }
        let labels = match self.labels {
            Labels::Public => "public".to_owned(),
            Labels::RandomisedResponse { epsilon } => format!("randomised response, ε {epsilon}"),
            Labels::NoisyGradient { epsilon } => format!("noisy gradients, ε {epsilon}"),
        };
        Ok(Some(Guard {
            mechanism: self.mechanism().to_owned(),
            sigma: self.noise(facts)?.bits,
            clip: Some(self.clip),
            labels,
            split: Some(SplitPromise { rank: self.shape.rank, block: self.shape.block, kept: self.shape.kept }),
        }))
    }

    fn promised_epsilon(&self) -> Option<f64> {
        let labels = match self.labels {
            Labels::Public => 0.0,
            Labels::RandomisedResponse { epsilon } | Labels::NoisyGradient { epsilon } => epsilon,
        };
        let weights = self.weights.as_ref().map(DpTerms::promised_epsilon);
        if !self.needs_worker() {
            return weights.flatten();
        }
        let residual = self.epsilon.filter(|_| matches!(self.variant, Variant::Strict | Variant::Compact))?;
        // Room for the rounding of sums.
        Some((residual + labels + weights.unwrap_or(Some(0.0))?) * (1.0 + 1e-9))
    }

    fn condition(&self) -> &'static str {
        if self.weights.is_some() {
            return sampled::CONDITION;
        }
        match (self.needs_worker(), self.variant) {
            (false, _) => "none",
            (true, Variant::Compact) => {
                "given M_bb, projection and normalisation, made of the same records without noise"
            }
            (true, Variant::Strict | Variant::Paper | Variant::ReleasedCode) => {
                "given M_bb and normalisation, made of the same records without noise"
            }
        }
    }

    fn insecure(&self, purpose: Purpose) -> Vec<String> {
        let mut names = Vec::new();
        let (releases, is_training) = (self.needs_worker(), purpose == Purpose::Training);
        if releases && (is_training || self.feed == Feed::Residual) {
            names.extend(self.epsilon.is_none().then_some(self.mechanism()));
            names.extend(self.variant.insecure_name());
        }
        names.extend((releases && is_training && self.labels == Labels::Public).then_some("public_labels"));
        names.into_iter().map(str::to_owned).collect()
    }

    fn caveat(&self) -> Option<&'static str> {
        self.variant.caveat().filter(|_| self.needs_worker())
    }

    fn serving(&self, facts: &Facts<'_>) -> Result<Serving, ModeError> {
        if self.variant == Variant::ReleasedCode {
            let why = "the scale of its noise comes from the other clients of the batch, and it holds no epsilon";
            return Ok(Serving::Refused { what: "variant released-code".to_owned(), why });
        }
        if !self.needs_worker() {
            return Ok(Serving::Served { losses: Vec::new(), guard: None, can_stream: false });
        }
        let mechanism = match (self.feed, self.variant) {
            (Feed::Null, Variant::Strict | Variant::Compact | Variant::Paper | Variant::ReleasedCode) => "fair coins",
            (Feed::Residual | Feed::Nothing, Variant::Paper) => "one_bit, sigma as printed in the thesis",
            (Feed::Residual | Feed::Nothing, Variant::Strict | Variant::Compact | Variant::ReleasedCode) => {
                self.mechanism()
            }
        };
        let guard = self.guard(facts)?.map(|guard| Guard { mechanism: mechanism.to_owned(), ..guard });
        let losses = vec![self.noise(facts)?.bit_gate()?.loss()?];
        Ok(Serving::Served { losses, guard, can_stream: false })
    }

    fn macs(&self, network: &Network, _batch: usize) -> Result<Macs, ModeError> {
        let parts = delta(network, &self.shape)?;
        let split = self.shape.cost(parts.features);
        let trusted = Macs::of(&parts.backbone) + Macs::of(&parts.main) + split.svd + split.dct;
        Ok(Macs { trusted, worker: if self.needs_worker() { Macs::of(&parts.residual) } else { 0 } })
    }

    fn explain(&self, network: &Network) -> Result<Option<Explained>, ModeError> {
        let shape = &self.shape;
        let networks = delta(network, shape)?;
        let split = shape.cost(networks.features);
        let DeltaNetworks { features, low, .. } = &networks;
        let millions = |macs: u64| format!("{:.2}", macs as f64 / 1e6);
        let mut table = vec![["part", "layer", "output", "MMACs", "parameters"].map(str::to_owned)];
        let mut totals = Vec::new();
        for (part, network) in [("M_bb", &networks.backbone), ("M_main", &networks.main), ("M_res", &networks.residual)]
        {
            for layer in cost::layer_costs(network)?.into_iter().filter(|layer| layer.parameters > 0) {
                let out = layer.output;
                let output = format!("{}x{}x{}", out.channels, out.height, out.width);
                table.push([part.to_owned(), layer.name, output, millions(layer.macs), layer.parameters.to_string()]);
            }
            totals.push(Macs::of(network));
        }
        let trusted = totals[0] + totals[1] + split.svd + split.dct;
        let text = format!(
            "Features {}x{}x{}, rank {}, DCT {}/{}; M_main's input {}x{}x{}. Trusted: M_bb {}, decomposition {} (one pass), \
             DCT {}, M_main {} MMACs, {} in all; worker: M_res {} MMACs. To the worker: {} bytes a sample.",
            features.channels,
            features.height,
            features.width,
            shape.rank,
            shape.block,
            shape.kept,
            low.channels,
            low.height,
            low.width,
            millions(totals[0]),
            millions(split.svd),
            millions(split.dct),
            millions(totals[1]),
            millions(trusted),
            millions(totals[2]),
            networks.residual.input.len().div_ceil(8),
        );
        Ok(Some(Explained { text, table }))
    }

    fn memory(&self, work: &Work<'_>) -> Result<MemoryPlan, MemoryError> {
        let networks = delta(work.network, &self.shape)?;
        let mut plan = work.two_networks(&networks, &self.decomposition, &self.shape)?;
        if self.needs_worker() {
            work.add_crossing(&mut plan, &networks.residual, self.views);
        }
        Ok(plan)
    }

    fn build(&self, parts: Parts<'_>) -> Result<Box<dyn Mode>, ModeError> {
        let facts = parts.facts();
        self.check(&facts)?;
        let weights = self.weights.as_ref().filter(|_| facts.pass() == Pass::Training);
        let weights = weights.map(|weights| weights.steps(&facts, self.stage1_epochs(&facts)));
        let noised = weights.transpose()?;
        let plan = self.losses(&facts)?;
        let backend = if self.needs_worker() { Some(parts.worker(self.name())?) } else { None };
        let networks = delta(&parts.network, &self.shape)?;
        let own = DeltaParts {
            decomposer: parts.registry.decomposer(&self.decomposition)?,
            terms: parts.terms,
            sampling: parts.sampling,
            epochs: parts.epochs,
            backend,
            accountant: match noised {
                // Else every step would compose anew what was lost so far.
                Some(_) => parts.accountant.with_plan(sampled::plan_of(&plan)),
                None => parts.accountant,
            },
            noised,
            spec: self.clone(),
        };
        Ok(Box::new(Delta::new(networks, held(parts.weights)?, own, parts.par)?))
    }
}
