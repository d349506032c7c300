//! The built-in data set: ten kinds of figures, drawn at random places, sizes and colours.
//!
//! Only the kind of figure tells the class: position, size, tilt, colours and which of figure and ground
//! is the brighter are random, so that no weighted sum of pixels separates the classes.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use crate::data::{Dataset, Split};
use crate::shape::Shape;

/// Names of the classes of the synthetic set.
pub const SYNTHETIC_CLASSES: [&str; 10] =
    ["disc", "ring", "square", "frame", "triangle", "cross", "bars", "stripes", "checkers", "dots"];

const SIDE: usize = 32;
const SHAPE: Shape = Shape::new(3, SIDE, SIDE);
/// Standard deviation of the pixel noise, in units of the full range.
const NOISE: f32 = 0.05;
/// Figures are turned by at most so many radians either way.
const TILT: f32 = 0.25;
/// Least distance of the two colours of an image, of at most √3.
const CONTRAST: f32 = 0.45;

/// A synthetic set of 3×32×32 images in ten classes of equal size (up to one sample), deterministic in `seed`.
/// Sample i is of class i mod 10; the test set is drawn independently of the training set.
pub fn synthetic(train: usize, test: usize, seed: u64) -> Split {
    Split { train: part(train, seed, 0), test: part(test, seed, 1) }
}

fn part(len: usize, seed: u64, stream: u64) -> Dataset {
    let mut images = vec![0; len * SHAPE.len()];
    images.par_chunks_exact_mut(SHAPE.len()).enumerate().for_each(|(index, image)| {
        let mut key = [0; 32];
        for (bytes, value) in key.chunks_exact_mut(8).zip([seed, stream, index as u64]) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        draw(index % SYNTHETIC_CLASSES.len(), &mut ChaCha8Rng::from_seed(key), image);
    });
    let labels = (0..len).map(|index| (index % SYNTHETIC_CLASSES.len()) as u32).collect();
    let class_names = SYNTHETIC_CLASSES.iter().map(|name| (*name).to_owned()).collect();
    Dataset { images, labels, shape: SHAPE, class_names }
}

/// A figure in its own coordinates, in which it fills about the unit disc.
struct Figure {
    class: usize,
    x: f32,
    y: f32,
    scale: f32,
    sin: f32,
    cos: f32,
}

impl Figure {
    fn random(class: usize, rng: &mut ChaCha8Rng) -> Self {
        let scale = rng.random_range(7.0..11.0_f32);
        let (low, high) = (scale - 1.0, SIDE as f32 - scale + 1.0);
        let (sin, cos) = rng.random_range(-TILT..TILT).sin_cos();
        Self { class, x: rng.random_range(low..high), y: rng.random_range(low..high), scale, sin, cos }
    }

    /// Whether the figure covers the point at column `x` and row `y`.
    fn covers(&self, x: f32, y: f32) -> bool {
        let (x, y) = ((x - self.x) / self.scale, (y - self.y) / self.scale);
        let (u, v) = (self.cos * x + self.sin * y, self.cos * y - self.sin * x);
        let radius = u.hypot(v);
        let side = u.abs().max(v.abs());
        match self.class {
            0 => radius < 0.9,
            1 => (0.55..0.95).contains(&radius),
            2 => side < 0.8,
            3 => (0.48..0.85).contains(&side),
            4 => v > -0.55 && v < 0.95 - 1.75 * u.abs(),
            5 => u.abs().min(v.abs()) < 0.25 && side < 1.0,
            6 => side < 0.9 && (u * 2.5).rem_euclid(1.0) < 0.5,
            7 => side < 0.9 && (v * 2.5).rem_euclid(1.0) < 0.5,
            8 => side < 0.9 && ((u * 2.0).rem_euclid(1.0) < 0.5) != ((v * 2.0).rem_euclid(1.0) < 0.5),
            _ => {
                side < 1.0
                    && ((u * 1.5 + 0.5).rem_euclid(1.0) - 0.5).hypot((v * 1.5 + 0.5).rem_euclid(1.0) - 0.5) < 0.33
            }
        }
    }

    /// Share of pixel (`column`, `row`) that is covered, of a 3×3 grid of points.
    fn coverage(&self, column: usize, row: usize) -> f32 {
        const GRID: [f32; 3] = [1.0 / 6.0, 0.5, 5.0 / 6.0];
        let points = GRID.iter().flat_map(|dy| GRID.iter().map(move |dx| (column as f32 + dx, row as f32 + dy)));
        points.filter(|&(x, y)| self.covers(x, y)).count() as f32 / 9.0
    }
}

fn draw(class: usize, rng: &mut ChaCha8Rng, image: &mut [u8]) {
    let figure = Figure::random(class, rng);
    let (ink, ground) = colours(rng);
    // Light falls off in a random direction.
    let slope: [f32; 2] = std::array::from_fn(|_| rng.random_range(-0.15..0.15));
    let mut canvas = [[0.0_f32; SIDE * SIDE]; 3];
    for row in 0..SIDE {
        for column in 0..SIDE {
            let cover = figure.coverage(column, row);
            let light = slope[0] * (column as f32 / 16.0 - 1.0) + slope[1] * (row as f32 / 16.0 - 1.0);
            for channel in 0..3 {
                canvas[channel][row * SIDE + column] =
                    ground[channel] + cover * (ink[channel] - ground[channel]) + light;
            }
        }
    }
    for _ in 0..rng.random_range(1..4) {
        scratch(&mut canvas, rng);
    }
    for (out, value) in image.iter_mut().zip(canvas.iter().flatten()) {
        let noise: f32 = StandardNormal.sample(rng);
        // Rounds to the nearest byte; the cast saturates.
        *out = ((value + NOISE * noise) * 255.0 + 0.5) as u8;
    }
}

/// Two random colours, at least [`CONTRAST`] apart.
fn colours(rng: &mut ChaCha8Rng) -> ([f32; 3], [f32; 3]) {
    loop {
        let [ink, ground]: [[f32; 3]; 2] = std::array::from_fn(|_| std::array::from_fn(|_| rng.random()));
        let squared: f32 = ink.iter().zip(ground).map(|(a, b)| (a - b).powi(2)).sum();
        if squared.sqrt() >= CONTRAST {
            return (ink, ground);
        }
    }
}

/// Draws a short line of a random colour somewhere: it tells nothing about the class.
fn scratch(canvas: &mut [[f32; SIDE * SIDE]; 3], rng: &mut ChaCha8Rng) {
    let colour: [f32; 3] = std::array::from_fn(|_| rng.random());
    let (mut x, mut y) = (rng.random_range(0.0..SIDE as f32), rng.random_range(0.0..SIDE as f32));
    let (sin, cos) = rng.random_range(0.0..std::f32::consts::TAU).sin_cos();
    for _ in 0..rng.random_range(2..9) {
        let inside = 0.0..SIDE as f32;
        if inside.contains(&x) && inside.contains(&y) {
            let at = y as usize * SIDE + x as usize;
            canvas.iter_mut().zip(colour).for_each(|(plane, value)| plane[at] = value);
        }
        (x, y) = (x + cos, y + sin);
    }
}
