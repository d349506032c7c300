//! How decisions are made: by keys or tables, over which bits, and what that costs.

use std::time::Duration;

use crate::float::{largest_difference, lively};
use crate::servers::{image, pair, query};
use asymflow_shares::compile::{FixedModel, ModelError, Options, PlaintextError, Selection, compile, float_logits};
use asymflow_shares::link::Profile;
use asymflow_shares::program::{Cost, Method, Ring, WeightPolicy, Z48};
use asymflow_shares::randomness::Seed;
use asymflow_zoo::{Network, by_name, network::Shape};

const METHODS: [Method; 2] = [Method::Keys, Method::Tables];
const VALUES: usize = 3 * 16 * 16;

fn resnet8() -> Network {
    by_name("resnet8-cifar", 10, Some(Shape::new(3, 16, 16))).unwrap()
}

fn options<R: Ring>(method: Method) -> Options {
    Options { method: Selection::Always(method), ..Options::new::<R>(WeightPolicy::Shared) }
}

fn model<R: Ring>(options: &Options) -> FixedModel<R> {
    compile(&resnet8(), &lively(&resnet8(), 5), options).unwrap()
}

/// Logits of `images` images stay within `limit` of floating point.
fn close<R: Ring>(model: FixedModel<R>, images: std::ops::Range<u64>, limit: f64) {
    let mut pair = pair(model, 3);
    for seed in images {
        let image = image(VALUES, seed);
        let (logits, _) = query(&mut pair, &image);
        let float = float_logits(&resnet8(), &lively(&resnet8(), 5), &Default::default(), &image).unwrap();
        let found = largest_difference(&logits, &float);
        assert!(found < limit, "image {seed}: {found}");
    }
}

#[test]
fn keys_and_tables_over_both_rings() {
    for method in METHODS {
        close(model::<u64>(&options::<u64>(method)), 0..10, 0.0002);
        close(model::<Z48>(&options::<Z48>(method)), 0..10, 0.0005);
    }
}

#[test]
fn the_link_chooses_the_method_layer_by_layer() {
    let cost = |method| -> Cost {
        model::<u64>(&Options { method, ..Options::new::<u64>(WeightPolicy::Shared) }).program().cost()
    };
    let [keys, tables] = METHODS.map(|method| cost(Selection::Always(method)));
    assert_eq!(tables.dealer_bytes_first, 0, "the first server expands its seed");
    assert!(10 * tables.dealer_bytes_second < keys.dealer_bytes_second, "{keys:?} {tables:?}");
    assert!(tables.rounds > keys.rounds && tables.online_bytes_per_server > keys.online_bytes_per_server);
    let link = |latency, bytes_per_second| cost(Selection::Auto(Profile { latency, bytes_per_second }));
    // Where bytes are free keys are better, where exchanges are free tables, and in between each in its layers.
    assert_eq!(link(Duration::from_millis(20), f64::INFINITY), keys);
    assert_eq!(link(Duration::ZERO, 1e6), tables);
    let between = link(Duration::from_millis(40), 12.5e6);
    assert!((keys.rounds + 1..tables.rounds).contains(&between.rounds), "{between:?} {keys:?} {tables:?}");
}

#[test]
fn decisions_narrow_to_what_inputs_need_and_the_owner_checks_them() {
    let options = options::<u64>(Method::Tables);
    let wide = model::<u64>(&options).program().cost();
    let calibration: Vec<f32> = (0..8).flat_map(|seed| image(VALUES, seed)).collect();
    let narrow = model::<u64>(&options).narrowed(&calibration, 2).unwrap();
    let cost = narrow.program().cost();
    assert!(cost.dealer_bytes_second * 10 < wide.dealer_bytes_second * 9, "{cost:?} {wide:?}");
    close(narrow, 100..120, 0.0002);
    // Without a margin, what is larger than all calibration is refused before anything is shared.
    let narrow = model::<u64>(&options).narrowed(&vec![0.01; VALUES], 0).unwrap();
    let refused = narrow.share(&Seed::from_bytes([1; 32]), &image(VALUES, 0)).unwrap_err();
    assert!(matches!(&refused, ModelError::Range(PlaintextError::Overflow { .. })), "{refused}");
}
