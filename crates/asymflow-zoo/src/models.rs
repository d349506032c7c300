//! The model zoo: torchvision's VGG (with batch normalisation) and ResNet as data, and small ones for CPUs.
//!
//! Names of parameters and the order of layers are torchvision's, so that its state dicts load.
//! The CIFAR forms keep the features and shrink the ends: VGG's three-layer classifier becomes one
//! linear layer named `classifier`, ResNet's stem a 3×3 convolution of stride 1 without max-pooling.

pub mod delta;
#[cfg(feature = "onnx")]
pub mod onnx;
mod pkn;
pub mod replace;

use thiserror::Error;

use crate::network::{Layer, Network};
use crate::ops::{Conv, Linear};
use crate::shape::{NetworkError, Shape};

/// Shape of a CIFAR image.
pub const CIFAR: Shape = Shape::new(3, 32, 32);
/// Shape of an ImageNet image, cropped as usual.
pub const IMAGENET: Shape = Shape::new(3, 224, 224);
/// Shape of an MNIST image.
pub const MNIST: Shape = Shape::new(1, 28, 28);

/// Why [`by_name`] made no network.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelError {
    /// No such model.
    #[error("unknown model {name:?}; did you mean {nearest:?}?")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The known name closest to it.
        nearest: &'static str,
    },
    /// The model does not fit the input shape or the number of classes.
    #[error("model {name} does not take images of {input}: {source}")]
    Shape {
        /// The model.
        name: &'static str,
        /// The input asked for.
        input: Shape,
        /// The first layer that does not fit.
        source: NetworkError,
    },
}

/// Builds a network for an input shape and a number of classes.
type Build = fn(Shape, usize) -> Vec<Layer>;

/// Name, default input and builder of every model.
const MODELS: [(&str, Shape, Build); 24] = [
    ("demo-cnn", CIFAR, demo_cnn),
    ("resnet8-cifar", CIFAR, |input, classes| resnet_small(1, input, classes)),
    ("resnet14-cifar", CIFAR, |input, classes| resnet_small(2, input, classes)),
    ("resnet20-cifar", CIFAR, |input, classes| resnet_small(3, input, classes)),
    ("resnet32-cifar", CIFAR, |input, classes| resnet_small(5, input, classes)),
    ("resnet18-cifar", CIFAR, |input, classes| resnet(RESNET18, Form::Cifar, input, classes)),
    ("resnet18-imagenet", IMAGENET, |input, classes| resnet(RESNET18, Form::ImageNet, input, classes)),
    ("resnet34-cifar", CIFAR, |input, classes| resnet(RESNET34, Form::Cifar, input, classes)),
    ("resnet34-imagenet", IMAGENET, |input, classes| resnet(RESNET34, Form::ImageNet, input, classes)),
    ("vgg11-cifar", CIFAR, |input, classes| vgg(VGG11, Form::Cifar, input, classes)),
    ("vgg11-imagenet", IMAGENET, |input, classes| vgg(VGG11, Form::ImageNet, input, classes)),
    ("vgg16-cifar", CIFAR, |input, classes| vgg(VGG16, Form::Cifar, input, classes)),
    ("vgg16-imagenet", IMAGENET, |input, classes| vgg(VGG16, Form::ImageNet, input, classes)),
    ("vgg19-cifar", CIFAR, |input, classes| vgg(VGG19, Form::Cifar, input, classes)),
    ("vgg19-imagenet", IMAGENET, |input, classes| vgg(VGG19, Form::ImageNet, input, classes)),
    ("pkn-lenet", CIFAR, pkn::lenet),
    ("pkn-alexnet", CIFAR, pkn::alexnet),
    ("pkn-vgg11", CIFAR, |input, classes| pkn::vgg(VGG11, input, classes)),
    ("pkn-vgg13", CIFAR, |input, classes| pkn::vgg(VGG13, input, classes)),
    ("pkn-vgg16", CIFAR, |input, classes| pkn::vgg(VGG16, input, classes)),
    ("pkn-vgg19", CIFAR, |input, classes| pkn::vgg(VGG19, input, classes)),
    ("pkn-resnet10", CIFAR, |input, classes| pkn::resnet(&[1, 1, 1, 1], input, classes)),
    ("pkn-resnet14", CIFAR, |input, classes| pkn::resnet(&[2, 2, 2], input, classes)),
    ("pkn-resnet18", CIFAR, |input, classes| pkn::resnet(&[2, 2, 2, 2], input, classes)),
];

/// Convolutions in each of the five stages (configurations A, D and E of Simonyan and Zisserman, 2015).
pub(crate) type VggStages = [usize; 5];
const VGG11: VggStages = [1, 1, 2, 2, 2];
const VGG13: VggStages = [2, 2, 2, 2, 2];
const VGG16: VggStages = [2, 2, 3, 3, 3];
const VGG19: VggStages = [2, 2, 4, 4, 4];

/// Basic blocks in each stage (He et al., 2016, table 1) and their widths.
type ResNetStages = &'static [(usize, usize)];
const RESNET18: ResNetStages = &[(2, 64), (2, 128), (2, 256), (2, 512)];
const RESNET34: ResNetStages = &[(3, 64), (4, 128), (6, 256), (3, 512)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Cifar,
    ImageNet,
}

/// Every name that [`by_name`] knows, by family and depth.
pub fn names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|(name, _, _)| *name)
}

/// The model called `name` with `classes` logits, for samples of shape `input` (the model's own where `None`).
///
/// The returned network is valid ([`Network::validate`]).
///
/// # Errors
/// [`ModelError::Unknown`] names the nearest known model; [`ModelError::Shape`] says which layer does not
/// fit `input` (VGG's CIFAR form halves its input five times and so needs 32 rows and columns).
pub fn by_name(name: &str, classes: usize, input: Option<Shape>) -> Result<Network, ModelError> {
    let Some((name, default_input, build)) = MODELS.iter().find(|(known, _, _)| *known == name) else {
        return Err(ModelError::Unknown { name: name.to_owned(), nearest: nearest(name) });
    };
    let input = input.unwrap_or(*default_input);
    let network = Network { name: (*name).to_owned(), input, classes, layers: build(input, classes) };
    match network.validate() {
        Ok(()) if classes > 0 => Ok(network),
        Ok(()) => {
            let source = NetworkError::OutOfRange { layer: "logits".to_owned(), what: "number of classes" };
            Err(ModelError::Shape { name, input, source })
        }
        Err(source) => Err(ModelError::Shape { name, input, source }),
    }
}

pub(crate) fn conv(name: impl Into<String>, io: (usize, usize), kernel: usize, stride: usize, bias: bool) -> Layer {
    let (in_channels, out_channels) = io;
    Layer::Conv(Conv { name: name.into(), in_channels, out_channels, kernel, stride, padding: kernel / 2, bias })
}

pub(crate) fn norm(name: impl Into<String>, channels: usize) -> Layer {
    Layer::BatchNorm { name: name.into(), channels }
}

pub(crate) fn linear(name: &str, in_features: usize, out_features: usize) -> Layer {
    Layer::Linear(Linear { name: name.to_owned(), in_features, out_features })
}

const HALVE: Layer = Layer::MaxPool { kernel: 2, stride: 2, padding: 0 };

/// Four 3×3 convolutions of 16, 32, 64 and 64 channels with batch normalisation; halved after the second and third.
fn demo_cnn(input: Shape, classes: usize) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut channels = input.channels;
    for (index, (out, pool)) in [(16, false), (32, true), (64, true), (64, false)].into_iter().enumerate() {
        layers.push(conv(format!("conv{}", index + 1), (channels, out), 3, 1, false));
        layers.push(norm(format!("bn{}", index + 1), out));
        layers.push(Layer::Relu);
        if pool {
            layers.push(HALVE);
        }
        channels = out;
    }
    layers.extend([Layer::AdaptiveAvgPool { out: 1 }, Layer::Flatten, linear("fc", channels, classes)]);
    layers
}

fn vgg(stages: VggStages, form: Form, input: Shape, classes: usize) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut channels = input.channels;
    for (convs, out) in stages.into_iter().zip([64, 128, 256, 512, 512]) {
        for _ in 0..convs {
            // torchvision numbers the layers of `features` through, pooling and activations included.
            let index = layers.len();
            layers.push(conv(format!("features.{index}"), (channels, out), 3, 1, true));
            layers.push(norm(format!("features.{}", index + 1), out));
            layers.push(Layer::Relu);
            channels = out;
        }
        layers.push(HALVE);
    }
    match form {
        Form::Cifar => {
            layers.extend([Layer::AdaptiveAvgPool { out: 1 }, Layer::Flatten, linear("classifier", 512, classes)]);
        }
        Form::ImageNet => layers.extend([
            Layer::AdaptiveAvgPool { out: 7 },
            Layer::Flatten,
            linear("classifier.0", 512 * 7 * 7, 4096),
            Layer::Relu,
            Layer::Dropout { p: 0.5 },
            linear("classifier.3", 4096, 4096),
            Layer::Relu,
            Layer::Dropout { p: 0.5 },
            linear("classifier.6", 4096, classes),
        ]),
    }
    layers
}

/// CIFAR's own ResNet (He et al., 2016, section 4.2) of `6 · blocks + 2` layers, with projections as in torchvision.
fn resnet_small(blocks: usize, input: Shape, classes: usize) -> Vec<Layer> {
    resnet(&[(blocks, 16), (blocks, 32), (blocks, 64)], Form::Cifar, input, classes)
}

fn resnet(stages: &[(usize, usize)], form: Form, input: Shape, classes: usize) -> Vec<Layer> {
    let mut channels = stages[0].1;
    let (kernel, stride) = if form == Form::ImageNet { (7, 2) } else { (3, 1) };
    let mut layers =
        vec![conv("conv1", (input.channels, channels), kernel, stride, false), norm("bn1", channels), Layer::Relu];
    if form == Form::ImageNet {
        layers.push(Layer::MaxPool { kernel: 3, stride: 2, padding: 1 });
    }
    for (stage, &(blocks, width)) in stages.iter().enumerate() {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            layers.push(basic_block(&format!("layer{}.{block}", stage + 1), channels, width, stride));
            layers.push(Layer::Relu);
            channels = width;
        }
    }
    layers.extend([Layer::AdaptiveAvgPool { out: 1 }, Layer::Flatten, linear("fc", channels, classes)]);
    layers
}

fn basic_block(prefix: &str, channels: usize, width: usize, stride: usize) -> Layer {
    let main = vec![
        conv(format!("{prefix}.conv1"), (channels, width), 3, stride, false),
        norm(format!("{prefix}.bn1"), width),
        Layer::Relu,
        conv(format!("{prefix}.conv2"), (width, width), 3, 1, false),
        norm(format!("{prefix}.bn2"), width),
    ];
    let shortcut = if stride == 1 && channels == width {
        Vec::new()
    } else {
        vec![
            conv(format!("{prefix}.downsample.0"), (channels, width), 1, stride, false),
            norm(format!("{prefix}.downsample.1"), width),
        ]
    };
    Layer::Residual { main, shortcut }
}

/// The known name of least edit distance from `name`.
fn nearest(name: &str) -> &'static str {
    // A name may come from a configuration file: a long one must not cost quadratic time.
    let head: String = name.chars().take(64).collect();
    names().min_by_key(|known| edit_distance(&head, known)).unwrap_or("demo-cnn")
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_is_valid_and_keeps_its_name() {
        for name in names() {
            let network = by_name(name, 7, None).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!((network.name.as_str(), network.classes), (name, 7));
        }
    }

    #[test]
    fn names_of_parameters_are_torchvisions() {
        let names = |model: &str| -> Vec<String> {
            by_name(model, 1000, None).unwrap().parameters().into_iter().map(|p| p.name).collect()
        };
        let resnet = names("resnet18-imagenet");
        // torchvision's ResNet-18 state dict has 122 entries, 20 of them `num_batches_tracked`.
        assert_eq!(resnet.len(), 102);
        assert_eq!(resnet[0], "conv1.weight");
        assert!(resnet.contains(&"layer2.0.downsample.1.running_var".to_owned()));
        assert!(resnet.contains(&"layer4.1.bn2.bias".to_owned()));
        let vgg = names("vgg16-imagenet");
        assert!(vgg.contains(&"features.40.weight".to_owned()), "the last convolution of vgg16_bn");
        assert!(vgg.contains(&"features.41.running_mean".to_owned()));
        assert!(vgg.contains(&"classifier.6.bias".to_owned()));
        assert!(names("vgg16-cifar").contains(&"classifier.weight".to_owned()));
    }

    #[test]
    fn unknown_names_get_the_nearest() {
        let error = by_name("resnet18_cifar", 10, None).unwrap_err();
        assert_eq!(error, ModelError::Unknown { name: "resnet18_cifar".to_owned(), nearest: "resnet18-cifar" });
        assert_eq!(by_name(&"x".repeat(1 << 20), 10, None).unwrap_err().to_string().matches("mean").count(), 1);
    }

    #[test]
    fn grey_digits_fit_where_they_can() {
        for name in ["demo-cnn", "resnet8-cifar", "resnet18-cifar"] {
            assert!(by_name(name, 10, Some(MNIST)).is_ok(), "{name}");
        }
        assert!(matches!(by_name("vgg16-cifar", 10, Some(MNIST)), Err(ModelError::Shape { .. })));
        assert!(matches!(by_name("demo-cnn", 0, None), Err(ModelError::Shape { .. })));
    }

    #[test]
    fn edit_distances() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }
}
