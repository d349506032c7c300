//! A discrete Fourier transform of power-of-two length, enough to convolve loss distributions.

use std::f64::consts::TAU;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Complex {
    pub(crate) re: f64,
    pub(crate) im: f64,
}

impl Complex {
    pub(crate) const ONE: Self = Self { re: 1.0, im: 0.0 };

    pub(crate) const fn times(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }

    pub(crate) const fn norm_squared(self) -> f64 {
        self.re * self.re + self.im * self.im
    }

    /// By repeated squaring; the relative error is below 2⁻⁵⁰·`exponent`.
    pub(crate) fn power(self, mut exponent: u64) -> Self {
        let (mut result, mut square) = (Self::ONE, self);
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = result.times(square);
            }
            square = square.times(square);
            exponent >>= 1;
        }
        result
    }
}

/// Twiddle factors for transforms of one length.
#[derive(Debug)]
pub(crate) struct Fourier {
    /// exp(−2πi·k/length) for k below length/2.
    roots: Vec<Complex>,
}

impl Fourier {
    /// For transforms of `length`, a power of two.
    pub(crate) fn new(length: usize) -> Self {
        let root = |k: usize| {
            let (sin, cos) = (-TAU * k as f64 / length as f64).sin_cos();
            Complex { re: cos, im: sin }
        };
        Self { roots: (0..length / 2).map(root).collect() }
    }

    /// The transform in place, frequencies in bit-reversed order (which products of spectra do not mind).
    pub(crate) fn forward(&self, values: &mut [Complex]) {
        let mut half = values.len() / 2;
        while half > 0 {
            let stride = self.roots.len() / half;
            for block in values.chunks_exact_mut(2 * half) {
                let (left, right) = block.split_at_mut(half);
                for ((a, b), root) in left.iter_mut().zip(right).zip(self.roots.iter().step_by(stride)) {
                    let (sum, difference) = (add(*a, *b), subtract(*a, *b));
                    *a = sum;
                    *b = difference.times(*root);
                }
            }
            half /= 2;
        }
    }

    /// Undoes [`Self::forward`], up to a factor of the length.
    pub(crate) fn backward(&self, values: &mut [Complex]) {
        let mut half = 1;
        while half < values.len() {
            let stride = self.roots.len() / half;
            for block in values.chunks_exact_mut(2 * half) {
                let (left, right) = block.split_at_mut(half);
                for ((a, b), root) in left.iter_mut().zip(right).zip(self.roots.iter().step_by(stride)) {
                    let turned = b.times(Complex { re: root.re, im: -root.im });
                    (*a, *b) = (add(*a, turned), subtract(*a, turned));
                }
            }
            half *= 2;
        }
    }
}

const fn add(a: Complex, b: Complex) -> Complex {
    Complex { re: a.re + b.re, im: a.im + b.im }
}

const fn subtract(a: Complex, b: Complex) -> Complex {
    Complex { re: a.re - b.re, im: a.im - b.im }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transform_of_a_shifted_impulse_is_a_wave_and_comes_back() {
        let fourier = Fourier::new(8);
        let mut values = [Complex::default(); 8];
        values[1] = Complex::ONE;
        fourier.forward(&mut values);
        for (index, value) in values.iter().enumerate() {
            let frequency = (index as u32).reverse_bits() >> 29;
            let angle = -TAU * f64::from(frequency) / 8.0;
            assert!((value.re - angle.cos()).abs() < 1e-15 && (value.im - angle.sin()).abs() < 1e-15, "{index}");
        }
        fourier.backward(&mut values);
        for (index, value) in values.iter().enumerate() {
            assert!((value.re - if index == 1 { 8.0 } else { 0.0 }).abs() < 1e-14 && value.im.abs() < 1e-14);
        }
    }

    #[test]
    fn a_power_is_the_repeated_product() {
        let base = Complex { re: 0.6, im: 0.79 };
        let product = (0..13).fold(Complex::ONE, |product, _| product.times(base));
        let power = base.power(13);
        assert!((power.re - product.re).abs() < 1e-14 && (power.im - product.im).abs() < 1e-14);
    }
}
