//! Operations that a server does on its shares alone.

use crate::channels::{affine, join, select, take};
use crate::pool::pool;
use crate::program::{Op, Program};
use crate::ring::Ring;

/// What a linear operation computes of `registers`, which may be values, shares of them, or what shares are short of. Constants are added
/// where `has_constants`. `None` for all other operations.
pub(crate) fn local<R: Ring>(program: &Program, op: &Op, registers: &[Vec<R>], has_constants: bool) -> Option<Vec<R>> {
    let shape = |register: usize| program.values[register].shape;
    Some(match op {
        Op::Affine { input, output, factor, offset } => {
            let offset = if has_constants { offset.as_slice() } else { &[0] };
            affine(shape(*output), factor, offset, &registers[*input])
        }
        Op::Select { input, channels, .. } => select(shape(*input), channels, &registers[*input]),
        Op::Take { input, rows, columns, .. } => take(shape(*input), rows, columns, &registers[*input]),
        Op::Join { parts, output } => join(shape(*output), program.samples, parts, registers),
        Op::Add { inputs: [left, right], shifts: [a, b], .. } => {
            let terms = registers[*left].iter().zip(&registers[*right]);
            terms.map(|(x, y)| x.shifted_left(*a).plus(y.shifted_left(*b))).collect()
        }
        Op::Pool { input, output, bits } => pool(shape(*input), shape(*output).height, *bits, &registers[*input]),
        Op::Open { .. }
        | Op::Linear { .. }
        | Op::Relu { .. }
        | Op::Square { .. }
        | Op::Rescale { .. }
        | Op::Truncate { .. } => return None,
    })
}
