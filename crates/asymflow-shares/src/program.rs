//! What two servers compute: a public list of operations on secret-shared tensors.

use asymflow_zoo::network::Shape;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::conv::ConvShape;
use crate::groups::Grouping;

mod check;

pub use check::ProgramError;

pub use crate::ring::{Ring, Z48};

/// SHA-256 of a [`Program`], which tells every model from every other.
pub type ModelHash = [u8; 32];

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// The one whose randomness comes from a seed alone.
    First,
    /// The one that gets the dealer's corrections.
    Second,
}

impl Server {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    pub(crate) const fn is_first(self) -> bool {
        matches!(self, Self::First)
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// Whether the servers know the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightPolicy {
    /// Both servers know them. Linear layers are local: no byte online.
    Public,
    /// Additively shared between the servers; neither knows them, nor does the dealer.
    Shared,
}

/// Fraction bits of fixed-point numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedPoint {
    /// Of inputs, and of activations where they are truncated.
    pub activation_bits: u32,
    /// Of what is squared; a square has twice as many.
    pub square_bits: u32,
    /// Of weights; up to eight more where there is room.
    pub weight_bits: u32,
}

/// Index of a tensor of a program.
pub(crate) type Register = usize;

/// Shape of a tensor, and fraction bits of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Value {
    pub(crate) shape: Shape,
    pub(crate) scale: u32,
}

/// One operation. Every register is written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Op {
    /// Opens the input under a fresh mask, for linear layers with shared weights. One round.
    Open { input: Register, output: Register },
    /// Convolution or fully connected layer. Its input has been opened where weights are shared.
    Linear { input: Register, layer: usize, output: Register },
    /// max(x, 0), the decision made for each group, and truncation by `shift` bits. Two rounds by keys, up to four by tables.
    Relu { input: Register, output: Register, shift: u32, compare: Compare, grouping: Grouping },
    /// x² after truncation by `shift` bits. One round.
    Square { input: Register, output: Register, shift: u32 },
    /// factor · x + offset, one of each for all channels or one for each.
    Affine { input: Register, output: Register, factor: Vec<i64>, offset: Vec<i64> },
    /// The channels that are named, and no others.
    Select { input: Register, output: Register, channels: Vec<u32> },
    /// The rows and columns that are named, of every channel.
    Take { input: Register, output: Register, rows: Vec<u32>, columns: Vec<u32> },
    /// The channels of each part at the places named, shifted left so that the scales agree; zero elsewhere.
    Join { parts: Vec<Part>, output: Register },
    /// The sum of two tensors, each shifted left so that the scales agree.
    Add { inputs: [Register; 2], shifts: [u32; 2], output: Register },
    /// Sums over PyTorch's adaptive windows times `2^bits / size` rounded.
    Pool { input: Register, output: Register, bits: u32 },
    /// Truncation of an opened value, which never fails. One round.
    Rescale { input: Register, output: Register, shift: u32 },
    /// Local truncation of each share.
    Truncate { input: Register, output: Register, shift: u32 },
}

/// One part of [`Op::Join`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) input: Register,
    pub(crate) shift: u32,
    /// Where its channels go.
    pub(crate) channels: Vec<u32>,
}

/// Which bits of a masked value a comparison looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compare {
    /// Low bits that are ignored.
    pub(crate) dropped: u32,
    /// Width of the window above them, the sign bit included; at least 2.
    pub(crate) width: u32,
    pub(crate) method: Method,
}

/// How a public value is compared with what the dealer alone knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Function secret sharing: one exchange, some 16 bytes a bit to each server.
    Keys,
    /// One-time tables and gates: up to three exchanges, some 4 bits a bit to the second server.
    Tables,
}

/// An operation and the name of the layer that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) label: String,
    pub(crate) op: Op,
}

/// A network compiled for two servers: public, without its weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "check::Unchecked")]
pub struct Program {
    pub(crate) name: String,
    /// Samples in one query.
    pub(crate) samples: usize,
    pub(crate) ring_bits: u32,
    pub(crate) policy: WeightPolicy,
    pub(crate) fixed: FixedPoint,
    /// Integer bits of every value, sign included.
    pub(crate) integer_bits: u32,
    /// Register 0 is the input.
    pub(crate) values: Vec<Value>,
    pub(crate) output: Register,
    pub(crate) layers: Vec<ConvShape>,
    pub(crate) steps: Vec<Step>,
    /// Tells models of one architecture apart: the hash of public weights, or random for shared ones.
    pub(crate) tag: [u8; 32],
}

/// The program was compiled for another ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the program was compiled for {program} bits, not for {got}")]
pub struct RingError {
    /// Bits of the program's ring.
    pub program: u32,
    /// Bits of the ring that was tried.
    pub got: u32,
}

/// What one query costs by the structure of the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Exchanges between the servers.
    pub rounds: u64,
    /// Payload that each server sends online.
    pub online_bytes_per_server: u64,
    /// What the dealer sends to the first server.
    pub dealer_bytes_first: u64,
    /// What the dealer sends to the second server.
    pub dealer_bytes_second: u64,
    /// Sign decisions.
    pub decisions: u64,
    /// Multiplications of linear layers.
    pub multiplications: u64,
}

/// Sizes of what the dealer sends for one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DealSize {
    /// Blocks of 16 bytes, to both servers.
    pub(crate) common: usize,
    /// Bytes, to the second server.
    pub(crate) bytes: usize,
    /// Ring elements, to the second server.
    pub(crate) corrections: usize,
}

/// Bytes of `count` rows of `columns` words of `bits` bits.
pub(crate) const fn narrow_bytes(columns: usize, bits: u32, count: usize) -> usize {
    (columns * bits as usize).div_ceil(8) * count
}

impl DealSize {
    /// Bytes over a ring with elements of `word` bytes.
    pub(crate) const fn total(self, word: usize) -> usize {
        16 * self.common + self.bytes + word * self.corrections
    }

    /// What `server` gets of it.
    pub(crate) fn of(self, server: Server) -> Self {
        if server.is_first() { Self { common: self.common, ..Self::default() } } else { self }
    }
}

impl Program {
    /// Name of the network.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the servers know the weights.
    pub const fn policy(&self) -> WeightPolicy {
        self.policy
    }

    /// Samples of one query.
    pub const fn samples(&self) -> usize {
        self.samples
    }

    /// Values that a query takes: samples × channels × height × width.
    pub fn input_len(&self) -> usize {
        self.len(0)
    }

    /// Logits that a query gives: samples × classes.
    pub fn output_len(&self) -> usize {
        self.len(self.output)
    }

    /// Inputs and weights stay below it in magnitude.
    pub(crate) fn value_limit(&self) -> f64 {
        2_f64.powi(self.integer_bits as i32 - 1)
    }

    /// For the other server and the dealer.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Nothing in a program can fail to encode.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// The inverse of [`Program::to_bytes`], for bytes from outside: every shape, register and shift is checked.
    ///
    /// # Errors
    /// The bytes are no program, or one that cannot be run.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProgramError> {
        let unchecked: check::Unchecked = postcard::from_bytes(bytes).map_err(ProgramError::Malformed)?;
        unchecked.try_into()
    }

    /// Checks that shares over a ring of `bits` bits fit.
    pub(crate) const fn check_ring(&self, bits: u32) -> Result<(), RingError> {
        if self.ring_bits == bits { Ok(()) } else { Err(RingError { program: self.ring_bits, got: bits }) }
    }

    /// Identifies program, format and model: what every message carries.
    pub fn hash(&self) -> ModelHash {
        Sha256::new().chain_update(self.tag).chain_update(self.to_bytes()).finalize().into()
    }

    /// Name of the layer that exchange `step` of a query belongs to.
    pub fn label(&self, step: u32) -> &str {
        let mut rounds = 0;
        let found = self.steps.iter().find(|s| {
            rounds += s.op.rounds();
            step < rounds
        });
        found.map_or("end", |step| &step.label)
    }

    /// Costs of one query.
    pub fn cost(&self) -> Cost {
        let word = u64::from(self.ring_bits / 8);
        let mut cost = Cost::default();
        let exact = self.exact();
        for Step { op, .. } in &self.steps {
            cost.rounds += u64::from(op.rounds());
            let size = self.deal_size(op, &exact);
            cost.dealer_bytes_first += size.of(Server::First).total(word as usize) as u64;
            cost.dealer_bytes_second += size.of(Server::Second).total(word as usize) as u64;
            match op {
                Op::Open { input, .. } | Op::Square { input, .. } | Op::Rescale { input, .. } => {
                    cost.online_bytes_per_server += word * self.len(*input) as u64;
                }
                Op::Relu { input, grouping, compare, .. } => {
                    let decisions = self.decisions(*input, grouping);
                    cost.decisions += decisions as u64;
                    cost.online_bytes_per_server +=
                        word * self.len(*input) as u64 + compare.online_bytes(decisions) as u64;
                }
                Op::Linear { layer, .. } => {
                    cost.multiplications += (self.samples * self.layers[*layer].multiplications()) as u64;
                }
                Op::Affine { .. }
                | Op::Select { .. }
                | Op::Take { .. }
                | Op::Join { .. }
                | Op::Add { .. }
                | Op::Pool { .. }
                | Op::Truncate { .. } => {}
            }
        }
        cost
    }

    /// Values of a register, all samples together.
    pub(crate) fn len(&self, register: Register) -> usize {
        self.samples * self.values[register].shape.len()
    }

    /// Sign decisions of a rectification, all samples together.
    pub(crate) fn decisions(&self, input: Register, grouping: &Grouping) -> usize {
        self.samples * grouping.count(self.values[input].shape)
    }

    /// Sign decisions of an operation, all samples together.
    pub(crate) fn decisions_of(&self, op: &Op) -> usize {
        if let Op::Relu { input, grouping, .. } = op { self.decisions(*input, grouping) } else { 0 }
    }

    /// For each register whether its shares must add up to its value. Elsewhere they may be short of something that the dealer knows,
    /// and by which it changes the mask under which the value is opened: products of masks need not be dealt then.
    pub(crate) fn exact(&self) -> Vec<bool> {
        let mut exact = vec![false; self.values.len()];
        exact[self.output] = true;
        for Step { op, .. } in self.steps.iter().rev() {
            let needs = match op {
                Op::Open { .. } | Op::Truncate { .. } => true,
                Op::Linear { .. } => self.policy == WeightPolicy::Public,
                Op::Relu { .. } | Op::Square { .. } | Op::Rescale { .. } => false,
                Op::Affine { output, .. }
                | Op::Select { output, .. }
                | Op::Take { output, .. }
                | Op::Join { output, .. }
                | Op::Add { output, .. }
                | Op::Pool { output, .. } => exact[*output],
            };
            op.inputs().into_iter().for_each(|input| exact[input] |= needs);
        }
        exact
    }

    /// `exact` as [`Program::exact`] has it.
    pub(crate) fn deal_size(&self, op: &Op, exact: &[bool]) -> DealSize {
        match op {
            Op::Relu { input, grouping, compare, shift, .. } => {
                let (len, decisions) = (self.len(*input), self.decisions(*input, grouping));
                let size = compare.deal_size(decisions);
                let bytes = size.bytes + narrow_bytes(2, *shift, len);
                DealSize { bytes, corrections: decisions + 2 * len, ..size }
            }
            Op::Square { input, shift, .. } => {
                let len = self.len(*input);
                DealSize { common: 0, bytes: narrow_bytes(2, *shift, len), corrections: 2 * len }
            }
            Op::Rescale { input, shift, .. } => {
                let len = self.len(*input);
                DealSize { common: 0, bytes: narrow_bytes(1, *shift, len), corrections: len }
            }
            Op::Linear { output, .. } if self.policy == WeightPolicy::Shared && exact[*output] => {
                DealSize { corrections: self.len(*output), ..DealSize::default() }
            }
            Op::Linear { .. }
            | Op::Open { .. }
            | Op::Affine { .. }
            | Op::Select { .. }
            | Op::Take { .. }
            | Op::Join { .. }
            | Op::Add { .. }
            | Op::Pool { .. }
            | Op::Truncate { .. } => DealSize::default(),
        }
    }
}

impl Op {
    /// The registers that it reads, opened ones included.
    pub(crate) fn inputs(&self) -> Vec<Register> {
        match self {
            Self::Open { input, .. }
            | Self::Linear { input, .. }
            | Self::Relu { input, .. }
            | Self::Square { input, .. }
            | Self::Affine { input, .. }
            | Self::Select { input, .. }
            | Self::Take { input, .. }
            | Self::Pool { input, .. }
            | Self::Rescale { input, .. }
            | Self::Truncate { input, .. } => vec![*input],
            Self::Join { parts, .. } => parts.iter().map(|part| part.input).collect(),
            Self::Add { inputs, .. } => inputs.to_vec(),
        }
    }

    /// Where its result goes.
    pub(crate) const fn output(&self) -> Register {
        match self {
            Self::Open { output, .. }
            | Self::Linear { output, .. }
            | Self::Relu { output, .. }
            | Self::Square { output, .. }
            | Self::Affine { output, .. }
            | Self::Select { output, .. }
            | Self::Take { output, .. }
            | Self::Join { output, .. }
            | Self::Add { output, .. }
            | Self::Pool { output, .. }
            | Self::Rescale { output, .. }
            | Self::Truncate { output, .. } => *output,
        }
    }

    /// Exchanges between the servers.
    pub(crate) fn rounds(&self) -> u32 {
        match self {
            Self::Relu { compare, .. } => 1 + compare.rounds(),
            Self::Open { .. } | Self::Square { .. } | Self::Rescale { .. } => 1,
            Self::Linear { .. }
            | Self::Affine { .. }
            | Self::Select { .. }
            | Self::Take { .. }
            | Self::Join { .. }
            | Self::Add { .. }
            | Self::Pool { .. }
            | Self::Truncate { .. } => 0,
        }
    }
}
