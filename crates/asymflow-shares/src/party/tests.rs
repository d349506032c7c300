use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use asymflow_zoo::models::replace::map_activations;
use asymflow_zoo::{
    Network, Weights, by_name,
    network::{Layer, Shape},
    ops::{Choice, Form, Grouping, Quadratic, SharedRelu},
};
use proptest::prelude::*;

use super::*;
use crate::compile::{Activation, Options, Selection, Truncation, compile};
use crate::deal::{DealError, DealStore};
use crate::dealer::Dealer;
use crate::groups::Decision;
use crate::input::{ClientError, open_output, share_input};
use crate::model::{FixedModel, ModelError, Setup, WeightShare};
use crate::plaintext::PlaintextError;
use crate::prg::{Prg, Purpose, Seed, SeedError};
use crate::program::{Method, Program};
use crate::ring::Z48;

/// Both servers of one model, and the dealer.
struct Fixture<R> {
    models: [Arc<PartyModel<R>>; 2],
    seeds: [ServerSeed; 2],
    dealer: Dealer<R>,
}

const SIDES: [Server; 2] = [Server::First, Server::Second];

/// ResNet-8 with one layer of choices and one of normalised quadratics, the rest ReLU.
fn network() -> Network {
    let block = |rows, columns| Choice::Block { rows, columns };
    let kinds = [block(2, 2), Choice::Quadratic, Choice::Copy { of: 0 }, Choice::Identity, Choice::Zero];
    let make = |name: String, shape: Shape| {
        let channels = shape.channels;
        match name.as_str() {
            "conv1.act" => {
                let choices = Grouping::Choices((0..channels).map(|c| kinds[c % 5]).collect());
                Layer::SharedRelu(SharedRelu {
                    name,
                    channels,
                    grouping: choices,
                    decision: asymflow_zoo::ops::Decision::Mean,
                })
            }
            "layer2.0.conv2.act" => Layer::Quadratic(Quadratic { name, channels, form: Form::HERMITE }),
            _ => Layer::Relu,
        }
    };
    map_activations(&by_name("resnet8-cifar", 10, Some(Shape::new(3, 8, 8))).unwrap(), &make).unwrap()
}

fn options<R: Ring>(policy: WeightPolicy) -> Options {
    let shared = |block, channels, decision| Activation::SharedRelu { block, channels, decision };
    let activations = BTreeMap::from([
        ("layer1.0.conv1.relu".to_owned(), shared((2, 2), 1, Decision::Mean)),
        ("layer1.0.conv2.relu".to_owned(), shared((3, 1), 2, Decision::Centre)),
        ("layer2.0.conv1.relu".to_owned(), Activation::Quadratic { a: 0.2, b: 0.5, c: 0.1 }),
        ("layer3.0.conv1.relu".to_owned(), Activation::Identity),
    ]);
    Options { activations, samples: 2, ..Options::new::<R>(policy) }
}

fn model<R: Ring>(policy: WeightPolicy) -> FixedModel<R> {
    compile(&network(), &Weights::init(&network(), 3), &options::<R>(policy)).unwrap()
}

fn fixture<R: Ring>(policy: WeightPolicy, seed: u8) -> Fixture<R> {
    fixture_by(policy, Method::Tables, seed)
}

fn fixture_by<R: Ring>(policy: WeightPolicy, method: Method, seed: u8) -> Fixture<R> {
    let seed = Seed::from_bytes([seed; 32]);
    let model = model::<R>(policy).decided_by(Selection::Always(method));
    if policy == WeightPolicy::Public {
        let model = model.published();
        let dealer = Dealer::new(model.program().clone(), &seed, Duration::from_secs(60)).unwrap();
        return Fixture { models: [Arc::clone(&model), model], seeds: SIDES.map(|side| dealer.seed(side)), dealer };
    }
    let shares = model.share(&seed, &[0.5; 2 * 192]).unwrap();
    let dealer = Dealer::new(shares[0].program().clone(), &seed, Duration::from_secs(60)).unwrap();
    let seeds = SIDES.map(|side| dealer.seed(side));
    let [first, second] = shares;
    let (first, second) = (Setup::new(first, &seeds[0]).unwrap(), Setup::new(second, &seeds[1]).unwrap());
    let messages = [first.message(), second.message()];
    let models = [first.finish(&messages[1]).unwrap(), second.finish(&messages[0]).unwrap()];
    Fixture { models, seeds, dealer }
}

fn image(program: &Program, seed: u8) -> Vec<f32> {
    let words: Vec<u32> =
        Prg::new(&Seed::from_bytes([seed; 32]), &[0; 32], Purpose::Mask, 9, 9).words(program.input_len());
    words.into_iter().map(|word| (word as f32 / 2_f32.powi(30)) - 2.0).collect()
}

/// The messages that each server received, the outputs, and the parties as they ended.
type Run<R> = (Vec<[Message; 2]>, [OutputShare<R>; 2], [Party<R>; 2]);

impl<R: Ring> Fixture<R> {
    fn program(&self) -> &Program {
        self.models[0].program()
    }

    /// What shares of each register are short of in a query.
    fn short_of(&self, query: u64) -> Vec<Vec<R>> {
        let mut registers = vec![Vec::new(); self.program().values.len()];
        for index in 0..self.program().steps.len() {
            self.dealer.deal_op(query, index, &mut registers);
        }
        registers
    }

    fn parties(&mut self) -> [Party<R>; 2] {
        let [first, second] = self.dealer.deal(SystemTime::now());
        let party = |side: usize, deal| Party::new(Arc::clone(&self.models[side]), &self.seeds[side], deal);
        [party(0, first), party(1, second)]
    }

    /// Runs both in step.
    fn run(&mut self, image: &[f32]) -> Run<R> {
        let [mut first, mut second] = self.parties();
        let seed = Seed::from_bytes([first.query() as u8; 32]);
        let [left, right] = share_input(self.program(), first.query(), image, &seed).unwrap();
        let mut messages = Vec::new();
        let (mut a, mut b) = (first.start(left).unwrap(), second.start(right).unwrap());
        loop {
            match (a, b) {
                (Progress::Exchange(to_second), Progress::Exchange(to_first)) => {
                    a = first.receive(&to_first).unwrap();
                    b = second.receive(&to_second).unwrap();
                    messages.push([to_first, to_second]);
                }
                (Progress::Done(x), Progress::Done(y)) => return (messages, [x, y], [first, second]),
                _ => panic!("one server is done, the other is not"),
            }
        }
    }
}

/// Every layer, on the inputs that it got, against the same layer in the clear.
fn layers_agree<R: Ring>(policy: WeightPolicy, method: Method) {
    let reference = model::<R>(policy);
    let mut fixture = fixture_by::<R>(policy, method, 1);
    let image = image(fixture.program(), 1);
    let (_, outputs, parties) = fixture.run(&image);
    let program = fixture.program();
    let short_of = fixture.short_of(0);
    let mut short_values = 0;
    let mut registers: Vec<Vec<R>> = parties[0].registers.clone();
    for step in &program.steps {
        for register in [step.op.output(), 0] {
            // What was opened is known to both servers, everything else is shared.
            let opened = matches!(step.op, Op::Open { .. }) && register != 0;
            if !opened {
                registers[register] = add(&parties[0].registers[register], &parties[1].registers[register]);
                if !short_of[register].is_empty() {
                    registers[register] = add(&registers[register], &short_of[register]);
                    short_values += registers[register].len();
                }
            }
        }
    }
    registers[program.output] = add(&outputs[0].values, &outputs[1].values);
    assert_eq!(
        short_values > 0,
        policy == WeightPolicy::Shared,
        "products of masks are not dealt where they need not be"
    );
    let mut undecided_values = 0;
    for step in &program.steps {
        // Opened values are masked: linear layers are compared on what was masked.
        let mut inputs = registers.clone();
        for other in &program.steps {
            if let Op::Open { input, output } = other.op {
                inputs[output] = registers[input].clone();
            }
        }
        if matches!(step.op, Op::Open { .. }) {
            continue;
        }
        let expected = reference.step(program, &step.op, &inputs);
        let got = &registers[step.op.output()];
        assert_eq!(got.len(), expected.len());
        // A decision about a value that truncation may round up to zero goes either way.
        let undecided = |index: usize| match &step.op {
            Op::Relu { input, compare, grouping, .. } => {
                let groups = grouping.groups(program.values[*input].shape);
                let about = deciding(&inputs[*input], groups.as_ref(), program.samples);
                let about = about[crate::nonlinear::group_of(groups.as_ref(), index)].to_i64();
                (-(1 << compare.dropped)..0).contains(&about)
            }
            _ => false,
        };
        for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
            if *expected == R::ZERO && *got != R::ZERO && undecided(index) {
                undecided_values += 1;
                continue;
            }
            let difference = got.minus(*expected).to_i64();
            let bound = match step.op {
                Op::Relu { .. } | Op::Rescale { .. } | Op::Truncate { .. } => -1..=1,
                // (t + 1)² − t²
                Op::Square { .. } => {
                    let root = (expected.to_i64() as f64).sqrt().ceil() as i64;
                    -2 * root - 1..=2 * root + 1
                }
                _ => 0..=0,
            };
            assert!(bound.contains(&difference), "{}: {got:?}, expected {expected:?}", step.label);
        }
    }
    // Few values are that small.
    assert!(undecided_values < 50, "{undecided_values}");
}

#[test]
fn every_layer_agrees_with_the_clear() {
    for policy in [WeightPolicy::Public, WeightPolicy::Shared] {
        for method in [Method::Keys, Method::Tables] {
            layers_agree::<u64>(policy, method);
            layers_agree::<u32>(policy, method);
            layers_agree::<Z48>(policy, method);
        }
    }
}

#[test]
fn costs_are_those_of_the_program() {
    let policies = [WeightPolicy::Public, WeightPolicy::Shared];
    for (policy, method) in policies.into_iter().flat_map(|p| [Method::Keys, Method::Tables].map(|m| (p, m))) {
        let mut fixture = fixture_by::<u64>(policy, method, 2);
        let cost = fixture.program().cost();
        let deals = fixture.dealer.deal(SystemTime::now());
        assert_eq!([cost.dealer_bytes_first, cost.dealer_bytes_second], deals.map(|deal| deal.bytes()));
        let (messages, ..) = fixture.run(&image(fixture.program(), 1));
        assert_eq!(messages.len() as u64, cost.rounds);
        for side in 0..2 {
            let bytes: usize = messages.iter().map(|both| both[side].body_bytes()).sum();
            assert_eq!(bytes as u64, cost.online_bytes_per_server);
        }
    }
}

/// χ² of the bytes against the uniform distribution, 255 degrees of freedom.
fn chi_square(bytes: &[u8]) -> f64 {
    let mut counts = [0_u64; 256];
    bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    let expected = bytes.len() as f64 / 256.0;
    counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum()
}

/// The quantile of χ² with 255 degrees of freedom at 1 − 10⁻⁴.
const QUANTILE: f64 = 347.7;

#[test]
fn what_a_server_receives_is_uniform() {
    for policy in [WeightPolicy::Public, WeightPolicy::Shared] {
        let mut fixture = fixture::<u64>(policy, 3);
        let len = fixture.program().input_len();
        for image in [vec![0.0; len], vec![1.0; len], image(fixture.program(), 4)] {
            let (messages, ..) = fixture.run(&image);
            for side in 0..2 {
                let received: Vec<u8> = messages.iter().flat_map(|both| both[side].body().iter().copied()).collect();
                assert!(received.len() > 50_000, "{}", received.len());
                let statistic = chi_square(&received);
                assert!(statistic < QUANTILE, "{statistic}");
            }
        }
    }
    // The same values without a mask fail.
    let mut bytes = Vec::new();
    u64::write(
        &crate::input::encode::<u64>(model::<u64>(WeightPolicy::Public).program(), &vec![1.0; 384]).unwrap(),
        &mut bytes,
    );
    assert!(chi_square(&bytes) > QUANTILE);
}

#[test]
fn two_runs_on_one_input_share_no_message() {
    let mut fixture = fixture::<u64>(WeightPolicy::Shared, 4);
    let image = image(fixture.program(), 5);
    let (once, first, _) = fixture.run(&image);
    let (again, second, _) = fixture.run(&image);
    for (once, again) in once.iter().flatten().zip(again.iter().flatten()) {
        assert_eq!(once.body_bytes(), again.body_bytes());
        let equal = once.body().iter().zip(again.body()).filter(|(a, b)| a == b).count();
        // Random bytes agree once in 256 places.
        assert!(equal <= 8 + once.body_bytes() / 64, "{equal} of {}", once.body_bytes());
    }
    let differences = first.iter().zip(&second).flat_map(|(a, b)| a.values.iter().zip(&b.values));
    assert!(differences.into_iter().all(|(a, b)| a != b), "output shares are fresh as well");
}

#[test]
fn no_mask_serves_twice() {
    no_mask_of(Method::Keys);
    no_mask_of(Method::Tables);
}

fn no_mask_of(method: Method) {
    let mut fixture = fixture_by::<u64>(WeightPolicy::Shared, method, 12);
    let mut masks: Vec<u64> = Vec::new();
    let mut keys: Vec<u128> = Vec::new();
    for party in [fixture.parties(), fixture.parties()].into_iter().flatten() {
        for prepared in &party.prepared {
            match prepared {
                Prepared::Open { mask } => masks.extend(mask),
                Prepared::Relu { share, .. } => {
                    masks.extend(&share.mask);
                    keys.extend(share.decisions.secrets());
                }
                Prepared::Square(share) => masks.extend(&share.mask),
                Prepared::Rescale(share) => masks.extend(&share.mask),
                Prepared::Linear { .. } | Prepared::Nothing => {}
            }
        }
    }
    let (many, secrets) = (masks.len(), keys.len());
    assert!(many > 10_000 && secrets > 1_000, "{many} {secrets}");
    masks.sort_unstable();
    masks.dedup();
    keys.sort_unstable();
    keys.dedup();
    // Among so few words of 64 bits a chance repetition has probability 2^-30.
    assert_eq!((masks.len(), keys.len()), (many, secrets));
}

#[test]
fn a_deal_knows_no_input() {
    let mut deals = Vec::new();
    for _ in 0..2 {
        let mut fixture = fixture::<u64>(WeightPolicy::Shared, 6);
        let mut bytes = Vec::new();
        fixture.dealer.deal(SystemTime::UNIX_EPOCH)[1].write_to(&mut bytes).unwrap();
        deals.push(bytes);
    }
    assert_eq!(deals[0], deals[1], "seed and program are all that a deal depends on");
    // What the second server gets looks uniform.
    let [first, second] = fixture::<u64>(WeightPolicy::Shared, 6).dealer.deal(SystemTime::UNIX_EPOCH);
    assert!(first.ops.iter().all(|op| op.bytes.is_empty() && op.corrections.is_empty()));
    let mut bytes = Vec::new();
    second.ops.iter().for_each(|op| u64::write(&op.corrections, &mut bytes));
    assert!(bytes.len() > 50_000 && chi_square(&bytes) < QUANTILE, "{} {}", bytes.len(), chi_square(&bytes));
    // Bytes hold whole planes of tables, and then narrow words, whose last bits fill no byte.
    let planes: Vec<u8> = second.ops.iter().flat_map(|op| op.bytes[..op.bytes.len() / 2].to_vec()).collect();
    assert!(planes.len() > 20_000 && chi_square(&planes) < QUANTILE, "{} {}", planes.len(), chi_square(&planes));
}

/// Two parties that have begun, and the first message of each.
fn begun(fixture: &mut Fixture<u64>) -> ([Party<u64>; 2], [Message; 2]) {
    let [mut first, mut second] = fixture.parties();
    let image = image(fixture.program(), 1);
    let [left, right] = share_input(fixture.program(), first.query(), &image, &Seed::from_bytes([1; 32])).unwrap();
    let (Progress::Exchange(a), Progress::Exchange(b)) = (first.start(left).unwrap(), second.start(right).unwrap())
    else {
        panic!("no round")
    };
    ([first, second], [a, b])
}

#[test]
fn what_is_not_the_next_message_is_refused() {
    type Tamper = fn(&mut Message, &Message);
    let tamper: [(&str, Tamper); 8] = [
        ("session", |m, _| m.header.session[3] ^= 1),
        ("model", |m, _| m.header.model[7] ^= 1),
        ("comes from", |m, own| *m = own.clone()),
        ("query 6", |m, _| m.header.query = 6),
        ("step 1, expected 0", |m, _| m.header.step = 1),
        ("step 4294967295", |m, _| m.header.step = crate::message::SETUP),
        ("bytes, expected", |m, _| m.body.truncate(m.body.len() - 1)),
        ("bytes, expected", |m, _| m.body.clear()),
    ];
    for side in 0..2 {
        for (what, tamper) in tamper {
            let mut fixture = fixture::<u64>(WeightPolicy::Shared, 7);
            let (mut parties, messages) = begun(&mut fixture);
            let mut message = messages[1 - side].clone();
            tamper(&mut message, &messages[side]);
            let error = parties[side].receive(&message).unwrap_err();
            assert!(matches!(error, PartyError::Message(_)) && error.to_string().contains(what), "{what}: {error}");
            // The query is over: what it would have sent stays unsent.
            let error = parties[side].receive(&messages[1 - side]).unwrap_err();
            assert!(matches!(error, PartyError::State { query: 0 }), "{error}");
        }
    }
}

#[test]
fn a_replayed_message_is_refused() {
    let mut fixture = fixture::<u64>(WeightPolicy::Shared, 8);
    let (mut parties, messages) = begun(&mut fixture);
    parties[0].receive(&messages[1]).unwrap();
    let error = parties[0].receive(&messages[1]).unwrap_err();
    assert!(matches!(error, PartyError::Message(MessageError::Step { got: 0, expected: 1 })), "{error}");
}

#[test]
fn inputs_and_starts_out_of_place_are_refused() {
    let mut fixture = fixture::<u64>(WeightPolicy::Public, 9);
    let image = image(fixture.program(), 1);
    let share =
        |query: u64| share_input(fixture.models[0].program(), query, &image, &Seed::from_bytes([1; 32])).unwrap();
    let [zero, one] = [share(0), share(1)];
    let [left, right] = zero;
    let [wrong_query, _] = one;
    let refused = |party: &mut Party<u64>, share| party.start(share).unwrap_err();
    assert!(matches!(refused(&mut fixture.parties()[0], wrong_query), PartyError::Input { got: 1, expected: 0, .. }));
    let [mut first, mut second] = fixture.parties();
    assert!(matches!(refused(&mut first, left), PartyError::Input { got: 0, expected: 1, .. }));
    assert!(matches!(refused(&mut second, right), PartyError::Input { .. }));
    let mut short = share_input::<u64>(fixture.program(), 2, &image, &Seed::from_bytes([1; 32])).unwrap();
    short[0].values.pop();
    let [short, _] = short;
    assert!(matches!(refused(&mut fixture.parties()[0], short), PartyError::InputLength { .. }));
    let (mut parties, _) = begun(&mut fixture);
    let [again, _] = share_input(fixture.program(), parties[0].query(), &image, &Seed::from_bytes([1; 32])).unwrap();
    assert!(matches!(refused(&mut parties[0], again), PartyError::State { .. }));
}

#[test]
fn debug_output_shows_no_value() {
    let mut fixture = fixture::<u64>(WeightPolicy::Shared, 10);
    let (parties, messages) = begun(&mut fixture);
    assert_eq!(format!("{:?}", parties[0]), "Party(First, query 0, operation 0)");
    assert_eq!(format!("{:?}", messages[0]), format!("Message(query 0, step 0, from First, {} bytes)", 384 * 8));
    assert_eq!(format!("{:?}", fixture.seeds[1]), "ServerSeed(Second, ..)");
    assert_eq!(format!("{:?}", fixture.dealer), "Dealer(resnet8-cifar, next query 1)");
}

#[test]
fn a_masked_weight_message_belongs_to_its_model() {
    let seed = Seed::from_bytes([1; 32]);
    let setups = |seed: &Seed| {
        let shares = model::<u64>(WeightPolicy::Shared).share(seed, &[0.5; 2 * 192]).unwrap();
        let dealer = Dealer::<u64>::new(shares[0].program().clone(), seed, Duration::from_secs(60)).unwrap();
        let [first, second] = shares;
        [(first, Server::First), (second, Server::Second)]
            .map(|(share, server)| Setup::new(share, &dealer.seed(server)).unwrap())
    };
    let [first, second] = setups(&seed);
    let [_, other] = setups(&Seed::from_bytes([2; 32]));
    assert!(chi_square(second.message().body()) < QUANTILE);
    let own = first.message();
    assert_eq!(first.finish(&own).unwrap_err(), MessageError::Sender { got: Server::First, expected: Server::Second });
    let [first, _] = setups(&seed);
    assert_eq!(first.finish(&other.message()).unwrap_err(), MessageError::Session);
    let [first, _] = setups(&seed);
    let mut short = second.message();
    short.body.truncate(8);
    assert!(matches!(first.finish(&short).unwrap_err(), MessageError::Length { got: 8, .. }));
}

/// What both servers open of a model's weights, W − B, layer after layer.
fn opened_weights(shares: [WeightShare<u64>; 2], seeds: &[ServerSeed; 2]) -> Result<Vec<u64>, SeedError> {
    let [first, second] = shares;
    let messages = [Setup::new(first, &seeds[0])?.message(), Setup::new(second, &seeds[1])?.message()];
    let [first, second] = messages.map(|message| u64::read(&message.body));
    Ok(add(&first, &second))
}

#[test]
fn a_seed_of_one_model_masks_no_other() {
    let network = network();
    let options = Options::new::<u64>(WeightPolicy::Shared);
    let models = [1, 2].map(|seed| compile::<u64>(&network, &Weights::init(&network, seed), &options).unwrap());
    let [one, other] = models
        .each_ref()
        .map(|model| -> Vec<u64> { model.layers.iter().flat_map(|(weight, _)| weight.iter().copied()).collect() });
    let difference = sub(&other, &one);
    // The worst owner and the worst dealer: one seed for everything that they do.
    let seed = Seed::from_bytes([9; 32]);
    let shares = || models.each_ref().map(|model| model.clone().share(&seed, &[0.5; 192]).unwrap());
    let [one, other] = shares().map(|[share, _]| {
        let dealer = Dealer::<u64>::new(share.program().clone(), &seed, Duration::from_secs(60)).unwrap();
        SIDES.map(|side| dealer.seed(side))
    });
    // A server that starts again with another model and the seed file of before opens nothing.
    let [_, moved] = shares();
    assert!(matches!(opened_weights(moved, &one), Err(SeedError::Model { .. })));
    // And what is opened of two models says nothing of how they differ.
    let [first, second] = shares();
    let shared = |shares: &[WeightShare<u64>; 2]| shares[0].layers[0].0.clone();
    assert_ne!(shared(&first), shared(&second), "a server that has both shares subtracts them");
    let learned = sub(&opened_weights(second, &other).unwrap(), &opened_weights(first, &one).unwrap());
    let equal = learned.iter().zip(&difference).filter(|(a, b)| a == b).count();
    let largest = learned.iter().map(|x| x.to_i64().unsigned_abs()).max().unwrap();
    assert!(learned.len() > 50_000 && equal < 10 && largest > 1 << 62, "{equal} of {}, {largest}", learned.len());
}

#[test]
fn deals_of_another_dealer_than_the_set_up_are_refused() {
    let mut fixture = fixture::<u64>(WeightPolicy::Shared, 11);
    let other = Dealer::<u64>::new(fixture.program().clone(), &Seed::from_bytes([77; 32]), Duration::from_secs(60));
    let mut other = other.unwrap();
    for (side, server) in SIDES.into_iter().enumerate() {
        let model = &fixture.models[side];
        let refused = |seed| DealStore::new(Arc::clone(model), seed, 0).unwrap_err();
        assert_eq!(refused(other.seed(server)), SeedError::Dealing);
        assert_eq!(refused(fixture.seeds[1 - side].clone()), SeedError::Server { dealt: server.other() });
    }
    let [first, _] = other.deal(SystemTime::now());
    let mut store = DealStore::new(Arc::clone(&fixture.models[0]), fixture.seeds[0].clone(), 0).unwrap();
    assert!(matches!(store.insert(first), Err(DealError::Session { query: 0 })));
    let [first, _] = fixture.dealer.deal(SystemTime::now());
    store.insert(first).unwrap();
}

#[test]
fn overflow_is_an_error_in_the_clear() {
    let mut weights = Weights::init(&network(), 3);
    weights.tensors.get_mut("bn1.weight").unwrap().data.fill(5e3);
    let options = Options::new::<u64>(WeightPolicy::Public);
    let model = compile::<u64>(&network(), &weights, &options).unwrap();
    let error = model.evaluate(&[1.0; 192]).unwrap_err();
    let PlaintextError::Overflow { layer, .. } = &error else { panic!("{error}") };
    assert_eq!(layer, "layer1.0.conv1");
    // Nothing can be asked of it, and neither of what was never checked.
    assert_eq!(model.clone().publish(&[1.0; 192]).unwrap_err(), ModelError::Range(error));
    let length = ClientError::Length { got: 0, expected: 192 };
    assert_eq!(model.clone().publish(&[]).unwrap_err(), ModelError::Range(length.into()));
    let error = model.evaluate(&[f32::INFINITY; 192]).unwrap_err();
    assert!(matches!(error, PlaintextError::Input(_)), "{error}");
}

#[test]
fn consecutive_linear_layers_are_truncated() {
    // Convolutions without activations between them: the scale would grow by 12 bits a layer.
    let conv = |name: &str| {
        Layer::Conv(asymflow_zoo::ops::Conv {
            name: name.to_owned(),
            in_channels: 2,
            out_channels: 2,
            kernel: 3,
            stride: 1,
            padding: 1,
            bias: true,
        })
    };
    let network = Network {
        name: "linear".to_owned(),
        input: Shape::new(2, 4, 4),
        classes: 32,
        layers: vec![conv("a"), conv("b"), conv("c"), conv("d"), conv("e"), Layer::Flatten],
    };
    for truncation in [Truncation::Local, Truncation::Opened] {
        let options = Options { truncation, ..Options::new::<u64>(WeightPolicy::Public) };
        let model = compile::<u64>(&network, &Weights::init(&network, 1), &options).unwrap();
        let reference = compile::<u64>(&network, &Weights::init(&network, 1), &options).unwrap();
        let cuts = model.program().steps.iter().filter(|step| match step.op {
            Op::Truncate { .. } => truncation == Truncation::Local,
            Op::Rescale { .. } => truncation == Truncation::Opened,
            _ => false,
        });
        let cuts = cuts.count();
        assert!(cuts > 0);
        let model = model.publish(&[0.5; 32]).unwrap();
        let dealer = Dealer::new(model.program().clone(), &Seed::from_bytes([1; 32]), Duration::from_secs(60)).unwrap();
        let seeds = SIDES.map(|side| dealer.seed(side));
        let mut fixture = Fixture { models: [Arc::clone(&model), model], seeds, dealer };
        let image = image(fixture.program(), 2);
        let (messages, outputs, _) = fixture.run(&image);
        assert_eq!(messages.len(), if truncation == Truncation::Local { 0 } else { cuts });
        let logits = open_output(fixture.program(), &outputs).unwrap();
        for (got, expected) in logits.iter().zip(reference.evaluate(&image).unwrap().logits) {
            assert!((got - expected).abs() < 0.02, "{got} {expected}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// What `Program::from_bytes` accepts can be run.
    #[test]
    fn a_damaged_program_runs_or_is_refused(damage in prop::collection::vec((15usize..4096, any::<u8>()), 1..4)) {
        static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = BYTES.get_or_init(|| {
            let options = Options { samples: 1, ..options::<u64>(WeightPolicy::Public) };
            compile::<u64>(&network(), &Weights::init(&network(), 3), &options).unwrap().program().to_bytes()
        }).clone();
        for (at, value) in damage {
            let len = bytes.len();
            bytes[at % len] = value;
        }
        let Ok(program) = Program::from_bytes(&bytes) else { return Ok(()) };
        let values: usize = (0..program.values.len()).map(|register| program.len(register)).sum();
        let small = values < 1 << 18 && program.cost().multiplications < 1 << 26 && program.cost().dealer_bytes_second < 1 << 26;
        if !small || program.policy != WeightPolicy::Public || program.check_ring(64).is_err() {
            return Ok(());
        }
        let layers = program.layers.iter().map(|s| (vec![1; s.weight_len()], vec![1; s.out_channels])).collect();
        let model = FixedModel { program, layers }.published();
        let dealer = Dealer::new(model.program().clone(), &Seed::from_bytes([1; 32]), Duration::from_secs(60)).unwrap();
        let seeds = SIDES.map(|side| dealer.seed(side));
        let mut fixture = Fixture::<u64> { models: [Arc::clone(&model), model], seeds, dealer };
        let input = vec![0.0; fixture.program().input_len()];
        fixture.run(&input);
    }
}
