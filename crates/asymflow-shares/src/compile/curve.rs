//! Quadratics into squares.
//!
//! a x² + b x + c = ±(αx + β)² + γ with α = √|a|, β = ±b / 2α and γ = c ∓ β²: one square for each activation. After a
//! convolution or fully connected layer α and β are folded into its weights and bias; ± and γ are local. A normalisation
//! after the quadratic changes a, b and c of each channel before any of this.

use asymflow_zoo::{
    network::{Layer, Shape},
    ops::{Op as ZooOp, Quadratic},
};

use super::lower::Compiler;
use super::options::{Activation, CompileError};
use crate::program::{Op, Part, Register, Value};
use crate::ring::{Ring, fixed_point};

/// Most fraction bits that a coefficient gets beyond what its layer has.
const EXTRA_BITS: u32 = 16;

/// Quadratics of all channels: a, b and c.
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) channels: Vec<[f64; 3]>,
}

/// What is folded into one channel before, and what follows.
#[derive(Clone, Copy)]
struct Completed {
    /// α and β, or b and c where a is nothing.
    before: (f64, f64),
    /// ± and γ; `None` for a channel without a square.
    after: Option<(f64, f64)>,
}

impl Completed {
    /// `negligible` is the a below which a x² is nothing.
    fn new([a, b, c]: [f64; 3], negligible: f64) -> Self {
        if a.abs() < negligible {
            return Self { before: (b, c), after: None };
        }
        let (sign, alpha) = (a.signum(), a.abs().sqrt());
        let beta = sign * b / (2.0 * alpha);
        Self { before: (alpha, beta), after: Some((sign, c - sign * beta * beta)) }
    }
}

/// Curves whose squares have been completed.
pub(super) struct Squares {
    name: String,
    channels: Vec<Completed>,
    /// Fraction bits of what is squared.
    bits: u32,
}

impl Squares {
    /// `affine`, of each channel of the layer before, with α and β folded in.
    pub(super) fn folded(&self, affine: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let fold = |(channel, completed): (usize, &Completed)| {
            let (factor, offset) = affine.get(channel).copied().unwrap_or((1.0, 0.0));
            let (alpha, beta) = completed.before;
            (alpha * factor, alpha * offset + beta)
        };
        self.channels.iter().enumerate().map(fold).collect()
    }

    fn most(&self, of: impl Fn(&Completed) -> f64) -> f64 {
        self.channels.iter().map(|channel| of(channel).abs()).fold(0.0, f64::max)
    }
}

impl<R: Ring> Compiler<'_, R> {
    /// The quadratic at the head of `rest`, with a normalisation after it, and the layers after both.
    pub(super) fn curve<'l>(
        &self,
        rest: &'l [Layer],
        channels: usize,
    ) -> Result<Option<(Curve, &'l [Layer])>, CompileError> {
        let (name, curve, rest) = if let [Layer::Quadratic(quadratic), rest @ ..] = rest {
            (quadratic.name.clone(), self.coefficients(quadratic), rest)
        } else if let [Layer::Relu, rest @ ..] = rest
            && let name = format!("{}.relu", self.last)
            && let Some(Activation::Quadratic { a, b, c }) = self.options.activations.get(&name)
        {
            if *a == 0.0 {
                return Err(CompileError::Activation { name, what: "coefficient of a quadratic" });
            }
            (name, vec![[*a, *b, *c]], rest)
        } else {
            return Ok(None);
        };
        let mut curve: Vec<[f64; 3]> =
            (0..channels).filter_map(|i| curve.get(i % curve.len().max(1)).copied()).collect();
        let mut rest = rest;
        if let [Layer::BatchNorm { name: norm, .. }, after @ ..] = rest {
            rest = after;
            for ([a, b, c], (factor, offset)) in curve.iter_mut().zip(self.folded(norm)) {
                (*a, *b, *c) = (*a * factor, *b * factor, *c * factor + offset);
            }
        }
        if curve.iter().flatten().any(|value| !value.is_finite()) {
            return Err(CompileError::Activation { name, what: "coefficient of a quadratic" });
        }
        Ok(Some((Curve { name, channels: curve }, rest)))
    }

    fn coefficients(&self, quadratic: &Quadratic) -> Vec<[f64; 3]> {
        let params = ZooOp::Quadratic(quadratic.clone()).parameters();
        let tensors: Vec<&[f32]> = params.iter().map(|spec| self.tensor(&spec.name)).collect();
        quadratic.coefficients(&tensors).into_iter().map(|of| [of.a, of.b, of.c].map(f64::from)).collect()
    }

    pub(super) fn complete(&self, curve: Curve) -> Result<Squares, CompileError> {
        let Curve { name, channels } = curve;
        let bits = self.options.fixed.square_bits;
        // Where a x² stays below half a unit of an activation's last place for all that is expected.
        let negligible = 2_f64.powi(-((bits + 1 + 2 * self.options.integer_bits.saturating_sub(1)) as i32));
        let channels = channels.into_iter().map(|channel| Completed::new(channel, negligible)).collect();
        let mut squares = Squares { name, channels, bits };
        // An error of t = αx + β counts 2|t| times in t²: large β wants more fraction bits, where there is room.
        let beta = squares.most(|channel| channel.after.map_or(0.0, |_| channel.before.1));
        let wanted = bits + (beta / 4.0).max(1.0).log2().ceil() as u32;
        let integers = 2.0 * (beta + 1.0).log2() + 4.0;
        let room = (f64::from(R::BITS - 2) - integers) / 2.0;
        if room < f64::from(bits) {
            return Err(CompileError::Activation {
                name: squares.name,
                what: "coefficient of x, large beside that of x²,",
            });
        }
        squares.bits = wanted.min(room as u32);
        Ok(squares)
    }

    /// Fraction bits that weights of a layer get on top, because α makes them small: as many as there is room for.
    pub(super) fn extra_bits(&self, squares: &Squares, scale: u32) -> u32 {
        let (alpha, beta) = (squares.most(|c| c.before.0), squares.most(|c| c.before.1));
        let integers =
            (alpha * 2_f64.powi(self.options.integer_bits as i32 - 1) + beta).max(1.0).log2().ceil() as u32 + 1;
        let small = if alpha > 0.0 { (-alpha.log2()).ceil().clamp(0.0, f64::from(EXTRA_BITS)) as u32 } else { 0 };
        small.min((R::BITS - 2).saturating_sub(scale + integers))
    }

    /// Quadratics of a tensor that no layer before can take α and β.
    pub(super) fn quadratic(&mut self, curve: Curve, input: Register) -> Result<Register, CompileError> {
        let squares = self.complete(curve)?;
        // α is small: without fraction bits of its own it would vanish.
        let input = self.make_room(&squares.name, input);
        let Value { shape, scale } = self.value(input);
        let integer_bits = self.options.integer_bits;
        let extra = (R::BITS - 2).saturating_sub(scale + integer_bits).min(EXTRA_BITS);
        let (mut factor, mut offset) = (Vec::new(), Vec::new());
        for channel in &squares.channels {
            factor.push(self.fixed(&squares.name, channel.before.0, extra)?);
            offset.push(self.fixed(&squares.name, channel.before.1, scale + extra)?);
        }
        let name = squares.name.clone();
        let input = self.push(&name, shape, scale + extra, |output| Op::Affine { input, output, factor, offset });
        self.square(&squares, input)
    }

    /// ±t² + γ of t = αx + β, and what is linear as it is.
    pub(super) fn square(&mut self, squares: &Squares, input: Register) -> Result<Register, CompileError> {
        let Squares { name, channels, bits } = squares;
        let places = |squared: bool| -> Vec<u32> {
            let wanted = |(_, channel): &(usize, &Completed)| channel.after.is_some() == squared;
            channels.iter().enumerate().filter(wanted).map(|(index, _)| index as u32).collect()
        };
        let (curved, straight) = (places(true), places(false));
        if curved.is_empty() {
            return Ok(input);
        }
        let part = if straight.is_empty() { input } else { self.select(name, input, curved.clone()) };
        let Value { shape, scale } = self.value(part);
        let bits = (*bits).min(scale);
        let shift = scale - bits;
        let square = self.push(name, shape, 2 * bits, |output| Op::Square { input: part, output, shift });
        let (mut factor, mut offset) = (Vec::new(), Vec::new());
        for (sign, gamma) in channels.iter().filter_map(|channel| channel.after) {
            factor.push(sign as i64);
            offset.push(self.fixed(name, gamma, 2 * bits)?);
        }
        let plain = factor.iter().all(|f| *f == 1) && offset.iter().all(|o| *o == 0);
        let square = if plain {
            square
        } else {
            self.push(name, shape, 2 * bits, |output| Op::Affine { input: square, output, factor, offset })
        };
        if straight.is_empty() {
            return Ok(square);
        }
        let line = self.select(name, input, straight.clone());
        let shape = self.value(input).shape;
        Ok(self.join(name, shape, vec![(square, curved), (line, straight)]))
    }

    pub(super) fn select(&mut self, name: &str, input: Register, channels: Vec<u32>) -> Register {
        let Value { shape, scale } = self.value(input);
        let shape = Shape { channels: channels.len(), ..shape };
        self.push(name, shape, scale, |output| Op::Select { input, output, channels })
    }

    /// Parts at their places, at the largest of their scales; one that has more fraction bits than a square, and than the next
    /// weights have room for, is truncated first.
    pub(super) fn join(&mut self, name: &str, shape: Shape, parts: Vec<(Register, Vec<u32>)>) -> Register {
        let most = self.room().max(2 * self.options.fixed.square_bits);
        let parts: Vec<_> =
            parts.into_iter().map(|(input, channels)| (self.shorten(name, input, most), channels)).collect();
        let scale = parts.iter().map(|(input, _)| self.value(*input).scale).max().unwrap_or(most);
        let parts = parts
            .into_iter()
            .map(|(input, channels)| Part { input, shift: scale - self.value(input).scale, channels })
            .collect();
        self.push(name, shape, scale, |output| Op::Join { parts, output })
    }

    pub(super) fn fixed(&self, name: &str, value: f64, bits: u32) -> Result<i64, CompileError> {
        fixed_point::<R>(value, bits)
            .ok_or_else(|| CompileError::Activation { name: name.to_owned(), what: "coefficient of a quadratic" })
    }
}
