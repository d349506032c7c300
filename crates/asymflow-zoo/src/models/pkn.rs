//! PolyKervNets (Aremu and Nandakumar, SaTML 2023): polynomial kervolutions in place of convolutions and activations,
//! average pooling, normalisation after the polynomial.
//!
//! As in the released networks, the stem, the first convolution of a block or stage and shortcuts are kervolutions and the
//! others stay convolutions. `pkn-resnet14` has the first three stages of ResNet-18, which is also what the released
//! `PKR18` computes, since its forward pass leaves the last stage out; `pkn-resnet18` here has all four.

use crate::models::{VggStages, conv, linear, norm};
use crate::network::{Layer, output_of};
use crate::ops::{Form, Quadratic};
use crate::shape::Shape;

/// c_p at the start, as published.
const C_P: f32 = 1.0;
/// Probability of the dropout after normalisations and sums, as released.
const DROPOUT: Layer = Layer::Dropout { p: 0.2 };

/// y = (conv(x, w) + c_p)², under the name of its convolution, and its normalisation.
fn kerv(name: &str, io: (usize, usize), kernel: usize, stride: usize, norm_name: String) -> Vec<Layer> {
    let quadratic = Quadratic { name: format!("{name}.kerv"), channels: io.1, form: Form::Kervolution { c: C_P } };
    vec![conv(name, io, kernel, stride, false), Layer::Quadratic(quadratic), norm(norm_name, io.1)]
}

/// Halves a map by averages; of one row it stays.
fn halve(layers: &mut Vec<Layer>, input: Shape) {
    let side = output_of(layers, input).map_or(2, |shape| shape.height);
    layers.push(Layer::AdaptiveAvgPool { out: (side / 2).max(1) });
}

fn classifier(layers: &mut Vec<Layer>, input: Shape, classes: usize) {
    let features = output_of(layers, input).map_or(1, |shape| shape.len());
    layers.extend([Layer::Flatten, linear("fc", features, classes)]);
}

/// PKL-5: two 5×5 kervolutions and one fully connected layer.
pub(crate) fn lenet(input: Shape, classes: usize) -> Vec<Layer> {
    let mut layers = kerv("conv1", (input.channels, 6), 5, 1, "bn1".to_owned());
    halve(&mut layers, input);
    layers.extend(kerv("conv2", (6, 16), 5, 1, "bn2".to_owned()));
    halve(&mut layers, input);
    classifier(&mut layers, input, classes);
    layers
}

/// PKA-8: AlexNet's five convolutions in the form usual for 32×32, and one fully connected layer.
pub(crate) fn alexnet(input: Shape, classes: usize) -> Vec<Layer> {
    let mut layers = kerv("conv1", (input.channels, 64), 3, 2, "bn1".to_owned());
    halve(&mut layers, input);
    layers.extend(kerv("conv2", (64, 192), 3, 1, "bn2".to_owned()));
    halve(&mut layers, input);
    layers.extend(kerv("conv3", (192, 384), 3, 1, "bn3".to_owned()));
    layers.extend([conv("conv4", (384, 256), 3, 1, false), norm("bn4", 256)]);
    layers.extend([conv("conv5", (256, 256), 3, 1, false), norm("bn5", 256)]);
    halve(&mut layers, input);
    classifier(&mut layers, input, classes);
    layers
}

/// PKV: `K64 K64 A C128 C128 A C256 K256 K256 A C512 C512 C512 A K512 C512 C512 A` for 16 layers, with one fully connected
/// layer; the other depths by the same rule.
pub(crate) fn vgg(stages: VggStages, input: Shape, classes: usize) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut channels = input.channels;
    for (stage, (convs, out)) in stages.into_iter().zip([64, 128, 256, 512, 512]).enumerate() {
        for index in 0..convs {
            let name = format!("stage{}.{index}", stage + 1);
            let is_kerv = match stage {
                0 => true,
                2 => index > 0,
                4 => index == 0,
                _ => false,
            };
            if is_kerv {
                layers.extend(kerv(&format!("{name}.conv"), (channels, out), 3, 1, format!("{name}.bn")));
            } else {
                layers.extend([
                    conv(format!("{name}.conv"), (channels, out), 3, 1, false),
                    norm(format!("{name}.bn"), out),
                ]);
            }
            channels = out;
        }
        halve(&mut layers, input);
    }
    classifier(&mut layers, input, classes);
    layers
}

/// PKR: stem, the first convolution of each block and projections are kervolutions; no activation after a sum.
pub(crate) fn resnet(blocks: &[usize], input: Shape, classes: usize) -> Vec<Layer> {
    let mut channels = 64;
    let mut layers = kerv("conv1", (input.channels, channels), 3, 1, "bn1".to_owned());
    for (stage, (&blocks, width)) in blocks.iter().zip([64, 128, 256, 512]).enumerate() {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            layers.extend([block_of(&format!("layer{}.{block}", stage + 1), channels, width, stride), DROPOUT]);
            channels = width;
        }
    }
    layers.push(Layer::AdaptiveAvgPool { out: 1 });
    classifier(&mut layers, input, classes);
    layers
}

fn block_of(prefix: &str, channels: usize, width: usize, stride: usize) -> Layer {
    let mut main = kerv(&format!("{prefix}.conv1"), (channels, width), 3, stride, format!("{prefix}.bn1"));
    main.extend([
        DROPOUT,
        conv(format!("{prefix}.conv2"), (width, width), 3, 1, false),
        norm(format!("{prefix}.bn2"), width),
    ]);
    let shortcut = if stride == 1 && channels == width {
        Vec::new()
    } else {
        let name = format!("{prefix}.downsample.0");
        kerv(&name, (channels, width), 1, stride, format!("{prefix}.downsample.1"))
    };
    Layer::Residual { main, shortcut }
}
