//! Maximum pooling by comparisons: max(a, b) = b + ReLU(a − b).

use asymflow_zoo::network::{Layer, Shape};
use asymflow_zoo::ops::MaxPool;

use super::activate::Votes;
use super::lower::{Compiler, DIFFERENCE_BITS};
use super::options::Activation;
use crate::groups::Grouping;
use crate::program::{Op, Register, Value};
use crate::ring::Ring;

impl<R: Ring> Compiler<'_, R> {
    /// The maximum pooling at the beginning of `layers`, where the ReLU before it may as well stand behind.
    pub(super) fn pooled_first(&self, layers: &[Layer]) -> Option<MaxPool> {
        let &[Layer::MaxPool { kernel, stride, padding }, ..] = layers else { return None };
        let chosen = self.options.activations.get(&format!("{}.relu", self.last));
        matches!(chosen, None | Some(Activation::Relu)).then_some(MaxPool { kernel, stride, padding })
    }

    /// The largest value of every window, of its columns first and then of its rows: kernel − 1 comparisons for each, ⌈log₂ kernel⌉ of them one
    /// after the other. A place in the padding takes the value at the border, which its window has too.
    pub(super) fn max_pool(&mut self, pool: MaxPool, input: Register) -> Register {
        let name = format!("max-pool after {}", self.last);
        let most = R::BITS - 1 - self.options.integer_bits - DIFFERENCE_BITS;
        let input = self.shorten(&name, input, most);
        let Shape { height, width, .. } = self.value(input).shape;
        let places = |side: usize, tap: usize| -> Vec<u32> {
            let outputs = (side + 2 * pool.padding - pool.kernel) / pool.stride + 1;
            let place = |output: usize| (output * pool.stride + tap).saturating_sub(pool.padding).min(side - 1) as u32;
            (0..outputs).map(place).collect()
        };
        let all = |side: usize| (0..side as u32).collect::<Vec<_>>();
        let columns = (0..pool.kernel).map(|tap| self.take(&name, input, all(height), places(width, tap))).collect();
        let wide = self.largest(&name, columns);
        let outputs = self.value(wide).shape.width;
        let rows = (0..pool.kernel).map(|tap| self.take(&name, wide, places(height, tap), all(outputs))).collect();
        self.largest(&name, rows)
    }

    fn take(&mut self, name: &str, input: Register, rows: Vec<u32>, columns: Vec<u32>) -> Register {
        let Value { shape, scale } = self.value(input);
        let shape = Shape { height: rows.len(), width: columns.len(), ..shape };
        self.push(name, shape, scale, |output| Op::Take { input, output, rows, columns })
    }

    /// The largest of tensors of one shape and scale, value by value.
    fn largest(&mut self, name: &str, mut of: Vec<Register>) -> Register {
        while of.len() > 1 {
            of = of.chunks(2).map(|pair| if let &[a, b] = pair { self.larger(name, a, b) } else { pair[0] }).collect();
        }
        of[0]
    }

    fn larger(&mut self, name: &str, a: Register, b: Register) -> Register {
        let Value { shape, scale } = self.value(a);
        let negative =
            self.push(name, shape, scale, |output| Op::Affine { input: b, output, factor: vec![-1], offset: vec![0] });
        let difference =
            self.push(name, shape, scale, |output| Op::Add { inputs: [a, negative], shifts: [0, 0], output });
        let excess = self.relu(name, Grouping::Each, Votes::new(false, 2), difference);
        let shifts = [scale - self.value(excess).scale, 0];
        self.push(name, shape, scale, |output| Op::Add { inputs: [excess, b], shifts, output })
    }
}
