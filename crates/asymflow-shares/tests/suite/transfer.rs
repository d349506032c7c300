//! Programs and shares between processes: the same after the journey, and bounded when damaged on it.

use std::sync::OnceLock;

use asymflow_shares::client::{InputShare, OutputShare, TransferError, share_input};
use asymflow_shares::compile::{Options, WeightShare, compile};
use asymflow_shares::program::{Program, ProgramError, WeightPolicy};
use asymflow_shares::randomness::Seed;
use asymflow_zoo::{
    Network, Weights, by_name,
    models::replace::{Replacement, replace_activations},
    network::Shape,
    ops::Decision,
};
use proptest::prelude::*;

fn network() -> Network {
    by_name("resnet8-cifar", 10, Some(Shape::new(3, 8, 8))).unwrap()
}

fn weight_share() -> WeightShare<u64> {
    let options = Options::new::<u64>(WeightPolicy::Shared);
    let model = compile::<u64>(&network(), &Weights::init(&network(), 1), &options).unwrap();
    let [_, second] = model.share(&Seed::from_bytes([1; 32]), &[0.5; 192]).unwrap();
    second
}

#[test]
fn programs_travel() {
    for name in ["demo-cnn", "resnet8-cifar", "resnet18-cifar", "vgg11-cifar"] {
        let network = replace_activations(&by_name(name, 10, None).unwrap(), &Replacement::AveragePooling).unwrap();
        let weights = Weights::init(&network, 1);
        for policy in [WeightPolicy::Public, WeightPolicy::Shared] {
            let model = compile::<u64>(&network, &weights, &Options::new::<u64>(policy)).unwrap();
            assert_eq!(Program::from_bytes(&model.program().to_bytes()).as_ref(), Ok(model.program()), "{name}");
        }
    }
}

#[test]
fn shares_travel() {
    let share = weight_share();
    let mut bytes = Vec::new();
    assert_eq!(share.write_to(&mut bytes).unwrap(), bytes.len() as u64);
    let mut again = Vec::new();
    WeightShare::<u64>::read_from(&mut bytes.as_slice()).unwrap().write_to(&mut again).unwrap();
    assert_eq!(bytes, again);
    let wrong = WeightShare::<u32>::read_from(&mut bytes.as_slice()).unwrap_err();
    assert_eq!(wrong.to_string(), "the program was compiled for 64 bits, not for 32");
    for end in (0..300).chain((300..bytes.len()).step_by(9973)) {
        let cut = WeightShare::<u64>::read_from(&mut &bytes[..end]);
        assert!(matches!(cut, Err(TransferError::Wire(_))), "cut at {end}");
    }

    let program = share.program();
    let [first, _] = share_input::<u64>(program, 7, &[0.5; 192], &Seed::from_bytes([2; 32])).unwrap();
    let (mut bytes, mut again) = (Vec::new(), Vec::new());
    first.write_to(&mut bytes).unwrap();
    InputShare::<u64>::read_from(&mut bytes.as_slice(), program).unwrap().write_to(&mut again).unwrap();
    assert_eq!(bytes, again);
    // 192 values are no logits.
    let error = OutputShare::<u64>::read_from(&mut bytes.as_slice(), program).unwrap_err();
    assert!(matches!(error, TransferError::Wire(_)), "{error}");
    assert!(InputShare::<u64>::read_from(&mut &bytes[..bytes.len() - 1], program).is_err());
}

fn program_bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| weight_share().program().to_bytes())
}

/// Of a network with every choice of a channel.
fn mixed_bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let network = crate::trained::mixed(Decision::Mean);
        let options = Options::new::<u64>(WeightPolicy::Public);
        let model = compile::<u64>(&network, &Weights::init(&network, 1), &options).unwrap();
        let bytes = model.program().to_bytes();
        assert_eq!(Program::from_bytes(&bytes).as_ref(), Ok(model.program()));
        bytes
    })
}

#[test]
fn a_program_is_checked() {
    assert!(matches!(Program::from_bytes(&[]), Err(ProgramError::Malformed(_))));
    // The byte after the name and the number of samples is the ring.
    let mut bytes = program_bytes().to_vec();
    let at = 1 + "resnet8-cifar".len() + 1;
    assert_eq!(bytes[at], 64);
    bytes[at] = 63;
    assert_eq!(Program::from_bytes(&bytes), Err(ProgramError::Setting("width of the ring")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_damaged_program_runs_or_is_refused(
        damage in prop::collection::vec((0usize..4096, any::<u8>()), 1..4), mixed: bool,
    ) {
        let mut bytes = if mixed { mixed_bytes() } else { program_bytes() }.to_vec();
        for (at, value) in damage {
            let len = bytes.len();
            bytes[at % len] = value;
        }
        if let Ok(program) = Program::from_bytes(&bytes) {
            // What is accepted can be priced, labelled and hashed without a panic.
            let cost = program.cost();
            for step in 0..cost.rounds.min(1000) {
                program.label(step as u32);
            }
            program.hash();
        }
    }

    #[test]
    fn noise_is_no_program(noise: Vec<u8>) {
        let _ = Program::from_bytes(&noise);
        let _ = WeightShare::<u64>::read_from(&mut noise.as_slice());
    }
}
