//! Stage 1 by DP-SGD: M_bb and M_main learn from clipped gradients of secret samples, with noise (Abadi et al. 2016).

use asymflow_engine::EngineError;
use asymflow_engine::timing::timed;
use asymflow_residual::backend::{Pass, SgdStep};

use super::Delta;
use crate::modes::mode::loss;
use crate::modes::sampled::{NoisedSteps, add_gradients, set_gradients, trained};
use crate::modes::{ExecError, StepReport, TrainBatch};

impl Delta {
    /// Stage 1 by DP-SGD: pieces of a secret sample are added up, and noise once.
    pub(super) fn step_noised(
        &mut self,
        steps: &NoisedSteps,
        batch: &TrainBatch<'_>,
        sgd: SgdStep,
    ) -> Result<StepReport, ExecError> {
        self.backbone.engine.params_mut().train();
        self.main.engine.params_mut().train();
        let of_backbone = trained(&self.backbone.engine);
        let mut sums = vec![0.0; of_backbone + trained(&self.main.engine)];
        let report = steps.in_pieces(batch, |piece| self.add_piece(steps, &piece, &mut sums))?;
        let mean = timed(&mut self.seconds.release, || steps.release(sums, &mut self.door))?;
        let (backbone, main) = mean.split_at(of_backbone);
        set_gradients(&mut self.backbone.engine, backbone);
        set_gradients(&mut self.main.engine, main);
        self.backbone.step(sgd);
        self.step_main(sgd);
        Ok(report)
    }

    /// Adds the clipped gradients that some records have at M_bb and M_main together to `sums`.
    fn add_piece(
        &mut self,
        steps: &NoisedSteps,
        piece: &TrainBatch<'_>,
        sums: &mut [f32],
    ) -> Result<StepReport, ExecError> {
        let samples = piece.samples();
        let (low, mut d_features) = self.split(piece.images(), samples, Pass::Training)?;
        let Self { backbone, main, split, seconds, .. } = self;
        timed(&mut seconds.trusted, || {
            let no_gradient = || EngineError::NoForward { layer: "main".to_owned() };
            let logits = main.forward(&low, samples, Pass::Training, 0)?;
            let (report, mut d_logits) = loss(main.engine.network(), &logits, piece)?;
            // Of each record's own loss, not of the mean.
            d_logits.iter_mut().for_each(|d| *d *= samples as f32);
            let (of_main, d_low) = main.engine.sample_norms(d_logits.clone(), samples, &mut main.convolver)?;
            split.adjoint(d_low.ok_or_else(no_gradient)?.into_vec(), &mut d_features)?;
            let (mut norms, _) = backbone.engine.sample_norms(d_features.clone(), samples, &mut backbone.convolver)?;
            norms.iter_mut().zip(of_main).for_each(|(norm, of_main)| *norm = norm.hypot(of_main));
            steps.clip(&mut d_logits, &norms, sums.len());
            let d_low = main.engine.backward(d_logits, samples, &mut main.convolver)?;
            split.adjoint(d_low.ok_or_else(no_gradient)?.into_vec(), &mut d_features)?;
            backbone.engine.backward(d_features, samples, &mut backbone.convolver)?;
            let (of_backbone, of_main) = sums.split_at_mut(trained(&backbone.engine));
            add_gradients(&mut backbone.engine, of_backbone);
            add_gradients(&mut main.engine, of_main);
            Ok(report)
        })
    }
}

#[cfg(test)]
mod tests {
    use asymflow_linalg::decompose;
    use asymflow_privacy::{accountants::Relation, door::SumGate, records::RecordAccountant};
    use asymflow_zoo::models::delta::{DeltaShape, delta};
    use asymflow_zoo::models::replace::replace_activations;
    use asymflow_zoo::{Weights, by_name};
    use faer::Par;

    use super::*;
    use crate::modes::delta::{DeltaParts, DeltaSection};
    use crate::modes::{Asked, PrivacyTerms, Sampling, Sections};

    const RECORDS: usize = 5;
    const LABELS: [u32; RECORDS] = [0, 3, 9, 3, 1];

    fn mode(gate: SumGate, batch: usize) -> Delta {
        let network = by_name("resnet8-cifar", 10, None).unwrap();
        let network = replace_activations(&network, &"group-norm:4".parse().unwrap()).unwrap();
        let networks = delta(&network, &DeltaShape::published(&network).unwrap()).unwrap();
        let weights = Weights::init(&networks.all_layers(false), 1);
        let sections = Sections::default();
        let asked = Asked { name: "main-only", epsilon: None, network: &network, epochs: 1, sections: &sections };
        let mut spec = DeltaSection::default().spec(&asked, "gram".to_owned()).unwrap();
        spec.orthogonality = 0.0;
        let sampling = Sampling { batch, records: RECORDS };
        let parts = DeltaParts {
            spec,
            decomposer: decompose::by_name("gram").unwrap(),
            terms: PrivacyTerms { relation: Relation::Remove, delta: 1e-5, budget_epsilon: None },
            sampling,
            epochs: 1,
            backend: None,
            accountant: RecordAccountant::new(RECORDS),
            noised: Some(NoisedSteps::new(gate, sampling)),
        };
        Delta::new(networks, weights, parts, Par::Seq).unwrap()
    }

    fn gradient(mode: &Delta) -> Vec<f32> {
        let of = |engine: &asymflow_engine::Engine| -> Vec<f32> {
            (0..engine.network().parameters().len()).flat_map(|i| engine.params().gradient(i).to_vec()).collect()
        };
        [of(&mode.backbone.engine), of(&mode.main.engine)].concat()
    }

    fn values(mode: &Delta) -> Vec<f32> {
        [&mode.backbone, &mode.main].iter().flat_map(|part| part.engine.params().flat_values()).collect()
    }

    /// Each record's gradient of both networks together is clipped, they are added up, and divided by the batch that is expected; a batch
    /// larger than is expected is taken in pieces.
    #[test]
    fn a_step_is_the_sum_of_gradients_clipped_over_both_networks() {
        let image = 3 * 32 * 32;
        let images: Vec<f32> = (0..RECORDS * image).map(|i| ((i * 7919 % 1000) as f32 / 500.0) - 1.0).collect();
        let still = SgdStep::plain(0.0, 0.0, 0.0);
        for clip in [0.05, 1e3] {
            let gate = SumGate::new(1e-8, clip, 0.4).unwrap();
            let mut alone = mode(gate, 2);
            let mut expected = vec![0.0; values(&alone).len()];
            for record in 0..RECORDS {
                let x = &images[record * image..][..image];
                alone.step_alone(TrainBatch::new(x, &LABELS[record..=record], &[0]).unwrap(), still).unwrap();
                let gradient = gradient(&alone);
                let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
                let factor = (clip / norm).min(1.0);
                expected.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += factor * f64::from(g));
            }
            let mut mode = mode(gate, 2);
            let before = values(&mode);
            let batch = TrainBatch::new(&images, &LABELS, &[0, 1, 2, 3, 4]).unwrap();
            let steps = mode.noised.take().unwrap();
            mode.step_noised(&steps, &batch, SgdStep::plain(1.0, 0.0, 0.0)).unwrap();
            let largest = expected.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
            for ((before, after), expected) in before.iter().zip(&values(&mode)).zip(&expected) {
                let moved = f64::from(before - after);
                assert!((moved - expected / 2.0).abs() < 1e-3 * largest + 1e-6, "clip {clip}: {moved} {expected}");
            }
        }
    }
}
