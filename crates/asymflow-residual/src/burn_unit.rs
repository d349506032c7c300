//! One convolution on a burn device.

use burn::tensor::module::{conv_transpose2d, conv2d, conv2d_weight_backward};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions, PadMode};
use burn::tensor::{Device, Tensor, TensorData, s};

use asymflow_privacy::payload::Payload;
use asymflow_zoo::network::Shape;

use crate::backend::{CollectError, ConvUnit, Pass, Wanted};
use crate::unit::conv_network;
use crate::units::{ComputeUnit, Gradients, TrainUnit};

/// A convolution. The weights live on the host, where f32 addition is exact on every device's behalf,
/// and are uploaded when they are next needed.
pub(crate) struct BurnConv {
    unit: ConvUnit,
    output: Shape,
    device: Device,
    weights: Vec<f32>,
    uploaded: Option<Tensor<4>>,
    kept: Option<Tensor<4>>,
    by_taps: bool,
}

impl BurnConv {
    /// `by_taps` computes weight gradients as one matrix product a position of the kernel, which on `flex` takes
    /// no more time than burn's own way, and less from 128 channels on and for 1×1 kernels.
    pub fn new(unit: &ConvUnit, device: &Device, by_taps: bool) -> Result<Self, String> {
        let network = conv_network(unit).map_err(|error| error.to_string())?;
        let output = network.layers[0].output(unit.input).map_err(|error| error.to_string())?;
        let values = unit.out_channels * unit.input.channels * unit.kernel * unit.kernel;
        let device = device.clone();
        let unit = unit.clone();
        Ok(Self { unit, output, device, weights: vec![0.0; values], uploaded: None, kept: None, by_taps })
    }

    fn weight(&mut self) -> Tensor<4> {
        let ConvUnit { input, out_channels, kernel, .. } = self.unit;
        let upload = || {
            let data = TensorData::new(self.weights.clone(), [out_channels, input.channels, kernel, kernel]);
            Tensor::from_data(data, &self.device)
        };
        self.uploaded.get_or_insert_with(upload).clone()
    }

    fn options(&self) -> ConvOptions<2> {
        let ConvUnit { stride, padding, .. } = self.unit;
        ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1)
    }

    /// For each position of the kernel, the output gradients times the inputs that this position met.
    fn weight_gradient(&self, x: Tensor<4>, dy: Tensor<4>) -> Tensor<4> {
        let ConvUnit { input, out_channels, kernel, stride, padding, .. } = self.unit;
        let (rows, columns) = (self.output.height, self.output.width);
        let samples = x.dims()[0];
        let met = samples * rows * columns;
        let x = if padding == 0 { x } else { x.pad((padding, padding, padding, padding), PadMode::Constant(0.0)) };
        let x = x.swap_dims(0, 1);
        let dy = dy.swap_dims(0, 1).reshape([out_channels, met]);
        let step = stride as isize;
        let tap = |ky: usize, kx: usize| {
            let (below, beyond) = (ky + (rows - 1) * stride + 1, kx + (columns - 1) * stride + 1);
            let met_here =
                x.clone().slice([s![0..input.channels], s![0..samples], s![ky..below; step], s![kx..beyond; step]]);
            dy.clone().matmul(met_here.reshape([input.channels, met]).transpose())
        };
        let taps = (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))).map(|(ky, kx)| tap(ky, kx));
        Tensor::stack::<3>(taps.collect(), 2).reshape([out_channels, input.channels, kernel, kernel])
    }

    /// The adjoint of the forward pass: a transposed convolution, padded by the rows and columns that
    /// the stride left over.
    fn input_gradient(&self, dy: Tensor<4>, weight: Tensor<4>) -> Tensor<4> {
        let ConvUnit { input, kernel, stride, padding, .. } = self.unit;
        let left_over = |side: usize| (side + 2 * padding - kernel) % stride;
        let options = ConvTransposeOptions::new(
            [stride; 2],
            [padding; 2],
            [left_over(input.height), left_over(input.width)],
            [1; 2],
            1,
        );
        conv_transpose2d(dy, weight, None, options)
    }
}

impl ComputeUnit for BurnConv {
    fn forward(&mut self, x: Payload, pass: Pass) -> Result<Vec<f32>, CollectError> {
        if pass == Pass::Training {
            // Should this pass fail, an earlier one must not be differentiated in its place.
            self.kept = None;
        }
        let x = batch(x.into_f32(), self.unit.input, &self.device);
        let y = conv2d(x.clone(), self.weight(), None, self.options());
        if pass == Pass::Training {
            self.kept = Some(x);
        }
        Ok(download(y)?)
    }

    fn gradient(&mut self, dy: Vec<f32>, wanted: Wanted) -> Result<Gradients, CollectError> {
        let x = self.kept.take().ok_or_else(|| "no kept forward pass".to_owned())?;
        let dy = batch(dy, self.output, &self.device);
        if dy.dims()[0] != x.dims()[0] {
            return Err(format!("gradient of {} samples for {}", dy.dims()[0], x.dims()[0]).into());
        }
        let weight = self.weight();
        // Both results are asked of the device before either is waited for.
        let input = wanted.input.then(|| self.input_gradient(dy.clone(), weight.clone()));
        let weights = wanted.weights.then(|| {
            if self.by_taps {
                self.weight_gradient(x, dy)
            } else {
                conv2d_weight_backward(x, weight, dy, self.options())
            }
        });
        Ok((input.map_or(Ok(Vec::new()), download)?, weights.map_or(Ok(Vec::new()), download)?))
    }

    fn weights(&mut self) -> Result<Vec<f32>, CollectError> {
        Ok(self.weights.clone())
    }

    fn set_weights(&mut self, weights: Vec<f32>) -> Result<(), CollectError> {
        self.weights = weights;
        self.uploaded = None;
        Ok(())
    }

    fn reset(&mut self) {
        self.kept = None;
    }

    fn training(&mut self) -> Option<&mut dyn TrainUnit> {
        None
    }
}

/// Samples of `shape` as one tensor on `device`.
fn batch(values: Vec<f32>, shape: Shape, device: &Device) -> Tensor<4> {
    let samples = values.len() / shape.len();
    Tensor::from_data(TensorData::new(values, [samples, shape.channels, shape.height, shape.width]), device)
}

pub(crate) fn download<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, String> {
    tensor.try_into_vec_as::<f32>().map_err(|error| error.to_string())
}
