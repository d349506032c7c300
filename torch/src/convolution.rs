//! One convolution.

use asymflow_privacy::payload::Payload;
use asymflow_residual::backend::{CollectError, ConvUnit, Pass, Wanted};
use asymflow_residual::units::{ComputeUnit, Gradients, TrainUnit};
use tch::{Tensor, no_grad_guard};

use crate::place::{Place, download, scale_for};

/// A convolution. Its weights live on the host, where f32 addition is exact, and are sent when they are next needed.
pub(crate) struct TorchConv {
    conv: ConvUnit,
    place: Place,
    weights: Vec<f32>,
    sent: Option<Tensor>,
    kept: Option<Kept>,
}

/// A forward pass as PyTorch's graph.
struct Kept {
    x: Tensor,
    w: Tensor,
    y: Tensor,
}

impl TorchConv {
    pub fn new(conv: &ConvUnit, place: Place) -> Self {
        let weights = vec![0.0; conv.weights()];
        Self { conv: conv.clone(), place: place.of_single_products(), weights, sent: None, kept: None }
    }

    fn weight(&mut self) -> Tensor {
        let ConvUnit { input, out_channels, kernel, .. } = self.conv;
        let size = [out_channels, input.channels, kernel, kernel].map(|side| side as i64);
        let (place, weights) = (self.place, &self.weights);
        self.sent.get_or_insert_with(|| place.values(weights, &size).set_requires_grad(true)).shallow_clone()
    }

    fn outputs(&self, x: &Tensor, w: &Tensor) -> Tensor {
        let [stride, padding] = [self.conv.stride, self.conv.padding].map(|side| side as i64);
        x.conv2d(w, None::<&Tensor>, [stride; 2], [padding; 2], [1, 1], 1)
    }
}

impl ComputeUnit for TorchConv {
    fn forward(&mut self, x: Payload, pass: Pass) -> Result<Vec<f32>, CollectError> {
        let (place, w) = (self.place, self.weight());
        Ok(place.compute(|| {
            let x = place.batch(&x, self.conv.input);
            if pass == Pass::Inference {
                let _no_graph = no_grad_guard();
                return download(&self.outputs(&x, &w));
            }
            // Should this pass fail, an earlier one must not be differentiated in its place.
            self.kept = None;
            let x = x.set_requires_grad(true);
            let y = self.outputs(&x, &w);
            let result = download(&y);
            self.kept = Some(Kept { x, w, y });
            result
        }))
    }

    fn gradient(&mut self, dy: Vec<f32>, wanted: Wanted) -> Result<Gradients, CollectError> {
        let Kept { x, w, y } = self.kept.take().ok_or_else(|| "no kept forward pass".to_owned())?;
        let place = self.place;
        let scale = scale_for(place.kind, &dy);
        let asked: Vec<&Tensor> =
            [(wanted.input, &x), (wanted.weights, &w)].into_iter().filter_map(|(is, of)| is.then_some(of)).collect();
        if asked.is_empty() {
            return Ok(Gradients::default());
        }
        let mut found = place.compute(|| {
            let dy = place.batch(&Payload::F32(dy), self.conv.output());
            let dy = if scale == 1.0 { dy } else { dy * f64::from(scale) };
            // The gradient of y·dy is dy, at one pass over both.
            let loss = in_memory_order(&y).dot(&in_memory_order(&dy));
            Tensor::run_backward(&[loss], &asked, false, false)
                .into_iter()
                .map(|tensor| unscaled(&tensor, scale))
                .collect::<Vec<_>>()
                .into_iter()
        });
        let mut next = |is_wanted: bool| if is_wanted { found.next().unwrap_or_default() } else { Vec::new() };
        Ok((next(wanted.input), next(wanted.weights)))
    }

    fn weights(&mut self) -> Result<Vec<f32>, CollectError> {
        Ok(self.weights.clone())
    }

    fn set_weights(&mut self, weights: Vec<f32>) -> Result<(), CollectError> {
        (self.weights, self.sent) = (weights, None);
        Ok(())
    }

    fn reset(&mut self) {
        self.kept = None;
    }

    fn training(&mut self) -> Option<&mut dyn TrainUnit> {
        None
    }
}

/// All values of a batch of maps in one row, in the order in which they lie.
fn in_memory_order(maps: &Tensor) -> Tensor {
    if maps.is_contiguous() { maps.view(-1) } else { maps.permute([0, 2, 3, 1]).reshape(-1) }
}

/// What was computed of a gradient times `scale`, on the host.
pub(crate) fn unscaled(tensor: &Tensor, scale: f32) -> Vec<f32> {
    let mut values = download(tensor);
    if scale != 1.0 {
        values.iter_mut().for_each(|value| *value /= scale);
    }
    values
}
